"""The tuning protocol (docs/protocol.md): the same grid and the same number of trials for every cell. No torch here."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from dnt.experiments.cells import alone, cells_of, prepared
from dnt.experiments.queue import Point, Queue
from dnt.listing import own_default
from dnt.report.summary import Comparison
from dnt.settings import TrainSettings, TuneSettings

MOST_DECAY = 0.1  # lr x weight decay: a step that takes more than this off the weights trains nothing
ENOUGH_SEEDS = 5


def tune(settings: TuneSettings | None = None, **options: Any) -> Comparison:
    """Tune every cell, run the winners on fresh seeds, write the page; options are the fields of TuneSettings."""
    settings = replace(settings or TuneSettings(), **options)
    return follow_protocol(settings, cells_of(settings), Path(settings.out or f"runs/tune-{settings.data_name}"))


def follow_protocol(settings: TuneSettings, cells: list[TrainSettings], folder: Path) -> Comparison:
    """First the learning rate, then the decay, then fresh seeds, of all cells. Finished trials answer at once."""
    queue = Queue(settings, folder, prepared(settings, folder))
    decays = settings.decays

    grids = {cell: starting_grid(cell.optimizer, settings.points) for cell in cells}
    while True:
        points = {cell: [(rate(i), decays[0]) for i in grid] for cell, grid in grids.items()}
        losses = queue.finish(points, settings.tuning_seeds)
        best = {cell: lowest(points[cell], losses[cell]) for cell in cells}
        at_edge = [cell for cell in cells if best[cell] in (points[cell][0], points[cell][-1])]
        rates = len(points[cells[0]])
        if not at_edge or rates == settings.most_points:
            break
        say(f"{len(at_edge)} of {len(cells)} winners are at an edge of {rates} rates; one more rate for every cell")
        grids = {cell: extended(grid, losses[cell]) for cell, grid in grids.items()}
    for cell in at_edge:
        say(f"{queue.name(cell)}: the best of {rates} rates is still at an edge")

    while True:
        points = {cell: [(best[cell][0], decay) for decay in decays] for cell in cells}
        losses = queue.finish(points, settings.tuning_seeds)
        winners = {cell: lowest(points[cell], losses[cell]) for cell in cells}
        top = max(decays)
        at_top = [cell for cell in cells if winners[cell][1] == top]
        if len(set(decays)) == 1 or not at_top or 10 * top > MOST_DECAY:
            break
        say(f"a decay (lr x wd) of {top:g} wins; {10 * top:g} for every cell")
        decays = (*decays, 10 * top)

    for cell in at_top if len(set(decays)) > 1 else []:
        say(f"{queue.name(cell)}: the best decay (lr x wd) is still the largest, {top:g}")

    trials = (rates + len(decays) - 1) * len(settings.tuning_seeds)
    say(f"{trials} trials of every cell; now the winners on seeds {', '.join(map(str, settings.seeds))}")
    if len(settings.seeds) < ENOUGH_SEEDS:
        say(f"the protocol asks for {ENOUGH_SEEDS} fresh seeds or more; intervals of {len(settings.seeds)} are wide")
    queue.finish({cell: [winner] for cell, winner in winners.items()}, settings.seeds, winners=True)
    from dnt.report.page import write_report  # plotly takes a second to import

    with alone(folder):
        write_report(folder)
    return Comparison(folder)


def say(what: str) -> None:
    print(f"dnt: {what}", file=sys.stderr, flush=True)


def rate(i: int) -> float:
    """The i-th half decade: ..., 0.1 (-2), 0.3 (-1), 1 (0), 3 (1), 10 (2), ..."""
    return float(f"{3 if i % 2 else 1}e{i // 2}")


def starting_grid(optimizer: str, points: int) -> range:
    """Half decades around the optimizer's default rate, the same for every cell with it; one more above than below."""
    default = own_default(optimizer, "lr")
    middle = next(i for i in range(-40, 40) if rate(i) >= default)
    first = middle - (points - 1) // 2
    return range(first, first + points)


def extended(grid: range, losses: list[float]) -> range:
    """One more half decade at the end with the lower loss: the winner's, if it is at one."""
    down = losses[0] <= losses[-1]
    return range(grid.start - down, grid.stop + (not down))


def lowest(points: list[Point], losses: list[float]) -> Point:
    return points[losses.index(min(losses))]
