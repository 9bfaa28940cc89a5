"""The training loop: steps, their log, evaluations, checkpoints; the same on one process and on several."""

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from copy import deepcopy
from typing import Any, NoReturn

import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm
from torch.utils.tensorboard import SummaryWriter

from dnt.analysis.diagnosis import diagnose, step_rows
from dnt.analysis.gradients import gradient_histogram, histogram
from dnt.analysis.memory import state_bytes
from dnt.checkpoints import read_state, write_state
from dnt.data.ahead import ahead
from dnt.machine import can_compile, peak_memory_bytes
from dnt.nn.batch_norms import progress_of
from dnt.nn.calibrate import relative_steps, rescale, scales_for
from dnt.nn.gpt import GPT
from dnt.nn.vit import ViT
from dnt.optim.agc import clip_units
from dnt.optim.equilibrium import equilibrium_step
from dnt.optim.groups import sgd_rates
from dnt.optim.msgdw import MSGDW
from dnt.optim.needs import begin_training, free_weights, is_schedule_free, parts, takes_curvature_now
from dnt.optim.schedule import SCHEDULES
from dnt.optim.spectral import bound_steps
from dnt.parallel import local, rebound, whole
from dnt.runs import Run
from dnt.settings import FitSettings
from dnt.weights import state_of, write_weights

