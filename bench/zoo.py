"""Every row of the zoo under AdamW and mSGDW at five learning rates each, the best ones under more.

python bench/zoo.py --out bench/results/zoo.json --runs runs/zoo

The recipe is `tiny` (of rows for images alone `tiny-images`), lr x weight decay 1e-4, one thread a run. Each row's best
rate is that of the lowest validation loss at seed 0. The SELECTED rows lowest in validation under either optimizer, and
dnt, are then tuned with MORE optimizers, and run at their best rates on SEEDS. Finished runs in --runs are not run
again, so that the script goes on where it was stopped. Steps are timed at the end, all rows in turn in one process.
"""

import argparse
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from math import inf
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

import dnt
from dnt.experiments.cells import at_rate
from dnt.files import write_json
from dnt.optim.factory import build_optimizer
from dnt.recipes import RECIPES
from dnt.settings import VARIATIONS, TrainSettings
from dnt.train import data_and_config, train

OF_IMAGES = ("dual-patchnorm", "lape")  # no row of a GPT
NORMS_OF_IMAGES = ("batchnorm", "powernorm", "unifiednorm", "prepbn")
RATES = {
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "msgdw": (0.03, 0.1, 0.3, 1.0, 3.0),
    "muon": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "lion": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}
FIRST, MORE = ("adamw", "msgdw"), ("muon", "lion")
SELECTED = 6
SEEDS = (0, 1, 2)
STEP_DECAY = 1e-4  # lr x weight decay


@dataclass(frozen=True)
class Row:
    """A line of the table: what is trained, but for its optimizer, rate and seed."""

    name: str
    settings: TrainSettings


def rows() -> list[Row]:
    """Language models of every placement that a GPT can have, dnt as calibrated, then classifiers."""
    tiny, images = RECIPES["tiny"], RECIPES["tiny-images"]
    found = [Row(name, replace(tiny, placement=name)) for name in dnt.PLACEMENTS if name not in OF_IMAGES]
    found.append(Row("dnt, calibrated", replace(tiny, placement="dnt", **VARIATIONS["calibrated"])))
    placements = ("pre-ln", "dnt", *OF_IMAGES)
    found += [Row(f"images: {name}", replace(images, placement=name)) for name in placements]
    found += [
        Row(f"images: pre-ln, {name}", replace(images, placement="pre-ln", norm=name)) for name in NORMS_OF_IMAGES
    ]
    return found


Job = tuple[Row, str, float, int]


def path_of(job: Job, runs: Path) -> Path:
    row, optimizer, lr, seed = job
    return runs / f"{row.name.replace(', ', '-').replace(': ', '-')}-{optimizer}-lr{lr:g}-seed{seed}"


def run(job: Job, runs: Path) -> str:
    """One training, or what is left of it."""
    torch.set_num_threads(1)
    row, optimizer, lr, seed = job
    out = path_of(job, runs)
    cell = at_rate(replace(row.settings, optimizer=optimizer), lr, STEP_DECAY / lr, seed)
    if (found := dnt.Run(out)).end is None:
        again = (out / "config.json").exists()
        settings = TrainSettings(resume=str(out)) if again else replace(cell, out=str(out))
        with suppress(FloatingPointError):  # it is in the log
            found = train(settings, progress=False)
    end = found.end or {}
    return f"{out.name}: {end.get('validation', 'diverged')}"


def finish(jobs: Iterable[Job], runs: Path, workers: int) -> None:
    """Of those that are not finished."""
    todo = [job for job in jobs if dnt.Run(path_of(job, runs)).end is None]
    started = time.time()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for i, said in enumerate(pool.map(run, todo, [runs] * len(todo)), 1):
            print(f"[{i}/{len(todo)}, {(time.time() - started) / 60:.0f} min] {said}", flush=True)


def validation(job: Job, runs: Path) -> float:
    """Infinite if it diverged."""
    return (dnt.Run(path_of(job, runs)).end or {}).get("validation", inf)


def best_rate(row: Row, optimizer: str, runs: Path) -> float:
    return min(RATES[optimizer], key=lambda lr: validation((row, optimizer, lr, SEEDS[0]), runs))


def optimizers_of(row: Row) -> tuple[str, ...]:
    return ("msgdw",) if row.settings.calibrate else FIRST


def selected(found: list[Row], runs: Path) -> list[Row]:
    """The best rows of language models under AdamW or mSGDW, and dnt, calibrated too."""

    def lowest(row: Row) -> float:
        return min(validation((row, o, best_rate(row, o, runs), SEEDS[0]), runs) for o in FIRST)

    of_text = [row for row in found if row.settings.model == "gpt-tiny"]
    ours = [row for row in of_text if row.settings.placement == "dnt"]
    rivals = sorted((row for row in of_text if not row.settings.calibrate), key=lowest)
    return list(dict.fromkeys([*rivals[:SELECTED], *ours]))


