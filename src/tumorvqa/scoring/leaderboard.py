"""Our scores beside the rows that the authors report."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from rich.markup import escape
from rich.table import Table

from tumorvqa.question import GROUPS
from tumorvqa.scoring.scores import Format, Scores

FILES: dict[Format, str] = {"mc": "leaderboard.csv", "free": "leaderboard_freeform.csv"}
COLUMNS = dict(zip(GROUPS, ("recog", "meas", "visr", "medr"), strict=True))
NOTE = (
    "* as reported by the authors (Chen et al. 2026, CC-BY-4.0): not measured here, and on another set of questions "
    "(their benchmark of 10,000), so only rows with the same mark compare."
)


@dataclass(frozen=True)
class Row:
    """Percent. `groups` lacks what was not asked; `low` and `high` are the 95% interval of `overall`."""

    model: str
    input: str
    mode: str
    overall: float
    groups: dict[str, float]
    measured: bool
    source: str
    low: float | None = None
    high: float | None = None


def _table(name: str) -> list[dict[str, str]]:
    text = files("tumorvqa.scoring").joinpath(name).read_text("utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@lru_cache
def reference(format: Format) -> tuple[Row, ...]:
    """The authors' rows, in their order."""
    return tuple(
        Row(
            model=row["model"],
            input=row["input"],
            mode=row["mode"],
            overall=float(row["overall"]),
            groups={group: float(row[column]) for group, column in COLUMNS.items()},
            measured=False,
            source=row["source"],
        )
        for row in _table(FILES[format])
    )


def rows(scores: Sequence[Scores], format: Format = "mc") -> list[Row]:
    """Ours of that format and the reference rows, best first."""
    ours = [
        Row(
            model=row.model,
            input="",
            mode=f"key: {row.key}{', as the authors score' * row.strict_authors}",
            overall=100 * row.overall.accuracy.value,
            groups={name: 100 * part.accuracy.value for name, part in row.groups.items()},
            measured=True,
            source=f"{row.overall.questions} questions",
            low=None if row.overall.accuracy.low is None else 100 * row.overall.accuracy.low,
            high=None if row.overall.accuracy.high is None else 100 * row.overall.accuracy.high,
        )
        for row in scores
        if row.format == format
    ]
    return sorted((*ours, *reference(format)), key=lambda row: -row.overall)


def leaderboard(scores: Sequence[Scores], format: Format = "mc") -> Table:
    table = Table(title=f"Accuracy in percent ({'multiple choice' if format == 'mc' else 'free form'})", caption=NOTE)
    for name in ("Model", "Mode", "Overall", "95%", *GROUPS):
        table.add_column(name, justify="left" if name in ("Model", "Mode") else "right", overflow="fold")
    for row in rows(scores, format):
        spread = "" if row.low is None or row.high is None else f"{row.low:.1f}-{row.high:.1f}"
        cells = [f"{row.groups[name]:.1f}" if name in row.groups else "" for name in GROUPS]
        table.add_row(
            escape(row.model) + ("" if row.measured else " *"),
            escape(row.mode),
            f"{row.overall:.1f}",
            spread,
            *cells,
            style="bold" if row.measured else "",
        )
    return table
