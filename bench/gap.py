"""Does the shape of the gradient early in training tell how far mSGDW ends behind AdamW? See docs/protocol.md.

dnt ablate --data shakespeare.txt --tokenizer char --optimizers adamw --steps 200 --warmup 20 --eval-every 200 \\
    --checkpoint-every 200 --points 3 --most-points 3 --decays 1e-4 --seeds 0 1 --out runs/ablate-adamw
python bench/gap.py shakespeare.txt --adamw runs/ablate-adamw --runs runs/gap --out bench/results/gap.json

The first command tunes AdamW in each cell. mSGDW's rates and losses are those that docs/results.md has; the script runs
it up to the moment that was registered, with a diagnosis, and compares. That moment is the end of the warm-up, until
when a run does not depend on its length. Finished runs in --runs are not run again.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

import dnt
from dnt.files import write_json
from dnt.report.cells import cells_in

MSGDW = {  # placement and initialization: rate and test loss ("Each norm alone, and left out" in docs/results.md)
    **{("pre-ln", "gpt2"): (0.1, 2.451), ("s2", "gpt2"): (0.1, 2.386), ("s3", "gpt2"): (1.0, 2.425)},
    **{("s4", "gpt2"): (0.1, 2.393), ("dnt", "gpt2"): (0.1, 2.367), ("dnt", "dnt"): (0.1, 2.375)},
    **{("dnt-no-input", "gpt2"): (0.03, 2.504), ("dnt-no-pre", "gpt2"): (0.1, 2.372)},
    **{("dnt-no-qk", "gpt2"): (0.1, 2.457), ("dnt-no-mid", "gpt2"): (1.0, 2.376)},
    **{("input-only", "gpt2"): (0.3, 2.540), ("qk-only", "gpt2"): (0.3, 2.467)},
    **{("mid-only", "gpt2"): (0.03, 2.811), ("no-norm", "gpt2"): (0.3, 2.547)},
}
STEP_DECAY = 1e-4  # lr x weight decay
MOMENT = 20  # of 200 steps
LENGTHS = ("steps", "warmup", "eval-every", "checkpoint-every", "diagnose-every")
STATISTIC = "norm² in the largest 1%"
PERMUTATIONS = 100_000


def diagnosed(data: str, runs: Path, job: tuple[tuple[str, str], int]) -> dnt.Run:
    """mSGDW up to the moment."""
    (placement, init), seed = job
    out = runs / f"{placement}-{init}-seed{seed}"
    if dnt.Run(out).end is None:
        lr, _ = MSGDW[placement, init]
        new = ["--data", data, "--tokenizer", "char", "--placement", placement, "--init", init, "--lr", str(lr)]
        new += ["--weight-decay", str(STEP_DECAY / lr), "--seed", str(seed), "--out", str(out)]
        new += [word for name in LENGTHS for word in (f"--{name}", str(MOMENT))]
        new += ["--no-compile"]  # longer than the run
        options = ["--resume", str(out)] if (out / "config.json").exists() else new
        subprocess.run([sys.executable, "-m", "dnt", "train", *options], check=True)
    return dnt.Run(out)


def statistics(run: dnt.Run) -> dict[str, float]:
    """Of the diagnosis after its last step: the registered statistic first, then all others."""
    tables = run.rows("diagnosis")[-1]["tables"]
    blocks = next(row for row in tables["gradients"] if row["level"] == "blocks")
    whole = next(row for row in tables["gradients"] if row["level"] == "all")
    found = {STATISTIC: blocks["top_share"], "the same, of all parameters": whole["top_share"]}
    found |= {"kurtosis": blocks["kurtosis"], "largest over median": blocks["max_to_median"]}
    for row in tables["tails"]:
        if row["name"] == "blocks":
            found[f"{row['index']}, {row['how']}"] = row["value"]
    shares = next(row for row in tables["shares"] if row["name"] == "blocks")
    found["variance of log|g|"] = shares["variance"]
    found |= {f"share of it between {name}": shares[name] for name in ("parameters", "rows", "columns")}
    end = next(row for row in tables["jacobians"] if row["what"] == "end to end")
    found |= {"end to end: largest singular value": end["largest"], "end to end: log-spread": end["log_spread"]}
    found["end to end: effective rank"] = end["effective_rank"]
    found["entropy of attention"] = mean(row["uniformity"] for row in tables["attention"])
    return found


def correlation(x: list[float], y: list[float]) -> tuple[float, float]:
    """Spearman's, with its two-sided p-value by permutations."""
    found = float(spearmanr(x, y).statistic)
    rng = np.random.default_rng(0)
    ranks = [rankdata(values) for values in (x, y)]
    drawn = np.array([np.corrcoef(ranks[0], rng.permutation(ranks[1]))[0, 1] for _ in range(PERMUTATIONS)])
    return found, float((1 + (np.abs(drawn) >= abs(found) - 1e-9).sum()) / (1 + PERMUTATIONS))


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Corrected for their number (Holm 1979)."""
    corrected, last = {}, 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        last = max(last, min(1.0, (len(p_values) - i) * p))
        corrected[name] = last
    return corrected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--adamw", type=Path, required=True, help="the folder of the ablation under AdamW")
    parser.add_argument("--runs", type=Path, default=Path("runs/gap"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench/results/gap.json"))
    arguments = parser.parse_args()
    jobs = list(product(MSGDW, arguments.seeds))
    with ThreadPoolExecutor(arguments.workers) as pool:
        done = pool.map(lambda job: diagnosed(arguments.data, arguments.runs, job), jobs)
        runs = dict(zip(jobs, done, strict=True))
    adamw = {
        (cell.placement, "dnt" if "init dnt" in cell.variation else "gpt2"): cell for cell in cells_in(arguments.adamw)
    }
    cells: list[dict[str, Any]] = []
    for key, (lr, msgdw) in MSGDW.items():
        best = adamw[key].best
        found = [statistics(runs[key, seed]) for seed in arguments.seeds]
        cells.append(
            {
                "placement": key[0],
                "init": key[1],
                "rates": {"msgdw": lr, "adamw": best.lr, "adamw at its edge": adamw[key].at_edge},
                "test": {"msgdw": msgdw, "adamw": best.test},
                "gap": msgdw - best.test,
                "statistics": {name: mean(each[name] for each in found) for name in found[0]},
            }
        )
    gaps = [cell["gap"] for cell in cells]
    assert all(map(isfinite, gaps)), "AdamW diverged at its best rate"
    columns = {name: [cell["statistics"][name] for cell in cells] for name in cells[0]["statistics"]}
    tests = {name: correlation(values, gaps) for name, values in columns.items() if all(map(isfinite, values))}
    if left_out := sorted(columns.keys() - tests.keys()):
        print(f"not tested, since not finite in some cell: {', '.join(left_out)}")
    corrected = holm({name: p for name, (_, p) in tests.items() if name != STATISTIC})
    for cell in cells:
        test = cell["test"]
        print(
            f"{cell['placement']:14} {cell['init']:6} mSGDW {test['msgdw']:.3f} AdamW {test['adamw']:.3f} "
            f"gap {cell['gap']:+.3f} {STATISTIC} {cell['statistics'][STATISTIC]:.3f}"
        )
    for name, (rho, p) in tests.items():
        how = "registered" if name == STATISTIC else f"exploratory, Holm {corrected[name]:.3f}"
        print(f"{name:42} rank correlation {rho:+.2f}, p {p:.4f} ({how})")
    rows = [
        {"statistic": name, "spearman": rho, "p": p, "p_holm": corrected.get(name), "registered": name == STATISTIC}
        for name, (rho, p) in tests.items()
    ]
    write_json(
        arguments.out, {"step": MOMENT, "seeds": arguments.seeds, "cells": cells, "tests": rows, "left_out": left_out}
    )


if __name__ == "__main__":
    main()
