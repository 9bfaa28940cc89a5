"""What was measured of one model -> one self-contained page, and the same numbers as parquet. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite, log, log10
from pathlib import Path
from statistics import median
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.colors import sample_colorscale
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots
from rich.table import Table

from dnt.extras import extra
from dnt.files import atomic_write
from dnt.report.page import COLORS, FIGURE, styled

Rows = list[dict[str, Any]]
SCALE = "Viridis"
SHOWN = 5  # names in a sentence
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
NOTICED = 1e-3  # nats: a smaller change of the loss is what eps and rounding make of a scale that is hidden
PARTLY = {"MidNorm after the feed-forward": "hides that of W_2, and that of W_1 if the activation is relu"}
HEAT = {  # of each layer and role
    "rms": ("RMS of |g|", True),
    "top_share": ("share of the norm² in the largest 1%", False),
    "max_to_median": ("largest over median |g|", True),
    "norm_share": ("share of the whole gradient's norm²", False),
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
        return [
            *carriers(self.tables["gradients"]),
            *tail(self.tables),
            *noisy(self.tables["noise"]),
            *hidden(self.tables["scales"]),
            *depth(self.tables),
        ]

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
                for heading, note, figure in figures(self)
            ],
            files=list(files),
            plotly=Markup(get_plotlyjs()),
        )  # fmt: skip
        with atomic_write(self.page) as file:
            file.write(page.encode())


# Findings


def carriers(rows: Rows) -> Iterator[str]:
    """Which matrices carry the gradient."""
    roles = sorted((row for row in rows if row["level"] == "role"), key=lambda row: -row["norm_share"])
    parts = [row for row in rows if row["level"] == "part"]
    total = next(row for row in rows if row["level"] == "all")
    mattering = [row for row in roles[:4] if row["norm_share"] >= 0.005]  # 1% when it is rounded
    shares = ", ".join(f"{called(row['name'])} {row['norm_share']:.0%}" for row in mattering) or "no entry at all"
    largest = max(parts, key=lambda row: row["norm_share"])
    yield (
        f"The gradient's squared norm lies in {shares}. The parameter with most of it is {largest['name']} "
        f"({largest['norm_share']:.0%} of it, in {largest['count'] / total['count']:.1%} of the entries)."
    )
    yield (
        f"{total['top_share']:.0%} of the squared norm is in the largest 1% of the entries (8% of a normal law), and "
        f"the largest entry is {short(total['max_to_median'])} times the median."
    )
    if unused := [row["name"] for row in parts if row["zeros"] == row["count"]]:
        more = ", ..." if len(unused) > SHOWN else ""
        yield f"No gradient at all in {len(unused)} of {len(parts)} parameters: {', '.join(unused[:SHOWN])}{more}."


def tail(tables: dict[str, Rows]) -> Iterator[str]:
    """How heavy the tail of the blocks' matrices is, and whether unequal scales make it."""
    raw, divided = (index_of(tables["tails"], "blocks", "hill", how) for how in ("raw", "levelled"))
    if not raw or not divided:
        return
    verdict = "whether unequal scales make the tail heavier is not clear, since the intervals overlap"
    if divided["low"] > raw["high"]:
        verdict = "unequal scales make a part of the tail"
    elif divided["high"] < raw["low"]:
        verdict = "unequal scales hide a part of the tail"
    shares = next(row for row in tables["shares"] if row["name"] == "blocks")
    yield (
        f"The blocks' matrices together have a tail index (Hill) of {interval(raw)}, and of {interval(divided)} once "
        f"rows and columns of each are divided by their geometric means: {verdict}. Of the variance of log|g|, "
        f"{shares['parameters']:.0%} lies between matrices, {shares['rows']:.0%} between rows, {shares['columns']:.0%} "
        f"between columns, {shares['entries']:.0%} within."
    )


def noisy(rows: Rows) -> Iterator[str]:
    """How heavy-tailed the gradient's noise is from batch to batch."""
    if found := [row for row in rows if row["value"] is not None]:
        heaviest = min(found, key=lambda row: row["value"])
        listed = ", ".join(f"{called(row['role'])} {row['value']:.2f}" for row in found)
        yield (
            f"The noise of the gradient has an alpha-stable index of {interval(heaviest)} in "
            f"{called(heaviest['role'])}, where it is heaviest (2 is a normal law): {listed}."
        )
    if still := [called(row["role"]) for row in rows if row["value"] is None]:
        yield f"The noise of {', '.join(still)} hardly ever moves and has no index (noise.parquet says why)."


