"""What was measured of one model, drawn. No torch."""

from collections.abc import Iterator, Sequence
from math import isfinite, log, log10
from statistics import median
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from dnt.report.findings import Rows, called, index_of
from dnt.report.page import COLORS, styled

SCALE = "Viridis"
HEAT = {  # of each layer and role
    "rms": ("RMS of |g|", True),
    "top_share": ("share of the norm² in the largest 1%", False),
    "max_to_median": ("largest over median |g|", True),
    "norm_share": ("share of the whole gradient's norm²", False),
}
Lines = dict[str, tuple[list[Any], list[Any]]]  # x and y by name


def figures(tables: dict[str, Rows], diagnoses: Rows) -> Iterator[tuple[str, str, go.Figure]]:
    """Heading, note and figure of each plot; diagnoses: those in the log of a training."""
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
    if diagnoses:
        yield (
            "Along training",
            "Of the blocks' matrices together, from the diagnoses in the run's log.",
            along(diagnoses),
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
    kinds = [what for what in dict.fromkeys(row["what"] for row in rows) if what != "end to end"]
    of_kind = {what: [row for row in rows if row["what"] == what] for what in kinds}
    panels: dict[str, Lines] = {"largest singular value": {}, "rank, as a share of all": {}}
    for what, found in of_kind.items():
        layers = [row["layer"] for row in found]
        ranks = [(row["effective_rank"] or row["stable_rank"]) / row["of"] for row in found]
        panels["largest singular value"][what] = layers, [row["largest"] for row in found]
        panels["rank, as a share of all"][what] = layers, ranks
    return side_by_side(panels, "layer").update_yaxes(type="log")


def stream(rows: Rows) -> go.Figure:
    panels: dict[str, Lines] = {"RMS, mean over tokens": {}, "cosine with x_0": {}}
    for what in dict.fromkeys(row["what"] for row in rows):
        found = [row for row in rows if row["what"] == what]
        layers = [row["layer"] for row in found]
        panels["RMS, mean over tokens"][what] = layers, [row["mean"] for row in found]
        if what == "stream":
            panels["cosine with x_0"][what] = layers, [row["of_x_0"] for row in found]
    return side_by_side(panels, "layer").update_yaxes(type="log", col=1).update_yaxes(range=[0, 1.05], col=2)


def weights(rows: Rows) -> go.Figure:
    in_blocks = [row for row in rows if row["layer"] is not None]
    panels: dict[str, Lines] = {"largest singular value": {}, "stable rank": {}}
    for role in dict.fromkeys(row["role"] for row in in_blocks):
        found = [row for row in in_blocks if row["role"] == role]
        for title, key in zip(panels, ("largest", "stable_rank"), strict=True):
            panels[title][called(role)] = [row["layer"] for row in found], [row[key] for row in found]
    return side_by_side(panels, "layer").update_yaxes(type="log")


def side_by_side(panels: dict[str, Lines], x: str) -> go.Figure:
    """A panel of each title, with lines by name, of the same color and one entry of the legend in all of them."""
    figure = make_subplots(1, len(panels), subplot_titles=list(panels))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for column, lines in enumerate(panels.values(), start=1):
        for name, (xs, ys) in lines.items():
            first = not any(name in earlier for earlier in list(panels.values())[: column - 1])
            trace = go.Scatter(
                x=xs,
                y=ys,
                name=name,
                legendgroup=name,
                showlegend=first and len(names) > 1,
                mode="lines+markers",
                line={"color": COLORS[names.index(name) % len(COLORS)]},
            )
            figure.add_trace(trace, 1, column)
    figure.update_xaxes(title=x)
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
    at = [diagnosis["step"] for diagnosis in diagnoses]
    return side_by_side({title: {"blocks": (at, curve)} for title, curve in curves.items()}, "step")
