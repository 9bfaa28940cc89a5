"""The cells of a folder -> the table and the sentence that say what came out. No torch."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from rich.table import Table

from dnt.files import read_json
from dnt.report.cells import PHASES, Cell, Setting, cells_in, finished
from dnt.runs import EXPERIMENT, Run

A_UNIT = {"tokens": "a token", "images": "an image"}
MOST_NAMED = 6  # cells in a sentence
CLAIMS = {
    "dnt + msgdw": "The claim, dnt + msgdw as good as pre-ln + adamw,",
    "dnt + msgdw, calibrated": "The same of calibrated dnt + msgdw",
}


@dataclass(frozen=True)
class Comparison:
    """The finished cells of a folder."""

    folder: Path

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        return cells_in(self.folder)

    @property
    def tuned(self) -> bool:
        """Whether it is a folder of `dnt tune`."""
        return (self.folder / "tuning").is_dir()

    @property
    def complete(self) -> bool:
        """Of a tuned folder: whether every cell's best setting has run on all seeds that were asked for last."""
        seeds = set(read_json(self.folder / EXPERIMENT, "an experiment")["seeds"])
        return all(
            cell.winner and not cell.outdated and seeds <= cell.winner.test_by_seed().keys() for cell in self.cells
        )

    @property
    def runs(self) -> list[Run]:
        """Those of the table and of the settings that were tried."""
        return [
            run
            for cell in self.cells
            for setting in (*cell.settings, *([cell.winner] if cell.winner else []))
            for run in setting.runs
        ]

    @property
    def budget(self) -> str:
        """What all finished runs cost, also of settings that won before a better one was found."""
        folders = (self.folder, *(self.folder / phase for phase in PHASES))
        ends = [run.end or {} for folder in folders for run in finished(folder)]
        seconds = sum(end.get("cpu_seconds", 0) for end in ends)
        return f"{len(ends)} runs" + (f", {seconds / 60:.0f} core-minutes" if seconds else "")

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
        if len(rest) < MOST_NAMED:
            parts += [f"{cell.name} {relative(cell.best, first.best)}" for cell in rest]
        if self.tuned and not self.complete:
            return f"{'; '.join(parts)}. The study is not finished: not every winner has run on all fresh seeds."
        seeds = min(len(cell.best.ends) for cell in self.cells)
        if seeds == 1:
            return f"{'; '.join(parts)}. {self.claim}One seed: suggestive, not evidence."
        close = [
            cell.name
            for cell in rest
            if not cell.best.diverged and not ((gap := paired(cell.best, first.best)) and gap.excludes_zero)
        ]
        unclear = f"No difference to it is shown for {'; '.join(close)}. " if close else ""
        return f"{'; '.join(parts)}. {unclear}{self.claim}Means of {seeds} seeds; intervals are paired, 95%."

    @property
    def claim(self) -> str:
        """Whether the paper's claim holds among these cells; empty if they do not say."""
        best = {cell.name: cell.best for cell in self.cells}
        said = ""
        for name, claim in CLAIMS.items():
            if {name, "pre-ln + adamw"} <= best.keys() and (gap := paired(best[name], best["pre-ln + adamw"])):
                holds = "holds" if gap.mean <= 0 else "does not hold"
                if not gap.excludes_zero:
                    holds = "is neither shown nor refuted"
                said += f"{claim} {holds} here ({gap.relative:+.1%}, {gap} nats). "
        return said

    @property
    def unit(self) -> str:
        """What a second of training is counted in: tokens or images."""
        return "images" if any("images_per_s" in end for cell in self.cells for end in cell.best.ends) else "tokens"

    def columns(self) -> list[str]:
        return [
            *("placement", "optimizer", *(("variation",) if self.varied else ()), "lr", "wd", "test loss"),
            *(("to the lowest",) if self.seeded else ()),
            *("validation", *(("test top-1",) if self.unit == "images" else ())),
            *(("trials",) if self.tuned else ()),
            *("seeds", "clipped", "state B/param", "peak memory", f"{self.unit}/s", "time"),
        ]

    @property
    def varied(self) -> bool:
        return any(cell.variation for cell in self.cells)

    @property
    def seeded(self) -> bool:
        """Whether cells have several seeds, so that differences have intervals."""
        return any(len(cell.best.ends) > 1 for cell in self.cells)

    def rows(self) -> list[list[str]]:
        """The table, each cell at the learning rate and decay with its lowest validation loss."""
        rows = []
        lowest = min(self.cells, key=lambda cell: cell.best.test).best
        for cell in self.cells:
            best = cell.best
            spread = f" ± {best.test_spread:.3f}" if best.test_spread is not None else ""
            row = [cell.placement, cell.optimizer, *((cell.variation,) if self.varied else ())]
            row += [f"{best.lr:g}{' (edge)' if cell.at_edge else ''}", f"{best.weight_decay:.3g}"]
            row.append(f"{best.test:.3f}{spread}")
            if self.seeded:
                row.append(str(paired(best, lowest) or "") if best is not lowest else "")
            row.append(f"{best.validation:.3f}")
            if self.unit == "images":
                row.append("" if best.diverged else f"{best.average('test_top1'):.1%}")
            if self.tuned:
                row.append(str(sum(len(setting.ends) for setting in cell.settings)))
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
        """Every setting that was tried: placement, optimizer, variation, lr, wd, validation, test, seeds."""
        return [
            [
                *(cell.placement, cell.optimizer, cell.variation, f"{setting.lr:g}", f"{setting.weight_decay:.3g}"),
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
        caption = f"{data['name']}: {amount}, sha256 {data['sha256'][:16]}; {found}; {self.budget}"
        table = Table(*self.columns(), caption=caption)
        for row in self.rows():
            table.add_row(*row)
        return table


@dataclass(frozen=True)
class Interval:
    """A difference of means with the half width of its 95% interval, infinite with one seed; what it is relative to."""

    mean: float
    half: float
    base: float

    @property
    def relative(self) -> float:
        return self.mean / self.base

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:+.3f}" + (f" ± {self.half:.3f}" if math.isfinite(self.half) else "")


def paired(a: Setting, b: Setting) -> Interval | None:
    """Test loss of a minus b over the seeds of both: Student's t interval. None if one diverged, or none is shared."""
    from scipy.stats import t  # half a second to import

    of_a, of_b = a.test_by_seed(), b.test_by_seed()
    seeds = of_a.keys() & of_b.keys()
    gaps = [of_a[seed] - of_b[seed] for seed in seeds]
    if not gaps or not all(map(math.isfinite, gaps)):
        return None
    n = len(gaps)
    half = float(t.ppf(0.975, n - 1)) * stdev(gaps) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean(gaps), half, mean(of_b[seed] for seed in seeds))


def relative(a: Setting, b: Setting) -> str:
    """By how much the test loss of a is above that of b, on the seeds of both."""
    if a.diverged:
        return "diverged"
    gap = paired(a, b)
    return f"{gap.relative:+.1%}" if gap else f"{a.test:.3f}, of other seeds"