def hidden(rows: Rows) -> Iterator[str]:
    """Which position removes which dependence, where a model has a norm there (and none of the biases interferes)."""
    for row in rows:
        if not row["change"] < NOTICED:  # nan too
            yield (
                f"The loss sees the scale of {row['what']}: it changes by {short(row['change'])} nats at a factor of "
                f"{row['factor']:g}. {row['norm']} {PARTLY.get(row['norm'], 'is what hides it')}."
            )
    if unseen := [row["what"] for row in rows if row["change"] < NOTICED]:
        yield (
            f"The loss hardly sees the scale of {'; '.join(unseen)} (less than {NOTICED:g} nats): a norm hides it, or "
            "it is too small to matter."
        )


def depth(tables: dict[str, Rows]) -> Iterator[str]:
    """Where the stream or the Jacobians stretch."""
    blocks = [row for row in tables["jacobians"] if row["what"] == "block"]
    if blocks:
        worst = max(blocks, key=lambda row: row["largest"])
        end = next((row for row in tables["jacobians"] if row["what"] == "end to end"), None)
        through = f", the whole stack {short(end['largest'])}" if end else ""
        yield (
            f"Block {worst['layer']} stretches most: the largest singular value of its Jacobian is "
            f"{short(worst['largest'])}{through}."
        )
    stream = [row for row in tables["stream"] if row["what"] == "stream"]
    if len(stream) > 1:
        cosine = stream[-1]["of_x_0"]
        yield (
            f"The residual stream goes from an RMS of {short(stream[0]['mean'])} to {short(stream[-1]['mean'])}"
            f"{'' if cosine is None else f'; its cosine with x_0 is {cosine:.2f} at the end'}."
        )


def index_of(rows: Rows, name: str, index: str, how: str) -> dict[str, Any] | None:
    return next((r for r in rows if (r["name"], r["index"], r["how"]) == (name, index, how)), None)


def interval(index: dict[str, Any] | None) -> str:
    return f"{index['value']:.2f} [{index['low']:.2f}, {index['high']:.2f}]" if index else ""


