"""Placements x optimizers x learning rates x seeds: one run folder each, one table, one page. No torch here."""

import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from dnt.experiments.cells import alone, at_rate, cells_of, is_named, prepared, recipe, run_cell, run_name, settled
from dnt.listing import own_default
from dnt.lookup import lookup
from dnt.report.summary import Comparison
from dnt.settings import VARIATIONS, CompareSettings, Recipe, TrainSettings

# The learning rates of the main job: winners of one sweep per cell on "stdlib" at these defaults (docs/results.md),
# and for the mixture, which was not swept, those of its parts.
LEARNING_RATES = {
    "adamw": [3e-3],
    "msgdw": [0.1],
    "dnt/adamw": [1e-2],
    "msgdw-adamw": [0.1],
    "calibrated": [0.3],
    "stateless": [0.3],
}
WEIGHT_DECAYS = {
    "calibrated": [1e-3 / 0.3],
    "stateless": [1e-4 / 0.3],
}  # of other cells the optimizer's default


def compare(settings: CompareSettings | None = None, **options: Any) -> Comparison:
    """Run every cell that is not finished yet, then write the page; options are the fields of CompareSettings.

    A cell that diverges counts as finished, with its loss infinite.
    """
    settings = replace(settings or CompareSettings(), **options)
    cells = grid(settings)
    folder = Path(settings.out or f"runs/compare-{settings.data_name}")
    held = settled(folder, settings, prepared(settings, folder))["held"]
    if not settings.lr and recipe(settings) != asdict(Recipe()):
        print(
            "dnt: learning rates of the default job; a list for each cell (--lr) or `dnt tune` fits them to this.",
            file=sys.stderr,
        )
    for i, cell in enumerate(cells, 1):
        cell = replace(cell, precision=held["precision"])
        run_cell(folder / run_name(cell, settings), cell, f"[{i}/{len(cells)}]")
    from dnt.report.page import write_report  # plotly takes a second to import

    with alone(folder):
        write_report(folder)
    return Comparison(folder)


def grid(settings: CompareSettings) -> list[TrainSettings]:
    """The settings of every run."""
    cells = cells_of(settings)
    rates = numbers_by_key(settings.lr, settings, "lr")
    decays = numbers_by_key(settings.weight_decay, settings, "weight-decay")
    runs: dict[TrainSettings, None] = {}  # each once: with an equilibrium all decays are one
    for cell, seed in product(cells, settings.seeds):
        named = [name for name in VARIATIONS if is_named(cell, name)]
        keys = (*named, f"{cell.placement}/{cell.optimizer}", cell.optimizer)
        usual = {cell.optimizer: [own_default(cell.optimizer, "weight_decay")]} | WEIGHT_DECAYS
        for lr, decay in product(
            chosen(keys, rates, LEARNING_RATES, "lr"), chosen(keys, decays, usual, "weight-decay")
        ):
            runs[at_rate(cell, lr, decay, seed)] = None
    return list(runs)


def numbers_by_key(entries: tuple[str, ...], settings: CompareSettings, option: str) -> dict[str, list[float]]:
    """KEY=VALUE[,VALUE...] as a table; ValueError for an entry that is malformed or of no cell."""
    cells = [*settings.optimizers, *("/".join(pair) for pair in product(settings.placements, settings.optimizers))]
    cells += [name for name in VARIATIONS if name in settings.vary]
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
