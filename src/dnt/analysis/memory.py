"""What a step of training holds in memory, from its tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of what an optimizer keeps from step to step."""
    return tensor_bytes(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


@contextmanager
def saved_for_backward(parameters: Iterable[Tensor]) -> Iterator[dict[int, int]]:
    """Within it: bytes of every storage that a forward pass saves for the backward pass, by address.

    Each once, however many views of it are saved; parameters are left out, copies of them in another precision are not.
    A compiled model is asked too, and saves what its compiler chose to. What a checkpoint computes again is not saved.
    """
    own = {p.untyped_storage().data_ptr() for p in parameters}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()  # held until the backward pass: no other gets its address
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield found