def short(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def called(role: str) -> str:
    return f"W_{role}" if len(role) == 1 else role


# Figures


def figures(inspection: Inspection) -> Iterator[tuple[str, str, go.Figure]]:
    """Heading, note and figure of each plot."""
    tables = inspection.tables
    if in_blocks := [row for row in tables["gradients"] if row["level"] == "part" and row["layer"] is not None]:
        yield (
            "Gradients by layer and role",
            "Entries that are exactly zero are left out. Logarithmic where a color bar says 10^.",
            heat_maps(in_blocks),
        )
    yield (
        "Entries of the gradient",
        "Density of log10 |g| for each role; dashed: the tail fitted by Hill's index above its threshold.",
        histograms(tables["gradients"], tables["tails"]),
    )
    if tables["tails"]:
        yield (
            "Tail indices",
            "alpha of P(|g| > t) ~ t^-alpha with 95% intervals; smaller is heavier. Hollow: rows, columns divided by "
            "their geometric means.",
            tail_indices(tables["tails"]),
        )
    if tables["jacobians"]:
        yield (
            "Singular values of each block",
            "Of the Jacobian of a block's output by its input; dark: first block, bright: last, dashed: end to end.",
            singular_values(tables["jacobians"]),
        )
        yield (
            "Jacobians by depth",
            "The largest singular value; effective rank over all (stable rank where only the largest are known).",
            by_depth(tables["jacobians"]),
        )
    if tables["stream"]:
        yield (
            "The residual stream",
            "RMS of what enters each block, and of what its branches add.",
            stream(tables["stream"]),
        )
    if any(row["layer"] is not None for row in tables["weights"]):
        yield (
            "Weights",
            "The largest singular value of each matrix, and its stable rank.",
            weights(tables["weights"]),
        )
    if tables["attention"]:
        yield (
            "Attention entropy",
            "Mean over queries, as a share of that of uniform attention: 0 looks at one key, 1 at all alike.",
            attention(tables["attention"]),
        )
    if inspection.along:
        yield (
            "Along training",
            "Of the blocks' matrices together, from the diagnoses in the run's log.",
            along(inspection.along),
        )


def heat_maps(rows: Rows) -> go.Figure:
    layers = sorted({row["layer"] for row in rows})
    roles = list(dict.fromkeys(row["role"] for row in rows))
    figure = make_subplots(2, 2, subplot_titles=[title for title, _ in HEAT.values()], horizontal_spacing=0.2)
    for i, (key, (_, logarithmic)) in enumerate(HEAT.items()):
        at = {(row["layer"], row["role"]): row[key] for row in rows}
        values = [[shade(at.get((layer, role)), logarithmic) for role in roles] for layer in layers]
        bar: dict[str, Any] = {"x": 0.41 + 0.6 * (i % 2), "y": 0.79 - 0.58 * (i // 2), "len": 0.43, "thickness": 10}
        bar |= {"tickprefix": "10^"} if logarithmic else {}
        heat = go.Heatmap(z=values, x=[called(r) for r in roles], y=layers, colorscale=SCALE, colorbar=bar)
        figure.add_trace(heat, i // 2 + 1, i % 2 + 1)
    figure.update_yaxes(autorange="reversed", title="layer")
    return figure.update_layout(template="plotly_white", height=640, margin={"l": 50, "r": 60, "t": 60, "b": 40})


def shade(value: float | None, logarithmic: bool) -> float | None:
    if value is None or not isfinite(value) or (logarithmic and value <= 0):
        return None
    return log10(value) if logarithmic else value


def histograms(gradients: Rows, tails: Rows) -> go.Figure:
    figure = styled("log10 |g|", "share of the entries, a decade")
    figure.update_yaxes(type="log", range=[-6, 0.5])
    rows = [row for row in gradients if row["level"] == "role" and row["histogram"]]
    for row, color in zip(rows, colors(len(rows)), strict=True):
        total = sum(row["histogram"])
        at = [(i, count) for i, count in enumerate(row["histogram"]) if count]
        x = [row["lowest_decade"] + (i + 0.5) / row["bins_per_decade"] for i, _ in at]
        y = [count / total * row["bins_per_decade"] for _, count in at]
        name = called(row["name"])
        figure.add_scatter(x=x, y=y, name=name, legendgroup=name, line={"color": color, "shape": "hvh"})
        if (index := index_of(tails, row["name"], "hill", "raw")) and index["threshold"]:
            start, alpha = log10(index["threshold"]), index["value"]
            width = 1 / row["bins_per_decade"]
            above = [min(1.0, (u - start) / width + 0.5) for u in x]  # the part of each bin that lies above
            share = sum(v * part * width for part, v in zip(above, y, strict=True) if part > 0)
            ends = [start, max(x)]
            density = [share * alpha * log(10) * 10 ** (-alpha * (end - start)) for end in ends]
            dashed = {"color": color, "dash": "dash"}
            figure.add_scatter(x=ends, y=density, line=dashed, mode="lines", legendgroup=name, showlegend=False)
    return figure


def colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def tail_indices(rows: Rows) -> go.Figure:
    figure = styled("", "tail index", boxmode="group")
    for i, index in enumerate(dict.fromkeys(row["index"] for row in rows)):
        for how in ("raw", "levelled"):
            found = [r for r in rows if (r["index"], r["how"]) == (index, how) and isfinite(r["value"])]
            bars: dict[str, Any] = {
                "array": [max(0.0, min(r["high"], 50) - r["value"]) for r in found],
                "arrayminus": [r["value"] - r["low"] for r in found],
            }
            symbol = "circle" if how == "raw" else "circle-open"
            figure.add_scatter(
                x=[called(r["name"]) for r in found],
                y=[r["value"] for r in found],
                error_y=bars | {"type": "data"},
                mode="markers",
                marker={"color": COLORS[i], "symbol": symbol, "size": 9},
                name=f"{index}, {how}",
            )
    return figure.update_yaxes(type="log")


def singular_values(rows: Rows) -> go.Figure:
    figure = styled("rank of the singular value", "singular value")
    figure.update_yaxes(type="log")
    found = [row for row in rows if row["what"] in ("block", "end to end")]
    shades = shades_of(len(found))
    for row, color in zip(found, shades, strict=True):
        whole = row["what"] == "end to end"
        values = row["singular_values"]
        figure.add_scatter(
            x=[(i + 1) / row["of"] if row["known"] == row["of"] else i + 1 for i in range(len(values))],
            y=[value or None for value in values],
            name="end to end" if whole else f"block {row['layer']}",
            line={"color": "#d62728" if whole else color, "dash": "dash" if whole else "solid"},
        )
    share = all(row["known"] == row["of"] for row in found)
    return figure.update_xaxes(title="rank, as a share of all" if share else "rank", type="linear")


def shades_of(count: int) -> list[str]:
    return sample_colorscale(SCALE, [0.9 * i / max(1, count - 1) for i in range(count)])


def by_depth(rows: Rows) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=["largest singular value", "rank, as a share of all"])
    for i, what in enumerate(w for w in dict.fromkeys(row["what"] for row in rows) if w != "end to end"):
        found = [row for row in rows if row["what"] == what]
        ranks = [(row["effective_rank"] or row["stable_rank"]) / row["of"] for row in found]
        for column, values in enumerate(([row["largest"] for row in found], ranks), start=1):
            trace = go.Scatter(
                x=[row["layer"] for row in found],
                y=values,
                name=what,
                legendgroup=what,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": COLORS[i]},
            )
            figure.add_trace(trace, 1, column)
    figure.update_yaxes(type="log").update_xaxes(title="layer")
    return figure.update_layout(template="plotly_white", height=420, margin={"l": 50, "r": 20, "t": 60, "b": 40})


def stream(rows: Rows) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=["RMS, mean over tokens", "cosine with x_0"])
    for i, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        found = [row for row in rows if row["what"] == what]
        layers, line = [row["layer"] for row in found], {"color": COLORS[i]}
        of_mean = go.Scatter(x=layers, y=[row["mean"] for row in found], name=what, mode="lines+markers", line=line)
        figure.add_trace(of_mean, 1, 1)
        if what == "stream":
            cosines = [row["of_x_0"] for row in found]
            figure.add_trace(go.Scatter(x=layers, y=cosines, mode="lines+markers", line=line, showlegend=False), 1, 2)
    figure.update_yaxes(type="log", col=1).update_yaxes(range=[0, 1.05], col=2).update_xaxes(title="layer")
    return figure.update_layout(template="plotly_white", height=420, margin={"l": 50, "r": 20, "t": 60, "b": 40})


def weights(rows: Rows) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=["largest singular value", "stable rank"])
    in_blocks = [row for row in rows if row["layer"] is not None]
    for i, role in enumerate(dict.fromkeys(row["role"] for row in in_blocks)):
        found = [row for row in in_blocks if row["role"] == role]
        for column, key in enumerate(("largest", "stable_rank"), start=1):
            trace = go.Scatter(
                x=[row["layer"] for row in found],
                y=[row[key] for row in found],
                name=called(role),
                legendgroup=role,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": COLORS[i % len(COLORS)]},
            )
            figure.add_trace(trace, 1, column)
    figure.update_yaxes(type="log").update_xaxes(title="layer")
    return figure.update_layout(template="plotly_white", height=420, margin={"l": 50, "r": 20, "t": 60, "b": 40})


def attention(rows: Rows) -> go.Figure:
    layers, heads = (sorted({row[key] for row in rows}) for key in ("layer", "head"))
    at = {(row["layer"], row["head"]): row["uniformity"] for row in rows}
    values = [[at.get((layer, head)) for head in heads] for layer in layers]
    figure = styled("head", "layer")
    figure.update_xaxes(dtick=1).update_yaxes(dtick=1)
    figure.add_heatmap(z=values, x=heads, y=layers, zmin=0, zmax=1, colorscale=SCALE)
    return figure.update_yaxes(autorange="reversed")


def along(diagnoses: Sequence[dict[str, Any]]) -> go.Figure:
    """By step: Hill's index, the top share, sigma_1 of the Jacobian of all blocks, and of a step over its matrix's."""
    titles = (
        "tail index (Hill), raw",
        "norm² in the top 1%",
        "largest singular value, end to end",
        "step / weight, σ₁",
    )
    curves: dict[str, list[Any]] = {title: [] for title in titles}
    for diagnosis in diagnoses:
        tables = diagnosis["tables"]
        index = index_of(tables["tails"], "blocks", "hill", "raw")
        of_blocks = next((r for r in tables["gradients"] if r["name"] == "blocks"), None)
        end = next((r for r in tables["jacobians"] if r["what"] == "end to end"), None)
        steps = [r["spectral"] for r in tables["steps"] if r["layer"] is not None]
        step = median(steps) if steps else None
        found = (index and index["value"], of_blocks and of_blocks["top_share"], end and end["largest"], step)
        for curve, value in zip(curves.values(), found, strict=True):
            curve.append(value)
    figure = make_subplots(1, len(curves), subplot_titles=list(curves))
    steps = [diagnosis["step"] for diagnosis in diagnoses]
    for column, curve in enumerate(curves.values(), start=1):
        figure.add_trace(go.Scatter(x=steps, y=curve, mode="lines+markers", showlegend=False), 1, column)
    figure.update_xaxes(title="step")
    return figure.update_layout(template="plotly_white", height=380, margin={"l": 50, "r": 20, "t": 60, "b": 40})
