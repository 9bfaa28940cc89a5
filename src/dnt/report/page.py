"""A folder of runs -> one self-contained page: a pure function of what the runs wrote. No torch."""

from collections.abc import Iterator
from itertools import accumulate
from math import ceil
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.colors import qualitative
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from dnt import __version__
from dnt.files import atomic_write
from dnt.optim.kinds import by_kind
from dnt.report.cells import Cell, Setting
from dnt.report.gradients import COLUMNS, centered, histogram_at, statistics
from dnt.report.summary import Comparison

COLORS = qualitative.D3
MANY_COLORS = qualitative.Dark24
LEFT_OUT = 0.05  # of the steps, where the loss falls too steeply to leave room for the rest
FIGURE = {"responsive": True, "displaylogo": False}
OF_CELLS = ("kind", "placement", "optimizer", "lr", "weight_decay", "seed")  # between the runs of a comparison


def write_report(folder: str | Path) -> Path:
    """Write FOLDER/index.html from the finished runs in the folder; its path."""
    comparison = Comparison(Path(folder))
    cells = comparison.cells
    runs = comparison.runs
    config = runs[0].config
    asked = config["settings"] or {}
    mixed = any(cell.optimizer == "msgdw-adamw" for cell in cells)
    shown = ("momentum", "nesterov", "betas", *(("adamw_lr",) if mixed else ()))
    options = {name: asked[name] for name in shown if asked.get(name) is not None}
    template = Environment(loader=PackageLoader("dnt", "report"), autoescape=True, undefined=StrictUndefined)
    page = template.get_template("page.html").render(
        title=f"{config['data']['name']}: {len(cells)} cells, {comparison.budget}",
        verdict=comparison.verdict,
        columns=comparison.columns(),
        rows=comparison.rows(),
        tuned=comparison.tuned,
        statistics=statistics(cells),
        lowest=min(range(len(cells)), key=lambda i: cells[i].best.test),
        figures=[
            (heading, note, Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=FIGURE)))
            for heading, note, figure in figures(cells, comparison.tuned)
        ],
        settings={"Data": config["data"], "Model": config["model"], "Training": config["training"] | options}
        | {"Machine": config["machine"] | {"dnt": __version__}},
        of_cells=OF_CELLS,
        eval_tokens=config["training"].get("eval_tokens"),
        gradient_columns=COLUMNS,
        every_setting=comparison.settings(),
        plotly=Markup(get_plotlyjs()),
    )  # fmt: skip
    with atomic_write(comparison.page) as file:
        file.write(page.encode())
    return comparison.page


def figures(cells: tuple[Cell, ...], tuned: bool) -> Iterator[tuple[str, str, go.Figure]]:
    """Heading, note and figure of each plot, every cell at its best setting."""
    lines = "Lines: training loss, mean of ten steps, after the first 5%. Dots: validation."
    yield "Loss by step", lines, curves(cells, "step", "step")
    clock = " Without evaluations, checkpoints and the first step of a process, which compiles."
    yield "Loss by wall-clock", lines + clock, curves(cells, "elapsed", "seconds of training")
    yield (
        "Loss against learning rate",
        "Validation loss of every setting, mean over seeds; a ring marks each cell's best. Diverged runs are left out.",
        sensitivity(cells, tuned),
    )
    if tuned and (decays := decay_sensitivity(cells)).data:
        yield (
            "Loss against decay",
            "Validation loss at each cell's best learning rate; the decay of a step, lr x wd, each value one tick.",
            decays,
        )
    frequency = by_frequency(cells)
    if frequency.data:
        yield (
            "Loss by token frequency",
            "Test loss by decile of the target's frequency in the training split, mean over seeds. Each decile holds "
            "about a tenth of the tokens, the most frequent symbols on the left, the rarest on the right.",
            frequency,
        )
    steps = relative_steps(cells)
    if steps.data:
        yield (
            "Relative step",
            "lr ||g|| / ||w|| at the peak learning rate, before clipping and momentum: the share of a matrix that one "
            "step would move. Geometric mean over blocks, of the first seed's run, under mSGDW.",
            steps,
        )
    for step, when in ((0, "at the start"), (None, "at the end")):
        yield (
            f"Gradient entries {when}",
            "Share of all entries by size, in eighths of a decade: one held-out batch, before clipping, float32. "
            "At the start, cells that differ in the optimizer alone coincide.",
            gradients(cells, step),
        )


def styled(x: str, y: str, **layout: Any) -> go.Figure:
    return go.Figure(
        layout={
            "xaxis": {"title": x, "gridcolor": "#eee"},
            "yaxis": {"title": y, "gridcolor": "#eee"},
            "template": "plotly_white",
            "height": 420,
            "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
            "legend": {"orientation": "h", "y": -0.18},
        }
        | layout
    )


