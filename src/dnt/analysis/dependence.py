"""Does the loss see a scale that it need not see? Each is changed, and the loss computed again.

The five positions of the Deeply Normalized Transformer (arXiv 2507.17501) each hide one: what a loss does not see, no
gradient depends on. A power of two is exact, so that a scale which a norm hides changes nothing but through its eps.
"""
# B batch, T tokens, D width

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnt.analysis.anatomy import Part, blocks, branches, parts

INPUT_NORMS = ("input_norm", "norm_pre")  # of dnt and timm: what the embedding passes before the first block
HIDING = {  # roles that are scaled together: the position that would hide it
    ("q", "k"): "QKNorm",
    ("v", "o"): "MidNorm after attention",
    ("1", "2"): "MidNorm after the feed-forward",
}


@torch.no_grad()
def scale_dependence(
    model: nn.Module, batch: Sequence[Any], loss_fn: Callable[..., Tensor], factor: float = 2.0
) -> list[dict[str, Any]]:
    """How much the loss of a batch changes if a scale is multiplied, and divided, by a power of two.

    A row: what is scaled, which norm would hide it, the loss as it is, `times` and `over`: by how much it is more then,
    in nats; `change`: the larger of their sizes. Of the matrices of all blocks together; of x_0, what enters the first
    block or the norm before it; and of each token of what enters the attention branches by itself (half of them, drawn
    once, times the factor, the others divided by it). What a model has not is left out.
    """
    loss = float(loss_fn(model, *batch))
    rows = []
    for what, norm, scaled in dependences(model):
        changes = []
        for by in (factor, 1 / factor):
            with scaled(by):
                changes.append(float(loss_fn(model, *batch)) - loss)
        of = {"times": changes[0], "over": changes[1], "change": max(map(abs, changes))}
        rows.append({"what": what, "norm": norm, "factor": factor, "loss": loss} | of)
    return rows


def dependences(model: nn.Module) -> Iterator[tuple[str, str, Callable[[float], Any]]]:
    """What can be scaled, the norm that hides it, and how to scale it for a while."""
    stack = [block for _, block in blocks(model)]
    if not stack:
        return
    first = next((m for name in INPUT_NORMS if isinstance(m := getattr(model, name, None), nn.Module)), stack[0])
    yield "x_0", "InputNorm", lambda by: inputs_scaled([first], lambda x: x * by)
    if entries := [modules["attn"][0] for block in stack if "attn" in (modules := branches(block))]:
        yield "tokens of the stream", "PreNorm before attention", lambda by: inputs_scaled(entries, unequally(by))
    known = parts(model)
    for roles, norm in HIDING.items():
        if found := [part for part in known if part.role in roles and part.of_block]:
            yield ", ".join(f"W_{role}" for role in roles), norm, partial(weights_scaled, found)


@contextmanager
def weights_scaled(found: Sequence[Part], by: float) -> Iterator[None]:
    """From copies they come back bit for bit, subnormal ones too, and even if the loss cannot be computed."""
    entries = [part.of(part.parameter) for part in found]
    kept = [entry.clone() for entry in entries]
    try:
        for entry in entries:
            entry.mul_(by)
        yield
    finally:
        for entry, before in zip(entries, kept, strict=True):
            entry.copy_(before)


@contextmanager
def inputs_scaled(modules: Sequence[nn.Module], scale: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The first argument of each module, by position or by name."""

    def changed(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (scale(args[0]), *args[1:]), kwargs
        name, x = next(iter(kwargs.items()))
        return args, kwargs | {name: scale(x)}

    hooks = [module.register_forward_pre_hook(changed, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def unequally(by: float) -> Callable[[Tensor], Tensor]:
    """x_BTD with half of its tokens, the same each time, times the factor, and the others over it."""

    def scaled(x_BTD: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        signs_T = torch.randint(2, x_BTD.shape[-2:-1], generator=generator) * 2 - 1
        return x_BTD * (by ** signs_T.to(x_BTD))[:, None]

    return scaled
