"""Several optimizers, each with its own parameters, that step as one."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Mixed(Optimizer):
    """Its groups are those of its parts, one after another, and its state is theirs; a step is a step of each part.

    So one schedule, one checkpoint and one sharding serve all of them. A parameter in two parts is refused.
    """

    def __init__(self, *parts: Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], defaults={})
        self.share()

    def share(self) -> None:
        """Parts and whole hold the same groups and the same state, not copies."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What load_state_dict ends in: with groups and state that are new."""
        super().__setstate__(state)
        self.share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part; returns what `closure`, called once, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
