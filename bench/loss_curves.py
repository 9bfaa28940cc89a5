"""Does what makes training faster or smaller change what is learned? The same run, several ways.

python bench/loss_curves.py shakespeare.txt --runs runs/loss-curves --out bench/results/loss-curves.json

The first way has none of it: float32, eager. Finished runs in --runs are not run again.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean

import dnt
from dnt.files import write_json

SETTING = ["--tokenizer", "char", "--placement", "dnt", "--lr", "0.3", "--weight-decay", "0.000333"]
RECIPE = ["--calibrate", "0.01", "--bound", "0.03", "--nesterov", "--embedding-rate", "3", "--gain-rate", "10"]
STANDING = ["--calibrate", "0.01", "--bound", "0.03", "--embedding-rate", "3", "--gain-rate", "10", "--clip", "0"]
WAYS = {
    "32, eager": [*RECIPE, "--precision", "32", "--no-compile"],
    "bf16-mixed": [*RECIPE, "--precision", "bf16-mixed"],
    "bf16-weights": [*RECIPE, "--precision", "bf16-weights"],
    "momentum in a buffer, 32, eager": [*STANDING, "--precision", "32", "--no-compile"],
    "momentum in the gradient": [*STANDING, "--precision", "bf16-mixed", "--momentum-in-grad"],
}
BASE = dict.fromkeys(WAYS, "32, eager")
for way in ("momentum in a buffer, 32, eager", "momentum in the gradient"):
    BASE[way] = "momentum in a buffer, 32, eager"
SMOOTHED = 10  # rows of the log, ten steps each


def trained(data: str, steps: int, runs: Path, job: tuple[str, int]) -> dnt.Run:
    way, seed = job
    out = runs / f"{way.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    if dnt.Run(out).end is None:
        lengths = ["--steps", str(steps), "--warmup", str(steps // 10), "--eval-every", str(steps)]
        new = ["--data", data, *SETTING, *WAYS[way], *lengths, "--seed", str(seed), "--out", str(out)]
        options = ["--resume", str(out)] if (out / "config.json").exists() else new
        subprocess.run([sys.executable, "-m", "dnt", "train", *options], check=True)
    return dnt.Run(out)


def curve(run: dnt.Run) -> list[float]:
    losses = [row["loss"] for row in run.rows("train")]
    return [mean(losses[i : i + SMOOTHED]) for i in range(len(losses) - SMOOTHED + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/loss-curves"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/loss-curves.json"))
    arguments = parser.parse_args()
    jobs = list(product(WAYS, arguments.seeds))
    with ThreadPoolExecutor(arguments.workers) as pool:
        runs = pool.map(lambda job: trained(arguments.data, arguments.steps, arguments.runs, job), jobs)
        found = dict(zip(jobs, runs, strict=True))
    rows = []
    for way in WAYS:
        pairs = [(found[way, seed], found[BASE[way], seed]) for seed in arguments.seeds]
        rows.append(
            {
                "way": way,
                "against": BASE[way],
                "test": [run.end["test"] for run, _ in pairs],
                "to_base": mean(run.end["test"] / base.end["test"] - 1 for run, base in pairs),
                "largest_of_curve": max(
                    abs(a / b - 1) for run, base in pairs for a, b in zip(curve(run), curve(base), strict=True)
                ),
                "state_bytes_per_parameter": pairs[0][0].end["state_bytes"] / pairs[0][0].end["parameters"],
            }
        )
        row = rows[-1]
        print(f"{way:34} test {mean(row['test']):.4f} {row['to_base']:+8.2%}  curve {row['largest_of_curve']:.2%}")
    report = {"data": Path(arguments.data).name, "steps": arguments.steps, "seeds": arguments.seeds, "rows": rows}
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
