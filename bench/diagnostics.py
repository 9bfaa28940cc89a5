"""What measuring a model costs, in time and memory: a process for each thing, in turn.

python bench/diagnostics.py --out bench/results/diagnostics.json

gradients: dnt.analysis.gradient_stats on one batch against a training step (forward, backward, a step of MSGDW) on as
much, both eager. The peaks are of memory in use, as in bench/memory.py, in processes of their own.

singular_values: the largest of the Jacobian of one block, of as many inputs as tokens x width; one process, a time.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from memory import ENVIRONMENT, Setting, forget_peak

import dnt
from dnt.analysis.jacobian import evaluating
from dnt.experiments.alternate import Measure, alternate
from dnt.files import write_json
from dnt.machine import describe_machine, peak_memory_bytes, wait
from dnt.report.measured import paired_ratio


def training_step(setting: Setting, device: torch.device) -> Callable[[], Any]:
    model, tokens_BT = setting.model(device)
    optimizer = dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-4), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        setting.loss(model, tokens_BT).backward()
        optimizer.step()

    return step


def gradient_stats(setting: Setting, device: torch.device) -> Callable[[], Any]:
    model, tokens_BT = setting.model(device)
    return lambda: dnt.analysis.gradient_stats(model, [(tokens_BT,)], setting.loss)


STEP, STATS = "training step", "gradient_stats"
WAYS = {STEP: training_step, STATS: gradient_stats}


def build(name: str, setting: Setting) -> tuple[Measure, Callable[[], dict[str, Any]]]:
    """In its process: the measurement of one call, and the most memory that it took."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    WAYS[name](Setting("gpt-tiny", 1, 8, setting.precision), device)()  # loads what is needed
    gc.collect()
    forget_peak(device)
    before = peak_memory_bytes(device)
    call = WAYS[name](setting, device)
    call()  # warms up, makes the state

    def measure() -> dict[str, float]:
        wait(device)
        begin = time.perf_counter()
        call()
        wait(device)
        return {"seconds": time.perf_counter() - begin}

    return measure, lambda: {"peak_bytes": peak_memory_bytes(device) - before, "machine": describe_machine(device)}


def gradients(arguments: argparse.Namespace) -> dict[str, Any]:
    """gradient_stats against a training step."""
    setting = Setting(arguments.size, arguments.batch, arguments.context, arguments.precision)
    builds = {name: partial(build, name, setting) for name in WAYS}
    timed = alternate(builds, arguments.rounds)
    weighed = alternate(builds, 1, ENVIRONMENT)
    seconds = {name: timed[name].median("seconds") for name in WAYS}
    peaks = {name: weighed[name].end["peak_bytes"] for name in WAYS}
    time_ratio, memory_ratio = paired_ratio(timed[STATS], timed[STEP], "seconds"), peaks[STATS] / peaks[STEP]
    print(f"{'':20} {'seconds':>10} {'peak GB':>10}")
    for name in WAYS:
        print(f"{name:20} {seconds[name]:10.3f} {peaks[name] / 1e9:10.3f}")
    print(f"{'ratio':20} {time_ratio:10.2f} {memory_ratio:10.2f}", flush=True)
    return {
        "setting": vars(setting),
        "seconds": seconds,
        "seconds_of_all": {name: [found["seconds"] for found in timed[name].rounds] for name in WAYS},
        "peak_bytes": peaks,
        "time_ratio": time_ratio,
        "memory_ratio": memory_ratio,
        "machine": timed[STEP].end["machine"] | {"load": os.getloadavg()},
    }


def largest_of_a_block(placement: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds for the largest singular values of a fresh block's Jacobian, at random inputs."""
    torch.manual_seed(0)
    model = dnt.gpt(arguments.size, depth=1, placement=placement)
    x_BTD = torch.randn(1, arguments.tokens, model.config.dim)
    begin = time.perf_counter()
    with evaluating(model):
        found = dnt.analysis.singular_values(model.blocks[0], x_BTD, arguments.singular_values)
    seconds = time.perf_counter() - begin
    row = {"placement": placement, "inputs": x_BTD.numel(), "count": len(found), "seconds": seconds}
    return row | {"largest": float(found[0]), "smallest of them": float(found[-1])}


def singular_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of a block of each placement, on the CPU."""
    rows = []
    for placement in ("dnt", "pre-ln"):
        row = largest_of_a_block(placement, arguments)
        print(
            f"{placement:7} the {row['count']} largest singular values of {row['inputs']:,} inputs: "
            f"{row['seconds']:.1f} s; {row['largest']:.3g} to {row['smallest of them']:.3g}",
            flush=True,
        )
        rows.append(row)
    setting = {name: getattr(arguments, name) for name in ("size", "tokens", "singular_values")}
    machine = describe_machine(torch.device("cpu")) | {"load": os.getloadavg()}
    return {"setting": setting, "rows": rows, "machine": machine}


MEASUREMENTS = {  # each prints its table, and returns what is written under its name
    "gradients": gradients,
    "singular_values": singular_values,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--size", default="gpt2-small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256, help="of singular_values")
    parser.add_argument("--singular-values", type=int, default=32, help="how many of them")
    parser.add_argument("--out", type=Path, default=Path("bench/results/diagnostics.json"))
    arguments = parser.parse_args()
    write_json(arguments.out, {name: MEASUREMENTS[name](arguments) for name in arguments.only})


if __name__ == "__main__":
    main()
