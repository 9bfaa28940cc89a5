"""What optimizers keep beside the weights, and the most memory that training steps hold: each in a process of its own.

python bench/memory.py --out bench/results/memory.json

Two eager steps on random tokens; gradients are freed before a forward pass, those that are the momentum stand. On a
CPU what is freed goes back to the system at once, so that the peak is of memory in use; dnt.fit keeps it for speed.
What does not run here (a package is missing, the memory too small) is not measured, and says why. What --out has of the
same setting is not measured again.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dnt
from dnt.experiments.alternate import alternate
from dnt.extras import extra
from dnt.files import write_json
from dnt.interrupt import ProcessLost
from dnt.machine import describe_machine, peak_memory_bytes
from dnt.optim.groups import ends_and_rest
from dnt.optim.mixed import Mixed

STEPS = 2
# glibc gives back to the system at once what it mapped alone, so that resident memory is memory in use
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536"}


class InBackward:
    """An optimizer for each parameter: it steps once the gradient is complete, and frees it; none ever stand together.

    After https://docs.pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html
    """

    def __init__(self, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], model: nn.Module):
        self.optimizers = {p: make([p]) for p in model.parameters()}
        for p in self.optimizers:
            p.register_post_accumulate_grad_hook(self.update)

    def update(self, parameter: Tensor) -> None:
        self.optimizers[parameter].step()
        self.optimizers[parameter].zero_grad()

    def step(self) -> None:
        """Done in the backward pass."""

    def zero_grad(self) -> None:
        """Done in the backward pass."""

    @property
    def state(self) -> dict[Tensor, Any]:
        return {p: state for optimizer in self.optimizers.values() for p, state in optimizer.state.items()}


def muon(model: dnt.GPT) -> torch.optim.Optimizer:
    """Of the blocks' matrices; AdamW for embeddings, positions and gains, as its author has it."""
    ends, rest = ends_and_rest(model)
    matrices = [p for p in rest if p.ndim == 2]
    others = [*ends, *(p for p in rest if p.ndim != 2)]
    return Mixed(torch.optim.Muon(matrices), torch.optim.AdamW(others, fused=True))


def adamw_8bit(model: dnt.GPT) -> torch.optim.Optimizer:
    return extra("bitsandbytes", of="bench").optim.AdamW8bit(model.parameters())


def lion(model: dnt.GPT) -> torch.optim.Optimizer:
    return extra("pytorch_optimizer", of="bench").Lion(model.parameters())


OPTIMIZERS: dict[str, Callable[[dnt.GPT], Any]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), fused=True),
    "AdamW, step in backward": partial(InBackward, partial(torch.optim.AdamW, fused=True)),
    "AdamW, 8 bits (bitsandbytes)": adamw_8bit,
    "Lion": lion,
    "Muon, AdamW for embeddings": muon,
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters()),
    "SGD, step in backward": partial(InBackward, partial(torch.optim.SGD, fused=True)),
    "MSGDW": lambda model: dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-4), lr=0.1),
    "MSGDW, momentum in gradient": lambda model: dnt.MSGDW(
        dnt.param_groups(model, weight_decay=1e-4), lr=0.1, momentum_in_grad=True
    ),
}


@dataclass(frozen=True)
class Setting:
    """What a process measures. context: of the size itself if None. precision: 32, or bf16 by autocast."""

    size: str
    batch: int
    context: int | None
    precision: str

    def model(self, device: torch.device) -> tuple[dnt.GPT, Tensor]:
        """And a batch of random tokens."""
        with device:
            model = dnt.gpt(self.size, placement="dnt")
            tokens_BT = torch.randint(model.config.vocab_size, (self.batch, self.context or model.config.context))
        return model, tokens_BT

    def loss(self, model: dnt.GPT, tokens_BT: Tensor) -> Tensor:
        with torch.autocast(tokens_BT.device.type, torch.bfloat16, self.precision == "bf16"):
            return model.loss(tokens_BT, tokens_BT)

    def training(self, optimizer: str, recompute: bool, device: torch.device) -> "Training":
        model, tokens_BT = self.model(device)
        model.recompute = recompute
        return Training(self, model, OPTIMIZERS[optimizer](model), tokens_BT)


