"""Placements x optimizers x learning rates x seeds: one run folder each, one table, one page. No torch here.

Every cell is a `dnt train` in a process of its own, so that its peak memory is its own and a crash costs one cell.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from dnt.data.text import check_outside, prepare_text
from dnt.interrupt import on_stop_signals
from dnt.listing import definitions
from dnt.lookup import lookup
from dnt.report.summary import Comparison
from dnt.runs import Run
from dnt.settings import HOW, CompareSettings, Recipe, TrainSettings

# The learning rates of the main job: winners of one sweep per cell on "stdlib" at these defaults (docs/results.md),
# and for the mixture, which was not swept, those of its parts.
LEARNING_RATES = {"adamw": [3e-3], "msgdw": [0.1], "dnt/adamw": [1e-2], "msgdw-adamw": [0.1]}
WEIGHT_DECAYS = {"adamw": [0.1], "msgdw": [1e-4], "msgdw-adamw": [1e-4]}
STDERR = 2  # where the output of a cell goes: it is progress, the result is the table


def compare(settings: CompareSettings | None = None, **options: Any) -> Comparison:
    """Run every cell that is not finished yet, then write the page; options are the fields of CompareSettings.

    A cell that diverges counts as finished, with its loss infinite.
    """
    settings = replace(settings or CompareSettings(), **options)
    cells = list(grid(settings))
    folder = Path(settings.out or f"runs/compare-{Path(settings.data).resolve().stem}")
    check_outside(settings.data, folder)
    data = described(settings)
    if not settings.lr and shared_by_all(settings) != asdict(Recipe()):
        print(
            "dnt: learning rates of the default job; a list for each cell (--lr) tunes them for this.", file=sys.stderr
        )
    for i, cell in enumerate(cells, 1):
        found = check_same(folder, settings, data)
        if settings.precision == "auto" and found:  # what the first cell found holds for all, on another machine too
            cell = replace(cell, precision=found)
        run_cell(folder, cell, f"[{i}/{len(cells)}]")
    from dnt.report.page import write_report  # plotly takes a second to import

    write_report(folder)
    return Comparison(folder)


def described(settings: CompareSettings) -> dict[str, Any]:
    """The data that all cells read, prepared."""
    if settings.reads_images:
        from dnt.data.images import prepare_images  # imports torch

        return prepare_images(settings.data, settings.image_size, settings.augment).describe()
    return prepare_text(settings.data, settings.tokenizer, column=settings.column).describe()


def shared_by_all(settings: CompareSettings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(Recipe)}


def grid(settings: CompareSettings) -> Iterator[TrainSettings]:
    """The settings of every cell."""
    for option in ("placements", "optimizers", "seeds"):
        if not getattr(settings, option):
            raise ValueError(f"--{option} is empty; name at least one, or leave it out.")
    settings.check()
    shared = shared_by_all(settings)
    lookup(definitions("nn/norms.py", "NORMS"), settings.norm, "norm")
    for optimizer in settings.optimizers:
        lookup(definitions("optim/factory.py", "OPTIMIZERS"), optimizer, "optimizer")
    rates = numbers_by_key(settings.lr, settings, "lr")
    decays = numbers_by_key(settings.weight_decay, settings, "weight-decay")
    for placement, optimizer, seed in product(settings.placements, settings.optimizers, settings.seeds):
        settings.model_config(placement)  # names what is wrong with it
        keys = (f"{placement}/{optimizer}", optimizer)  # the closer one first
        for lr, decay in product(
            chosen(keys, rates, LEARNING_RATES, "lr"), chosen(keys, decays, WEIGHT_DECAYS, "weight-decay")
        ):
            yield TrainSettings(
                **shared, placement=placement, optimizer=optimizer, seed=seed, lr=lr, weight_decay=decay
            )


def numbers_by_key(entries: tuple[str, ...], settings: CompareSettings, option: str) -> dict[str, list[float]]:
    """KEY=VALUE[,VALUE...] as a table; ValueError for an entry that is malformed or of no cell."""
    cells = [*settings.optimizers, *("/".join(pair) for pair in product(settings.placements, settings.optimizers))]
    table = {}
    for entry in entries:
        key, _, numbers = entry.partition("=")
        lookup(dict.fromkeys(cells), key, f"cell in --{option}")
        try:
            table[key] = [float(number) for number in numbers.split(",")]
        except ValueError:
            raise ValueError(f"--{option} got {entry!r}; write KEY=VALUE[,VALUE...], e.g. {key}=0.1,0.3.") from None
    return table


def chosen(
    keys: tuple[str, ...], given: dict[str, list[float]], default: dict[str, list[float]], option: str
) -> list[float]:
    """What was given for the closest of a cell's keys, else the default."""
    for table in (given, default):
        for key in keys:
            if key in table:
                return table[key]
    raise ValueError(f"no --{option} for {keys[0]}; give one, for example --{option} {keys[-1]}=1e-3.")


def name_of(cell: TrainSettings) -> str:
    return f"{cell.placement}-{cell.optimizer}-lr{cell.lr:g}-wd{cell.weight_decay:g}-seed{cell.seed}"


def check_same(folder: Path, settings: CompareSettings, data: dict[str, Any]) -> str | None:
    """The precision of the cells that are there already; ValueError if they have another recipe or other data."""
    recipe = shared_by_all(settings) | {"betas": list(settings.betas)}  # JSON has no tuples
    precision = None
    for path in folder.glob("*/config.json"):
        config = Run(path.parent).config
        asked = config.get("settings") or {}
        for name, now in (*recipe.items(), ("sha256", data["sha256"])):
            before = config["data"]["sha256"] if name == "sha256" else asked.get(name, getattr(Recipe, name))
            if name not in ("precision", *HOW) and before != now:
                raise ValueError(f"{folder} was made with {name} = {before!r}, not {now!r}; choose another --out.")
        precision = config["training"]["precision"]
        if settings.precision not in ("auto", precision):
            raise ValueError(
                f"{folder} was made with precision = {precision!r}, not {settings.precision!r}; choose another --out."
            )
    return precision


def run_cell(folder: Path, cell: TrainSettings, label: str) -> None:
    """Train one cell, or the rest of it; nothing if it is finished."""
    run = Run(folder / name_of(cell))
    if run.end:
        return
    command = [sys.executable, "-m", "dnt", "train"]
    if (run.path / "config.json").exists():
        how = {name: getattr(cell, name) for name in HOW}
        command += TrainSettings(resume=str(run.path), **how).flags()
    else:
        command += [*cell.flags(), "--out", str(run.path)]
    print(f"{label} {name_of(cell)}", file=sys.stderr, flush=True)
    status = run_child(command)
    if not run.end:
        raise ValueError(f"{name_of(cell)} failed with exit status {status}; the finished cells are kept.")


def run_child(command: list[str]) -> int:
    """Run to the end, in a process group of its own; a stop signal goes on to it once, and it saves its state."""
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int) -> None:
        received.append(number)
        for child in children:
            child.send_signal(number)

    with on_stop_signals(forward), subprocess.Popen(command, stdout=STDERR, process_group=0) as child:
        children.append(child)
        if received:  # before there was a child to send it to
            child.terminate()
        status = child.wait()
    if received:
        raise KeyboardInterrupt("stopped; the same command continues")
    return status
