"""What a step of DNT + mSGDW costs as one of its sizes grows 8-fold: seconds and bytes, and the exponents that fit.

python bench/scaling.py --out bench/results/scaling.json
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dnt.experiments.alternate import alternate
from dnt.experiments.benchmark import show, ways
from dnt.experiments.steps import timed_steps
from dnt.files import write_json
from dnt.machine import describe_machine
from dnt.settings import BenchSettings

FACTORS = (1, 2, 4, 8)
AXES = {  # heads grow with the width, so that each stays as wide
    "batch": ("batch_size",),
    "width": ("dim", "heads"),
    "depth": ("depth",),
    "context": ("context",),
}
WHAT = ("seconds", "peak", "tensors")


def costs(base: BenchSettings, axis: str, factors: list[int], folder: Path) -> list[dict[str, float]]:
    """Of each factor: seconds a step (median), bytes of its peak above the imports, and of its tensors alone."""
    builds = {}
    for factor in factors:
        grown = replace(base, **{name: factor * getattr(base, name) for name in AXES[axis]})
        [(cell, threads)] = ways(grown)
        name = f"{axis} x {factor}"
        builds[name] = partial(timed_steps, cell, folder / name, threads, base.steps_per_round)
    found = alternate(builds, base.rounds, show=partial(show, base.rounds))
    rows = []
    for factor, measured in zip(factors, found.values(), strict=True):
        held = measured.end["bytes"]
        tensors = sum(held[name] for name in ("weights", "gradients", "state", "activations"))
        peak = held["peak"] - held["before"]
        rows.append({"factor": factor, "seconds": measured.median("step"), "peak": peak, "tensors": tensors})
    return rows


def exponent(rows: list[dict[str, float]], what: str) -> float:
    """b of cost = a factor^b, by least squares of the logarithms."""
    return float(np.polyfit(*(np.log([row[name] for row in rows]) for name in ("factor", what)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"depth": 3, "dim": 192, "heads": 3, "context": 128, "batch-size": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of the smallest")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--factors", nargs="+", type=int, default=FACTORS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps-per-round", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results/scaling.json"))
    arguments = vars(parser.parse_args())
    axes, factors, out = (arguments.pop(name) for name in ("axes", "factors", "out"))
    base = BenchSettings(**arguments)
    found = {}
    with TemporaryDirectory() as folder:
        for axis in axes:
            rows = costs(base, axis, factors, Path(folder))
            found[axis] = {"rows": rows, "exponents": {what: exponent(rows, what) for what in WHAT}}
    print(f"{'':14} {'ms a step':>10} {'peak MiB':>10} {'tensors MiB':>12}")
    for axis, of_axis in found.items():
        for row in of_axis["rows"]:
            mib = row["peak"] / 2**20, row["tensors"] / 2**20
            print(f"{axis:8} x {row['factor']:<3} {1000 * row['seconds']:10,.1f} {mib[0]:10,.1f} {mib[1]:12,.1f}")
        seconds, peak, tensors = of_axis["exponents"].values()
        print(f"{axis:8} {'^':>5} {seconds:10.2f} {peak:10.2f} {tensors:12.2f}")
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    write_json(out, {"base": arguments, "machine": machine, "axes": found})


if __name__ == "__main__":
    main()
