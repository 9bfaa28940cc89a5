"""A folder of runs -> the table and the sentence that say what came out. No torch."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from dnt.nn.placement import PLACEMENTS, Placement, Slots
from dnt.runs import Run
from dnt.settings import HOW

A_UNIT = {"tokens": "a token", "images": "an image"}


@dataclass(frozen=True)
class Setting:
    """The runs of one placement, optimizer, learning rate and decay: its seeds."""

    placement: str
    optimizer: str
    lr: float
    weight_decay: float
    runs: tuple[Run, ...]
    ends: tuple[dict[str, Any], ...]

    @property
    def diverged(self) -> bool:
        return any(end["event"] == "diverged" for end in self.ends)

    @property
    def validation(self) -> float:
        return math.inf if self.diverged else mean(end["validation"] for end in self.ends)

    @property
    def test(self) -> float:
        return math.inf if self.diverged else mean(end["test"] for end in self.ends)

    @property
    def test_spread(self) -> float | None:
        """Standard deviation over seeds; None with one."""
        return stdev(end["test"] for end in self.ends) if len(self.ends) > 1 and not self.diverged else None

    def average(self, quantity: str) -> float:
        return mean(end.get(quantity, math.nan) for end in self.ends)


@dataclass(frozen=True)
class Cell:
    """One placement with one optimizer: its grid of settings, judged by validation loss."""

    placement: str
    optimizer: str
    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        return f"{self.placement} + {self.optimizer}"

    @property
    def best(self) -> Setting:
        """The lowest mean validation loss among the settings with most seeds: one lucky seed must not win."""
        most = max(len(setting.ends) for setting in self.settings)
        return min((s for s in self.settings if len(s.ends) == most), key=lambda setting: setting.validation)

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate of a grid is its smallest or largest."""
        rates = sorted({setting.lr for setting in self.settings})
        return len(rates) > 1 and self.best.lr in (rates[0], rates[-1])


@dataclass(frozen=True)
class Comparison:
    """The finished cells of a folder."""

    folder: Path

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        runs = [Run(path.parent) for path in sorted(self.folder.glob("*/config.json"))]
        finished = [(*varied(run.config), run, end) for run in runs if (end := run.end)]
        if not finished:
            raise ValueError(f"{self.folder} holds no finished run.")
        check_comparable([row[4] for row in finished])
        finished.sort(key=lambda row: row[:4])
        cells = []
        for (placement, optimizer), of_cell in groupby(finished, key=lambda row: row[:2]):
            settings = []
            for (*_, lr, decay), rows in groupby(of_cell, key=lambda row: row[:4]):
                runs, ends = zip(*(row[4:] for row in rows), strict=True)
                seeds = [run.config["training"]["seed"] for run in runs]
                if len(set(seeds)) < len(seeds):
                    raise ValueError(f"{runs[0].path} and {runs[1].path} are the same setting and seed; remove one.")
                settings.append(Setting(placement, optimizer, lr, decay, runs, ends))
            cells.append(Cell(placement, optimizer, tuple(settings)))
        rank = {name: i for i, name in enumerate(PLACEMENTS)}
        return tuple(sorted(cells, key=lambda cell: (rank.get(cell.placement, len(rank)), cell.optimizer)))

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def verdict(self) -> str:
        """What the table means, in one line."""
        ranked = sorted(self.cells, key=lambda cell: cell.best.test)
        first, rest = ranked[0], ranked[1:]
        if first.best.diverged:
            return "Every cell diverged."
        parts = [f"Lowest test loss: {first.name}, {first.best.test:.3f} nats {A_UNIT[self.unit]}"]
        parts += [f"{cell.name} {relative(cell.best.test, first.best.test)}" for cell in rest]
        seeds = min(len(cell.best.ends) for cell in self.cells)
        basis = "One seed: suggestive, not evidence." if seeds == 1 else f"Means of {seeds} seeds."
        return f"{'; '.join(parts)}. {self.claim}{basis}"

    @property
    def claim(self) -> str:
        """Whether the paper's claim holds among these cells; empty if they do not say."""
        losses = {cell.name: cell.best.test for cell in self.cells}
        if not {"dnt + msgdw", "pre-ln + adamw"} <= losses.keys():
            return ""
        if math.isinf(losses["dnt + msgdw"]) or math.isinf(losses["pre-ln + adamw"]):
            return ""
        gap = losses["dnt + msgdw"] / losses["pre-ln + adamw"] - 1
        holds = "holds" if gap <= 0 else "does not hold"
        return f"The claim, dnt + msgdw as good as pre-ln + adamw, {holds} here ({gap:+.1%}). "

    @property
    def unit(self) -> str:
        """What a second of training is counted in: tokens or images."""
        return "images" if any("images_per_s" in end for cell in self.cells for end in cell.best.ends) else "tokens"

    def columns(self) -> list[str]:
        return [
            *("placement", "optimizer", "lr", "wd", "test loss", "validation"),
            *(("test top-1",) if self.unit == "images" else ()),
            *("seeds", "clipped", "state B/param", "peak memory", f"{self.unit}/s", "time"),
        ]

    def rows(self) -> list[list[str]]:
        """The table, each cell at the learning rate and decay with its lowest validation loss."""
        rows = []
        for cell in self.cells:
            best = cell.best
            spread = f" ± {best.test_spread:.3f}" if best.test_spread is not None else ""
            row = [cell.placement, cell.optimizer, f"{best.lr:g}{' (edge)' if cell.at_edge else ''}"]
            row += [f"{best.weight_decay:g}", f"{best.test:.3f}{spread}", f"{best.validation:.3f}"]
            if self.unit == "images":
                row.append("" if best.diverged else f"{best.average('test_top1'):.1%}")
            row.append(f"{len(best.ends)}")
            if best.diverged:
                row += ["diverged", *[""] * 4]
            else:
                row += [
                    f"{best.average('clipped_share'):.0%}",
                    f"{best.average('state_bytes') / best.average('parameters'):.1f}",
                    f"{best.average('peak_memory_bytes') / 2**20:,.0f} MiB",
                    f"{best.average(f'{self.unit}_per_s'):,.0f}",
                    f"{best.average('train_seconds'):.0f} s",
                ]
            rows.append(row)
        return rows

    def settings(self) -> list[list[str]]:
        """Every setting that was tried: placement, optimizer, lr, wd, validation, test, seeds."""
        return [
            [
                *(cell.placement, cell.optimizer, f"{setting.lr:g}", f"{setting.weight_decay:g}"),
                *(f"{setting.validation:.4f}", f"{setting.test:.4f}", f"{len(setting.ends)}"),
            ]
            for cell in self.cells
            for setting in cell.settings
        ]

    def table(self) -> Table:
        """For a terminal."""
        config = self.cells[0].best.runs[0].config
        data, found = config["data"], config["training"]["precision"]
        amount = f"{data[self.unit]['train']:,} training {self.unit}" if self.unit in data else ""
        table = Table(*self.columns(), caption=f"{data['name']}: {amount}, sha256 {data['sha256'][:16]}; {found}")
        for row in self.rows():
            table.add_row(*row)
        return table


