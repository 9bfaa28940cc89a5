"""How long one step of an optimizer takes, gradients standing: a process each, in turn, against fused AdamW.

python bench/optim_step.py --out bench/results/optim_step.json

Gradients are new random numbers before every step, and the learning rate another, as a schedule has it. Bytes are those
that a step must read and write, a float32 parameter; what passes through memory more than once goes at a lower rate.
Momentum that is kept in the gradient is made there by zero_grad, which is timed as part of the step.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, AdamW, Optimizer

import dnt
from dnt.experiments.alternate import Measure, alternate
from dnt.files import write_json
from dnt.machine import describe_machine, wait
from dnt.report.measured import paired_ratio
from dnt.settings import VARIATIONS

RECIPE = {name: VARIATIONS["calibrated"][name] for name in ("bound", "nesterov")}


@dataclass(frozen=True)
class Way:
    """An optimizer, and the bytes a parameter that one step must move."""

    make: Callable[..., Optimizer]
    bytes: int
    compiled: bool = False
    zero_grad: bool = False  # part of the step


IN_GRAD = {"momentum_in_grad": True}
WAYS = {  # w, g and m are read, w and m written: 20 bytes; v too: 28; for a bound w, g and m are read twice: 32
    "AdamW, fused": Way(partial(AdamW, lr=1e-3, fused=True), 28),
    "AdamW, foreach": Way(partial(AdamW, lr=1e-3, foreach=True), 28),
    "SGD with momentum, fused": Way(partial(SGD, lr=0.1, momentum=0.9, fused=True), 20),
    "SGD with momentum, foreach": Way(partial(SGD, lr=0.1, momentum=0.9, foreach=True), 20),
    "MSGDW": Way(partial(dnt.MSGDW, lr=0.1), 20),
    "MSGDW, compiled": Way(partial(dnt.MSGDW, lr=0.1), 20, compiled=True),
    "MSGDW, bound and Nesterov": Way(partial(dnt.MSGDW, lr=0.1, **RECIPE), 32),
    "MSGDW, bound and Nesterov, compiled": Way(partial(dnt.MSGDW, lr=0.1, **RECIPE), 32, compiled=True),
    "MSGDW, momentum in gradient": Way(partial(dnt.MSGDW, lr=0.1, **IN_GRAD), 20, zero_grad=True),
    "MSGDW, momentum in gradient, compiled": Way(
        partial(dnt.MSGDW, lr=0.1, **IN_GRAD), 20, compiled=True, zero_grad=True
    ),
}


def build(name: str, size: str) -> tuple[Measure, Callable[[], dict[str, Any]]]:
    """In its process: the measurement of one step, and what it was of."""
    way = WAYS[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = dnt.gpt(size, placement="dnt")
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer = way.make(dnt.param_groups(model, weight_decay=1e-4))
    if way.compiled:
        optimizer.compile()
    optimizer.step()  # makes the state

    def measure() -> dict[str, float]:
        for p in parameters:
            p.grad.uniform_(-1e-3, 1e-3)
        for group in optimizer.param_groups:
            group["lr"] *= 0.99
        wait(device)
        begin = time.perf_counter()
        if way.zero_grad:
            optimizer.zero_grad()
        optimizer.step()
        wait(device)
        return {"seconds": time.perf_counter() - begin}

    measure()  # warms up
    return measure, lambda: {"parameters": sum(p.numel() for p in parameters), "machine": describe_machine(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="gpt2-small")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("bench/results/optim_step.json"))
    arguments = parser.parse_args()
    found = alternate({name: partial(build, name, arguments.size) for name in WAYS}, arguments.rounds)
    reference = found["AdamW, fused"]
    parameters, machine = (reference.end[key] for key in ("parameters", "machine"))
    rows = []
    print(f"{'':38} {'ms a step':>10} {'against fused AdamW':>20} {'bytes a parameter':>18} {'GB/s':>7}")
    for name, way in WAYS.items():
        seconds = found[name].median("seconds")
        row = {
            "optimizer": name,
            "seconds": seconds,
            "against_fused_adamw": paired_ratio(found[name], reference, "seconds"),
            "bytes_a_parameter": way.bytes,
            "GB_per_s": way.bytes * parameters / seconds / 1e9,
            "seconds_of_all": [measured["seconds"] for measured in found[name].rounds],
        }
        rows.append(row)
        print(
            f"{name:38} {1e3 * seconds:10.2f} {row['against_fused_adamw']:20.2f} {way.bytes:18} {row['GB_per_s']:7.1f}",
            flush=True,
        )
    result = {"size": arguments.size, "parameters": parameters, "machine": machine | {"load": os.getloadavg()}}
    write_json(arguments.out, result | {"rows": rows})


if __name__ == "__main__":
    main()