def cell(row: Row, optimizer: str, runs: Path) -> dict[str, Any]:
    """A line of the table."""
    lr = best_rate(row, optimizer, runs)
    tried = {rate: validation((row, optimizer, rate, SEEDS[0]), runs) for rate in RATES[optimizer]}
    ends = [end for seed in SEEDS if (end := dnt.Run(path_of((row, optimizer, lr, seed), runs)).end)]
    found = [end["validation"] for end in ends if "validation" in end]
    return {
        "row": row.name,
        "placement": row.settings.placement,
        "optimizer": optimizer,
        "lr": lr,
        "at_edge": lr in (min(RATES[optimizer]), max(RATES[optimizer])),
        "validation": mean(found) if found and len(found) == len(ends) else None,
        "spread": stdev(found) if len(found) > 1 else None,
        "seeds": len(ends),
        "test": mean(end["test"] for end in ends) if found and len(found) == len(ends) else None,
        "tried": {f"{rate:g}": None if loss == inf else loss for rate, loss in tried.items()},
        "state_bytes": ends[0].get("state_bytes") if ends else None,
        "parameters": ends[0].get("parameters") if ends else None,
    }


def step_seconds(found: list[Row], rounds: int, steps: int) -> dict[str, float]:
    """Of a step under mSGDW, on one thread, eager, float32: medians over rounds in which every row has its turn."""
    torch.set_num_threads(1)
    takes = {}
    for row in found:
        torch.manual_seed(0)
        data, config = data_and_config(row.settings, False)
        model: Any = dnt.ViT(config) if row.settings.reads_images else dnt.GPT(config)
        optimizer = build_optimizer("msgdw", model, asdict(row.settings))
        batch = data.train.batch(0, 0, row.settings.batch_size, slice(None))

        def step(model: Any = model, optimizer: Any = optimizer, batch: Any = batch) -> None:
            model.loss(*batch).backward()
            optimizer.step()
            model.after_step()
            optimizer.zero_grad()

        step()
        takes[row.name] = (step, [])
    for i in range(rounds):
        for step, seconds in list(takes.values())[:: 1 if i % 2 else -1]:
            began = time.perf_counter()
            for _ in range(steps):
                step()
            seconds.append((time.perf_counter() - began) / steps)
    return {name: median(seconds) for name, (_, seconds) in takes.items()}


def per_second(row: str, seconds: dict[str, float], found: list[Row]) -> str:
    """Tokens, or images."""
    settings = next(each.settings for each in found if each.name == row)
    samples = settings.batch_size / seconds[row]
    return f"{samples:,.0f}" if settings.reads_images else f"{samples * (settings.context or 0):,.0f}"


def table(cells: list[dict[str, Any]], seconds: dict[str, float], found: list[Row]) -> str:
    """Markdown, the lowest loss first."""
    lines = ["| row | optimizer | validation | lr | state, bytes | per s |", "|---|---|---|---|---|---|"]
    for c in sorted(cells, key=lambda c: (c["row"].startswith("images"), c["validation"] or inf)):
        loss = "diverged" if c["validation"] is None else f"{c['validation']:.3f}"
        loss += f" ± {c['spread']:.3f} ({c['seeds']})" if c["spread"] is not None else ""
        edge = " (edge)" if c["at_edge"] else ""
        state = "" if c["state_bytes"] is None else f"{c['state_bytes'] / c['parameters']:.2f}"
        speed = per_second(c["row"], seconds, found)
        lines.append(f"| {c['row']} | {c['optimizer']} | {loss} | {c['lr']:g}{edge} | {state} | {speed} |")
    return "\n".join(lines)


def budget(runs: Path) -> dict[str, float]:
    """Runs, and the hours of all their steps, of one thread each, beside others."""
    ends = [end for path in runs.iterdir() if (end := dnt.Run(path).end)]
    return {"runs": len(ends), "step_hours": sum(end.get("train_seconds", 0.0) for end in ends) / 3600}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/zoo.json"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="rows, and no others; the first stage alone")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    runs, found = arguments.runs, rows()
    if arguments.only:
        found = [row for row in found if row.name in arguments.only]
    first = [(row, o, lr, SEEDS[0]) for row in found for o in optimizers_of(row) for lr in RATES[o]]
    finish(first, runs, arguments.workers)
    cells = [cell(row, o, runs) for row in found for o in optimizers_of(row)]
    if not arguments.only:
        best = selected(found, runs)
        of_best = {row: (*FIRST, *MORE) if len(optimizers_of(row)) > 1 else optimizers_of(row) for row in best}
        finish(
            ((row, o, lr, SEEDS[0]) for row in best for o in of_best[row] for lr in RATES[o]), runs, arguments.workers
        )
        again = [(row, o, best_rate(row, o, runs), seed) for row in best for o in of_best[row] for seed in SEEDS]
        finish(again, runs, arguments.workers)
        cells = [cell(row, o, runs) for row in found for o in of_best.get(row, optimizers_of(row))]
    seconds = step_seconds(found, arguments.rounds, steps=3)
    config = dnt.Run(path_of(first[0], runs)).config
    about = {
        "recipes": {name: RECIPES[name].flags() for name in ("tiny", "tiny-images")},
        **{"rates": RATES, "lr_x_wd": STEP_DECAY, "seeds": SEEDS, "budget": budget(runs)},
        **{"data": config["data"], "machine": config["machine"]},
    }
    write_json(arguments.out, {"cells": cells, "step_seconds": seconds, "about": about})
    print(table(cells, seconds, found))


if __name__ == "__main__":
    main()
