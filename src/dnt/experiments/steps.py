"""The training step of `dnt train`, taken apart in a process of its own: how long each phase takes, what it holds."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from dnt.analysis.memory import saved_for_backward, state_bytes, tensor_bytes
from dnt.data.ahead import ahead
from dnt.data.augment import AUGMENTATIONS
from dnt.data.noise import random_images, random_text
from dnt.dryrun import vocab_size_of
from dnt.experiments.alternate import Measure
from dnt.lookup import lookup
from dnt.loop import Loop
from dnt.machine import deterministic, kept_memory, matmul_flops, peak_memory_bytes
from dnt.nn.config import VIT_SIZES, GPTConfig, ViTConfig
from dnt.nn.gpt import GPT
from dnt.nn.vit import ViT
from dnt.optim.factory import build_optimizer
from dnt.runs import Run
from dnt.settings import FitSettings, TrainSettings
from dnt.train import make_fabric

ENDLESS = 1 << 30  # steps: with a warm-up as long, the weights stay where they are
DTYPES = {"32": torch.float32, "bf": torch.bfloat16, "16": torch.float16}  # by the first two letters of a precision


class Stopwatch:
    """Seconds spent in each phase. On a GPU its own clock is read, which makes nothing wait."""

    def __init__(self, device: torch.device):
        self.device = device
        self.marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.mark()
        yield
        self.marks[name].append((start, self.mark()))

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """In all, by name."""
        if self.device.type != "cuda":
            return {name: sum(end - start for start, end in pairs) for name, pairs in self.marks.items()}
        torch.cuda.synchronize(self.device)
        return {name: sum(a.elapsed_time(b) for a, b in pairs) / 1000 for name, pairs in self.marks.items()}


class HeldBytes:
    """Bytes that a step holds: activations once its forward pass is over, gradients once all of them are there."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.held: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        parameters = list(self.loop.model.parameters())
        if name == "forward":
            with saved_for_backward(parameters) as found:
                yield
            self.held["activations"] = sum(found.values())
            return
        if name == "optimizer":
            self.held["gradients"] = tensor_bytes(p.grad for p in parameters if p.grad is not None)
        yield


def timed_steps(
    settings: TrainSettings, folder: Path, threads: int, steps: int
) -> tuple[Measure, Callable[[], dict[str, Any]]]:
    """For dnt.experiments.alternate: a round is so many steps and a log row; seconds a step, in all and by phase.

    settings: with a tokenizer ids:VOCAB and a precision that is not auto. folder: a new one, for the log; whoever
    wants it removed removes it. At the end: bytes of weights, gradients, optimizer state and activations, the peak of
    the process and what it held before there was a model (on a GPU 0), and the floating-point operations a second of
    its matrix products.
    """
    torch.set_num_threads(threads)
    before = peak_memory_bytes(torch.device("cpu"))
    resources = ExitStack()
    loop = resources.enter_context(endless_loop(settings, folder))
    device = loop.fabric.device
    loop.train_step()  # compiles
    loop.phase = weighed = HeldBytes(loop)
    loop.train_step()
    loop.log_recent()

    def measure() -> dict[str, float]:
        loop.phase = watch = Stopwatch(device)
        with watch("step"):
            for _ in range(steps):
                loop.train_step()
            loop.log_recent()
        return {name: seconds / steps for name, seconds in watch.seconds().items()}

    def end() -> dict[str, Any]:
        held = {
            "weights": tensor_bytes(loop.model.parameters()),
            **weighed.held,
            "state": state_bytes(loop.optimizer),
            "peak": peak_memory_bytes(device),
            "before": 0 if device.type == "cuda" else before,
        }
        resources.close()
        return {"bytes": held, "matmul_flops": matmul_flops(device, DTYPES[settings.precision[:2]])}

    return measure, end


@contextmanager
def endless_loop(settings: TrainSettings, folder: Path) -> Iterator[Loop]:
    """The loop of a training on random data that never ends, with its batches under way."""
    options = {field.name: getattr(settings, field.name) for field in fields(FitSettings)}
    endless = FitSettings(**options | {"steps": ENDLESS, "warmup": ENDLESS})
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    config, data = config_and_data(settings, folder)
    model = GPT(config) if isinstance(config, GPTConfig) else ViT(config)
    optimizer = build_optimizer(settings.optimizer, model, asdict(settings))
    fabric = make_fabric(endless, settings.precision)
    fabric.launch()
    with deterministic(fabric.device), kept_memory(fabric.device):
        loop = Loop(fabric, model, data, optimizer, Run(folder), endless, settings.seed)
        loop.model.train()
        with loop.board, closing(ahead(loop.remaining())) as loop.batches:
            yield loop


def config_and_data(settings: TrainSettings, folder: Path) -> tuple[GPTConfig | ViTConfig, Any]:
    """The model, and random data that it can read."""
    config = config_of(settings)
    if isinstance(config, GPTConfig):
        return config, random_text(config.vocab_size, config.context)
    augment = lookup(AUGMENTATIONS, settings.augment, "augmentation")
    return config, random_images(folder, config.classes, config.channels, config.image_size, augment)


def config_of(settings: TrainSettings) -> GPTConfig | ViTConfig:
    """With the vocabulary of the tokenizer, or the classes of the named size."""
    if not settings.reads_images:
        return settings.model_config(settings.placement, vocab_size=vocab_size_of(settings.tokenizer))
    size = VIT_SIZES[settings.model]
    side = settings.image_size or size.image_size
    return settings.model_config(settings.placement, classes=size.classes, channels=size.channels, image_size=side)
