"""What was measured of one model -> a table, one self-contained page, and the same numbers as parquet. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from rich.table import Table

from dnt.extras import extra
from dnt.files import atomic_write
from dnt.report.findings import Rows, called, findings, index_of, interval, short
from dnt.report.page import FIGURE
from dnt.report.plots import figures

READING = (  # a cell of the statements (dnt.experiments.statements)
    "The largest |ln ratio| of a singular value over all factors s, 0 where the scale is not seen; in brackets where "
    "the largest has doubled or halved, on the way down and on the way up from s = 1."
)
TABLES = {  # that an inspection may write
    f"{name}.parquet"
    for name in (
        *("gradients", "tails", "shares", "noise", "scales", "jacobians", "weights", "stream", "attention"),
        "statements",
    )
}


@dataclass(frozen=True)
class Inspection:
    """Tables of what was measured of one model (dnt.analysis.diagnosis), and where its page lies.

    facts: what was looked at, in words. along: the tables of each diagnosis in a training, with their steps.
    statements: what each placement hides, in words.
    """

    name: str
    facts: dict[str, Any]
    tables: dict[str, Rows]
    folder: Path
    along: Rows = field(default_factory=list)
    statements: Rows = field(default_factory=list)

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def findings(self) -> list[str]:
        """What the numbers say, to act on."""
        return findings(self.tables)

    def table(self) -> Table:
        """Of each role, for a terminal."""
        columns = {"share of norm²": "norm_share", "RMS": "rms", "largest / median": "max_to_median"}
        columns |= {"norm² in the top 1%": "top_share", "kurtosis": "kurtosis", "zeros": "zero_share"}
        found = Table("gradient of", *columns, "Hill index", "the same, levelled")
        for row in self.tables["gradients"]:
            if row["level"] != "part":
                indices = [index_of(self.tables["tails"], row["name"], "hill", how) for how in ("raw", "levelled")]
                found.add_row(
                    called(row["name"]), *(short(row[key]) for key in columns.values()), *map(interval, indices)
                )
        return found

    def statements_table(self) -> Table:
        """For a terminal."""
        found = Table(*self.statements[0], caption=READING, caption_justify="left")
        for row in self.statements:
            found.add_row(*row.values())
        return found

    def files(self) -> dict[str, Rows]:
        """The tables by file; those of the diagnoses in a training together, with the step of each row."""
        found = dict(self.tables)
        for diagnosis in self.along:
            for name, rows in diagnosis["tables"].items():
                found.setdefault(f"along-{name}", []).extend({"step": diagnosis["step"]} | row for row in rows)
        return {f"{name}.parquet": rows for name, rows in found.items() if rows}

    def write(self) -> None:
        """A parquet file for each table, and the page."""
        parquet, arrow = extra("pyarrow.parquet"), extra("pyarrow")
        files = self.files()
        for name, rows in files.items():
            with atomic_write(self.folder / name) as file:
                parquet.write_table(arrow.Table.from_pylist(rows), file)
        for name in TABLES - files.keys():  # of an earlier inspection
            (self.folder / name).unlink(missing_ok=True)
        template = Environment(
            loader=PackageLoader("dnt", "report"), autoescape=True, undefined=StrictUndefined
        ).get_template("inspection.html")
        page = template.render(
            title=self.name,
            facts=self.facts,
            findings=self.findings(),
            scales=self.tables["scales"],
            statements=self.statements,
            reading=READING,
            short=short,
            figures=[
                (heading, note, Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=FIGURE)))
                for heading, note, figure in figures(self.tables, self.along)
            ],
            files=list(files),
            plotly=Markup(get_plotlyjs()),
        )  # fmt: skip
        with atomic_write(self.page) as file:
            file.write(page.encode())
