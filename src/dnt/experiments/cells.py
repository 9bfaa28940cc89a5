"""The cells of an experiment: what each trains, and training one in a process of its own.

Every run is a `dnt train` of its own, so that its peak memory is its own and a crash costs one run.
"""

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

from dnt.data.text import check_outside, prepare_text
from dnt.files import exclusive, read_json, write_json
from dnt.interrupt import on_stop_signals
from dnt.listing import definitions, heard_by
from dnt.lookup import lookup
from dnt.nn.placement import placement_named
from dnt.optim.equilibrium import equilibrium_decay
from dnt.optim.kinds import RATES
from dnt.runs import EXPERIMENT, Run
from dnt.settings import FIXED, HOW, OF_OPTIMIZERS, OF_SGD, VARIATIONS, Cells, Recipe, TrainSettings

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
    for option, values in vars(settings).items():
        if option.endswith("seeds") and (len(set(values)) < len(values) or min(values, default=0) < 0):
            raise ValueError(f"--{option.replace('_', '-')} has {values}; give each seed once, from 0 up.")
    settings.check()
    shared = recipe(settings)
    cells: dict[TrainSettings, None] = {}  # in order, each once
    for variation in values_to_try(settings):
        for placement, optimizer in product(settings.placements, settings.optimizers):
            takes = heard_by(optimizer)
            unheard = {name for name in OF_SGD if not says_something(name, placement, takes)}
            heard = shared | {name: getattr(Recipe, name) for name in unheard}
            if all(says_something(name, placement, takes) for name in variation):
                cells[checked(TrainSettings(**heard | variation, placement=placement, optimizer=optimizer))] = None
    return list(cells)


def is_named(cell: TrainSettings, name: str) -> bool:
    """Whether a cell is as a variation with a name has it."""
    return all(getattr(cell, field) == value for field, value in VARIATIONS[name].items())


def says_something(name: str, placement: str, takes: set[str]) -> bool:
    """Whether a field changes what a cell trains; `takes`: what its optimizer can be told."""
    if name == "calibrate" and not placement_named(placement).hides:
        return False
    if name in ("equilibrium", "clip_equilibrium") and not placement_named(placement).prescribes.decay:
        return False
    if name in OF_SGD:
        return "bound" in takes
    if name.endswith("_rate"):
        return "model" not in takes
    return name not in OF_OPTIMIZERS or name in takes


def at_rate(cell: TrainSettings, lr: float, weight_decay: float, seed: int) -> TrainSettings:
    """A run of the cell; with the decay that its equilibrium asks for, if it has one, or its placement prescribes."""
    if cell.equilibrium and "bound" in heard_by(cell.optimizer):
        weight_decay = equilibrium_decay(cell.equilibrium, lr, cell.momentum)
    if cell.prescribed and not placement_named(cell.placement).prescribes.decay:
        weight_decay = 0.0
    return replace(cell, lr=lr, weight_decay=weight_decay, seed=seed)


def checked(cell: TrainSettings) -> TrainSettings:
    """ValueError naming what is wrong with it, before anything is trained."""
    cell.check()
    if cell.equilibrium:
        at_rate(cell, cell.lr or 1.0, 0.0, cell.seed)  # names what is wrong with it
    given = [name for name in RATES if getattr(cell, name) != getattr(Recipe, name)]
    if given and "model" in heard_by(cell.optimizer):
        raise ValueError(f"{cell.optimizer} has rates of its own; drop {', '.join(given)}.")
    if cell.head_rate != 1 and cell.tie_embeddings and not cell.reads_images:
        raise ValueError(f"head_rate is {cell.head_rate}, but the head is the token embedding; drop one of the two.")
    if cell.position_rate is not None and cell.positions != "learned":
        raise ValueError(f"position_rate is {cell.position_rate}, but positions are not learned; drop it.")
    lookup(definitions("nn/norms.py", "NORMS"), cell.norm, "norm")
    cell.model_config(cell.placement)
    return cell


