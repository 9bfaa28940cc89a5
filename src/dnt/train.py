"""The training loop; the only file that knows Lightning Fabric."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dnt.analysis.gradients import gradient_histogram
from dnt.data.text import check_outside
from dnt.data.tokens import TextData, Windows, prepare
from dnt.interrupt import stop_requested
from dnt.machine import best_precision, can_compile, describe_machine, deterministic, peak_memory_bytes
from dnt.nn.gpt import GPT
from dnt.optim.factory import build_optimizer
from dnt.optim.schedule import SCHEDULES
from dnt.progress import announcement, progress_bar
from dnt.runs import Run, is_whole
from dnt.settings import PRECISIONS, FitSettings, TrainSettings
from dnt.weights import describe_model, save_weights

LOG_EVERY = 10  # steps
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every precision it sets


def train(settings: TrainSettings, progress: bool = True) -> Run:
    """Train one model as the settings say: what `dnt train` does."""
    resume = settings.resume is not None
    if settings.resume is not None:
        if settings != TrainSettings(resume=settings.resume):
            raise ValueError(f"--resume takes all settings from {settings.resume}/config.json; drop the other options.")
        settings = stored_settings(Run(Path(settings.resume)))
    context = settings.model_config(vocab_size=1, placement=settings.placement).context
    check_outside(settings.data, settings.out or "runs")
    data = prepare(settings.data, settings.tokenizer, context, progress, settings.column)
    torch.manual_seed(settings.seed)
    model = GPT(settings.model_config(data.vocab_size, settings.placement))
    return fit(
        model,
        data,
        build_optimizer(settings.optimizer, model, asdict(settings)),
        seed=settings.seed,
        out=settings.out,
        resume=resume,
        progress=progress,
        made_by=settings.as_json(),
        **{field.name: getattr(settings, field.name) for field in fields(FitSettings)},
    )


def stored_settings(run: Run) -> TrainSettings:
    """The settings a run was started with, its precision as it was found then."""
    config = run.config
    try:
        stored = config["settings"] | {"precision": config["training"]["precision"], "out": str(run.path)}
        return TrainSettings(**stored | {"betas": tuple(stored["betas"])})
    except (KeyError, TypeError):
        raise ValueError(
            f"{run.path}/config.json has no settings of dnt train; a run of dnt.fit is resumed with dnt.fit."
        ) from None


def fit(
    model: GPT,
    data: TextData,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    made_by: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Train a model into the run folder `out` (runs/DATE-TIME if not given); the finished run.

    options: the fields of dnt.settings.FitSettings (steps, batch_size, schedule, warmup, clip, ...).
    The learning rate of each group is its own times schedule(step). With resume=True, a model, data and optimizer built
    as for the first call continue from the last checkpoint in `out` and end in the same weights, on a CPU bit for bit.
    `made_by` is stored with the run.

    ValueError for what cannot be trained or resumed; FloatingPointError when the loss or the gradient norm is no longer
    finite; after SIGINT or SIGTERM the state is saved and KeyboardInterrupt raised.
    """
    settings = FitSettings(**options)
    check_match(model, data)
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    run = Run(Path(out) if out else Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    precision = best_precision() if settings.precision == "auto" else settings.precision
    device = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=device, devices=1, precision=PRECISIONS[precision])  # type: ignore[arg-type]
    config = {
        "model": describe_model(model),
        "data": data.describe(),
        "optimizer": describe_optimizer(optimizer),
        "training": asdict(settings) | {"precision": precision, "seed": seed},
        "settings": made_by,
        "machine": describe_machine(fabric.device),
    }
    config = json.loads(json.dumps(config))
    if resume:
        check_same(run, config)
        if run.end and run.end["event"] == "end":
            return run
    with writing(run), deterministic(fabric.device):
        state = read_checkpoint(run) if resume else {}
        if resume:
            run.rewind_log(state.get("step", -1))
        else:
            run.start(config, data.tokenizer.describe())
        if progress:
            print(announcement(config), file=sys.stderr, flush=True)
        torch.manual_seed(seed)
        loop = Loop(fabric, model, data, optimizer, run, settings, seed)
        loop.restore(state)
        with loop.board, stop_requested() as stopping, progress_bar(run, settings.steps, progress) as show:
            try:
                loop.run_to_end(stopping, show)
            except torch.OutOfMemoryError as error:
                raise MemoryError(f"{str(error).splitlines()[0]} {last_good(run)}.") from error
    return run


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """The right to write into a run folder; a full disk says what is safe."""
    try:
        with run.locked():
            yield
    except OSError as error:
        raise OSError(
            f"cannot write into {run.path}: {error}. {last_good(run)}. "
            f"When there is room again: dnt train --resume {run.path}"
        ) from error


