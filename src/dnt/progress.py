"""What a run shows while it goes. No torch."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dnt.nn.placement import Placement, placement_named
from dnt.optim.equilibrium import settling_steps
from dnt.optim.kinds import by_kind
from dnt.runs import Run


def announcement(config: dict[str, Any]) -> str:
    """What is about to run, in one line."""
    data, machine, training = config["data"], config["machine"], config["training"]
    processes = (training["devices"] or 1) * (training["nodes"] or 1)
    company = f", {processes} processes ({training['strategy'] or 'ddp'})" if processes > 1 else ""
    unit = "tokens" if "tokens" in data else "images"
    text = f"{data['name']} ({data[unit]['train']:,} {unit}, sha256 {data['sha256'][:12]})"
    group = config["optimizer"]["groups"][0]
    settles = ""
    if "equilibrium" in group:
        after = settling_steps(group["lr"], group["weight_decay"])
        settles = f"; the step settles after about {after:,.0f} of {training['steps']:,} steps"
    return f"{text}, {training['precision']}, {machine['device']}{company}{settles}"


def prescription(placement: str | Placement, config: dict[str, Any]) -> str:
    """What the placement's paper prescribes, in one line, and whether the learning rate is one it was seen to train at;
    nothing if there is nothing to say.
    """
    prescribes = placement_named(placement).prescribes
    how = "applied" if config["training"]["prescribed"] else "of training nothing applied"
    said = [f"{placement} prescribes {prescribes} ({how})"] if str(prescribes) else []
    lr = config["optimizer"]["groups"][0]["lr"]
    for name, least, most in prescribes.rates:
        if name == config["optimizer"]["class"].lower() and not least <= lr <= most:
            said.append(f"lr is {lr:g}, outside of {least:g} to {most:g}, where {name} was seen to train {placement}")
    return "; ".join(said)


def describe_steps(steps: dict[str, float]) -> str:
    """By how much of itself a first step moves each kind of parameter, in one line."""
    found = [f"{kind} {share:.2g}" for kind, share in by_kind(steps).items()]
    return f"relative step at the peak rate: {', '.join(found)}"


def describe_diagnoses(run: Run, steps: int, every: int) -> str:
    """What diagnoses cost, in one line, from the first of them; nothing if it failed."""
    rows = run.rows("diagnosis")
    if not rows:
        return ""
    seconds, count = rows[0]["seconds"], 1 + steps // every
    return f"a diagnosis takes {seconds:.1f} s here; {count} of them, about {count * seconds:,.0f} s"


@contextmanager
def progress_bar(run: Run, steps: int, unit: str, enabled: bool) -> Iterator[Callable[[int, float, float], None]]:
    """A function of (step, loss, units a second) that moves a bar on a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"loss {{task.fields[loss]:.3f}}  {{task.fields[rate]:,.0f}} {unit}/s"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not (enabled and sys.stderr.isatty())) as bar:
        done = run.last_checkpoint()
        task = bar.add_task(run.path.name, total=steps, completed=done[0] if done else 0, loss=math.nan, rate=0.0)
        yield lambda step, loss, rate: bar.update(task, completed=step, loss=loss, rate=rate)
