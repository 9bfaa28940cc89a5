"""Momentum SGD with decoupled weight decay."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from dnt.parallel import local


class MSGDW(SGD):
    """m <- mu m + g;  w <- (1 - lr wd) w - lr m;  the first m is g

    The decoupled decay of 1711.05101 with the momentum of torch.optim.SGD (nesterov: along g + mu m). State: one
    buffer, 4 bytes a float32 parameter. `params` as for any torch optimizer; every option but momentum_in_grad may
    differ between groups.

    bound > 0: no step is longer than this share of the parameter's norm, of those that have rows and columns:
    lr m min(1, bound ||w|| / (lr ||m||)); the momentum stays as it is.

    momentum_in_grad: the optimizer holds nothing. The momentum stands where gradients are: zero_grad() multiplies it by
    mu, the backward pass adds to it, step() moves along it. So call zero_grad() of the optimizer once between two
    steps: step() raises ValueError otherwise, and if a gradient was replaced. It cannot see that one was changed in
    place: clip_grad_norm_ would clip the momentum. What needs a gradient apart from the momentum does not go with it:
    nesterov, clipping by the gradient's norm, a GradScaler; nor do parameters of 16 bits, as backward passes round to
    nearest and what is small beside the momentum would be lost. state_dict() holds the momentum all the same.

    Parameters in bfloat16, and their momentum, are rounded up or down at random, so that nothing is lost in the mean
    (2010.06192).

    As in torch, with nesterov the gradients are where the step is put together. Nothing as large as the parameters is
    allocated but the momentum. After compile() a step is one pass over each parameter, two with a bound.
    """

    one_pass: Any = None

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        bound: float = 0.0,
        momentum_in_grad: bool = False,
    ):
        if bound < 0:
            raise ValueError(f"bound is {bound}; it must be at least 0 (none).")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        self.defaults |= {"bound": bound, "momentum_in_grad": momentum_in_grad}  # of groups that are added later
        for group in self.param_groups:
            group.setdefault("bound", bound)
            group["momentum_in_grad"] = momentum_in_grad
            check_can_stand(group)
        self.standing: dict[Tensor, Tensor] = {}  # the gradients that are momentum, by parameter
        self._step_supports_amp_scaling = momentum_in_grad  # so that a GradScaler says that it is there

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        check_can_stand(self.param_groups[-1])

    @property
    def in_grad(self) -> bool:
        return self.param_groups[0]["momentum_in_grad"]

    def compile(self) -> None:
        """Like nn.Module.compile: later steps are."""
        self.one_pass = torch.compile(one_pass, dynamic=True)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch, but gradients that are momentum are multiplied by mu."""
        if not self.standing:
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            if momenta := [self.standing[p] for p in group["params"] if p in self.standing]:
                torch._foreach_mul_(momenta, group["momentum"])
            group["scalings"] = group.get("scalings", 0) + 1  # in the groups, for their way into a checkpoint

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.in_grad:
            self.check_standing()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            divided = group["bound"] and any(isinstance(p, DTensor) for p in params)  # its norms are of all parts
            narrow = any(p.dtype == torch.bfloat16 for p in params)
            if narrow and divided:
                raise ValueError("bound does not go with bfloat16 parameters that are divided among processes.")
            compiled = self.one_pass and not divided and any(p.ndim >= 2 for p in params)  # it pays for large ones
            if narrow or compiled:
                self.step_one_by_one(params, group)
            elif params:
                steps = self.directions(params, group)
                held = shares(steps, params, group["lr"], group["bound"]) if group["bound"] else []
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                if held:
                    torch._foreach_addcmul_(params, steps, held, value=-group["lr"])
                else:
                    torch._foreach_add_(params, steps, alpha=-group["lr"])
        if self.in_grad:
            for group in self.param_groups:
                self.standing.update((p, p.grad) for p in group["params"] if p.grad is not None)
                group["scalings"] = 0
        return loss

    def step_one_by_one(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Each parameter by the equation as it is written in one_pass, compiled if asked for."""
        update = self.one_pass or one_pass
        lr, decay, bound = (torch.tensor(group[name]) for name in ("lr", "weight_decay", "bound"))  # floats recompile
        options = lr, decay, group["momentum"], group["nesterov"], bound if group["bound"] else None
        for p in params:
            assert p.grad is not None
            m = local(self.buffer(p)) if group["momentum"] and not self.in_grad else None
            update(local(p.detach()), local(p.grad), m, *options)

    def directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """m, or with nesterov g + mu m, where the gradients were."""
        gradients = [p.grad for p in params if p.grad is not None]
        if self.in_grad or not group["momentum"]:
            return gradients
        buffers = [self.buffer(p) for p in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, gradients)
        if not group["nesterov"]:
            return buffers
        torch._foreach_add_(gradients, buffers, alpha=group["momentum"])
        return gradients

    def buffer(self, p: Tensor) -> Tensor:
        if "momentum_buffer" not in self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return self.state[p]["momentum_buffer"]

    def check_standing(self) -> None:
        """ValueError if what stands in .grad is not mu m + g."""
        if hasattr(self, "grad_scale"):
            raise ValueError("momentum_in_grad does not go with a GradScaler, whose scale changes; use bfloat16.")
        if not self.standing:
            return
        if (times := self.param_groups[0].get("scalings", 0)) != 1:
            raise ValueError(
                f"zero_grad() ran {times} times since the last step; with momentum_in_grad it must run once between "
                "two steps, before the backward pass."
            )
        if not all(p.grad is momentum for p, momentum in self.standing.items()):
            raise ValueError(
                "a gradient was replaced since the last step, and with momentum_in_grad the momentum went with it; "
                "clear gradients with this optimizer's zero_grad() alone."
            )

    def state_dict(self) -> dict[str, Any]:
        """As in torch; momentum that stands in the gradients is in it like any other."""
        for p, momentum in self.standing.items():
            self.state[p]["momentum_buffer"] = momentum
        try:
            return super().state_dict()
        finally:
            for p in self.standing:
                del self.state[p]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, whichever way the momentum was held when it was saved."""
        in_grad = self.in_grad
        if not in_grad and any(group.get("scalings") for group in state_dict["param_groups"]):
            raise ValueError("this state was saved after zero_grad() of a momentum in the gradient; save it before.")
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["momentum_in_grad"] = in_grad
        if in_grad:
            self.standing.clear()
            self.standing.update((p, slot["momentum_buffer"].clone()) for p, slot in self.state.items() if slot)
            self.state.clear()
            for p, momentum in self.standing.items():
                p.grad = momentum

    def __getstate__(self) -> dict[str, Any]:
        if self.standing:
            raise ValueError("a copy would leave the momentum behind, which stands in .grad; copy state_dict().")
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What load_state_dict and copies end in; a state of an older version has no bound."""
        super().__setstate__(state)
        self.__dict__.setdefault("standing", {})
        for group in self.param_groups:
            group.setdefault("bound", 0.0)
            group.setdefault("momentum_in_grad", False)
        self._step_supports_amp_scaling = self.in_grad


def one_pass(
    w: Tensor,
    g: Tensor,
    m: Tensor | None,
    lr: Tensor,
    decay: Tensor,
    momentum: float,
    nesterov: bool,
    bound: Tensor | None,
) -> None:
    """The equation, on one parameter, in float32 or wider; m is None where g is the momentum, or there is none."""
    wide = torch.promote_types(w.dtype, torch.float32)
    weight, step = w.to(wide), g.to(wide)
    if m is not None:
        heavy = momentum * m.to(wide) + step
        step = step + momentum * heavy if nesterov else heavy
        store(heavy, m)
    if bound is not None and w.ndim >= 2:
        step = step * share(step.norm(), weight.norm(), lr, bound)
    store((1 - lr * decay) * weight - lr * step, w)


def store(value: Tensor, target: Tensor) -> None:
    """Into bfloat16 up or down at random, the nearer the likelier: right in the mean."""
    if target.dtype == torch.bfloat16:  # the upper half of a float32: add a random lower half, and cut
        bits = value.view(torch.int32) + torch.randint_like(value, 1 << 16, dtype=torch.int32)
        value = torch.where(value.isfinite(), (bits & -(1 << 16)).view(torch.float32), value)
    target.copy_(value)


def share(length: Tensor, norm: Tensor, lr: Tensor | float, bound: Tensor | float) -> Tensor:
    """Of a step of this length, with which lr ||step|| <= bound ||w|| if w is not zero."""
    return torch.where(norm > 0, (bound * norm / (lr * length)).clamp(max=1), 1.0)


def shares(steps: list[Tensor], params: list[Tensor], lr: float, bound: float) -> list[Tensor]:
    """Of each step; all of it where the parameter has no rows and columns."""
    found = zip(params, torch._foreach_norm(steps), torch._foreach_norm(params), strict=True)
    return [share(length, norm, lr, bound) if p.ndim >= 2 else torch.ones_like(norm) for p, length, norm in found]


def check_can_stand(group: dict[str, Any]) -> None:
    """ValueError for what momentum_in_grad cannot do."""
    if not group.get("momentum_in_grad"):
        return
    if group["nesterov"]:
        raise ValueError("nesterov needs the gradient beside the momentum: it does not go with momentum_in_grad.")
    if narrow := sorted({str(p.dtype) for p in group["params"] if p.dtype in (torch.bfloat16, torch.float16)}):
        raise ValueError(
            f"momentum_in_grad sums gradients in the parameters' precision, which is {narrow[0]}: small ones would be "
            "lost; keep the parameters in float32."
        )
