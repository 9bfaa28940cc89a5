"""One process against several, ways of saving memory against none: same losses, what they cost.

python bench/processes.py --out bench/results/processes.json
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import dnt

WAYS = {
    "one process": [],
    "one, 4 micro-batches, recomputed": ["--accumulate", "4", "--recompute"],
    "one, fsdp": ["--strategy", "fsdp"],
    "two, ddp": ["--devices", "2"],
    "two, fsdp": ["--devices", "2", "--strategy", "fsdp"],
    "two, fsdp, 2 micro-batches, recomputed": [
        *("--devices", "2", "--strategy", "fsdp", "--accumulate", "2", "--recompute")
    ],
}
SETTING = ["--steps", "20", "--precision", "32", "--no-compile", "--dim", "256", "--depth", "6", "--heads", "8"]
SETTING += ["--context", "128", "--batch-size", "16", "--warmup", "5", "--eval-tokens", "16384", "--optimizer", "msgdw"]
LOSSES = "largest difference of a loss"


def train(data: str, way: list[str], folder: Path) -> dnt.Run:
    command = [sys.executable, "-m", "dnt", "train", "--data", data, *SETTING, *way, "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return dnt.Run(folder)


def losses(run: dnt.Run) -> list[float]:
    return [*(row["loss"] for row in run.rows("train")), run.end["validation"], run.end["test"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--out", type=Path, default=Path("bench/results/processes.json"))
    arguments = parser.parse_args()
    rows, reference = [], []
    print(f"{'':40} {LOSSES:>30} {'tokens/s':>10} {'peak MB a process':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for name, way in WAYS.items():
            run = train(arguments.data, way, Path(folder) / f"{len(rows)}")
            reference = reference or losses(run)
            row = {
                "way": name,
                "difference": max(abs(a - b) for a, b in zip(losses(run), reference, strict=True)),
                "tokens_per_s": round(run.end["tokens_per_s"]),
                "peak_MB": round(run.end["peak_memory_bytes"] / 1e6),
            }
            rows.append(row)
            print(f"{name:40} {row['difference']:30.1e} {row['tokens_per_s']:10,} {row['peak_MB']:18,}", flush=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    found = {"data": arguments.data, "setting": SETTING, "machine": machine, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
