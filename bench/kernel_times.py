"""Norms and causal attention, forward and backward, eager and compiled: medians of rounds in turn, in one process.

python bench/kernel_times.py --out bench/results/kernel_times.json

The norms are those of the models, with gains in float32, and give the dtype that they take, as the matrix product
after them would under mixed precision. On a GPU Liger's kernel stands beside them if it is installed.
"""
# B batch, H heads, T tokens, K width of a head, N tokens of a batch, D width

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import product
from math import ceil
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from dnt.machine import describe_machine
from dnt.nn.attention import attention
from dnt.nn.norms import NORMS

NORM_SHAPES = [(4096, 192), (2048, 768)]  # N x D
ATTENTION_SHAPES = [(64, 4, 64, 32), (8, 6, 256, 64), (2, 12, 256, 64), (2, 12, 1024, 64)]  # B x H x T x K
LEAST_SECONDS = 0.02  # of a round

Kernel = Callable[..., Tensor]


def norms(width: int, device: torch.device) -> dict[str, Kernel]:
    kernels: dict[str, Kernel] = {}
    for name, norm in NORMS.items():
        kernels |= both_ways(name, partial(normalized, norm(width).to(device)))
    if device.type == "cuda" and find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_rms_norm

        gain = torch.ones(width, device=device, requires_grad=True)
        kernels["rmsnorm, Liger"] = lambda x: liger_rms_norm(x, gain, 1e-6, in_place=False)  # gradients are used again
    return kernels


def normalized(norm: nn.Module, x_ND: Tensor) -> Tensor:
    return norm(x_ND).to(x_ND.dtype)


def attentions() -> dict[str, Kernel]:
    whole = both_ways("torch", partial(F.scaled_dot_product_attention, is_causal=True))
    return whole | both_ways("dnt", partial(attention, causal=True))


def both_ways(name: str, kernel: Kernel) -> dict[str, Kernel]:
    return {f"{name}, eager": kernel, f"{name}, compiled": torch.compile(kernel, dynamic=False)}


def medians(kernels: dict[str, Kernel], inputs: list[Tensor], rounds: int) -> dict[str, float]:
    """Seconds of a forward and a backward pass, by name."""
    gradient = torch.randn_like(inputs[0])
    timers, calls = {}, {}
    for name, kernel in kernels.items():
        run = partial(forward_backward, kernel, inputs, gradient)
        timers[name] = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        timers[name].timeit(1)  # compiles
        calls[name] = ceil(LEAST_SECONDS / timers[name].timeit(1).mean)
    seconds: dict[str, list[float]] = {name: [] for name in kernels}
    for i in range(rounds):
        for name in list(kernels)[:: 1 if i % 2 == 0 else -1]:
            seconds[name].append(timers[name].timeit(calls[name]).mean)
    return {name: median(found) for name, found in seconds.items()}


def forward_backward(kernel: Kernel, inputs: list[Tensor], gradient: Tensor) -> None:
    for x in inputs:
        x.grad = None
    kernel(*inputs).backward(gradient)


def cases(device: torch.device) -> Iterator[tuple[str, tuple[int, ...], int, Callable[[], dict[str, Kernel]]]]:
    """What, the shape of its inputs, how many it has, and its kernels."""
    for shape in NORM_SHAPES:
        yield "norm", shape, 1, partial(norms, shape[-1], device)
    for shape in ATTENTION_SHAPES:
        yield "causal attention", shape, 3, attentions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("bench/results/kernel_times.json"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    print(f"{'':64} {'ms':>9} {'against the first':>18}")
    for (what, shape, count, kernels), dtype in product(cases(device), (torch.float32, torch.bfloat16)):
        torch._dynamo.reset()  # each case compiles for itself
        inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(count)]
        found = medians(kernels(), inputs, arguments.rounds)
        first = next(iter(found.values()))
        for name, seconds in found.items():
            of = {"what": what, "shape": shape, "dtype": str(dtype).removeprefix("torch."), "kernel": name}
            rows.append(of | {"seconds": seconds, "against_the_first": seconds / first})
            label = f"{what} {' x '.join(map(str, shape))} {of['dtype']}"
            print(f"{label:44} {name:19} {1e3 * seconds:9.3f} {seconds / first:18.2f}", flush=True)
    machine = describe_machine(device) | {"load": os.getloadavg()}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
