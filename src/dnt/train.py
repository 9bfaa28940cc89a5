"""What starts a training run: settings, model and data, devices, the run folder. The only file that knows Fabric."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import ModelParallelStrategy

from dnt.data.images import ImageData, prepare_images
from dnt.data.text import check_outside
from dnt.data.tokens import TextData, prepare
from dnt.interrupt import ProcessLost, stop_requested
from dnt.loop import Loop
from dnt.machine import best_precision, describe_machine, deterministic, kept_memory
from dnt.nn.calibrate import blind_matrices
from dnt.nn.config import OF_BATCHES, TURNING, GPTConfig, ViTConfig
from dnt.nn.gpt import GPT
from dnt.nn.placement import placement_named
from dnt.nn.vit import ViT
from dnt.optim.factory import build_optimizer
from dnt.optim.groups import sgd_rates
from dnt.optim.mixed import Mixed
from dnt.optim.msgdw import MSGDW
from dnt.optim.needs import is_schedule_free, needs_whole_tensors, parts, takes_curvature
from dnt.parallel import process_lost, shard, watched
from dnt.progress import announcement, describe_diagnoses, describe_steps, prescription, progress_bar
from dnt.runs import Run
from dnt.settings import HOW, PRECISIONS, FitSettings, TrainSettings
from dnt.weights import describe_model

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
        return TrainSettings(**stored | {"betas": stored["betas"] and tuple(stored["betas"])})
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
    settings = as_prescribed(model, optimizer, settings)
    check_combination(settings, precision)
    check_model(settings, precision, model.config)
    check_weights(settings, precision, model.config, optimizer)
    check_optimizer(settings, precision, optimizer)
    if settings.calibrate:
        blind_matrices(model, sgd_rates(model, optimizer))  # there are some
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
    with in_company(fabric, run), writing(run, fabric), deterministic(fabric.device), kept_memory(fabric.device):
        if fabric.is_global_zero:
            if resume:
                found = run.last_checkpoint()
                run.rewind_log(found[0] if found else -1)
            else:
                run.start(config, data.tokenizer.describe() if data.tokenizer else None)
            if progress:
                print(announcement(config), file=sys.stderr, flush=True)
                if line := prescription(model.config.placement, config):
                    print(line, file=sys.stderr, flush=True)
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
                if loop.step == 0:
                    steps = loop.begin()
                    said = [describe_steps(steps)] if steps else []
                    if settings.diagnose_every and show_here:
                        said.append(describe_diagnoses(run, settings.steps, settings.diagnose_every))
                    for line in filter(None, said if show_here else ()):
                        print(line, file=sys.stderr, flush=True)
                loop.run_to_end(stopping, show)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{str(error).splitlines()[0]} {run.last_good}.") from error
        finally:
            model.recompute = False
            if precision == "bf16-weights":
                model.float()
    return run


def as_prescribed(model: GPT | ViT, optimizer: torch.optim.Optimizer, settings: FitSettings) -> FitSettings:
    """The settings, and the decays of the optimizer's groups in place, as the model's placement prescribes them."""
    prescribes = placement_named(model.config.placement).prescribes
    if not settings.prescribed:
        return settings
    if not prescribes.decay:
        if settings.clip_equilibrium or any(group.get("equilibrium") for group in optimizer.param_groups):
            name = "clip_equilibrium" if settings.clip_equilibrium else "equilibrium"
            raise ValueError(
                f"{name} needs weight decay, and placement {model.config.placement_name} prescribes none; drop it."
            )
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    return settings if prescribes.warmup else replace(settings, warmup=0)


def check_combination(settings: FitSettings, precision: str) -> None:
    """ValueError for what does not go together on any machine."""
    if precision == "16-mixed" and settings.strategy == "fsdp":
        raise ValueError("16-mixed does not go with fsdp (a GradScaler sees one part only); use bf16-mixed, or ddp.")
    if settings.diagnose_every and settings.strategy == "fsdp":
        raise ValueError("diagnose_every does not go with fsdp, where no process has the whole model; inspect the run.")
    for name in ("agc", "spectral_bound"):
        if getattr(settings, name) and settings.strategy == "fsdp":
            raise ValueError(f"{name} does not go with fsdp, where no process has a whole matrix; use ddp.")
    if settings.spectral_bound and precision == "bf16-weights":
        raise ValueError("spectral_bound does not go with bf16-weights, which round each step at random; use --bound.")
    refused = {
        "ema": settings.ema,
        "fsdp": settings.strategy == "fsdp",
        "several processes, which would each round at random": settings.processes > 1,
    }
    if precision == "bf16-weights" and any(refused.values()):
        what = next(name for name, given in refused.items() if given)
        raise ValueError(f"bf16-weights does not go with {what}; use bf16-mixed.")
    accumulate = settings.accumulate or 1
    parts = settings.processes * accumulate
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size is {settings.batch_size}, no multiple of {settings.processes} processes x {accumulate} "
            f"micro-batches; use {-(-settings.batch_size // parts) * parts}, for example."
        )


def check_model(settings: FitSettings, precision: str, config: GPTConfig | ViTConfig) -> None:
    """ValueError for what this model cannot be trained with."""
    if config.norm_name in OF_BATCHES:
        refused = {
            "recompute": settings.recompute,
            "accumulate": (settings.accumulate or 1) > 1,
            "several processes": settings.processes > 1,
        }
        for what, given in refused.items():
            if given:
                raise ValueError(
                    f"{what} does not go with {config.norm_name}, whose statistics are those of a whole batch, counted "
                    "once; drop it, or use another norm."
                )
    weights = config.parametrization
    if weights in TURNING and settings.recompute:
        raise ValueError(
            f"recompute does not go with {weights}, whose singular vectors each forward pass turns; drop it."
        )
    if weights != "plain" and precision == "bf16-weights":
        raise ValueError(f"bf16-weights does not go with {weights}, which computes in float32; use bf16-mixed.")


def check_weights(
    settings: FitSettings, precision: str, config: GPTConfig | ViTConfig, optimizer: torch.optim.Optimizer
) -> None:
    """ValueError for weights that this model is trained at, and not evaluated at."""
    free = any(map(is_schedule_free, parts(optimizer)))
    averages = "ema" if settings.ema else "a schedule-free optimizer" if free else ""
    units = settings.prescribed and placement_named(config.placement).prescribes.unit_weights
    if units and (averages or precision == "bf16-weights"):
        why = "whose averages of unit vectors are none" if averages else "whose rounding leaves no unit vectors"
        what = averages or precision
        raise ValueError(f"placement {config.placement_name} does not go with {what}, {why}; drop it.")
    if free and (config.norm_name in OF_BATCHES or config.parametrization in TURNING):
        what = config.norm_name if config.norm_name in OF_BATCHES else config.parametrization
        raise ValueError(
            f"{what} keeps statistics of the weights in training, which {averages} is not evaluated at; use adamw."
        )


def check_optimizer(settings: FitSettings, precision: str, optimizer: torch.optim.Optimizer) -> None:
    """ValueError for what this optimizer cannot do."""
    if precision == "bf16-weights" and not isinstance(optimizer, MSGDW):
        raise ValueError(
            f"bf16-weights does not go with {type(optimizer).__name__}, whose small steps would be rounded away: MSGDW "
            "alone rounds at random; use bf16-mixed."
        )
    if isinstance(optimizer, MSGDW) and optimizer.in_grad:
        if settings.clip or settings.clip_equilibrium:
            name = "clip" if settings.clip else "clip_equilibrium"
            raise ValueError(
                f"{name} is {getattr(settings, name)}, but with momentum_in_grad there is no gradient to clip, only "
                "the momentum; use clip 0, and a bound on the step (--clip 0 --bound 0.03)."
            )
        if precision in ("16-mixed", "bf16-weights"):
            raise ValueError(
                f"{precision} does not go with momentum_in_grad, which sums gradients in .grad: "
                f"{'their scale changes' if precision == '16-mixed' else 'in bfloat16 small ones are lost'}; use "
                "bf16-mixed or 32."
            )
        if settings.agc or settings.spectral_bound:
            name = "agc" if settings.agc else "spectral_bound"
            raise ValueError(f"{name} does not go with momentum_in_grad; bound the step of each matrix (--bound 0.03).")
    for part in parts(optimizer):
        check_part(settings, precision, part)


def check_part(settings: FitSettings, precision: str, part: torch.optim.Optimizer) -> None:
    """ValueError for what the optimizer of some, or of all, parameters cannot do."""
    name, fsdp = type(part).__name__, settings.strategy == "fsdp"
    if fsdp and needs_whole_tensors(part):
        raise ValueError(f"{name} does not go with fsdp, where no process has a whole tensor; use ddp.")
    if takes_curvature(part) and (settings.processes > 1 or precision == "16-mixed"):
        what = "several processes" if settings.processes > 1 else "16-mixed, whose gradients are scaled"
        raise ValueError(f"{name} differentiates twice, which does not go with {what}; use one, and bf16-mixed or 32.")
    if is_schedule_free(part):
        if settings.ema:
            raise ValueError(f"ema does not go with {name}, which evaluates at an average already; drop it.")
        if settings.spectral_bound:
            raise ValueError(f"spectral_bound does not go with {name}, whose steps move two sets of weights; drop it.")
        if fsdp:
            raise ValueError(f"{name} does not go with fsdp, which divides the two sets of weights; use ddp.")


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
        watch = watched(children, lambda what: f"{what}. {run.last_good}. Go on: dnt train --resume {run.path}")
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
        raise ProcessLost(f"another process of this run seems to be gone ({said}). {run.last_good}.") from None


@contextmanager
def writing(run: Run, fabric: Fabric) -> Iterator[None]:
    """The right to write into a run folder; a full disk, or data that went away, says what is safe."""
    try:
        with run.locked() if fabric.is_global_zero else nullcontext():
            yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(run.path)
        what, cure = ("", "it is there") if elsewhere else (f"cannot write into {run.path}: ", "there is room")
        raise OSError(f"{what}{error}. {run.last_good}. When {cure} again: dnt train --resume {run.path}") from error


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


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    known = [{k: v for k, v in group.items() if k not in ("params", "scalings")} for group in optimizer.param_groups]
    groups = [{k: v for k, v in group.items() if v or k != "momentum_in_grad"} for group in known]
    parts = optimizer.parts if isinstance(optimizer, Mixed) else [optimizer]
    return {"class": "-".join(type(part).__name__ for part in parts), "groups": groups}


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
