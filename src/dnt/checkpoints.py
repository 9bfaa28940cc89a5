"""What a run needs to go on, one file a process: checkpoint/step-STEP/rank-R-of-N-SHA256.pt.

A sharded tensor lies in the files of all processes, its parts in their order; everything else is whole in the first.
So any number of processes can go on from what any other number left. torch.distributed.checkpoint would do the same,
but its metadata is a pickle: here every file is opened with weights_only=True, after its digest was checked.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dnt.files import atomic_write
from dnt.parallel import divided_like, local
from dnt.runs import digest
from dnt.weights import state_of

PART = "part"  # {PART: tensor} is this process's part of a sharded tensor


def write_state(
    folder: Path,
    rank: int,
    processes: int,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    extra: dict[str, Any],
) -> None:
    """This process's file: its part of model, average, optimizer (the first: all that is not sharded), and `extra`."""
    parameters = {name: parted(tensor) for name, tensor in state_of(model).items()}
    averages = {name: parted(mean) for name, mean in average.items()}
    slots = optimizer.state_dict()
    state = {i: {key: parted(value) for key, value in slot.items()} for i, slot in slots["state"].items()}
    if rank and not any(isinstance(p, DTensor) for p in model.parameters()):
        parameters, averages, state = {}, {}, {}
    content = {"model": parameters, "average": averages, "state": state}
    content |= {"groups": slots["param_groups"], "extra": extra}
    path = folder / f"rank-{rank}-of-{processes}.pt"
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch.save reports a full disk so
            raise OSError(str(error).splitlines()[0]) from error
    path.rename(path.with_name(f"{path.stem}-{digest(path)}.pt"))


def parted(value: Any) -> Any:
    return {PART: local(value).clone()} if isinstance(value, DTensor) else value


def read_state(
    folder: Path, rank: int, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Fill model, average and optimizer; the `extra` of this rank, or the first's without its random state."""
    files = [opened(path) for path in rank_files(folder)]
    first = files[0]
    with torch.no_grad():
        for name, tensor in state_of(model).items():
            tensor.copy_(divided_like(joined([file["model"].get(name) for file in files]), tensor))
        for name, mean in average.items():
            mean.copy_(divided_like(joined([file["average"].get(name) for file in files]), mean))
    members = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for i, slot in first["state"].items():
        state[i] = dict(slot)
        for key, value in slot.items():
            if isinstance(value, Tensor) or (isinstance(value, dict) and PART in value):
                tensor = joined([file["state"].get(i, {}).get(key) for file in files])
                state[i][key] = divided_like(tensor, members[i])
    optimizer.load_state_dict({"state": state, "param_groups": first["groups"]})
    if rank < len(files):
        return files[rank]["extra"]
    return {name: value for name, value in first["extra"].items() if name not in ("rng", "cuda_rng")}


def joined(values: list[Any]) -> Tensor:
    """A tensor from its parts, or from the first file alone."""
    first = values[0]
    return torch.cat([value[PART] for value in values]) if isinstance(first, dict) else first


def rank_files(folder: Path) -> list[Path]:
    """The files of all processes, in their order; ValueError if one is missing or not what was written."""
    found = {int(path.stem.split("-")[1]): path for path in folder.glob("rank-*-of-*-*.pt")}
    expected = int(found[0].stem.split("-")[3]) if 0 in found else 1
    for rank in range(expected):
        if rank not in found or not found[rank].stem.endswith(digest(found[rank])):
            raise damaged(found.get(rank, folder), folder)
    return [found[rank] for rank in range(expected)]


def opened(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError:  # it would execute code
        raise damaged(path, path.parent) from None


def damaged(path: Path, folder: Path) -> ValueError:
    return ValueError(f"{path} is damaged; delete {folder} to start {folder.parent.parent} again from step 0.")