def varied(config: dict[str, Any]) -> tuple[str, str, float, float]:
    """Placement, optimizer, learning rate and decay of a run, of `dnt train` or of `dnt.fit`."""
    placement, group = config["model"]["placement"], config["optimizer"]["groups"][0]
    if not isinstance(placement, str):
        slots = {name: Slots(**placement[name]) for name in ("attn", "mlp")}
        placement = Placement(**placement | slots).formula()
    return placement, config["optimizer"]["class"].lower(), group["lr"], group["weight_decay"]


def check_comparable(runs: list[Run]) -> None:
    """ValueError naming the first thing in which runs differ that one table must share."""
    first: dict[str, tuple[Run, dict[str, Any]]] = {}
    for run in runs:
        config = run.config
        optimizer = config["optimizer"]["class"]
        fixed = {
            **{f"data: {name}": value for name, value in config["data"].items()},
            **{f"model: {name}": value for name, value in config["model"].items() if name != "placement"},
            **{f"training: {name}": value for name, value in config["training"].items() if name not in ("seed", *HOW)},
        }
        group, *others = config["optimizer"]["groups"]
        options = {name: value for name, value in group.items() if name not in ("lr", "weight_decay")}
        # of a mixture's second optimizer too, with its rate and decay: no cell varies those
        second: dict[str, Any] = next((other for other in others if other.keys() != group.keys()), {})
        options |= {f"second {name}": value for name, value in second.items()}
        for scope, values in (("", fixed), (f"{optimizer}: ", options)):
            other, expected = first.setdefault(scope, (run, values))
            for name, value in values.items():
                if value != expected.get(name):
                    raise ValueError(
                        f"{run.path} and {other.path} cannot stand in one table: {scope}{name} is {value!r} and "
                        f"{expected.get(name)!r}. Move one of them to another folder."
                    )


def relative(loss: float, best: float) -> str:
    return "diverged" if math.isinf(loss) else f"+{loss / best - 1:.1%}"
