"""What several processes need beyond Lightning Fabric: sharding, whole tensors, noticing that one of them is gone."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

POLL = 0.5  # seconds
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "Timeout")


def shard(module: nn.Module, blocks: Any, mesh: Any) -> Any:
    """FSDP2: divide the parameters, gradients and optimizer state of each block, then of the rest, among all."""
    for block in blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


@contextmanager
def rebound(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Sharding replaces a model's parameters: afterwards the optimizer's groups hold the new ones of the same names."""
    names = {p: name for name, p in model.named_parameters()}
    of_groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    yield
    parameters = dict(model.named_parameters())
    for group, members in zip(optimizer.param_groups, of_groups, strict=True):
        group["params"] = [parameters[name] for name in members]


def is_first() -> bool:
    """Whether this process is the one that speaks."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; all must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, divided among the processes as the example is."""
    if not isinstance(example, DTensor) or tensor.shape != example.shape:
        return tensor
    tensor = tensor.to(example.device)
    return distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)


def process_lost(error: RuntimeError) -> bool:
    """Whether an error of a collective operation says that another process is gone."""
    return any(words in str(error) for words in LOST)


@contextmanager
def watched(children: list[subprocess.Popen[bytes]], message: Callable[[str], str]) -> Iterator[None]:
    """End this process with one line when one that works with it is gone, as a collective operation may wait forever.

    The process that started the others watches them, and ends them when it fails itself; the others watch it.
    """
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            for rank, child in enumerate(children, start=1):
                if child.poll():
                    end(f"process {rank} {describe_status(child.returncode)}")
            if not children and os.getppid() != parent:
                end("process 0 is gone", speaks=os.environ.get("LOCAL_RANK") == "1")

    def end(what: str, speaks: bool = True) -> None:
        if speaks:
            print(f"dnt: {message(what)}", file=sys.stderr, flush=True)
        kill(children)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError) and process_lost(error):
            over.wait(6 * POLL)  # the thread sees it too, and says which
        over.set()
        kill(children)
        raise
    finally:
        over.set()


def leave(status: int) -> None:
    """End a process whose company is gone now: torn down in order, the threads that spoke with it may abort."""
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()


def describe_status(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
