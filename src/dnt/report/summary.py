"""A folder of runs -> the table and the sentence that say what came out. No torch."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from dnt.files import read_json
from dnt.lookup import lookup
from dnt.nn.config import GPT_SIZES, VIT_SIZES
from dnt.nn.placement import PLACEMENTS, Placement, Slots
from dnt.runs import EXPERIMENT, Run
from dnt.settings import FIXED, SHAPE, Recipe

A_UNIT = {"tokens": "a token", "images": "an image"}
PACE = ("batch_size", "steps", "warmup")
PHASES = ("tuning", "winners")  # the folders of a tuned experiment
MOST_NAMED = 6  # cells in a sentence
MEASURED_ALIKE = ("precision", "compile", "eval_tokens")


@dataclass(frozen=True)
class Setting:
    """The runs of a cell with one learning rate and decay: its seeds."""

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

    @property
    def step_decay(self) -> float:
        """lr x weight decay, without the rounding of the division that made the decay."""
        return float(f"{self.lr * self.weight_decay:.3g}")

    def average(self, quantity: str) -> float:
        return mean(end.get(quantity, math.nan) for end in self.ends)

    def test_by_seed(self) -> dict[int, float]:
        return {
            run.config["training"]["seed"]: end.get("test", math.inf)
            for run, end in zip(self.runs, self.ends, strict=True)
        }


@dataclass(frozen=True)
class Cell:
    """One placement with one optimizer, and in what else it differs: its grid of settings, judged by validation loss.

    winner: of a tuned cell, its best setting on fresh seeds.
    """

    placement: str
    optimizer: str
    variation: str
    settings: tuple[Setting, ...]
    winner: Setting | None = None

    @property
    def name(self) -> str:
        return f"{self.placement} + {self.optimizer}" + (f", {self.variation}" if self.variation else "")

    @property
    def best(self) -> Setting:
        """The lowest mean validation loss among the settings with most seeds: one lucky seed must not win."""
        return self.winner or self.tuning_best

    @property
    def tuning_best(self) -> Setting:
        """Of the settings that were tried."""
        most = max(len(setting.ends) for setting in self.settings)
        return min((s for s in self.settings if len(s.ends) == most), key=lambda setting: setting.validation)

    @property
    def outdated(self) -> bool:
        """Whether tuning has found a better setting than the one that won."""
        tried = {(setting.lr, setting.weight_decay): setting.validation for setting in self.settings}
        of_winner = tried.get((self.winner.lr, self.winner.weight_decay), math.inf) if self.winner else math.inf
        return self.tuning_best.validation < of_winner

    @property
    def at_edge(self) -> bool:
        """Whether the best learning rate of a grid is its smallest or largest."""
        rates = sorted({setting.lr for setting in self.settings})
        return len(rates) > 1 and self.tuning_best.lr in (rates[0], rates[-1])


@dataclass(frozen=True)
class Comparison:
    """The finished cells of a folder."""

    folder: Path

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        tuning, winners = (finished(self.folder / phase) for phase in PHASES)
        tried = [*finished(self.folder), *tuning]
        if not tried:
            raise ValueError(f"{self.folder} holds no finished run.")
        runs = [*tried, *winners]
        check_comparable(runs)
        variation = dict(zip(runs, labels([run.config for run in runs], recipe_of(self.folder)), strict=True))
        won = settings_by_cell(winners, variation)
        cells = [
            Cell(*key, settings, winner(settings, won.get(key, ())))
            for key, settings in settings_by_cell(tried, variation).items()
        ]
        rank = {name: i for i, name in enumerate(PLACEMENTS)}
        return tuple(
            sorted(cells, key=lambda cell: (rank.get(cell.placement, len(rank)), cell.optimizer, cell.variation))
        )

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
        if not {"dnt + msgdw", "pre-ln + adamw"} <= best.keys():
            return ""
        gap = paired(best["dnt + msgdw"], best["pre-ln + adamw"])
        if not gap:
            return ""
        holds = "holds" if gap.mean <= 0 else "does not hold"
        if not gap.excludes_zero:
            holds = "is neither shown nor refuted"
        return f"The claim, dnt + msgdw as good as pre-ln + adamw, {holds} here ({gap.relative:+.1%}, {gap} nats). "

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


def winner(tried: tuple[Setting, ...], won: tuple[Setting, ...]) -> Setting | None:
    """Of what ran on fresh seeds, the best in tuning: an older one was the best of fewer rates."""
    validation = {(setting.lr, setting.weight_decay): setting.validation for setting in tried}
    return min(won, key=lambda s: validation.get((s.lr, s.weight_decay), math.inf), default=None)


def finished(folder: Path) -> list[Run]:
    return [run for path in sorted(folder.glob("*/config.json")) if (run := Run(path.parent)).end]


def settings_by_cell(runs: list[Run], variation: dict[Run, str]) -> dict[tuple[str, str, str], tuple[Setting, ...]]:
    """Runs by placement, optimizer and variation, then by learning rate and decay."""
    rows = sorted(
        ((*setting_of(run.config), run) for run in runs), key=lambda row: (row[:2], variation[row[4]], row[2:4])
    )
    cells: dict[tuple[str, str, str], tuple[Setting, ...]] = {}
    for (placement, optimizer, what, lr, decay), same in groupby(
        rows, key=lambda row: (*row[:2], variation[row[4]], *row[2:4])
    ):
        of_setting = tuple(row[4] for row in same)
        by_seed: dict[int, Run] = {}
        for run in of_setting:
            if (other := by_seed.setdefault(run.config["training"]["seed"], run)) is not run:
                raise ValueError(f"{other.path} and {run.path} are the same setting and seed; remove one.")
        setting = Setting(lr, decay, of_setting, tuple(run.end or {} for run in of_setting))
        cells[placement, optimizer, what] = (*cells.get((placement, optimizer, what), ()), setting)
    return cells


def recipe_of(folder: Path) -> dict[str, Any]:
    """What the cells of an experiment vary; empty for a folder of other runs."""
    if not (folder / EXPERIMENT).exists():
        return {}
    held = read_json(folder / EXPERIMENT, "an experiment")["held"]
    size: Any = lookup(GPT_SIZES | VIT_SIZES, held["model"], "model")  # type: ignore[operator]
    shape = {name: getattr(size, name) for name in SHAPE if hasattr(size, name)}
    return held | {name: value for name, value in shape.items() if held[name] is None}


def labels(configs: list[dict[str, Any]], recipe: dict[str, Any]) -> list[str]:
    """In what each run differs from the recipe, besides placement, optimizer, learning rate, decay and seed.

    Or, of what the recipe does not say, from most runs.
    """
    of_all = [facts(config) for config in configs]
    usual = {}
    paces = Counter(tuple(shown(found[name]) for name in PACE) for found in of_all)  # which belong together
    recipe = dict(zip(PACE, paces.most_common(1)[0][0], strict=True)) | recipe
    for name in {name for found in of_all for name in found}:
        counts = Counter(shown(found[name]) for found in of_all if name in found)
        default = shown(getattr(Recipe, name, None))
        most = max(counts, key=lambda value: (counts[value], value == default))
        usual[name] = shown(recipe[name]) if name in recipe else most
    for found in of_all:
        batch_size, usual_size = found["batch_size"], int(usual["batch_size"])
        for name in ("steps", "warmup"):
            if abs(found[name] * batch_size - int(usual[name]) * usual_size) < abs(batch_size - usual_size):
                del found[name]  # at equal tokens it follows from the batch size
    return [", ".join(f"{name} {shown(v)}" for name, v in found.items() if shown(v) != usual[name]) for found in of_all]


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """What may differ between the runs of one table."""
    group, *others = config["optimizer"]["groups"]
    of_a_mixture = (other for other in others if other.keys() != group.keys())
    second: dict[str, Any] = next(of_a_mixture, {})
    of_second = {"adamw_lr" if name == "lr" else f"second {name}": value for name, value in second.items()}
    known = config["model"] | config["training"] | group | of_second
    return {name: v for name, v in known.items() if name not in ("placement", "seed", "lr", "weight_decay", *FIXED)}


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_of(config: dict[str, Any]) -> tuple[str, str, float, float]:
    """Placement, optimizer, learning rate and decay of a run, of `dnt train` or of `dnt.fit`."""
    placement, group = config["model"]["placement"], config["optimizer"]["groups"][0]
    if not isinstance(placement, str):
        slots = {name: Slots(**placement[name]) for name in ("attn", "mlp")}
        placement = Placement(**placement | slots).formula()
    return placement, config["optimizer"]["class"].lower(), group["lr"], group["weight_decay"]


def check_comparable(runs: list[Run]) -> None:
    """ValueError naming the first thing in which runs differ that one table must share."""
    first: dict[str, Any] = {}
    for run in runs:
        config = run.config
        fixed = {
            **{f"data: {name}": value for name, value in config["data"].items()},
            **{f"model: {name}": value for name, value in config["model"].items() if name in FIXED},
            **{f"training: {name}": config["training"].get(name) for name in MEASURED_ALIKE},
        }
        for name, value in fixed.items():
            if value != first.setdefault(name, value):
                raise ValueError(
                    f"{run.path} and {runs[0].path} cannot stand in one table: {name} is {value!r} and "
                    f"{first[name]!r}. Move one of them to another folder."
                )


def relative(a: Setting, b: Setting) -> str:
    """By how much the test loss of a is above that of b, on the seeds of both."""
    if a.diverged:
        return "diverged"
    gap = paired(a, b)
    return f"{gap.relative:+.1%}" if gap else f"{a.test:.3f}, of other seeds"