@dataclass
class Training:
    setting: Setting
    model: dnt.GPT
    optimizer: Any
    tokens_BT: Tensor
    gradient_bytes: int = 0  # that stood when a step began

    def step(self) -> dict[str, float]:
        self.optimizer.zero_grad()
        self.setting.loss(self.model, self.tokens_BT).backward()
        self.gradient_bytes = held(p.grad for p in self.model.parameters() if p.grad is not None)
        self.optimizer.step()
        return {}

    @property
    def state_bytes(self) -> int:
        return held(x for state in self.optimizer.state.values() for x in state.values() if isinstance(x, Tensor))


def held(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory, each counted once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def build(setting: Setting, optimizer: str, recompute: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """In its process: what makes a step, and what tells its memory in the end."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Setting("gpt-tiny", 1, 8, setting.precision).training(optimizer, recompute, device).step()  # loads what is needed
    gc.collect()  # hooks and their optimizers hold each other
    forget_peak(device)
    before = peak_memory_bytes(device)
    training = setting.training(optimizer, recompute, device)
    parameters = sum(p.numel() for p in training.model.parameters())

    def end() -> dict[str, Any]:
        return {
            "parameters": parameters,
            "tokens": list(training.tokens_BT.shape),
            "machine": describe_machine(device),
            "state": training.state_bytes / parameters,
            "with_gradients": (training.state_bytes + training.gradient_bytes) / parameters,
            "peak_bytes": peak_memory_bytes(device) - before,
        }

    return training.step, end


def forget_peak(device: torch.device) -> None:
    """The peak is what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM


def measured(setting: Setting, optimizer: str, recompute: bool) -> dict[str, Any]:
    """What the process tells, or why it failed."""
    try:
        found = alternate({optimizer: partial(build, setting, optimizer, recompute)}, STEPS, ENVIRONMENT)
    except (RuntimeError, ProcessLost) as error:
        return {"failed": str(error).splitlines()[-1]}
    return found[optimizer].end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="gpt2-large")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, help="the size's own if not given")
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/memory.json"))
    arguments = parser.parse_args()
    setting = Setting(arguments.size, arguments.batch, arguments.context, arguments.precision)
    asked = {"size": arguments.size, "precision": arguments.precision, "steps": STEPS}
    asked |= {"batch": arguments.batch, "context": arguments.context}
    found: dict[str, Any] = asked | {"rows": []}
    if arguments.out.exists() and (before := json.loads(arguments.out.read_text())).items() >= asked.items():
        found = before  # goes on
    rows = found["rows"]
    print(f"{'':30} {'bytes a parameter':>24}   {'peak GB of a step':>24}")
    print(f"{'':30} {'state':>9} {'with gradients':>14}   {'':>12} {'recomputing':>11}")
    for name in arguments.optimizers:
        if name in [row["optimizer"] for row in rows]:
            continue
        whole, recomputed = (measured(setting, name, recompute) for recompute in (False, True))
        if failed := whole.get("failed") or recomputed.get("failed"):
            rows.append({"optimizer": name, "not_measured": failed})
            write_json(arguments.out, found)
            print(f"{name:30} not measured: {failed}", flush=True)
            continue
        found |= {key: whole.pop(key) for key in ("parameters", "tokens", "machine")}
        row = {"optimizer": name, **whole, "peak_bytes_recomputing": recomputed["peak_bytes"]}
        rows.append(row)
        write_json(arguments.out, found)
        print(
            f"{name:30} {row['state']:9.3f} {row['with_gradients']:14.3f}   "
            f"{row['peak_bytes'] / 1e9:12.2f} {row['peak_bytes_recomputing'] / 1e9:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
