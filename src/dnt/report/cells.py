"""A folder of runs -> its cells, each with the settings that were tried. No torch."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dnt.files import read_json
from dnt.lookup import lookup
from dnt.nn.config import GPT_SIZES, VIT_SIZES
from dnt.nn.placement import PLACEMENTS, placement_from, placement_named
from dnt.optim.kinds import RATES
from dnt.runs import EXPERIMENT, Run
from dnt.settings import FIXED, OF_SGD, SHAPE, VARIATIONS, FitSettings, Recipe

OF_SOME = (*RATES, "equilibrium", "bound", "momentum_in_grad")  # not all groups of optimizers have them
OF_GROUPS = {name: getattr(Recipe, name) for name in OF_SOME}
PACE = ("batch_size", "steps", "warmup")
PHASES = ("tuning", "winners")  # the folders of a tuned experiment
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


def cells_in(folder: Path) -> tuple[Cell, ...]:
    """Of the finished runs, in the order of placements; ValueError if there are none, or they are not comparable."""
    tuning, winners = (finished(folder / phase) for phase in PHASES)
    tried = [*finished(folder), *tuning]
    if not tried:
        raise ValueError(f"{folder} holds no finished run.")
    runs = [*tried, *winners]
    check_comparable(runs)
    variation = dict(zip(runs, labels([run.config for run in runs], recipe_of(folder)), strict=True))
    won = settings_by_cell(winners, variation)
    cells = [
        Cell(*key, settings, winner(settings, won.get(key, ())))
        for key, settings in settings_by_cell(tried, variation).items()
    ]
    rank = {name: i for i, name in enumerate(PLACEMENTS)}
    return tuple(sorted(cells, key=lambda cell: (rank.get(cell.placement, len(rank)), cell.optimizer, cell.variation)))


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
    return asdict(Recipe()) | held | {name: value for name, value in shape.items() if held[name] is None}


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
            beyond = found[name] * batch_size - int(usual[name]) * usual_size  # in samples
            if batch_size != usual_size and abs(beyond) < batch_size:
                del found[name]  # at equal tokens it follows from the batch size, to a step
    return [in_words(found, usual) for found in of_all]


def in_words(found: dict[str, Any], usual: dict[str, str]) -> str:
    """What is not as usual; of a variation that has a name, that name."""
    differing = {name: f"{name} {shown(v)}" for name, v in found.items() if shown(v) != usual[name]}
    for name, parts in VARIATIONS.items():
        if differing.keys() & parts and all(shown(found.get(part)) == shown(value) for part, value in parts.items()):
            differing = {name: name} | {part: words for part, words in differing.items() if part not in parts}
    return ", ".join(differing.values())


def facts(config: dict[str, Any]) -> dict[str, Any]:
    """What may differ between the runs of one table."""
    group, *others = config["optimizer"]["groups"]
    of_a_mixture = (other for other in others if other.keys() - OF_GROUPS.keys() != group.keys() - OF_GROUPS.keys())
    second: dict[str, Any] = next(of_a_mixture, {})
    of_second = {"adamw_lr" if name == "lr" else f"second {name}": value for name, value in second.items()}
    known = asdict(FitSettings()) | config["model"] | config["training"] | group | of_second | OF_GROUPS
    for of_kind in config["optimizer"]["groups"]:
        known |= {name: of_kind[name] for name in OF_GROUPS.keys() & of_kind.keys()}
    unheard = () if "momentum" in group else OF_SGD
    placement = config["model"].get("placement")
    if isinstance(placement, str) and not placement_named(placement).hides:
        unheard = (*unheard, "calibrate")
    left_out = ("placement", "seed", "lr", "weight_decay", *unheard, *FIXED)
    return {name: v for name, v in known.items() if name not in left_out}


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting_of(config: dict[str, Any]) -> tuple[str, str, float, float]:
    """Placement, optimizer, learning rate and decay of a run, of `dnt train` or of `dnt.fit`."""
    placement, group = config["model"]["placement"], config["optimizer"]["groups"][0]
    if not isinstance(placement, str):
        placement = placement_from(placement).formula()
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
