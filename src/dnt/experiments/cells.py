"""The cells of an experiment: what each trains, and training one in a process of its own. No torch here.

Every run is a `dnt train` of its own, so that its peak memory is its own and a crash costs one run.
"""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dnt.data.text import check_outside, prepare_text
from dnt.interrupt import on_stop_signals
from dnt.listing import definitions, options_of
from dnt.lookup import lookup
from dnt.runs import Run
from dnt.settings import FIXED, HOW, OF_OPTIMIZERS, Cells, Recipe, TrainSettings

STDERR = 2  # where the output of a run goes: it is progress, the result is the table
IN_STEPS = ("steps", "warmup", "eval_every", "checkpoint_every")  # what a larger batch divides
LOOK_AGAIN = 2  # seconds


def recipe(settings: Recipe) -> dict[str, Any]:
    """The fields that all cells share."""
    return {field.name: getattr(settings, field.name) for field in fields(Recipe)}


def cells_of(settings: Cells) -> list[TrainSettings]:
    """Placements x optimizers, then the same with each variation; rates, decays and seeds are not chosen yet."""
    for option in ("placements", "optimizers", "seeds"):
        if not getattr(settings, option):
            raise ValueError(f"--{option} is empty; name at least one, or leave it out.")
    settings.check()
    lookup(definitions("nn/norms.py", "NORMS"), settings.norm, "norm")
    optimizers = definitions("optim/factory.py", "OPTIMIZERS")
    shared = recipe(settings)
    cells: dict[TrainSettings, None] = {}  # in order, each once
    for variation in variations(settings):
        for placement, optimizer in product(settings.placements, settings.optimizers):
            takes = options_of(lookup(optimizers, optimizer, "optimizer"))
            heard = {name: v for name, v in variation.items() if name not in OF_OPTIMIZERS or name in takes}
            cell = TrainSettings(**shared | heard, placement=placement, optimizer=optimizer)
            cell.check()
            cell.model_config(placement)  # names what is wrong with it
            cells[cell] = None
    return list(cells)


def variations(settings: Cells) -> Iterator[dict[str, Any]]:
    """The recipe as it is, then each value of each varied field alone."""
    yield {}
    types = get_type_hints(Recipe)
    free = {field.name: types[field.name] for field in fields(Recipe) if field.name not in FIXED}
    for entry in settings.vary:
        name, _, values = entry.partition("=")
        kind = lookup(free, name.replace("-", "_"), "field in --vary")
        name = name.replace("-", "_")
        for value in values.split(","):
            changed = {name: parsed(value, kind, entry)}
            yield changed | equal_tokens(settings, changed["batch_size"]) if name == "batch_size" else changed


def parsed(value: str, kind: Any, entry: str) -> Any:
    kind = next((k for k in get_args(kind) if k is not type(None)), kind)  # of int | None
    if kind is bool and value in ("true", "false"):
        return value == "true"
    try:
        if kind in (int, float, str) and value:
            return kind(value)
    except ValueError:
        pass
    means = {bool: "true or false", int: "whole numbers", float: "numbers"}.get(kind, "values")
    raise ValueError(f"--vary got {entry!r}; write KEY=VALUE[,VALUE...] with {means}, e.g. clip=0 batch_size=16,256.")


def equal_tokens(settings: Recipe, batch_size: int) -> dict[str, int]:
    """Steps, and what is counted in steps, with which this batch size reads as much in all."""
    samples = settings.steps * settings.batch_size
    if batch_size < 1 or samples % batch_size:
        raise ValueError(
            f"batch_size={batch_size} does not divide the {samples:,} samples of {settings.steps} steps of "
            f"{settings.batch_size}; at equal tokens it must."
        )
    scaled = {name: round(getattr(settings, name) * settings.batch_size / batch_size) for name in IN_STEPS}
    return {name: max(steps, min(getattr(settings, name), 1)) for name, steps in scaled.items()}


def name_of(cell: TrainSettings, settings: Recipe) -> str:
    """Placement, optimizer, and in what the cell differs from the recipe."""
    own = [
        f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
        for name, base in recipe(settings).items()
        if (value := getattr(cell, name)) != base and name not in (*HOW, "precision")
        if not (name in IN_STEPS and cell.batch_size != settings.batch_size)
    ]
    return "-".join([cell.placement, cell.optimizer, *own])


def run_name(cell: TrainSettings, settings: Recipe) -> str:
    return f"{name_of(cell, settings)}-lr{cell.lr:g}-wd{cell.weight_decay:g}-seed{cell.seed}"


def prepared(settings: Cells, folder: Path) -> dict[str, Any]:
    """The data that all cells read, prepared, and described."""
    check_outside(settings.data, folder)
    if settings.reads_images:
        from dnt.data.images import prepare_images  # imports torch

        return prepare_images(settings.data, settings.image_size, settings.augment).describe()
    return prepare_text(settings.data, settings.tokenizer, column=settings.column).describe()


def check_same(folder: Path, settings: Cells, cells: Iterable[TrainSettings], data: dict[str, Any]) -> str | None:
    """The precision of the runs that are there already; ValueError if they have another recipe or other data."""
    varied = {name for cell in cells for name, base in recipe(settings).items() if getattr(cell, name) != base}
    precision = None
    for path in folder.glob("*/config.json"):
        config = Run(path.parent).config
        asked = config.get("settings") or {}
        for name, now in (*recipe(settings).items(), ("sha256", data["sha256"])):
            before = config["data"]["sha256"] if name == "sha256" else asked.get(name, getattr(Recipe, name))
            before = tuple(before) if isinstance(before, list) else before  # JSON has no tuples
            if name not in ("precision", *HOW, *varied) and before != now:
                raise ValueError(f"{folder} was made with {name} = {before!r}, not {now!r}; choose another --out.")
        precision = config["training"]["precision"]
        if settings.precision not in ("auto", precision):
            raise ValueError(
                f"{folder} was made with precision = {precision!r}, not {settings.precision!r}; choose another --out."
            )
    return precision


def run_cell(path: Path, cell: TrainSettings, label: str) -> Run:
    """Train one cell with its rate, decay and seed, or the rest of it; nothing if it is finished."""
    run = Run(path)
    if run.busy:
        print(f"{label} {path.name}: another process trains it; waiting", file=sys.stderr, flush=True)
    while run.busy:
        time.sleep(LOOK_AGAIN)
    if run.end:
        return run
    command = [sys.executable, "-m", "dnt", "train"]
    if (run.path / "config.json").exists():
        how = {name: getattr(cell, name) for name in HOW}
        command += TrainSettings(resume=str(run.path), **how).flags()
    else:
        command += [*cell.flags(), "--out", str(run.path)]
    print(f"{label} {path.name}", file=sys.stderr, flush=True)
    status = run_child(command)
    if not run.end:
        raise ValueError(f"{path.name} failed with exit status {status}; the finished runs are kept.")
    return run


def with_precision(cell: TrainSettings, found: str | None) -> TrainSettings:
    """What the first run found holds for all, on another machine too."""
    return replace(cell, precision=found) if cell.precision == "auto" and found else cell


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
