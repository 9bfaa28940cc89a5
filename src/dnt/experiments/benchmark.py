"""Training steps of one model in several combinations, timed side by side. Nothing is chosen here."""

import sys
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dnt.data.cache import cores
from dnt.data.noise import NAME
from dnt.experiments.alternate import alternate
from dnt.experiments.cells import checked, recipe, says_something
from dnt.experiments.steps import config_of, timed_steps
from dnt.files import write_json
from dnt.listing import heard_by
from dnt.lookup import lookup
from dnt.machine import best_precision, can_compile, describe_machine
from dnt.nn.config import GPT_SIZES, GPTConfig
from dnt.nn.flops import training_flops
from dnt.nn.gpt import GPT
from dnt.nn.vit import ViT
from dnt.optim.factory import build_optimizer
from dnt.report.speed import Benchmark, Combination
from dnt.settings import OF_OPTIMIZERS, OF_SGD, PRECISIONS, BenchSettings, TrainSettings
from dnt.train import check_combination, check_machine, check_optimizer


def benchmark(settings: BenchSettings | None = None, **options: Any) -> Benchmark:
    """Time every combination, in turn; options are the fields of BenchSettings.

    With `suggest` the combinations are the ways in which this machine can compute one of them, the default way first.
    """
    settings = replace(settings or BenchSettings(), **options)
    settings.check()
    cells = {Combination.of(cell, threads): cell for cell, threads in ways(settings)}
    for cell in cells.values():
        check_possible(cell)
    with TemporaryDirectory() as folder:
        builds = {
            way.name: partial(timed_steps, cell, Path(folder, str(i)), way.threads, settings.steps_per_round)
            for i, (way, cell) in enumerate(cells.items())
        }
        measured = alternate(builds, settings.rounds, show=partial(show, settings.rounds))
    config = config_of(next(iter(cells.values())))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = Benchmark(
        settings=asdict(settings),
        model=asdict(config),
        machine=describe_machine(device),
        unit="images" if settings.reads_images else "tokens",
        units=settings.batch_size * (1 if settings.reads_images else config.context),  # type: ignore[union-attr]
        flops=settings.batch_size * training_flops(config),
        measured={way: measured[way.name] for way in cells},
    )
    if settings.out:
        write_json(Path(settings.out), result.as_json())
    return result


def show(rounds: int, name: str, i: int) -> None:
    print(f"[{i + 1}/{rounds}] {name}", file=sys.stderr, flush=True)


def ways(settings: BenchSettings) -> list[tuple[TrainSettings, int]]:
    """What is timed, each with its number of threads; ValueError naming what is wrong with one."""
    default = torch.get_num_threads()
    precisions, threads = settings.precisions, settings.threads or (default,)
    compiled = [settings.compile and can_compile()]
    if settings.suggest:
        if precisions == BenchSettings.precisions:
            [cell] = cells_of(settings)
            precisions = ("auto", *(name for name in precisions_here() if is_possible(replace(cell, precision=name))))
        if not settings.threads and not torch.cuda.is_available():
            threads = (default, *(1 << i for i in range(cores().bit_length()) if 1 << i < cores()), cores())
        compiled = list(dict.fromkeys([*compiled, False]))
    precisions = tuple(best_precision() if name == "auto" else name for name in precisions)
    found = [
        (replace(cell, precision=precision, compile=compile), count)
        for cell in cells_of(settings)
        for compile, precision, count in product(compiled, precisions, threads)
    ]
    return list(dict.fromkeys(found))


def check_possible(cell: TrainSettings) -> None:
    """ValueError for what `dnt train` would refuse, here or anywhere."""
    check_combination(cell, cell.precision)
    check_machine(cell, cell.precision)
    with torch.device("meta"):
        config = config_of(cell)
        model = GPT(config) if isinstance(config, GPTConfig) else ViT(config)
    check_optimizer(cell, cell.precision, build_optimizer(cell.optimizer, model, asdict(cell)))


def is_possible(cell: TrainSettings) -> bool:
    try:
        check_possible(cell)
    except ValueError:
        return False
    return True


def precisions_here() -> list[str]:
    """Those in which the hardware multiplies matrices."""
    here = {"32": True, "16": torch.cuda.is_available(), "bf": best_precision() == "bf16-mixed"}
    return [name for name in PRECISIONS if here.get(name[:2])]


def cells_of(settings: BenchSettings) -> list[TrainSettings]:
    """Placements x optimizers, each told what it hears; the recipe is the same."""
    shared = recipe(settings) | {"data": NAME}
    if not settings.reads_images:
        size: Any = lookup(GPT_SIZES, settings.model, "model")
        shared["tokenizer"] = f"ids:{settings.vocab_size or size.vocab_size}"
    pairs = [
        (placement, optimizer, heard_by(optimizer))
        for placement, optimizer in product(settings.placements, settings.optimizers)
    ]
    for name in (*OF_OPTIMIZERS, *OF_SGD):
        heard = any(says_something(name, placement, takes) for placement, _, takes in pairs)
        if getattr(settings, name) != getattr(BenchSettings, name) and not heard:
            of = ", ".join(settings.optimizers)
            raise ValueError(f"--{name.replace('_', '-')} says nothing to {of}; drop it, or name another optimizer.")
    cells = []
    for placement, optimizer, takes in pairs:
        unheard = {name: getattr(TrainSettings, name) for name in OF_SGD if not says_something(name, placement, takes)}
        cells.append(checked(TrainSettings(**shared | unheard, placement=placement, optimizer=optimizer)))
    return cells
