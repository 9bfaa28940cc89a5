"""The training loop; the only file that knows Lightning Fabric."""

import logging
import math
import os
import platform
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dnt.analysis.gradients import gradient_histogram
from dnt.data.tokens import TextData, Windows, prepare
from dnt.lookup import lookup
from dnt.nn.gpt import GPT
from dnt.optim.factory import build_optimizer
from dnt.optim.schedule import SCHEDULES
from dnt.runs import Run
from dnt.settings import TrainSettings
from dnt.weights import describe_model, save_weights

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every precision it sets

PRECISIONS = {"32": "32-true", "bf16-mixed": "bf16-mixed"}
LOG_EVERY = 10


class Objective(nn.Module):
    """model.loss as a forward pass, since Fabric applies precision (and DDP its hooks) to forward alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


def train(settings: TrainSettings, progress: bool = True) -> Run:
    """Train one model as the settings say: what `dnt train` does."""
    resume = settings.resume is not None
    if settings.resume is not None:
        if settings != TrainSettings(resume=settings.resume):
            raise ValueError(f"--resume takes all settings from {settings.resume}/config.json; drop the other options.")
        config = Run(Path(settings.resume)).config
        stored = config["settings"] | {"precision": config["training"]["precision"], "out": settings.resume}
        settings = TrainSettings(**stored | {"betas": tuple(stored["betas"])})
    context = settings.model_config(vocab_size=1, placement=settings.placement).context
    data = prepare(settings.data, settings.tokenizer, context, progress)
    torch.manual_seed(settings.seed)
    model = GPT(settings.model_config(data.vocab_size, settings.placement))
    options = {name: getattr(settings, name) for name in ("lr", "weight_decay", "momentum", "nesterov", "betas")}
    same = ("steps", "batch_size", "schedule", "warmup", "floor", "clip", "precision", "compile", "seed", "out")
    return fit(
        model,
        data,
        build_optimizer(settings.optimizer, model, options),
        **{name: getattr(settings, name) for name in (*same, "eval_every", "checkpoint_every")},
        resume=resume,
        progress=progress,
        settings=settings.as_json(),
    )


def fit(
    model: nn.Module,
    data: TextData,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch_size: int = 64,
    schedule: str = "cosine",
    warmup: int = 50,
    floor: float = 0.1,
    clip: float = 1.0,
    precision: str = "auto",
    compile: bool = False,
    eval_every: int = 250,
    checkpoint_every: int = 250,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    settings: dict[str, Any] | None = None,
) -> Run:
    """Train a model for `steps` updates into the run folder `out` (runs/DATE-TIME if not given).

    The learning rate of each group is its own times schedule(step). clip bounds the global gradient norm (0: none).
    precision is "32", "bf16-mixed" or "auto" (by what the hardware can do). With resume=True, model, data and optimizer
    built as they were for the first call continue from the last checkpoint in `out` and end in the same weights bit for
    bit on a CPU. FloatingPointError when the loss or the gradient norm is no longer finite; after SIGINT or SIGTERM the
    state is saved and KeyboardInterrupt raised. `settings` is stored with the run.
    """
    check_fit(model, data, steps=steps, batch_size=batch_size, warmup=warmup)
    factor = lookup(SCHEDULES, schedule, "schedule")
    run = Run(Path(out) if out else Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    precision = precision_here() if precision == "auto" else precision
    fabric = Fabric(accelerator="auto", devices=1, precision=lookup(PRECISIONS, precision, "precision"))  # type: ignore[arg-type]
    training = {
        "steps": steps, "batch_size": batch_size, "schedule": schedule, "warmup": warmup, "floor": floor, "clip": clip,
        "precision": precision, "compile": compile, "eval_every": eval_every, "checkpoint_every": checkpoint_every,
        "seed": seed,
    }  # fmt: skip
    config = {
        "model": describe_model(model),
        "data": data.describe(),
        "optimizer": describe_optimizer(optimizer),
        "training": training,
        "settings": settings,
        "environment": environment(fabric),
    }
    torch.manual_seed(seed)
    first, elapsed = 0, 0.0
    state: dict[str, Any] = {}
    if resume:
        check_same(run, config)
        state = read_checkpoint(run)
        first, elapsed = state.get("step", 0), state.get("elapsed", 0.0)
        run.rewind_log(first if state else -1)
    else:
        run.start(config, data.tokenizer.describe())

    if state:
        model.load_state_dict(state["model"])
    objective = Objective(model)
    if compile and can_compile():
        objective.compile()
    objective, optimizer = fabric.setup(objective, optimizer)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return objective(fabric.to_device(x), fabric.to_device(y))

    def log_gradients(step: int) -> None:
        """In float32 and without dropout, so that cells differ by their gradients alone."""
        model.eval()
        held_batch = fabric.to_device(next(data.validation.whole(batch_size)))
        histogram = gradient_histogram(model, held_batch, lambda model, x, y: model.loss(x, y))
        run.append([{"event": "gradients", "step": step} | histogram])
        model.train()

    def checkpoint(step: int) -> None:
        save_weights(model, run.weights)
        state = {"step": step, "elapsed": elapsed, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state["rng"] = torch.get_rng_state()
        if fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        run.write_checkpoint(step, lambda file: torch.save(state, file))

    recent: list[tuple[Tensor, Tensor]] = []  # losses and gradient norms not yet logged
    logged_at = elapsed

    def log_recent(step: int, lr: float) -> float:
        """Log the steps since the last call, or stop if one of them is not finite; the mean loss."""
        nonlocal logged_at
        losses, norms = torch.tensor([(float(loss), float(norm)) for loss, norm in recent]).T.tolist()
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not math.isfinite(loss + norm):
                at = step - len(losses) + i + 1
                run.append([{"event": "diverged", "step": at, "loss": str(loss), "grad_norm": str(norm)}])
                raise FloatingPointError(diverged_message(run, at, loss, norm))
        row = {
            "event": "train", "step": step, "loss": sum(losses) / len(losses), "lr": lr, "elapsed": elapsed,
            "grad_norm": max(norms), "clipped": sum(norm > clip > 0 for norm in norms), "count": len(norms),
            "tokens_per_s": len(norms) * batch_size * data.context / (elapsed - logged_at),
        }  # fmt: skip
        run.append([row])
        for name in ("loss", "grad_norm", "lr", "tokens_per_s"):
            board.add_scalar(f"train/{name}", row[name], step)
        recent.clear()
        logged_at = elapsed
        show(step, row["loss"], row["tokens_per_s"])
        return row["loss"]

    def log_evaluation(step: int) -> None:
        validation = evaluate(model, loss_of, data.validation, batch_size)
        run.append([{"event": "evaluation", "step": step, "validation": validation, "elapsed": elapsed}])
        board.add_scalar("validation/loss", validation, step)

    model.train()
    board = SummaryWriter(str(run.path / "tensorboard"), purge_step=first)
    with stop_requested() as stopping, progress_bar(run, steps, progress) as show, writes_into(run), board:
        if first == 0:
            log_gradients(0)
        for step in range(first, steps):
            started = time.perf_counter()
            scale = factor(step, steps, warmup, floor)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            loss = loss_of(*data.train.batch(seed, step, batch_size))
            fabric.backward(loss)
            norm = fabric.clip_gradients(objective, optimizer, max_norm=clip or math.inf, error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            recent.append((loss.detach(), norm))
            elapsed += time.perf_counter() - started
            done = step + 1
            stop = stopping() and done < steps
            evaluation_due = done % eval_every == 0 and done < steps
            checkpoint_due = done % checkpoint_every == 0 or done == steps or stop
            if done % LOG_EVERY == 0 or evaluation_due or checkpoint_due:
                log_recent(done, optimizer.param_groups[0]["lr"])
            if evaluation_due:
                log_evaluation(done)
            if checkpoint_due:
                checkpoint(done)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {done}; continue with: dnt train --resume {run.path}")
        log_gradients(steps)
        log_evaluation(steps)
        run.append([summary(run, model, optimizer, evaluate(model, loss_of, data.test, batch_size))])
    return run


def check_fit(model: nn.Module, data: TextData, **positive: int) -> None:
    """ValueError for what cannot be trained."""
    for name, value in positive.items():
        if value < (name != "warmup"):
            raise ValueError(f"{name} is {value}; it must be at least {int(name != 'warmup')}.")
    if model.config.vocab_size < data.vocab_size:
        raise ValueError(
            f"the model has a vocabulary of {model.config.vocab_size}, the data {data.vocab_size} symbols; "
            f"build the model with vocab_size={data.vocab_size}."
        )
    if model.config.context != data.context:
        raise ValueError(
            f"the model's context is {model.config.context}, the data was prepared for {data.context}; make them equal."
        )


def precision_here() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 matrices, else 32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32"


def can_compile() -> bool:
    """Whether torch.compile has what it needs here; a warning if not."""
    if torch.cuda.is_available() or any(shutil.which(c) for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c):
        return True
    warnings.warn("no C++ compiler found (g++ or clang++): training runs eagerly, without compile.", stacklevel=3)
    return False


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"class": type(optimizer).__name__, "groups": groups}


def environment(fabric: Fabric) -> dict[str, Any]:
    cuda = fabric.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "instructions": "" if cuda else torch.backends.cpu.get_cpu_capability(),
    }


def check_same(run: Run, config: dict[str, Any]) -> None:
    """ValueError naming the first setting in which a resumed run differs from what the folder holds."""
    stored = run.config
    for section in ("model", "data", "optimizer", "training"):
        now = config[section]
        for name, before in stored[section].items():
            after = now.get(name)
            if before != (list(after) if isinstance(after, tuple) else after) and str(before) != str(after):
                raise ValueError(
                    f"cannot resume {run.path}: its {section} has {name} = {before!r}, this call {now.get(name)!r}. "
                    "Resume with what it was started with, or start a new run."
                )


def read_checkpoint(run: Run) -> dict[str, Any]:
    """The newest checkpoint; empty if the run was stopped before its first."""
    found = run.last_checkpoint()
    if not found:
        return {}
    step, path = found
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}); delete it to start {run.path} again from step 0.") from None


def diverged_message(run: Run, step: int, loss: float, norm: float) -> str:
    found = run.last_checkpoint()
    good = f"the last good checkpoint is of step {found[0]} ({found[1]})" if found else "there is no checkpoint yet"
    return (
        f"step {step}: the loss is {loss}, the gradient norm {norm}; {good}. Likely causes: too high a learning rate, "
        "too short a warm-up, no clipping (--clip 1.0)."
    )


@torch.no_grad()
def evaluate(model: nn.Module, loss_of: Callable[..., Tensor], split: Windows, batch_size: int) -> float:
    """Mean loss over every target of a split, in nats."""
    model.eval()
    total, count = 0.0, 0
    for x, y in split.whole(batch_size):
        targets = int((y >= 0).sum())
        total += float(loss_of(x, y)) * targets
        count += targets
    model.train()
    return total / count


def summary(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, test: float) -> dict[str, Any]:
    """The last row of a run: what it reached and what it cost."""
    rows = run.rows("train")
    last = run.rows("evaluation")[-1]
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    rates = sorted(row["tokens_per_s"] for row in rows)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "event": "end",
        "step": last["step"],
        "validation": last["validation"],
        "test": test,
        "train_seconds": last["elapsed"],
        "tokens_per_s": rates[len(rates) // 2],
        "clipped_share": sum(row["clipped"] for row in rows) / sum(row["count"] for row in rows),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": sum(value.numel() * value.element_size() for value in states),
        "peak_memory_bytes": peak,
    }


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; the first waits for the step to end, the second interrupts at once."""
    received: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if received:
            raise KeyboardInterrupt("interrupted twice; the state since the last checkpoint is lost")
        received.append(number)

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread: signals stay as they are
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_bar(run: Run, steps: int, enabled: bool) -> Iterator[Callable[[int, float, float], None]]:
    """A function (step, loss, tokens/s) that moves a bar on a terminal."""
    columns = (
        TextColumn(run.path.name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not (enabled and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=steps, loss=math.nan, rate=0.0)
        yield lambda step, loss, rate: bar.update(task, completed=step, loss=loss, rate=rate)


@contextmanager
def writes_into(run: Run) -> Iterator[None]:
    """A full disk or the like says what is safe."""
    try:
        yield
    except OSError as error:
        found = run.last_checkpoint()
        good = f"its last checkpoint is of step {found[0]}" if found else "it has no checkpoint yet"
        raise OSError(
            f"cannot write into {run.path}: {error}. {good}; make room, then: dnt train --resume {run.path}"
        ) from error