def values_to_try(settings: Cells) -> Iterator[dict[str, Any]]:
    """The recipe as it is, then each value of each varied field alone, and of those joined by + each pair together."""
    yield {}
    types = get_type_hints(Recipe)
    free = {field.name: types[field.name] for field in fields(Recipe) if field.name not in FIXED}
    for entry in settings.vary:
        joined: list[list[tuple[str, Any]]] = []
        for part in entry.split("+"):
            if part in VARIATIONS:
                joined += [[choice] for choice in VARIATIONS[part].items()]
                continue
            key, _, values = part.partition("=")
            name = key.replace("-", "_")
            kind = lookup(free, name, "field in --vary")
            joined.append([(name, parsed(value, kind, entry)) for value in values.split(",")])
        for together in product(*joined):
            changed = dict(together)
            steps = equal_tokens(settings, changed["batch_size"]) if "batch_size" in changed else {}
            yield changed | steps


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
    return "-".join([cell.placement.replace(":", "-"), cell.optimizer, *own])  # a folder's name


def run_name(cell: TrainSettings, settings: Recipe) -> str:
    return f"{name_of(cell, settings)}-lr{cell.lr:g}-wd{cell.weight_decay:g}-seed{cell.seed}"


def prepared(settings: Cells, folder: Path) -> dict[str, Any]:
    """The data that all cells read, prepared, and described."""
    check_outside(settings.data, folder)
    if settings.reads_images:
        from dnt.data.images import prepare_images  # imports torch

        return prepare_images(settings.data, settings.image_size, settings.augment).describe()
    return prepare_text(settings.data, settings.tokenizer, column=settings.column).describe()


def settled(folder: Path, settings: Cells, data: dict[str, Any]) -> dict[str, Any]:
    """What all runs of a folder share: written by the first command, held by all later ones (FOLDER/experiment.json).

    id: of the folder, among others in one storage. held: the recipe with the precision that was found, the data's
    sha256, and the seeds of tuning; ValueError if this command says otherwise. seeds: of the last command.
    """
    held = {name: value for name, value in recipe(settings).items() if name not in HOW}
    held |= {"data sha256": data["sha256"], "tuning_seeds": getattr(settings, "tuning_seeds", None)}
    held = json.loads(json.dumps(held))  # JSON has no tuples
    path = folder / EXPERIMENT
    with alone(folder):
        if path.exists():
            found: dict[str, Any] = read_json(path, "an experiment")
        elif runs := list(folder.glob("*/*/config.json")):
            raise ValueError(
                f"{runs[0].parent} is of an experiment, but {folder} has no {EXPERIMENT}; choose another --out."
            )
        else:
            found = {"id": f"{folder.resolve().name}-{secrets.token_hex(4)}", "held": dict(held)}
            if held["precision"] == "auto":
                from dnt.machine import best_precision  # imports torch

                found["held"]["precision"] = best_precision()
        if settings.precision == "auto":
            del held["precision"]
        for name, now in held.items():
            before = found["held"].get(name, getattr(Recipe, name, None))
            if before != now:
                raise ValueError(f"{folder} was made with {name} = {before!r}, not {now!r}; choose another --out.")
        write_json(path, found | {"seeds": settings.seeds})
    return found


def alone(folder: Path) -> AbstractContextManager[None]:
    """One process at a time, of those that share the folder of an experiment."""
    return exclusive(folder / ".lock")


def run_cell(path: Path, cell: TrainSettings, label: str) -> Run:
    """Train one cell with its rate, decay and seed, or the rest of it; nothing if it is finished."""
    run = Run(path)
    if run.busy:
        print(f"{label} {path.name}: another process trains it; waiting", file=sys.stderr, flush=True)
    while run.busy:
        time.sleep(LOOK_AGAIN)
    stored = (run.config.get("settings") or {}) if (run.path / "config.json").exists() else {}
    for name, now in json.loads(json.dumps(cell.as_json())).items():
        if name in stored and stored[name] != now and name not in HOW:
            raise ValueError(f"{path} was made with {name} = {stored[name]!r}, not {now!r}; choose another --out.")
    if run.end:
        return run
    command = [sys.executable, "-m", "dnt", "train"]
    if stored:
        how = {name: getattr(cell, name) for name in HOW}
        command += TrainSettings(resume=str(run.path), **how).flags()
    else:
        command += [*cell.flags(), "--out", str(run.path)]
    print(f"{label} {path.name}", file=sys.stderr, flush=True)
    status = run_child(command)
    if not run.end:
        raise ValueError(f"{path.name} failed with exit status {status}; the finished runs are kept.")
    return run


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
