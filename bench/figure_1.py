"""The entries of the gradient of S1 (pre-LN) and DNT at the start, the middle and the end: the paper's Figure 1, small.

python bench/figure_1.py shakespeare.txt --runs runs/figure-1 --out bench/results/figure-1.json

Both are trained with mSGDW, at the rates tuned for each (docs/results.md); drawn into RUNS/figure-1.html. Finished runs
are not run again.
"""

import argparse
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

import dnt
from dnt.files import write_json
from dnt.report.gradients import spread
from dnt.report.page import COLORS

TEXT = ["--tokenizer", "char", "--steps", "500", "--warmup", "50"]
DIGITS = ["--data", "digits", "--model", "vit-tiny", "--depth", "4", "--dim", "64", "--heads", "4", "--patch-size", "2"]
DIGITS += ["--steps", "300", "--warmup", "30"]
TASKS: dict[str, tuple[list[str], int, dict[str, tuple[float, float]]]] = {  # options, steps; lr and lr x wd
    "Shakespeare, GPT": (TEXT, 500, {"pre-ln": (0.3, 1e-4), "dnt": (0.1, 1e-3)}),
    "digits, ViT": (DIGITS, 300, {"pre-ln": (0.3, 0.0), "dnt": (0.1, 1e-4)}),
}
NAMES = {"pre-ln": "S1, pre-LN", "dnt": "S5, DNT"}
WHEN = {"start": 0.0, "middle": 0.5, "end": 1.0}


def trained(task: str, placement: str, data: str, runs: Path) -> dnt.Run:
    options, steps, rates = TASKS[task]
    out = runs / f"{task.split(',')[0].lower()}-{placement}"
    if dnt.Run(out).end is None:
        lr, decay = rates[placement]
        new = [
            *options,
            "--placement",
            placement,
            "--lr",
            str(lr),
            "--weight-decay",
            str(decay / lr),
            "--out",
            str(out),
        ]
        new += ["--diagnose-every", str(steps // 2), "--eval-every", str(steps), "--checkpoint-every", str(steps)]
        new += [] if "--data" in options else ["--data", data]
        resumed = ["--resume", str(out)] if (out / "config.json").exists() else new
        subprocess.run([sys.executable, "-m", "dnt", "train", *resumed], check=True)
    return dnt.Run(out)


def entries(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """Of all parameters together; and the tail indices of the blocks' matrices."""
    row = next(row for row in diagnosis["tables"]["gradients"] if row["level"] == "all")
    edges = [10 ** (row["lowest_decade"] + i / row["bins_per_decade"]) for i in range(len(row["histogram"]) + 1)]
    found = spread({"edges": edges, "counts": row["histogram"]})
    assert found is not None
    tails = {
        f"{index['index']}, {index['how']}": [index["value"], index["low"], index["high"]]
        for index in diagnosis["tables"]["tails"]
        if index["name"] == "blocks"
    }
    of_entries = {name: row[name] for name in ("rms", "median", "largest", "kurtosis", "top_share")}
    return of_entries | {
        "99.9% / median": found.ratio,
        "tail indices of the blocks' matrices": tails,
        "edges": edges,
        "counts": row["histogram"],
    }


def figure(found: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> go.Figure:
    titles = [f"{task}: {when}" for task, when in product(found, WHEN)]
    made = make_subplots(len(found), len(WHEN), subplot_titles=titles, shared_yaxes=True, vertical_spacing=0.13)
    for i, of_task in enumerate(found.values(), 1):
        for (placement, moments), color in zip(of_task.items(), COLORS, strict=False):
            for j, of in enumerate(moments.values(), 1):
                total = sum(of["counts"])
                x = [(low * high) ** 0.5 for low, high in zip(of["edges"], of["edges"][1:], strict=False)]
                y = [count / total or None for count in of["counts"]]
                made.add_scatter(
                    x=x, y=y, name=NAMES[placement], legendgroup=placement, showlegend=i == j == 1,
                    line={"color": color, "shape": "hvh"}, row=i, col=j,
                )  # fmt: skip
    made.update_xaxes(type="log", range=[-9, 0], gridcolor="#eee", exponentformat="power", dtick=2).update_xaxes(
        title="|g|", row=len(found)
    )
    made.update_yaxes(type="log", range=[-6, -0.5], gridcolor="#eee", exponentformat="power")
    made.update_yaxes(title="share of the entries", col=1)
    return made.update_layout(plot_bgcolor="white", height=300 * len(found) + 60, width=1200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--runs", type=Path, default=Path("runs/figure-1"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/figure-1.json"))
    arguments = parser.parse_args()
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for task, (_, steps, rates) in TASKS.items():
        for placement in rates:
            run = trained(task, placement, arguments.data, arguments.runs)
            by_step = {row["step"]: row for row in run.rows("diagnosis")}
            moments = {when: entries(by_step[round(share * steps)]) for when, share in WHEN.items()}
            found.setdefault(task, {})[placement] = moments
            for when, of in moments.items():
                hill = of["tail indices of the blocks' matrices"].get("hill, raw", [float("nan")] * 3)
                print(
                    f"{task:18} {NAMES[placement]:12} {when:7} median {of['median']:.1e}  RMS {of['rms']:.1e}  99.9% / "
                    f"median {of['99.9% / median']:6.0f}  norm² in the top 1% {of['top_share']:.0%}  "
                    f"Hill of the blocks' matrices {hill[0]:.2f} [{hill[1]:.2f}, {hill[2]:.2f}]"
                )
    write_json(arguments.out, found)
    figure(found).write_html(arguments.runs / "figure-1.html")


if __name__ == "__main__":
    main()
