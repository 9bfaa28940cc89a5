"""Does the best learning rate stay put when the model or the run grows? Loss against rate, a line a size.

python bench/transfer.py shakespeare.txt --runs runs/transfer --out bench/results/transfer.json

Writes the losses as JSON, and the figure into --runs as HTML. Finished runs there are not run again.
"""

import argparse
import json
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

import dnt
from dnt.report.page import COLORS
from dnt.settings import VARIATIONS

BASE = {"depth": 2, "dim": 32, "heads": 2, "batch_size": 32, "steps": 200, "warmup": 20}
SIZES = {
    "base": {},
    "width x2": {"dim": 64, "heads": 4},
    "width x4": {"dim": 128, "heads": 8},
    "depth x2": {"depth": 4},
    "depth x4": {"depth": 8},
    "batch / 4": {"batch_size": 8, "steps": 800, "warmup": 80},
    "steps x4": {"steps": 800, "warmup": 80},
}
RATES = {"adamw": (3e-3, 1e-2, 3e-2), "msgdw": (0.1, 0.3, 1.0)}
STEP_DECAY = 1e-3  # lr x weight decay, the same at every rate
METHODS = {
    "pre-LN + AdamW": {"placements": ("pre-ln",), "optimizers": ("adamw",)},
    "DNT + mSGDW": {"placements": ("dnt",), "optimizers": ("msgdw",)},
    "DNT + mSGDW, calibrated": {"placements": ("dnt",), "optimizers": ("msgdw",)} | VARIATIONS["calibrated"],
}


def losses(data: str, method: str, size: str, folder: Path) -> dict[str, float | None]:
    """Validation loss at each rate; None where it diverged."""
    options = BASE | SIZES[size] | METHODS[method]
    [optimizer] = options["optimizers"]
    found = {}
    for rate in RATES[optimizer]:
        comparison = dnt.compare(
            data=data,
            tokenizer="char",
            vary=(),
            lr=(f"{optimizer}={rate}",),
            weight_decay=(f"{optimizer}={STEP_DECAY / rate}",),
            eval_every=options["steps"],
            checkpoint_every=options["steps"],
            out=str(folder / f"{method} {size} {rate:g}".replace(" ", "-").replace("/", "over").lower()),
            **options,
        )
        [setting] = comparison.cells[0].settings
        found[f"{rate:g}"] = None if setting.diverged else round(setting.validation, 4)
    return found


def figure(found: dict[str, dict[str, dict[str, float | None]]]) -> go.Figure:
    """A panel a method, a line a size; a ring at the best rate of each."""
    made = make_subplots(1, len(found), shared_yaxes=True, subplot_titles=list(found))
    for column, sizes in enumerate(found.values(), 1):
        for (size, of_size), color in zip(sizes.items(), COLORS, strict=False):
            there = {float(lr): loss for lr, loss in of_size.items() if loss is not None}
            if not there:
                continue
            best = min(there, key=there.__getitem__)
            shared = {"legendgroup": size, "line": {"color": color}, "row": 1, "col": column}
            rates, values = list(there), list(there.values())
            made.add_scatter(x=rates, y=values, mode="lines+markers", name=size, showlegend=column == 1, **shared)
            ring = {"size": 14, "symbol": "circle-open", "color": color, "line": {"width": 2}}
            made.add_scatter(
                x=[best], y=[there[best]], mode="markers", marker=ring, showlegend=False,
                legendgroup=size, row=1, col=column,
            )  # fmt: skip
    made.update_xaxes(type="log", title="learning rate", gridcolor="#eee")
    made.update_yaxes(gridcolor="#eee")
    made.update_yaxes(title="validation loss (nats)", col=1)
    return made.update_layout(plot_bgcolor="white", height=460, width=1200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/transfer.json"))
    arguments = parser.parse_args()
    found = {
        method: {size: losses(arguments.data, method, size, arguments.runs) for size in SIZES}
        for method in arguments.methods
    }
    shared = {"data": Path(arguments.data).name, "base": BASE, "sizes": SIZES, "lr x wd": STEP_DECAY, "seed": 0}
    report = shared | {"validation": found}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    figure(found).write_html(arguments.runs / "transfer.html")


if __name__ == "__main__":
    main()
