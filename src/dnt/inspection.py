"""Why momentum SGD can or cannot train a model: measured, and written as a page."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from dnt import __version__
from dnt.analysis.diagnosis import diagnose
from dnt.analysis.spectra import effective_step
from dnt.experiments.statements import Change, statements, summary
from dnt.machine import describe_machine
from dnt.nn.calibrate import matrices
from dnt.report.inspection import Inspection, Rows
from dnt.runs import Run
from dnt.settings import InspectSettings
from dnt.subjects import DEVICE, Subject, find_subject


def inspect_model(what: str | Path, settings: InspectSettings | None = None, **options: Any) -> Inspection:
    """Measure a model and write its page; options are the fields of InspectSettings.

    what: a run folder, one that dnt.save or transformers wrote, a named size, timm:NAME, or MODULE:FUNCTION, a function
    without arguments that returns (model, batches, loss_fn), where loss_fn(model, *batch) -> scalar. ValueError for
    what is none of these.
    """
    settings = replace(settings or InspectSettings(), **options)
    settings.check()
    started = time.perf_counter()
    found = find_subject(str(what), settings)
    batches = [tuple(part.to(DEVICE) if isinstance(part, Tensor) else part for part in b) for b in found.batches]
    with Console(stderr=True).status("") as status:
        tables = measured(found, batches, settings, lambda name: status.update(f"{found.name}: {name}"))
    inspection = Inspection(
        name=found.name,
        facts=facts_of(found, batches[: settings.batches]) | {"took": f"{time.perf_counter() - started:.0f} s"},
        tables=tables,
        folder=Path(settings.out) if settings.out else folder_of(found),
        along=found.run.rows("diagnosis") if found.run else [],
        statements=summary([Change(**row) for row in tables.get("statements", [])]),
    )
    inspection.write()
    return inspection


def measured(
    found: Subject, batches: Sequence[Sequence[Any]], settings: InspectSettings, show: Callable[[str], None]
) -> dict[str, Rows]:
    """The tables."""
    tables = diagnose(
        found.model,
        batches[: settings.batches],
        found.loss,
        noise=batches[: settings.noise],
        jacobians=settings.jacobians,
        tokens=settings.tokens,
        singular_values=settings.singular_values,
        show=show,
    )
    if found.run:
        add_effective_steps(tables["weights"], found.model, found.run)
    if settings.statements:
        show("statements")
        tables["statements"] = [asdict(change) for change in statements()]
    return tables


def add_effective_steps(rows: Rows, model: Any, run: Run) -> None:
    """Of a run under mSGDW: lr / ||W||^2, at the peak rate, of the matrices that are blind to their scale; in place."""
    optimizer = run.config["optimizer"]
    lr = optimizer["groups"][0]["lr"]  # of all matrices of the blocks
    blind = [m for m in matrices(model) if m.blind] if optimizer["class"] in ("MSGDW", "SGD") else []
    steps = {
        (int(m.name.split(".")[1]), m.name.rsplit(".", 1)[1]): effective_step(lr, m.weight.of(m.weight.parameter))
        for m in blind
    }
    for row in rows:
        row["effective_step"] = steps.get((row["layer"], row["role"]))


def folder_of(found: Subject) -> Path:
    """Beside the run, or named after the model."""
    if found.run:
        return found.run.path / "inspection"
    return Path("inspections") / re.sub(r"[^\w.-]+", "-", found.name).strip("-.")


def facts_of(found: Subject, batches: Sequence[Sequence[Any]]) -> dict[str, Any]:
    samples = [str(len(part)) for part in batches[0] if isinstance(part, Tensor) and part.ndim]
    device = next(found.model.parameters()).device
    facts: dict[str, Any] = {
        "model": type(found.model).__name__,
        "parameters": f"{sum(p.numel() for p in found.model.parameters()):,}",
        "data": found.data,
        "batch": " x ".join([str(len(batches)), *samples[:1]]),
    }
    if placement := getattr(getattr(found.model, "config", None), "placement", None):
        facts["placement"] = placement
    if found.run and (checkpoint := found.run.last_checkpoint()):
        facts["step"] = checkpoint[0]
    return facts | {"machine": describe_machine(device)["device"], "dnt": __version__}