def colored(cells: tuple[Cell, ...]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    colors = COLORS if len(cells) <= len(COLORS) else MANY_COLORS
    for i, cell in enumerate(cells):
        yield cell, {"color": colors[i % len(colors)], "dash": "dot" if cell.optimizer == "adamw" else "solid"}


def curves(cells: tuple[Cell, ...], column: str, title: str) -> go.Figure:
    figure = styled(title, "loss (nats)")
    for cell, line in colored(cells):
        for i, run in enumerate(cell.best.runs):
            for event, value, mode in (("train", "loss", "lines"), ("evaluation", "validation", "markers")):
                logged = run.rows(event)
                rows = [row for row in logged if row["step"] >= LEFT_OUT * logged[-1]["step"]]
                figure.add_scatter(
                    x=[row[column] for row in rows],
                    y=[row[value] for row in rows],
                    mode=mode,
                    name=cell.name,
                    legendgroup=cell.name,
                    showlegend=i == 0 and event == "train",
                    line=line,
                    marker={"color": line["color"], "size": 9},
                )
    return figure


def sensitivity(cells: tuple[Cell, ...], tuned: bool) -> go.Figure:
    figure = styled("learning rate", "validation loss (nats)")
    figure.update_xaxes(type="log")
    for cell, line in colored(cells):
        for label, settings in lines_of(cell, tuned):
            finite = [s for s in settings if not s.diverged]
            figure.add_scatter(
                x=[s.lr for s in finite],
                y=[s.validation for s in finite],
                mode="lines+markers",
                name=cell.name + label,
                line=line,
            )
        best = cell.tuning_best
        if not best.diverged:
            ring = {"symbol": "circle-open", "size": 16, "color": line["color"], "line": {"width": 2}}
            at = {"x": [best.lr], "y": [best.validation]}
            figure.add_scatter(**at, mode="markers", marker=ring, showlegend=False, hoverinfo="skip")
    return figure


def lines_of(cell: Cell, tuned: bool) -> Iterator[tuple[str, list[Setting]]]:
    """Label and settings of each line over learning rates: one a decay; in tuning the rates share one lr x wd."""
    if tuned:
        decays = [setting.step_decay for setting in cell.settings]
        held = max(decays, key=decays.count)
        yield "", [setting for setting in cell.settings if setting.step_decay == held]
        return
    decays = sorted({setting.weight_decay for setting in cell.settings})
    for decay in decays:
        label = f", wd {decay:g}" if len(decays) > 1 else ""
        yield label, [setting for setting in cell.settings if setting.weight_decay == decay]


def decay_sensitivity(cells: tuple[Cell, ...]) -> go.Figure:
    """Of cells that tried several decays at their best rate."""
    figure = styled("lr x weight decay", "validation loss (nats)")
    tried = sorted({setting.step_decay for cell in cells for setting in cell.settings})
    figure.update_xaxes(tickvals=list(range(len(tried))), ticktext=[f"{decay:g}" for decay in tried])
    for cell, line in colored(cells):
        there = [s for s in cell.settings if s.lr == cell.tuning_best.lr and not s.diverged]
        there.sort(key=lambda setting: setting.step_decay)
        if len(there) > 1:
            figure.add_scatter(
                x=[tried.index(setting.step_decay) for setting in there],
                y=[setting.validation for setting in there],
                mode="lines+markers",
                name=cell.name,
                line=line,
            )
    return figure


def by_frequency(cells: tuple[Cell, ...]) -> go.Figure:
    """Of the runs that recorded it: each decile in the middle of its share of the targets."""
    figure = styled("share of the targets, frequent symbols first", "test loss (nats)")
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    for cell, line in colored(cells):
        logged = [rows[-1]["deciles"] for run in cell.best.runs if (rows := run.rows("deciles"))]
        if not logged:
            continue
        ends = accumulate(row["share"] for row in logged[0])
        figure.add_scatter(
            x=[end - row["share"] / 2 for end, row in zip(ends, logged[0], strict=True)],
            y=[mean(row["loss"] for row in rows) for rows in zip(*logged, strict=True)],
            text=[f"{row['symbols']:,} symbols, {row['share']:.1%} of the targets" for row in logged[0]],
            mode="lines+markers",
            name=cell.name,
            line=line,
        )
    return figure


def relative_steps(cells: tuple[Cell, ...]) -> go.Figure:
    """A panel a cell, a line a kind of matrix."""
    stepped = [cell for cell in cells if cell.optimizer.startswith("msgdw")]
    panels = [(cell, rows) for cell in stepped if (rows := cell.best.runs[0].rows("relative_steps"))]
    if not panels:
        return go.Figure()
    lines = ceil(len(panels) / 2)
    names = [cell.name for cell, _ in panels]
    figure = make_subplots(
        lines, 2, shared_xaxes=True, shared_yaxes="all", subplot_titles=names, vertical_spacing=0.2 / lines
    )
    figure.update_layout(styled("", "").layout).update_layout(height=150 + 220 * lines, margin_t=60)
    figure.update_yaxes(type="log", exponentformat="power")
    for i, (_, rows) in enumerate(panels):
        kinds = [by_kind(row["steps"]) for row in rows]
        for kind, color in zip(kinds[0], COLORS * 2, strict=False):
            figure.add_scatter(
                x=[row["step"] for row in rows],
                y=[found.get(kind) for found in kinds],
                mode="lines+markers",
                name=kind,
                legendgroup=kind,
                showlegend=i == 0,
                line={"color": color},
                row=i // 2 + 1,
                col=i % 2 + 1,
            )
    return figure


def gradients(cells: tuple[Cell, ...], step: int | None) -> go.Figure:
    """Of the first seed's run at `step`, or at the last step."""
    figure = styled("|gradient entry|", "share of entries")
    figure.update_xaxes(type="log", exponentformat="power")
    figure.update_yaxes(type="log", exponentformat="power")
    for cell, line in colored(cells):
        histogram = histogram_at(cell.best.runs[0], step)
        if not histogram:
            continue
        total = sum(histogram["counts"]) + histogram["zeros"]
        filled = [(x, count / total) for x, count in centered(histogram) if count]
        figure.add_scatter(x=[x for x, _ in filled], y=[y for _, y in filled], name=cell.name, line=line)
    return figure
