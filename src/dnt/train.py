"""The training loop; the only file that knows Lightning Fabric."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from dnt.analysis.gradients import gradient_histogram, histogram
from dnt.checkpoints import read_state, write_state
from dnt.data.images import ImageData, prepare_images
from dnt.data.text import check_outside
from dnt.data.tokens import TextData, prepare
from dnt.interrupt import ProcessLost, stop_requested
from dnt.machine import best_precision, can_compile, describe_machine, deterministic, peak_memory_bytes
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.gpt import GPT
from dnt.nn.vit import ViT
from dnt.optim.factory import build_optimizer
from dnt.optim.schedule import SCHEDULES
from dnt.parallel import local, process_lost, rebound, shard, watched, whole
from dnt.progress import announcement, progress_bar
from dnt.runs import Run
from dnt.settings import HOW, PRECISIONS, FitSettings, TrainSettings
from dnt.weights import describe_model, write_weights

LOG_EVERY = 10  # steps
HELD_TOKENS = 4096  # of the batch whose gradient is looked at: little, since it is computed in float32
PATIENCE = 60  # seconds
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces every precision it sets


def train(settings: TrainSettings, progress: bool = True) -> Run:
    """Train one model as the settings say: what `dnt train` does."""
    resume = settings.resume is not None
    if settings.resume is not None:
        given = {name: getattr(settings, name) for name in HOW if getattr(settings, name) != getattr(FitSettings, name)}
        if settings != TrainSettings(resume=settings.resume, **given):
            raise ValueError(
                f"--resume takes its settings from {settings.resume}/config.json; drop the other options "
                f"(but --{', --'.join(HOW)})."
            )
        settings = replace(stored_settings(Run(Path(settings.resume))), **given)
    check_outside(settings.data, settings.out or "runs")
    data, config = data_and_config(settings, progress)
    torch.manual_seed(settings.seed)
    model = GPT(config) if isinstance(config, GPTConfig) else ViT(config)
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


def data_and_config(settings: TrainSettings, progress: bool) -> tuple[TextData | ImageData, GPTConfig | ViTConfig]:
    """What is read, and the model that fits it."""
    if settings.reads_images:
        settings.model_config(settings.placement)  # names what is wrong before any image is read
        if settings.data == TrainSettings.data:
            raise ValueError(
                f"{settings.model} reads images; give --data: 'digits', a folder, parquet (docs/images.md)."
            )
        images = prepare_images(settings.data, settings.image_size, settings.augment, progress=progress)
        of_data = {"classes": images.classes, "channels": images.channels, "image_size": images.image_size}
        return images, settings.model_config(settings.placement, **of_data)
    context = settings.model_config(settings.placement, vocab_size=1).context  # type: ignore[union-attr]
    text = prepare(settings.data, settings.tokenizer, context, progress, settings.column)
    return text, settings.model_config(settings.placement, vocab_size=text.vocab_size)


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
    model: GPT | ViT,
    data: TextData | ImageData,
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
    settings.check()
    check_match(model, data, optimizer)
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0.")
    precision = best_precision() if settings.precision == "auto" else settings.precision
    check_combination(settings, precision)
    check_machine(settings, precision)
    run = Run(Path(out) if out else Path("runs") / time.strftime("%Y%m%d-%H%M%S"))
    fabric = make_fabric(settings, precision)
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
    else:
        run.check_free()
    fabric.launch()  # starts the other processes, which come as far as this too
    run = Run(Path(fabric.broadcast(str(run.path))))
    with in_company(fabric, run), writing(run, fabric), deterministic(fabric.device):
        if fabric.is_global_zero:
            if resume:
                found = run.last_checkpoint()
                run.rewind_log(found[0] if found else -1)
            else:
                run.start(config, data.tokenizer.describe() if data.tokenizer else None)
            if progress:
                print(announcement(config), file=sys.stderr, flush=True)
        fabric.barrier()
        torch.manual_seed(seed + fabric.global_rank)
        show_here = progress and fabric.is_global_zero
        try:
            loop = Loop(fabric, model, data, optimizer, run, settings, seed)
            if resume:
                loop.restore()
            with (
                loop.board,
                stop_requested() as stopping,
                progress_bar(run, settings.steps, data.unit, show_here) as show,
            ):
                loop.run_to_end(stopping, show)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{str(error).splitlines()[0]} {last_good(run)}.") from error
        finally:
            model.recompute = False
    return run


def check_combination(settings: FitSettings, precision: str) -> None:
    """ValueError for what does not go together on any machine."""
    if precision == "16-mixed" and settings.strategy == "fsdp":
        raise ValueError("16-mixed does not go with fsdp (a GradScaler sees one part only); use bf16-mixed, or ddp.")
    accumulate = settings.accumulate or 1
    parts = settings.processes * accumulate
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size is {settings.batch_size}, no multiple of {settings.processes} processes x {accumulate} "
            f"micro-batches; use {-(-settings.batch_size // parts) * parts}, for example."
        )


def check_machine(settings: FitSettings, precision: str) -> None:
    """ValueError for what this machine has not, or was not started for."""
    devices, nodes = settings.devices or 1, settings.nodes or 1
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and devices > gpus:
        raise ValueError(f"devices is {devices}, but this machine has {gpus} GPUs; use --devices {gpus} or less.")
    if precision == "16-mixed" and not gpus:
        raise ValueError("16-mixed needs a GPU; on a CPU use --precision bf16-mixed or 32.")
    started = os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS")  # by torchrun, by srun
    if started and int(started) != settings.processes:
        raise ValueError(
            f"the launcher started {started} processes, but devices x nodes is {devices} x {nodes}; give --devices "
            "(processes on each machine) and --nodes as they were given to it."
        )
    if nodes > 1 and not started:
        raise ValueError(f"nodes is {nodes}: start it on each machine with torchrun or srun (docs/devices.md).")


def make_fabric(settings: FitSettings, precision: str) -> Fabric:
    strategy: Any = settings.strategy or ("ddp" if settings.processes > 1 else "auto")
    if strategy == "fsdp":  # Fabric's own "fsdp" is FSDP1
        strategy = ModelParallelStrategy(
            lambda objective, mesh: shard(objective, objective.model.blocks, mesh["data_parallel"]),
            data_parallel_size=settings.processes,
            tensor_parallel_size=1,
        )
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    return Fabric(
        accelerator=accelerator,
        devices=settings.devices or 1,
        num_nodes=settings.nodes or 1,
        strategy=strategy,
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )


@contextmanager
def in_company(fabric: Fabric, run: Run) -> Iterator[None]:
    """When another process is gone, end with one line; of an error that all share, the first process alone speaks."""
    if fabric.world_size == 1:
        yield
        return
    strategy: Any = fabric.strategy
    watch: Any = nullcontext()  # what torchrun or SLURM started, they end
    if isinstance(strategy.cluster_environment, LightningEnvironment):
        children = list(strategy.launcher.procs) if strategy.launcher else []
        watch = watched(children, lambda what: f"{what}. {last_good(run)}. Go on: dnt train --resume {run.path}")
    try:
        with watch:
            try:
                yield
            except (FloatingPointError, KeyboardInterrupt, ValueError) as error:
                if fabric.is_global_zero:
                    raise
                time.sleep(PATIENCE)  # until the first process has said it, and ends this one
                raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    except RuntimeError as error:
        if not process_lost(error):
            raise
        said = str(error).splitlines()[0]
        raise ProcessLost(f"another process of this run seems to be gone ({said}). {last_good(run)}.") from None


@contextmanager
def writing(run: Run, fabric: Fabric) -> Iterator[None]:
    """The right to write into a run folder; a full disk says what is safe."""
    try:
        with run.locked() if fabric.is_global_zero else nullcontext():
            yield
    except OSError as error:
        raise OSError(
            f"cannot write into {run.path}: {error}. {last_good(run)}. "
            f"When there is room again: dnt train --resume {run.path}"
        ) from error


class Objective(nn.Module):
    """model.loss as a forward pass, since Fabric applies precision (and DDP its hooks) to forward alone."""

    def __init__(self, model: GPT | ViT):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor, measure: bool = False) -> Tensor:
        return self.model.measure(x, y) if measure else self.model.loss(x, y)


class Loop:
    """A run in progress: what a step needs, and what a checkpoint holds."""

    def __init__(
        self,
        fabric: Any,
        model: GPT | ViT,
        data: Any,
        optimizer: Any,
        run: Run,
        settings: FitSettings,
        seed: int,
    ):
        self.fabric, self.model, self.data, self.run = fabric, model, data, run
        self.settings, self.seed = settings, seed
        self.accumulate = settings.accumulate or 1
        self.speed = f"{data.unit}_per_s"
        self.several = fabric.world_size > 1
        self.sharded = settings.strategy == "fsdp"
        # stop requests are agreed on between the CPUs, after every step, without waiting for a GPU
        self.council: Any = torch.distributed.new_group(backend="gloo") if self.several else None
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.held_out = {name: getattr(data, name).beginning(settings.eval_tokens) for name in ("validation", "test")}
        model.recompute = settings.recompute
        objective = Objective(model)
        compiled = settings.compile and can_compile()
        if compiled:
            for module in model.blocks if self.several else [objective]:  # by block, what is sent overlaps
                module.compile()
        with rebound(model, optimizer):
            self.objective = fabric.setup_module(objective)
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.board: Any = SummaryWriter(str(run.path / "tensorboard")) if fabric.is_global_zero else nullcontext()
        self.step = 0  # steps done
        self.elapsed = 0.0  # seconds spent in them
        self.recent: list[tuple[Tensor, Tensor]] = []  # loss and gradient norm of steps not yet logged
        self.recent_from = 0.0  # clock when the first timed of them began
        self.untimed = int(compiled)  # of them: a process compiles in its first step
        self.peak_memory = 0  # of processes before this one

    def record(self, *rows: dict[str, Any], curves: dict[str, float] | None = None) -> None:
        """Into the log, and onto the board; the first process alone."""
        if self.fabric.is_global_zero:
            self.run.append(list(rows))
            for name, value in (curves or {}).items():
                self.board.add_scalar(name, value, self.step)

    def over_all(self, value: float, how: str) -> float:
        """The "sum", "mean", "max" or "min" of a number over all processes."""
        return float(
            self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64, device=self.fabric.device), reduce_op=how)
        )

    def any_asks(self, here: bool) -> bool:
        """Whether any process asks for something; the same answer in all."""
        if not self.several:
            return here
        asked = torch.tensor(here, dtype=torch.int32)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self.council)
        return bool(asked)

    def restore(self) -> None:
        """Continue from the last checkpoint; nothing if there is none."""
        found = self.fabric.broadcast(self.run.last_checkpoint())  # all from the same, whatever each sees
        if not found:
            return
        state = read_state(found[1], self.fabric.global_rank, self.model, self.optimizer)
        self.step, self.elapsed, self.peak_memory = state["step"], state["elapsed"], state["peak_memory"]
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        torch.manual_seed(self.seed + self.fabric.global_rank + self.step)  # for a process that had no state of its own
        if "rng" in state:
            torch.set_rng_state(state["rng"])
            if self.fabric.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)

    def checkpoint(self) -> None:
        """The last loss was finite, but the update after it may have broken the weights: those are not kept."""
        finite = all(bool(local(p).isfinite().all()) for p in self.model.parameters())
        if not self.over_all(float(finite), "min"):
            self.diverge(self.step, "the weights are no longer finite")
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "peak_memory": self.most_memory(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.fabric.device)
        weights = {}
        for name, p in self.model.named_parameters():
            tensor = whole(p.detach())  # all processes must ask for it
            if self.fabric.is_global_zero:
                weights[name] = tensor.cpu()
        if self.fabric.is_global_zero:  # before the checkpoint: a kill between the two repeats both
            write_weights(weights, self.run.weights)
            self.run.begin_checkpoint(self.step)
        self.fabric.barrier()
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        folder = self.run.unfinished_checkpoint(self.step)
        write_state(folder, rank, processes, self.model, self.optimizer, state)
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            self.run.end_checkpoint(self.step)

    def run_to_end(self, stopping: Callable[[], bool], show: Callable[[int, float, float], None]) -> None:
        """All remaining steps with their logging, evaluations and checkpoints, then the final row."""
        steps = self.settings.steps
        if self.step == 0:
            self.record(self.gradients())
        self.model.train()
        while self.step < steps:
            self.train_step()
            stop = self.any_asks(stopping()) and self.step < steps
            evaluate = self.step % self.settings.eval_every == 0 and self.step < steps
            checkpoint = self.step % self.settings.checkpoint_every == 0 or self.step == steps or stop
            if self.step % LOG_EVERY == 0 or evaluate or checkpoint:
                show(self.step, *self.log_recent())
            if evaluate:
                self.record(self.evaluation())
            if checkpoint:
                self.checkpoint()
            if stop:
                raise KeyboardInterrupt(f"stopped after step {self.step}; continue: dnt train --resume {self.run.path}")
        gradients = self.gradients()
        validation = self.evaluation()
        self.record(gradients, validation, self.result(validation))
        self.fabric.barrier()

    def no_sync(self, enabled: bool) -> Any:
        """Whether gradients stay where they are computed: those of all micro-batches but the last do."""
        if not (self.several or self.sharded):
            return nullcontext()
        return self.fabric.no_backward_sync(self.objective, enabled=enabled)  # fsdp: False must be said each time

    def train_step(self) -> None:
        """One update on the batch of this step."""
        settings = self.settings
        if not self.recent:
            self.recent_from = time.perf_counter()
        factor = SCHEDULES[settings.schedule](self.step, settings.steps, settings.warmup, settings.floor)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        mine = self.data.train.batch(self.seed, self.step, settings.batch_size, slice(rank, None, processes))
        losses = []
        for i in range(self.accumulate):
            last = i == self.accumulate - 1
            with self.no_sync(not last):
                loss = self.objective(*self.fabric.to_device([t[i :: self.accumulate] for t in mine]))
                self.fabric.backward(loss / self.accumulate)
            losses.append(loss.detach())
        bound = settings.clip or math.inf
        norm = self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=bound, error_if_nonfinite=False)
        assert norm is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.recent.append((torch.stack(losses).mean(), whole(norm)))
        self.step += 1
        if len(self.recent) == self.untimed:
            float(losses[-1])  # waits for a GPU
            self.recent_from = time.perf_counter()

    def log_recent(self) -> tuple[float, float]:
        """Log the steps since the last call: mean loss, and tokens a second. Stop if one of them was not finite."""
        means = self.fabric.all_reduce(torch.stack([loss for loss, _ in self.recent]), reduce_op="mean")
        losses, norms = means.tolist(), torch.stack([norm for _, norm in self.recent]).tolist()  # waits for a GPU
        seconds = time.perf_counter() - self.recent_from
        self.elapsed += seconds
        if self.settings.precision == "16-mixed":
            norms = self.without_skipped(norms)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=self.step - len(losses) + 1):
            if not math.isfinite(loss + norm):
                self.diverge(i, f"the loss is {loss}, the gradient norm {norm}")
        units = (len(losses) - self.untimed) * self.settings.batch_size * self.data.per_sample
        row = {
            "loss": sum(losses) / len(losses),
            "grad_norm": max(norms),
            "lr": self.optimizer.param_groups[0]["lr"],
            self.speed: units / seconds,
        }
        clipped = sum(norm > self.settings.clip > 0 for norm in norms)
        counts = {"elapsed": self.elapsed, "count": len(losses), "clipped": clipped}
        self.record(
            {"event": "train", "step": self.step} | row | counts,
            curves={f"train/{name}": value for name, value in row.items()},
        )
        self.recent, self.untimed = [], 0
        return row["loss"], row[self.speed]

    def without_skipped(self, norms: list[float]) -> list[float]:
        """Zero where a gradient overflowed: the GradScaler skips such a step and scales less, until after a few."""
        if len(norms) == LOG_EVERY and not any(map(math.isfinite, norms)):
            self.diverge(self.step, f"the gradient overflowed in {LOG_EVERY} steps on end")
        return [norm if math.isfinite(norm) else 0.0 for norm in norms]

    def diverge(self, step: int, what: str) -> NoReturn:
        self.record({"event": "diverged", "step": step, "what": what})
        raise FloatingPointError(
            f"step {step}: {what}. {last_good(self.run)}. Likely causes: too high a learning rate, "
            "too short a warm-up, no clipping (--clip 1.0)."
        )

    def evaluation(self) -> dict[str, Any]:
        """The log row of the validation loss."""
        found = self.evaluate("validation")
        self.record(curves={f"validation/{name}": value for name, value in found.items()})
        return {"event": "evaluation", "step": self.step, "elapsed": self.elapsed} | named("validation", found)

    def gradients(self) -> dict[str, Any]:
        """On a held batch, in float32, before clipping and without dropout: cells differ by their gradients alone."""
        self.model.eval()
        rows = self.settings.batch_size // (self.fabric.world_size * self.accumulate)
        config = self.model.config
        tokens = config.tokens if isinstance(config, ViTConfig) else config.context
        rows = max(1, min(rows, HELD_TOKENS // tokens))
        batch = self.fabric.to_device(next(self.held_out["validation"].whole(rows)))  # the same in all processes
        if self.sharded:  # its gradients are nowhere else
            with self.no_sync(False):
                self.objective.module(*batch).backward()
            counts = histogram(local(p.grad) for p in self.model.parameters() if p.grad is not None)
            self.optimizer.zero_grad()
            for name in ("counts", "zeros"):
                total = self.fabric.all_reduce(torch.tensor(counts[name], device=self.fabric.device), reduce_op="sum")
                counts[name] = total.tolist()
        else:
            counts = gradient_histogram(self.model, batch, lambda model, x, y: model.loss(x, y))
        self.model.train()
        return {"event": "gradients", "step": self.step} | counts

    @torch.no_grad()
    def evaluate(self, split: str) -> dict[str, float]:
        """Means over every target of a split: the loss in nats, and what else the model measures.

        Each process takes its rows of every batch.
        """
        self.model.eval()
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        totals, count = torch.zeros(len(self.model.measures), dtype=torch.float64), 0
        rows = self.settings.batch_size // self.accumulate
        for x, y in self.held_out[split].whole(rows, slice(rank, None, processes)):
            targets = int((y >= 0).sum())
            means = self.objective(*self.fabric.to_device((x, y)), True).double().cpu()
            totals += means * targets if targets else 0.0  # rows of padding alone have no mean
            count += targets
        count = round(self.over_all(count, "sum"))
        found = {
            name: self.over_all(float(total), "sum") / count
            for name, total in zip(self.model.measures, totals, strict=True)
        }
        self.model.train()
        if not math.isfinite(found["loss"]):
            self.diverge(self.step, f"the loss of the {split} split is {found['loss']}")
        return found

    def most_memory(self) -> int:
        """Of the process that held most."""
        here = max(self.peak_memory, peak_memory_bytes(self.fabric.device))
        return round(self.over_all(float(here), "max"))

    def result(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """What the run reached and what it cost."""
        test, memory = named("test", self.evaluate("test")), self.most_memory()
        if not self.fabric.is_global_zero:
            return {}
        rows = self.run.rows("train")
        states = [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        rates = sorted(row[self.speed] for row in rows if row[self.speed]) or [0.0]
        validation = {name: value for name, value in evaluation.items() if name.startswith("validation")}
        return {
            "event": "end",
            "step": self.step,
            **validation,
            **test,
            "train_seconds": self.elapsed,
            self.speed: rates[len(rates) // 2],
            "clipped_share": sum(row["clipped"] for row in rows) / sum(row["count"] for row in rows),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "state_bytes": sum(v.numel() * v.element_size() for v in states),
            "peak_memory_bytes": memory,
        }


def check_match(model: GPT | ViT, data: TextData | ImageData, optimizer: torch.optim.Optimizer) -> None:
    """ValueError if the model cannot read the data, or the optimizer is another model's."""
    own = set(model.parameters())
    if not all(p in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("the optimizer holds parameters that are not this model's; build it from the model you pass.")
    if isinstance(model, ViT) and isinstance(data, ImageData):
        for name in ("classes", "channels", "image_size"):
            if (wants := getattr(model.config, name)) != (has := getattr(data, name)):
                raise ValueError(f"{name} is {wants} in the model and {has} in the data; make them equal.")
    elif isinstance(model, GPT) and isinstance(data, TextData):
        if model.config.vocab_size < data.vocab_size:
            raise ValueError(
                f"the model has a vocabulary of {model.config.vocab_size}, the data {data.vocab_size} symbols; "
                f"build the model with vocab_size={data.vocab_size} or more."
            )
        if model.config.context != data.context:
            raise ValueError(
                f"the model's context is {model.config.context}, the data was prepared for {data.context}; "
                "make them equal."
            )
    else:
        raise ValueError(f"a {type(model).__name__} does not read {data.unit}; a GPT reads tokens, a ViT images.")


def named(split: str, found: dict[str, float]) -> dict[str, float]:
    """For a log row: the loss by the name of its split, the others by split and name."""
    return {split if name == "loss" else f"{split}_{name}": value for name, value in found.items()}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return {"class": type(optimizer).__name__, "groups": groups}


def check_same(run: Run, config: dict[str, Any]) -> None:
    """ValueError naming the first setting in which a resumed run differs from what the folder holds."""
    stored = run.config
    for section in ("model", "data", "optimizer", "training"):
        for name, before in stored.get(section, {}).items():
            if name not in HOW and before != (now := config[section].get(name)):
                raise ValueError(
                    f"cannot resume {run.path}: in its {section}, {name} was {before!r} and is now {now!r}. "
                    "Resume with what it was started with, or start a new run."
                )


def last_good(run: Run) -> str:
    found = run.last_checkpoint()
    return f"The last good checkpoint is of step {found[0]}, {found[1]}" if found else "There is no checkpoint yet"