LOG_EVERY = 10  # steps
CALIBRATION = 4  # batches
HELD_TOKENS = 4096  # of the batch whose gradient is looked at: little, since it is computed in float32
IN_TRAINING: dict[str, Any] = {
    "exact": 1024,
    "entries": 20_000,
    "resamples": 50,
    "brief": True,
}  # of a diagnosis: what keeps it short


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
        self.in_grad = isinstance(optimizer, MSGDW) and optimizer.in_grad  # what stands in .grad is the momentum
        self.narrow = settings.precision == "bf16-weights"
        # stop requests are agreed on between the CPUs, after every step, without waiting for a GPU
        self.council: Any = torch.distributed.new_group(backend="gloo") if self.several else None
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.parts = parts(optimizer)
        self.schedule_free = [part for part in self.parts if is_schedule_free(part)]
        begin_training(optimizer)
        if settings.spectral_bound:
            bound_steps(optimizer, settings.spectral_bound)
        self.rates = sgd_rates(model, optimizer)
        self.held_out = {name: getattr(data, name).beginning(settings.eval_tokens) for name in ("validation", "test")}
        self.scales = self.calibrated() if settings.calibrate and not run.last_checkpoint() else {}
        model.recompute = settings.recompute
        objective = Objective(model)
        if self.narrow:
            for p in model.blocks.parameters():
                if p.ndim >= 2:
                    p.data = p.data.bfloat16()
        compiled = settings.compile and can_compile()
        if compiled:
            for module in model.blocks if self.several else [objective]:  # by block, what is sent overlaps
                module.compile()
            for part in self.parts:
                if isinstance(part, MSGDW) and fabric.device.type == "cpu":  # GPUs have kernels for many tensors
                    part.compile()
        with rebound(model, optimizer):
            self.objective = fabric.setup_module(objective)
        self.optimizer = fabric.setup_optimizers(optimizer)
        self.progress = progress_of(model)  # what the model is told of the share of steps that are done
        averaged = model.named_parameters() if settings.ema else ()
        self.average = {name: p.detach().clone() for name, p in averaged}  # of this process's parts; empty for none
        self.board: Any = SummaryWriter(str(run.path / "tensorboard")) if fabric.is_global_zero else nullcontext()
        self.step = 0  # steps done
        self.elapsed = 0.0  # seconds spent in them
        self.recent: list[tuple[Tensor, Tensor, float]] = []  # of steps not yet logged: loss, gradient norm, its bound
        self.recent_from = 0.0  # clock when the first timed of them began
        self.untimed = int(compiled)  # of them: a process compiles in its first step
        self.phase: Callable[[str], AbstractContextManager[Any]] = torch.profiler.record_function  # of a step, by name
        self.peak_memory = 0  # of processes before this one
        self.cpu_before = 0.0  # seconds, likewise

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
        state = read_state(found[1], self.fabric.global_rank, self.model, self.average, self.optimizer)
        self.step, self.elapsed, self.peak_memory = state["step"], state["elapsed"], state["peak_memory"]
        self.cpu_before = state["cpu_seconds"]
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        torch.manual_seed(self.seed + self.fabric.global_rank + self.step)  # for a process that had no state of its own
        if "rng" in state:
            torch.set_rng_state(state["rng"])
            if self.fabric.device.type == "cuda" and "cuda_rng" in state:
                torch.cuda.set_rng_state(state["cuda_rng"], self.fabric.device)

    def checkpoint(self) -> None:
        """Weights that are not finite are not kept."""
        self.check_weights()
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "peak_memory": self.most_memory(),
            "cpu_seconds": self.cpu_seconds(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.fabric.device)
        weights = {}
        with self.at_free_weights():
            for name, tensor in (state_of(self.model) | self.average).items():
                tensor = whole(tensor)  # all processes must ask for it
                if self.fabric.is_global_zero:
                    weights[name] = tensor.cpu().clone() if self.schedule_free else tensor.cpu()
        if self.fabric.is_global_zero:  # before the checkpoint: a kill between the two repeats both
            write_weights(weights, self.run.weights)
            self.run.begin_checkpoint(self.step)
        self.fabric.barrier()
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        folder = self.run.unfinished_checkpoint(self.step)
        write_state(folder, rank, processes, self.model, self.average, self.optimizer, state)
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            self.run.end_checkpoint(self.step)

    def weights(self) -> dict[str, Tensor]:
        """A copy."""
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def check_weights(self) -> None:
        """The last loss was finite, but the update after it may have broken the weights."""
        finite = all(bool(local(p).isfinite().all()) for p in self.model.parameters())
        if not self.over_all(float(finite), "min"):
            self.diverge(self.step, "the weights are no longer finite")

    def begin(self) -> dict[str, float]:
        """What is known before the first step, into the log; the relative steps, if there are any."""
        rows = [{"event": "calibration", "step": 0, "scales": self.scales}] if self.scales else []
        found = self.relative_steps()
        self.record(*rows, self.gradients(), *found)
        if self.settings.diagnose_every:
            self.diagnose()
        return found[0]["steps"] if found else {}

    def run_to_end(self, stopping: Callable[[], bool], show: Callable[[int, float, float], None]) -> None:
        """All remaining steps with their logging, evaluations and checkpoints, then the final row."""
        steps = self.settings.steps
        self.model.train()
        with closing(ahead(self.remaining())) as self.batches:
            while self.step < steps:
                due = self.settings.diagnose_every and (self.step + 1) % self.settings.diagnose_every == 0
                before = self.weights() if due and self.fabric.is_global_zero else None
                self.train_step()
                stop = self.any_asks(stopping()) and self.step < steps
                evaluate = self.step % self.settings.eval_every == 0 and self.step < steps
                checkpoint = self.step % self.settings.checkpoint_every == 0 or self.step == steps or stop
                if self.step % LOG_EVERY == 0 or evaluate or checkpoint or due:
                    show(self.step, *self.log_recent())
                if due:
                    self.check_weights()
                    self.diagnose(before)
                if evaluate:
                    self.record(self.evaluation(), *self.relative_steps())
                if checkpoint:
                    self.checkpoint()
                if stop:
                    go_on = f"continue: dnt train --resume {self.run.path}"
                    raise KeyboardInterrupt(f"stopped after step {self.step}; {go_on}")
        gradients = self.gradients()
        validation = self.evaluation()
        self.record(gradients, *self.relative_steps(), validation, *self.results(validation))
        for part in self.schedule_free:
            part.eval()  # the model is left as it was evaluated
        self.fabric.barrier()

    def remaining(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's rows of the batch of every step that is not done."""
        rows = slice(self.fabric.global_rank, None, self.fabric.world_size)
        for step in range(self.step, self.settings.steps):
            yield self.data.train.batch(self.seed, step, self.settings.batch_size, rows)

    def calibrated(self) -> dict[str, float]:
        """Scale what is blind and stepped by an SGD, before the model is divided: the first process says by how much.

        On the device, but under fsdp, where the whole model may not fit.
        """
        rows = slice(max(1, HELD_TOKENS // self.tokens))
        batches = (self.data.train.batch(self.seed, i, self.settings.batch_size, rows) for i in range(CALIBRATION))
        scales = {}
        if not self.sharded:
            self.model.to(self.fabric.device)
        if self.fabric.is_global_zero:
            device = next(self.model.parameters()).device
            moved = ([part.to(device) for part in batch] for batch in batches)
            scales = scales_for(self.model, moved, self.rates, self.settings.calibrate)
        scales = self.fabric.broadcast(scales)
        rescale(self.model, scales)
        return scales

    @property
    def tokens(self) -> int:
        """Of a sample, as the model sees it."""
        return self.model.config.tokens

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
        warm = SCHEDULES["constant"](self.step, settings.steps, settings.warmup, 1.0)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * (warm if "train_mode" in group else factor)  # what is schedule-free
        twice = any(map(takes_curvature_now, self.parts))
        with self.phase("data"):
            mine = next(self.batches)
        losses = []
        for i in range(self.accumulate):
            last = i == self.accumulate - 1
            with self.phase("data"):
                batch = self.fabric.to_device([t[i :: self.accumulate] for t in mine])
            with self.no_sync(not last), twice_differentiable() if twice else nullcontext():
                with self.phase("forward"):
                    loss = self.objective(*batch)
                with self.phase("backward"):
                    self.fabric.backward(loss / self.accumulate, **({"create_graph": True} if twice else {}))
            losses.append(loss.detach())
        self.step += 1
        with self.phase("optimizer"):
            bound = self.clip_bound()
            norm = self.clipped(bound)
            if settings.agc:
                clip_units(self.bodies(), settings.agc)
            self.optimizer.step()
            if settings.prescribed:
                self.model.after_step()
            for progress in self.progress:  # not before: a step may differentiate what the forward pass did
                progress.fill_(self.step / settings.steps)
            self.optimizer.zero_grad()
            if self.average:
                # (1 - ema) / (1 - ema^t) makes it the mean of the weights after steps 1 to t, each counting ema^(age)
                share = (1 - settings.ema) / (1 - settings.ema**self.step)
                torch._foreach_lerp_(*self.averages_and_weights(), share)
        self.recent.append((torch.stack(losses).mean(), whole(norm), bound))
        if len(self.recent) == self.untimed:
            float(losses[-1])  # waits for a GPU
            self.recent_from = time.perf_counter()

    def clip_bound(self) -> float:
        """On the global gradient norm; of two the smaller. Infinite for none."""
        bound = self.settings.clip or math.inf
        group = self.optimizer.param_groups[0]
        if self.settings.clip_equilibrium and group["lr"] and group["weight_decay"]:
            norm = whole(get_total_norm([p.detach() for p in self.model.parameters() if p.ndim >= 2]))
            step = equilibrium_step(group["lr"], group["weight_decay"], group.get("momentum", 0.0))
            bound = min(bound, self.settings.clip_equilibrium * step / group["lr"] * float(norm))
        return bound

    def clipped(self, bound: float) -> Tensor:
        """The norm of what stands in .grad, which the gradient's is brought down to the bound."""
        if self.in_grad:
            return get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=bound, error_if_nonfinite=False)
        assert norm is not None
        return norm

    def bodies(self) -> list[nn.Parameter]:
        """All parameters but the head's."""
        head = {p for module in self.model.ends["head"] for p in module.parameters()}
        return [p for p in self.model.parameters() if p not in head]

    def averages_and_weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """This process's parts of both, in the same order."""
        return [local(mean) for mean in self.average.values()], [local(p.detach()) for p in self.model.parameters()]

    @contextmanager
    def at_free_weights(self) -> Iterator[None]:
        """What is schedule-free has the weights it is evaluated at; afterwards, bit for bit, those it is trained at."""
        weights = free_weights(self.schedule_free)
        trained = [w.clone() for w in weights]
        for part in self.schedule_free:
            part.eval()
        try:
            yield
        finally:
            for part in self.schedule_free:
                part.train()
            for w, kept in zip(weights, trained, strict=True):
                w.copy_(kept)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has the average for its weights, if there is one."""

        def exchange() -> None:
            if self.sharded:
                self.objective.module.reshard()  # what lies outside of the blocks is kept whole after a forward pass
            for mean, weight in zip(*self.averages_and_weights(), strict=True):
                kept = weight.clone()
                weight.copy_(mean)
                mean.copy_(kept)

        if not self.average:
            with self.at_free_weights():
                yield
            return
        exchange()
        try:
            yield
        finally:
            exchange()

    def log_recent(self) -> tuple[float, float]:
        """Log the steps since the last call: mean loss, and tokens a second. Stop if one of them was not finite."""
        with self.phase("logging"):
            return self.logged()

    def logged(self) -> tuple[float, float]:
        """What log_recent returns, once it is written."""
        means = self.fabric.all_reduce(torch.stack([loss for loss, _, _ in self.recent]), reduce_op="mean")
        losses, norms = means.tolist(), torch.stack([norm for _, norm, _ in self.recent]).tolist()  # waits for a GPU
        seconds = time.perf_counter() - self.recent_from
        self.elapsed += seconds
        if self.settings.precision == "16-mixed":
            norms = self.without_skipped(norms)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=self.step - len(losses) + 1):
            if not math.isfinite(loss + norm):
                self.diverge(
                    i, f"the loss is {loss}, the norm of the {'momentum' if self.in_grad else 'gradient'} {norm}"
                )
        units = (len(losses) - self.untimed) * self.settings.batch_size * self.data.per_sample
        row = {
            "loss": sum(losses) / len(losses),
            "momentum_norm" if self.in_grad else "grad_norm": max(norms),
            "lr": self.optimizer.param_groups[0]["lr"],
            self.speed: units / seconds,
        }
        clipped = sum(norm > bound for norm, (_, _, bound) in zip(norms, self.recent, strict=True))
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
        self.record({"event": "diverged", "step": step, "what": what, "cpu_seconds": self.cpu_seconds()})
        raise FloatingPointError(
            f"step {step}: {what}. {self.run.last_good}. Likely causes: too high a learning rate, "
            "too short a warm-up, no clipping (--clip 1.0)."
        )

    def evaluation(self) -> dict[str, Any]:
        """The log row of the validation loss."""
        found = self.means("validation", self.evaluate("validation"))
        self.record(curves={f"validation/{name}": value for name, value in found.items()})
        return {"event": "evaluation", "step": self.step, "elapsed": self.elapsed} | named("validation", found)

    def gradients(self) -> dict[str, Any]:
        """On a held batch, in float32, before clipping and without dropout: cells differ by their gradients alone."""
        self.model.eval()
        batch = self.held_batch()
        if self.sharded:  # its gradients are nowhere else
            with self.without_gradients(), self.no_sync(False):
                self.objective.module(*batch).backward()
                parts = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
                counts = histogram(part for part in parts if part.numel())  # a scalar lies with one process
            for name in ("counts", "zeros"):
                total = self.fabric.all_reduce(torch.tensor(counts[name], device=self.fabric.device), reduce_op="sum")
                counts[name] = total.tolist()
        else:
            with self.at_free_weights():
                counts = gradient_histogram(self.wide_model(), batch, lambda model, x, y: model.loss(x, y))
        self.model.train()
        return {"event": "gradients", "step": self.step} | counts

    def diagnose(self, before: dict[str, Tensor] | None = None) -> None:
        """Into the log: what dnt.analysis.diagnose measures on a held batch, and its seconds; the first process alone.

        before: the weights before the last step, whose size is measured too. Leaves the state of random numbers alone.
        """
        if not self.fabric.is_global_zero:
            return
        started = time.perf_counter()
        devices = [self.fabric.device] if self.fabric.device.type == "cuda" else []
        self.model.eval()
        batch = self.held_batch()
        try:
            with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
                with self.at_free_weights():
                    tables = diagnose(self.wide_model(), [batch], lambda model, x, y: model.loss(x, y), **IN_TRAINING)
                tables["steps"] = step_rows(self.model, before) if before else []
        except (ValueError, ArpackError) as error:  # of a gradient that is not finite, say: the training shall go on
            self.record({"event": "undiagnosed", "step": self.step, "what": str(error)})
            print(f"step {self.step} could not be diagnosed: {error}", file=sys.stderr, flush=True)
            return
        finally:
            self.model.train()
        seconds = time.perf_counter() - started
        self.record({"event": "diagnosis", "step": self.step, "seconds": seconds, "tables": tables})

    @contextmanager
    def without_gradients(self) -> Iterator[None]:
        """What a backward pass leaves meanwhile is dropped; what stood in .grad, the momentum perhaps, comes back."""
        kept = [(p, p.grad) for p in self.model.parameters()]
        for p, _ in kept:
            p.grad = None
        yield
        for p, gradient in kept:
            p.grad = gradient

    def wide_model(self) -> GPT | ViT:
        """The model, all of it in float32."""
        return deepcopy(self.model).float() if self.narrow else self.model

    def held_batch(self) -> Any:
        """Of validation, the same in all processes."""
        rows = self.settings.batch_size // (self.fabric.world_size * self.accumulate)
        rows = max(1, min(rows, HELD_TOKENS // self.tokens))
        return self.fabric.to_device(next(self.held_out["validation"].whole(rows)))

    def relative_steps(self) -> list[dict[str, Any]]:
        """The log row of how far a step at the peak rate would move what an SGD steps; none under fsdp."""
        if self.sharded or not self.rates:
            return []
        with self.at_free_weights():
            found = relative_steps(self.wide_model(), [self.held_batch()], self.rates)
        return [{"event": "relative_steps", "step": self.step, "steps": found}]

    @torch.no_grad()
    def evaluate(self, split: str, group_of: Tensor | None = None) -> Tensor:
        """How many targets a split has, and the sum over them of each thing that the model measures; (1 + M, G).

        In a column for each of G groups if the group of each symbol is given, else in one. Each process takes its rows
        of every batch.
        """
        self.model.eval()
        rank, processes = self.fabric.global_rank, self.fabric.world_size
        groups = 1 if group_of is None else int(group_of.max()) + 1
        sums = torch.zeros(1 + len(self.model.measures), groups, dtype=torch.float64)
        rows = self.settings.batch_size // self.accumulate
        with self.averaged():
            for x, y in ahead(self.held_out[split].whole(rows, slice(rank, None, processes))):
                measured = self.objective(*self.fabric.to_device((x, y)), True).double().cpu()
                there = y.flatten() >= 0
                targets = y.flatten()[there]
                group = torch.zeros_like(targets) if group_of is None else group_of[targets]
                sums.index_add_(1, group, torch.cat([torch.ones(1, len(targets)).double(), measured[:, there]]))
        self.model.train()
        return self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum").cpu()

    def means(self, split: str, sums: Tensor) -> dict[str, float]:
        """Over every target of a split: the loss in nats, and what else the model measures."""
        count, *totals = sums.sum(1).tolist()
        found = {name: total / count for name, total in zip(self.model.measures, totals, strict=True)}
        if not math.isfinite(found["loss"]):
            self.diverge(self.step, f"the loss of the {split} split is {found['loss']}")
        return found

    def most_memory(self) -> int:
        """Of the process that held most."""
        here = max(self.peak_memory, peak_memory_bytes(self.fabric.device))
        return round(self.over_all(float(here), "max"))

    def cpu_seconds(self) -> float:
        """Of all cores and processes, with imports and compilation: what the run cost on a CPU."""
        return self.over_all(self.cpu_before / self.fabric.world_size + sum(os.times()[:4]), "sum")

    def results(self, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
        """What the run reached and what it cost; of text, the test loss by frequency too."""
        deciles = torch.from_numpy(self.data.deciles()) if isinstance(self.model, GPT) else None
        sums = self.evaluate("test", deciles)
        test, memory = named("test", self.means("test", sums)), self.most_memory()
        cpu_seconds = self.cpu_seconds()
        if not self.fabric.is_global_zero:
            return []
        rows = self.run.rows("train")
        rates = sorted(row[self.speed] for row in rows if row[self.speed]) or [0.0]
        validation = {name: value for name, value in evaluation.items() if name.startswith("validation")}
        end = {
            "event": "end",
            "step": self.step,
            **validation,
            **test,
            "train_seconds": self.elapsed,
            self.speed: rates[len(rates) // 2],
            "clipped_share": sum(row["clipped"] for row in rows) / sum(row["count"] for row in rows),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "state_bytes": state_bytes(self.optimizer),
            "peak_memory_bytes": memory,
            "cpu_seconds": cpu_seconds,
        }
        return [end] if deciles is None else [self.by_decile(deciles, sums), end]

    def by_decile(self, deciles: Tensor, sums: Tensor) -> dict[str, Any]:
        """The log row of the test loss by the frequency of the target: of each decile that has any."""
        symbols = deciles.bincount().tolist()
        count = sums[0].sum().item()
        found = [
            {"decile": i, "symbols": symbols[i], "share": targets / count, "loss": total / targets}
            for i, (targets, total) in enumerate(sums.T.tolist())
            if targets
        ]
        return {"event": "deciles", "step": self.step, "deciles": found}


def named(split: str, found: dict[str, float]) -> dict[str, float]:
    """For a log row: the loss by the name of its split, the others by split and name."""
    return {split if name == "loss" else f"{split}_{name}": value for name, value in found.items()}


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Compiled code and the fast kernels of attention have no second derivatives."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "Using backward.* with create_graph=True")  # zero_grad ends its cycle
        yield
