"""What a training run would be: built on the meta device, where tensors have shapes and no memory."""

from dataclasses import asdict

import torch

from dnt.analysis.memory import state_bytes, tensor_bytes
from dnt.data.tokenizers import parse_spec, ready_made
from dnt.nn.config import GPT_SIZES, VIT_SIZES, GPTConfig
from dnt.nn.gpt import GPT
from dnt.nn.vit import ViT
from dnt.optim.factory import build_optimizer
from dnt.optim.needs import begin_training, parts, takes_curvature
from dnt.settings import TrainSettings
from dnt.train import check_combination, check_model, check_optimizer


def plan(settings: TrainSettings) -> str:
    """Shapes, sizes and memory of what `dnt train` would do; ValueError for what it would refuse before reading data.

    One forward pass, one backward pass and one optimizer step run on shapes alone.
    """
    if settings.resume:
        raise ValueError("--dry-run says what a new run would be; to go on with one, drop it.")
    settings.check()
    check_combination(settings, settings.precision)
    processes = settings.processes
    company = f"each of {processes} processes ({settings.strategy or 'ddp'})" if processes > 1 else "one process"
    rows = settings.batch_size // (processes * (settings.accumulate or 1))
    if settings.reads_images:
        size = VIT_SIZES[settings.model]
        side = settings.image_size or size.image_size
        config = settings.model_config(
            settings.placement, classes=size.classes, channels=size.channels, image_size=side
        )
    else:
        config = settings.model_config(settings.placement, vocab_size=vocab_size_of(settings.tokenizer))
    check_model(settings, settings.precision, config)
    with torch.device("meta"):
        model: GPT | ViT
        if isinstance(config, GPTConfig):
            model, x = GPT(config), torch.zeros(rows, config.context, dtype=torch.int64)
            y, reads, tokens = x, f"context {config.context}, vocabulary {config.vocab_size:,}", config.context
        else:
            model, x = ViT(config), torch.zeros(rows, *config.image_shape)
            y, tokens = torch.zeros(rows, dtype=torch.int64), config.tokens
            reads = (
                f"{config.image_size} pixels in patches of {config.patch_size}, {config.classes:,} classes (ImageNet's)"
            )
        model.recompute = settings.recompute
    optimizer = build_optimizer(settings.optimizer, model, asdict(settings))
    check_optimizer(settings, settings.precision, optimizer)
    begin_training(optimizer)
    with torch.device("meta"):
        model.loss(x, y).backward(create_graph=any(map(takes_curvature, parts(optimizer))))
    state, unknown = 0, ""
    try:
        optimizer.step()
        state = state_bytes(optimizer)
    except RuntimeError:  # it looks at a number, of which there are none here
        unknown = ", without the optimizer's state, which only a run can tell"
    parameters = sum(p.numel() for p in model.parameters())
    weights = tensor_bytes(model.parameters())
    if settings.precision == "bf16-weights":  # half of what the matrices take, and of their momentum
        narrow = sum(p.numel() for p in model.blocks.parameters() if p.ndim >= 2)
        weights, state = weights - 2 * narrow, state - (2 * narrow if settings.momentum else 0)
    held = ((3 if settings.ema else 2) * weights + state) / (processes if settings.strategy == "fsdp" else 1)
    step = settings.batch_size * tokens
    first = optimizer.param_groups[0]
    lines = {
        "model": f"{config.depth} x {config.dim} x {config.heads} heads, {reads}: {parameters:,} parameters",
        "placement": f"{settings.placement}, {config.norm_name} (eps {config.norm_eps:g}), init {config.init_name}",
        "optimizer": f"{settings.optimizer}, lr {first['lr']:g}, decay {first['weight_decay']:g}"
        + ("" if unknown else f", state {state / parameters:.1f} bytes a parameter"),
        "schedule": f"{settings.schedule}, {settings.steps:,} steps, warm-up {settings.warmup:,}, floor "
        f"{settings.floor:g}, clip {settings.clip:g}"
        + (f", average of the weights {settings.ema:g}" if settings.ema else ""),
        "data": f"{settings.data}, "
        + (f"augmentation {settings.augment}" if settings.reads_images else f"tokenizer {settings.tokenizer}"),
        "step": f"{settings.batch_size} x {tokens} = {step:,} tokens; {rows} samples at a time in "
        f"{company}, precision {settings.precision}",
        "in all": f"{settings.steps * step:,} tokens, {6 * parameters * settings.steps * step:.2g} floating-point "
        "operations (6 a parameter and token)",
        "memory": f"{held / 2**30:.2f} GiB of weights, gradients and optimizer state"
        f"{', of the average too,' if settings.ema else ''} in each process, and activations{unknown}",
    }
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())


def vocab_size_of(spec: str) -> int:
    """Of a tokenizer, without its data; ValueError where only that tells."""
    kind, argument = parse_spec(spec)
    if isinstance(argument, int):
        return argument
    if kind == "gpt2":  # whose ranks may have to be downloaded
        return GPT_SIZES["gpt2-small"].vocab_size
    tokenizer = ready_made(spec)
    if tokenizer is None:
        raise ValueError("how many characters there are depends on the data; a dry run needs another --tokenizer.")
    return tokenizer.vocab_size
