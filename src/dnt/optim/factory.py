"""Optimizers by name. The signature of a factory holds its defaults; its docstring opens with formula and source.

A factory takes parameters or groups, as torch's optimizers do; a mixture takes the `model`, to divide it by module.
What a formula leaves out: w weights, g gradient, m and v averages, lr learning rate, wd weight decay, mu momentum, b1
and b2 the betas. docs/optimizers.md says what differs from the papers' own code. The default rates are those that a
model of a million parameters begins to be tuned at.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from dnt.extras import extra
from dnt.lookup import lookup
from dnt.optim.clipped import ClippedSGD
from dnt.optim.equilibrium import equilibrium_decay
from dnt.optim.groups import decay_groups, divide, ends_and_rest, param_groups
from dnt.optim.kinds import RATES
from dnt.optim.mixed import Mixed
from dnt.optim.msgdw import MSGDW
from dnt.optim.needs import takes_curvature
from dnt.optim.spec import Part, is_mixture, parts_of


def adamw(
    params: Any, lr: float = 3e-3, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m / (sqrt(v) + eps), m and v averages of g and g^2

    1711.05101; torch.optim.AdamW.
    """
    return torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, betas=betas)


def msgdw(
    params: Any,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    bound: float = 0.0,
    momentum_in_grad: bool = False,
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m, m <- mu m + g

    2507.17501, 1711.05101; dnt.MSGDW.
    """
    return MSGDW(params, lr, momentum, weight_decay, nesterov, bound, momentum_in_grad)


def msgdw_adamw(
    model: nn.Module,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = False,
    bound: float = 0.0,
    adamw_lr: float = 3e-3,
    adamw_weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """adamw for embeddings, positions, class token and head, msgdw for all else

    after 2407.07972. The control that tells whether mSGDW lags behind AdamW in the blocks, or at the rare symbols.
    """
    ends, rest = ends_and_rest(model)
    return Mixed(
        msgdw(decay_groups(rest, weight_decay), lr, weight_decay, momentum, nesterov, bound),
        adamw(decay_groups(ends, adamw_weight_decay), adamw_lr, adamw_weight_decay, betas),
    )


def sgd(
    params: Any, lr: float = 0.1, weight_decay: float = 1e-4, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.Optimizer:
    """w <- w - lr m, m <- mu m + g + wd w

    Polyak 1964, with an L2 penalty; torch.optim.SGD. The decay goes through the momentum, which makes it 1 / (1 - mu)
    times as strong as msgdw's in the long run and lets it lag; where the decay is 0 both are the same.
    """
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def clipped_sgd(
    params: Any, lr: float = 0.3, weight_decay: float = 1e-4, momentum: float = 0.9, clip_fraction: float = 0.1
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr m, m <- mu m + clip(g, -t, t), t the (1 - q) quantile of all |g|

    2306.00204; dnt.optim.clipped.ClippedSGD, which can also clip each tensor by its own quantile, or the momentum.
    """
    return ClippedSGD(params, lr, momentum, weight_decay, clip_fraction)


def signum(params: Any, lr: float = 1e-3, weight_decay: float = 0.3, momentum: float = 0.9) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr sign(m), m <- mu m + (1 - mu) g

    1802.04434; pytorch_optimizer.SignSGD.
    """
    package = extra("pytorch_optimizer", "optimizers")
    optimizer: torch.optim.Optimizer = package.SignSGD(params, lr=lr, weight_decay=weight_decay, momentum=momentum)
    return optimizer


def lion(
    params: Any, lr: float = 1e-3, weight_decay: float = 0.3, betas: tuple[float, float] = (0.9, 0.99)
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr sign(b1 m + (1 - b1) g), m <- b2 m + (1 - b2) g

    2302.06675; pytorch_optimizer.Lion.
    """
    package = extra("pytorch_optimizer", "optimizers")
    optimizer: torch.optim.Optimizer = package.Lion(params, lr=lr, weight_decay=weight_decay, betas=betas)
    return optimizer


def sophia_h(
    params: Any, lr: float = 0.3, weight_decay: float = 1e-3, betas: tuple[float, float] = (0.965, 0.99)
) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - lr clip(m / max(h, eps), -0.01, 0.01), h <- b2 h + (1 - b2) u (H u) each 10th step

    2305.14342; pytorch_optimizer.SophiaH. u is Gaussian, H u the derivative of u g: the loop differentiates twice then.
    No entry moves by more than lr / 100 a step.
    """
    package = extra("pytorch_optimizer", "optimizers")
    optimizer: torch.optim.Optimizer = package.SophiaH(params, lr=lr, weight_decay=weight_decay, betas=betas)
    return optimizer


def lamb(
    params: Any, lr: float = 0.03, weight_decay: float = 0.01, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """w <- w - lr / (1 - b1^t) u min(||w||, 10) / ||u||, u = m / (sqrt(v) + eps) + wd w

    1904.00962; pytorch_optimizer.Lamb, told to put the decay into u, where the paper has it.
    """
    package = extra("pytorch_optimizer", "optimizers")
    optimizer: torch.optim.Optimizer = package.Lamb(
        params, lr=lr, weight_decay=weight_decay, betas=betas, weight_decouple=False
    )
    return optimizer


def lars(
    params: Any, lr: float = 10.0, weight_decay: float = 1e-4, momentum: float = 0.9, nesterov: bool = False
) -> torch.optim.Optimizer:
    """w <- w - lr m, m <- mu m + 0.001 ||w|| / (||g|| + wd ||w||) (g + wd w); vectors: m <- mu m + g

    1708.03888; pytorch_optimizer.LARS.
    """
    package = extra("pytorch_optimizer", "optimizers")
    optimizer: torch.optim.Optimizer = package.LARS(
        params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov
    )
    return optimizer


def adafactor(params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """w <- (1 - lr wd) w - min(lr, 1 / sqrt(t)) max(0.001, rms(w)) u / max(1, rms(u)), u = g / sqrt(v) of rows, columns

    1804.04235; torch.optim.Adafactor. A learning rate is a share of the weights' own size.
    """
    return torch.optim.Adafactor(params, lr=lr, weight_decay=weight_decay)


def muon(
    model: nn.Module, lr: float = 1e-2, weight_decay: float = 0.03, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """matrices of the blocks: w <- (1 - lr wd) w - 0.2 sqrt(max(R, C)) lr orth(g + mu m); adamw for all else

    2502.16982, K. Jordan's Muon; torch.optim.Muon with momentum 0.95, nesterov and match_rms_adamw, by which an R x C
    matrix moves about as far as under AdamW: so both have one rate and one decay.
    """
    ends, rest = ends_and_rest(model)
    matrices = [p for p in rest if p.ndim == 2]
    others = [*ends, *(p for p in rest if p.ndim != 2)]
    return Mixed(
        torch.optim.Muon(decay_groups(matrices, weight_decay)[:1], lr, weight_decay, adjust_lr_fn="match_rms_adamw"),
        adamw(decay_groups(others, weight_decay), lr, weight_decay, betas),
    )


def schedulefree_sgd(
    params: Any, lr: float = 1.0, weight_decay: float = 1e-4, momentum: float = 0.9
) -> torch.optim.Optimizer:
    """y = mu x + (1 - mu) z, z <- z - lr (g(y) + wd y), x the mean of all z; trained at y, evaluated at x

    2405.15682; schedulefree.SGDScheduleFree. No schedule but the warm-up.
    """
    package = extra("schedulefree", "optimizers")
    optimizer: torch.optim.Optimizer = package.SGDScheduleFree(
        params, lr=lr, weight_decay=weight_decay, momentum=momentum
    )
    return optimizer


def schedulefree_adamw(
    params: Any, lr: float = 1e-2, weight_decay: float = 0.03, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """y = b1 x + (1 - b1) z, z <- z - lr (g(y) / (sqrt(v) + eps) + wd y), x the mean of all z; evaluated at x

    2405.15682; schedulefree.AdamWScheduleFree. No schedule but the warm-up.
    """
    package = extra("schedulefree", "optimizers")
    optimizer: torch.optim.Optimizer = package.AdamWScheduleFree(params, lr=lr, weight_decay=weight_decay, betas=betas)
    return optimizer


def adamw_8bit(
    params: Any, lr: float = 3e-3, weight_decay: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """adamw, with m and v of tensors of 4096 entries or more in 8 bits, in blocks of 256

    2110.02861; bitsandbytes.optim.AdamW8bit.
    """
    package = extra("bitsandbytes", "bench")
    optimizer: torch.optim.Optimizer = package.optim.AdamW8bit(params, lr=lr, weight_decay=weight_decay, betas=betas)
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": adamw,
    "msgdw": msgdw,
    "msgdw-adamw": msgdw_adamw,
    "sgd": sgd,
    "clipped-sgd": clipped_sgd,
    "signum": signum,
    "lion": lion,
    "sophia-h": sophia_h,
    "lamb": lamb,
    "lars": lars,
    "adafactor": adafactor,
    "muon": muon,
    "schedulefree-sgd": schedulefree_sgd,
    "schedulefree-adamw": schedulefree_adamw,
    "adamw-8bit": adamw_8bit,
}


def build_optimizer(name: str, model: nn.Module, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer `name` over all parameters of the model, of which matrices and embeddings decay.

    A name of OPTIMIZERS, or a mixture of several (dnt.optim.spec): parts NAME[@LR][:PATTERN,...] separated by ";". The
    first part with a pattern that a parameter matches steps it (dnt.optim.groups.divide), one without patterns the
    rest. A part with a rate of its own has the default decay too; `lr` and `weight_decay` are the others'.

    Of `options` it takes those in its signature that are not None; the others have its defaults. "equilibrium", a
    relative step, takes the place of the weight decay of mSGDW (dnt.optim.equilibrium); "embedding_rate",
    "position_rate", "head_rate" and "gain_rate" are learning rates as multiples of lr.
    """
    rates = {rate: options[rate] for rate in RATES if options.get(rate) is not None}
    divides = is_mixture(name) or takes_model(name)
    if divides and (given := [rate for rate, value in rates.items() if value != 1]):
        raise ValueError(f"{name} has rates of its own; drop {', '.join(given)}.")
    if is_mixture(name):
        return mixture(parts_of(name), model, options)
    chosen = chosen_options(name, options)
    members = model if divides else param_groups(model, chosen["weight_decay"], chosen["lr"], **rates)
    return settling(OPTIMIZERS[name](members, **chosen), options)


def mixture(parts: list[Part], model: nn.Module, options: Mapping[str, Any]) -> Mixed:
    """Each part over its parameters; first those whose rate is `lr`."""
    for part in parts:
        if takes_model(part.name):
            raise ValueError(f"{part.name} divides a model by itself and cannot be part of a mixture; name it alone.")
    if options.get("momentum_in_grad"):
        raise ValueError("momentum_in_grad does not go with a mixture, whose gradients others step along; drop it.")
    if options.get("lr") is not None and all(part.lr is not None for part in parts):
        raise ValueError(f"lr is {options['lr']}, but every part of the mixture has its own rate; drop one of the two.")
    built = []
    for part, members in zip(parts, divide(model, [part.patterns for part in parts]), strict=True):
        own = {"lr": part.lr, "weight_decay": None, "equilibrium": None} if part.lr is not None else {}
        chosen = chosen_options(part.name, {**options, **own})
        groups = [group for group in decay_groups(members, chosen["weight_decay"]) if group["params"]]
        optimizer = settling(OPTIMIZERS[part.name](groups, **chosen), {**options, **own})
        if takes_curvature(optimizer):
            raise ValueError(f"{part.name} cannot be part of a mixture: it differentiates where no other has stepped.")
        built.append((part.lr is not None, optimizer))
    return Mixed(*(optimizer for _, optimizer in sorted(built, key=lambda pair: pair[0])))


def takes_model(name: str) -> bool:
    """Whether a row is a mixture that divides the model by itself."""
    return "model" in signature(lookup(OPTIMIZERS, name, "optimizer")).parameters


def chosen_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that a row is built with but its parameters."""
    _, *known = signature(lookup(OPTIMIZERS, name, "optimizer")).parameters.values()
    chosen = {option.name: option.default for option in known}
    chosen |= {k: v for k, v in options.items() if k in chosen and v is not None}
    if options.get("equilibrium") and "bound" in chosen:  # it is an mSGDW
        chosen["weight_decay"] = equilibrium_decay(options["equilibrium"], chosen["lr"], chosen["momentum"])
    return chosen


def settling(optimizer: torch.optim.Optimizer, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """With the step that it settles at noted in its groups, if there is one."""
    for group in optimizer.param_groups if options.get("equilibrium") else ():
        if "bound" in group:
            group["equilibrium"] = options["equilibrium"]
    return optimizer
