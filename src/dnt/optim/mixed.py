"""Several optimizers, each with its own parameters, that step as one."""

from collections import defaultdict
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
        """What copies end in: with groups and state that are new."""
        super().__setstate__(state)
        self.share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Each part its own: some hold what is not in the parameters' precision, and know how to read it."""
        slots, groups = state_dict["state"], iter(state_dict["param_groups"])
        for part in self.parts:
            own = [next(groups) for _ in part.param_groups]
            held = {i: slots[i] for group in own for i in group["params"] if i in slots}
            part.load_state_dict({"state": held, "param_groups": own})
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = defaultdict(dict, {p: slot for part in self.parts for p, slot in part.state.items()})
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