class Objective(nn.Module):
    """model.loss as a forward pass, since Fabric applies precision (and DDP its hooks) to forward alone."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(x, y)


class Loop:
    """A run in progress: what a step needs, and what a checkpoint holds."""

    def __init__(
        self,
        fabric: Fabric,
        model: GPT,
        data: TextData,
        optimizer: torch.optim.Optimizer,
        run: Run,
        settings: FitSettings,
        seed: int,
    ):
        self.fabric, self.model, self.data, self.run = fabric, model, data, run
        self.settings, self.seed = settings, seed
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        objective = Objective(model)
        compiled = settings.compile and can_compile()
        if compiled:
            objective.compile()
        self.objective, self.optimizer = fabric.setup(objective, optimizer)
        self.board = SummaryWriter(str(run.path / "tensorboard"))
        self.step = 0  # steps done
        self.elapsed = 0.0  # seconds spent in them
        self.recent: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of steps not yet logged
        self.recent_from = 0.0  # clock when the first timed of them began
        self.untimed = int(compiled)  # of them: a process compiles in its first step
        self.peak_memory = 0  # of processes before this one

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; nothing if it is empty."""
        if not state:
            return
        self.step, self.elapsed, self.peak_memory = state["step"], state["elapsed"], state["peak_memory"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)

    def checkpoint(self) -> None:
        """The last loss was finite, but the update after it may have broken the weights: those are not kept."""
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self.diverge(self.step, "the weights are no longer finite")
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "peak_memory": self.most_memory(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.fabric.device)
        save_weights(self.model, self.run.weights)  # before the checkpoint: a kill between the two repeats both
        try:
            self.run.write_checkpoint(self.step, lambda file: torch.save(state, file))
        except RuntimeError as error:  # torch.save reports a full disk so
            raise OSError(str(error).splitlines()[0]) from error

    def run_to_end(self, stopping: Callable[[], bool], show: Callable[[int, float, float], None]) -> None:
        """All remaining steps with their logging, evaluations and checkpoints, then the final row."""
        steps = self.settings.steps
        if self.step == 0:
            self.run.append([self.gradients()])
        self.model.train()
        while self.step < steps:
            self.train_step()
            stop = stopping() and self.step < steps
            evaluate = self.step % self.settings.eval_every == 0 and self.step < steps
            checkpoint = self.step % self.settings.checkpoint_every == 0 or self.step == steps or stop
            if self.step % LOG_EVERY == 0 or evaluate or checkpoint:
                show(self.step, *self.log_recent())
            if evaluate:
                self.run.append([self.evaluation()])
            if checkpoint:
                self.checkpoint()
            if stop:
                raise KeyboardInterrupt(f"stopped after step {self.step}; continue: dnt train --resume {self.run.path}")
        gradients = self.gradients()
        validation = self.evaluation()
        self.run.append([gradients, validation, self.result(validation["validation"])])

    def train_step(self) -> None:
        """One update on the batch of this step."""
        settings = self.settings
        if not self.recent:
            self.recent_from = time.perf_counter()
        factor = SCHEDULES[settings.schedule](self.step, settings.steps, settings.warmup, settings.floor)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        batch = self.data.train.batch(self.seed, self.step, settings.batch_size)
        loss = self.objective(*self.fabric.to_device(batch))
        self.fabric.backward(loss)
        bound = settings.clip or math.inf
        norm = self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=bound, error_if_nonfinite=False)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.recent.append((loss.detach(), norm))
        self.step += 1
        if len(self.recent) == self.untimed:
            float(loss.detach())  # waits for a GPU
            self.recent_from = time.perf_counter()

    def log_recent(self) -> tuple[float, float]:
        """Log the steps since the last call: mean loss, and tokens a second. Stop if one of them was not finite."""
        pairs = [(float(loss), float(norm)) for loss, norm in self.recent]  # waits for a GPU
        seconds = time.perf_counter() - self.recent_from
        self.elapsed += seconds
        for i, (loss, norm) in enumerate(pairs, start=self.step - len(pairs) + 1):
            if not math.isfinite(loss + norm):
                self.diverge(i, f"the loss is {loss}, the gradient norm {norm}")
        losses, norms = zip(*pairs, strict=True)
        tokens = (len(pairs) - self.untimed) * self.settings.batch_size * self.data.context
        row = {
            "loss": sum(losses) / len(losses),
            "grad_norm": max(norms),
            "lr": self.optimizer.param_groups[0]["lr"],
            "tokens_per_s": tokens / seconds,
        }
        clipped = sum(norm > self.settings.clip > 0 for norm in norms)
        counts = {"elapsed": self.elapsed, "count": len(pairs), "clipped": clipped}
        self.run.append([{"event": "train", "step": self.step} | row | counts])
        for name, value in row.items():
            self.board.add_scalar(f"train/{name}", value, self.step)
        self.recent, self.untimed = [], 0
        return row["loss"], row["tokens_per_s"]

    def diverge(self, step: int, what: str) -> NoReturn:
        self.run.append([{"event": "diverged", "step": step, "what": what}])
        raise FloatingPointError(
            f"step {step}: {what}. {last_good(self.run)}. Likely causes: too high a learning rate, "
            "too short a warm-up, no clipping (--clip 1.0)."
        )

    def evaluation(self) -> dict[str, Any]:
        """The log row of the validation loss."""
        validation = self.evaluate(self.data.validation)
        self.board.add_scalar("validation/loss", validation, self.step)
        return {"event": "evaluation", "step": self.step, "validation": validation, "elapsed": self.elapsed}

    def gradients(self) -> dict[str, Any]:
        """On a held batch, in float32, before clipping and without dropout: cells differ by their gradients alone."""
        self.model.eval()
        batch = self.fabric.to_device(next(self.data.validation.whole(self.settings.batch_size)))
        histogram = gradient_histogram(self.model, batch, lambda model, x, y: model.loss(x, y))
        self.model.train()
        return {"event": "gradients", "step": self.step} | histogram

    @torch.no_grad()
    def evaluate(self, split: Windows) -> float:
        """Mean loss over every target of a split, in nats."""
        self.model.eval()
        total, count = 0.0, 0
        for x, y in split.whole(self.settings.batch_size):
            targets = int((y >= 0).sum())
            total += float(self.objective(*self.fabric.to_device((x, y)))) * targets
            count += targets
        self.model.train()
        if not math.isfinite(total):
            self.diverge(self.step, f"the loss of the {split.name} split is {total}")
        return total / count

    def most_memory(self) -> int:
        return max(self.peak_memory, peak_memory_bytes(self.fabric.device))

    def result(self, validation: float) -> dict[str, Any]:
        """What the run reached and what it cost."""
        rows = self.run.rows("train")
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        rates = sorted(row["tokens_per_s"] for row in rows if row["tokens_per_s"]) or [0.0]
        return {
            "event": "end",
            "step": self.step,
            "validation": validation,
            "test": self.evaluate(self.data.test),
            "train_seconds": self.elapsed,
            "tokens_per_s": rates[len(rates) // 2],
            "clipped_share": sum(row["clipped"] for row in rows) / sum(row["count"] for row in rows),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "state_bytes": sum(v.numel() * v.element_size() for v in states),
            "peak_memory_bytes": self.most_memory(),
        }


def check_match(model: GPT, data: TextData) -> None:
    """ValueError if the model cannot read the data."""
    if model.config.vocab_size != data.vocab_size:
        raise ValueError(
            f"the model has a vocabulary of {model.config.vocab_size}, the data {data.vocab_size} symbols; "
            f"build the model with vocab_size={data.vocab_size}."
        )
    if model.config.context != data.context:
        raise ValueError(
            f"the model's context is {model.config.context}, the data was prepared for {data.context}; make them equal."
        )


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"class": type(optimizer).__name__, "groups": groups}


def check_same(run: Run, config: dict[str, Any]) -> None:
    """ValueError naming the first setting in which a resumed run differs from what the folder holds."""
    stored = run.config
    for section in ("model", "data", "optimizer", "training"):
        for name, before in stored.get(section, {}).items():
            if before != (now := config[section].get(name)):
                raise ValueError(
                    f"cannot resume {run.path}: in its {section}, {name} was {before!r} and is now {now!r}. "
                    "Resume with what it was started with, or start a new run."
                )


def read_checkpoint(run: Run) -> dict[str, Any]:
    """The newest checkpoint's state; empty if the run was stopped before its first."""
    found = run.last_checkpoint()
    if not found:
        return {}
    _, path = found
    damaged = f"{path} is damaged; delete it to start {run.path} again from step 0."
    if not is_whole(path):
        raise ValueError(damaged)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # it would execute code
        raise ValueError(damaged) from None


def last_good(run: Run) -> str:
    found = run.last_checkpoint()
    return f"The last good checkpoint is of step {found[0]}, {found[1]}" if found else "There is no checkpoint yet"
