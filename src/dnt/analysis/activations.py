"""What flows through a model: how sharply its attention looks, how large its residual stream and its branches are."""
# B batch, H heads, G heads of keys, T queries, S keys, K width of a head, D width

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dnt.analysis.anatomy import blocks, branches
from dnt.analysis.jacobian import evaluating

SOFTMAXES = (F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)


@dataclass(frozen=True)
class AttentionEntropy:
    """Of one head, over all queries of a forward pass: what a query sees is a distribution over keys.

    entropy: the mean, in nats, of the queries that see any. uniformity: the mean of entropy / ln(number of visible
    keys), 1 if all are looked at alike, 0 if one alone; of the queries that see more than one, nan if there is none.
    largest_logit: of what enters the softmax.
    """

    layer: int
    head: int
    entropy: float
    uniformity: float
    largest_logit: float


def attention_entropies(model: nn.Module, run: Callable[[], Any]) -> list[AttentionEntropy]:
    """By layer and head, of all attention within the model's blocks while run() does a forward pass.

    In evaluation mode, uncompiled. Seen are torch's scaled_dot_product_attention and every softmax of four axes (B, H,
    T, S) over the last; of a block that calls them several times all queries count together. A key whose logit a mask
    makes the least number of its dtype, or nearly so, is not visible. [] if none is seen, as of
    torch.nn.TransformerEncoderLayer, which computes it out of sight.
    """
    seen = Attentions()
    with evaluating(model), torch.no_grad(), entered(model, seen), seen:
        run()
    return [row for layer in sorted(seen.layers) for row in rows_of(layer, seen.layers[layer])]


class Attentions(TorchFunctionMode):
    """Notes statistics of every attention that is called within it, by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: int | None = None
        self.layers: dict[int, list[Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.layer is not None:
            if function is F.scaled_dot_product_attention:
                self.note(logits_of(*args, **kwargs))
            elif function in SOFTMAXES:
                self.note(softmax_logits(*args, **kwargs))
        return function(*args, **kwargs)

    def note(self, samples: Iterator[Tensor]) -> None:
        assert self.layer is not None
        self.layers.setdefault(self.layer, []).extend(statistics(logits) for logits in samples)


def logits_of(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[Tensor]:
    """Of scaled_dot_product_attention with these arguments, -inf where masked: (H, T, S) of each sample in turn."""
    if query.ndim != 4:
        return
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    (T, S), scale = (query.shape[2], key.shape[2]), query.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        attn_mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril()
    mask = None if attn_mask is None else attn_mask.expand(*query.shape[:2], T, S)
    for i, (q, k) in enumerate(zip(query, key, strict=True)):
        logits = q @ k.mT * scale
        if mask is not None:
            logits = logits.masked_fill(~mask[i], -math.inf) if mask.dtype == torch.bool else logits + mask[i]
        yield logits


def softmax_logits(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> Iterator[Tensor]:
    """What is given to an attention's softmax: (H, T, S) of each sample in turn."""
    if input.ndim == 4 and dim in (-1, 3):
        yield from input


def statistics(logits_HTS: Tensor) -> Tensor:
    """Sums over queries, and the largest logit; (5, H).

    The sums: entropies, how many queries there are, entropies / ln(visible keys), how many queries see several keys.
    """
    visible = (logits_HTS > torch.finfo(logits_HTS.dtype).min / 2).sum(-1)
    logits = logits_HTS.to(torch.promote_types(logits_HTS.dtype, torch.float32))
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    some, several = visible > 0, visible > 1  # of padding a query may see nothing
    sums = [
        torch.where(some, entropy, 0).sum(-1),
        some.sum(-1),
        torch.where(several, entropy / visible.clamp(min=2).log(), 0).sum(-1),
        several.sum(-1),
    ]
    return torch.stack([each.double() for each in (*sums, logits.amax((-2, -1)))]).cpu()


def rows_of(layer: int, found: list[Tensor]) -> Iterator[AttentionEntropy]:
    entropy, queries, relative, several, _ = torch.stack(found).sum(0)
    largest = torch.stack(found)[:, 4].amax(0)
    columns = zip((entropy / queries).tolist(), (relative / several).tolist(), largest.tolist(), strict=True)
    for head, numbers in enumerate(columns):
        yield AttentionEntropy(layer, head, *numbers)


@contextmanager
def entered(model: nn.Module, seen: Attentions) -> Iterator[None]:
    """Within it seen.layer is the block that is being computed."""
    hooks = []
    for layer, (_, block) in enumerate(blocks(model)):
        hooks.append(block.register_forward_pre_hook(lambda *_, layer=layer: setattr(seen, "layer", layer)))
        hooks.append(block.register_forward_hook(lambda *_: setattr(seen, "layer", None)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class ResidualNorm:
    """Root mean square over the width, of "stream", "attn" or "mlp": its mean over all tokens, and the largest token's.

    stream: what enters the block of that layer, and with layer = depth what leaves the last. attn, mlp: what a branch
    adds. of_x_0: the cosine of the stream with x_0, what enters the first block, mean over tokens; None of branches.
    """

    layer: int
    what: str
    mean: float
    largest: float
    of_x_0: float | None


def residual_norms(model: nn.Module, run: Callable[[], Any]) -> list[ResidualNorm]:
    """By depth, while run() does a forward pass; in evaluation mode. [] if the model has no known blocks.

    If x_{l+1} = x_0 + sum of branches nearly orthogonal to each other, the squares of a token's norms add
    up, and of_x_0 is the share of x_0 in what every later norm divides by (statement 1 of arXiv 2507.17501).
    """
    rows: list[ResidualNorm] = []
    first: list[Tensor] = []

    def note(layer: int, what: str, x_BTD: Tensor) -> None:
        x = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        if what == "stream" and not first:
            first.append(x.clone())
        comparable = what == "stream" and x.shape == first[0].shape
        cosine = float(F.cosine_similarity(x, first[0], dim=-1).mean()) if comparable else None
        rms_BT = x.square().mean(-1).sqrt()
        rows.append(ResidualNorm(layer, what, float(rms_BT.mean()), float(rms_BT.max()), cosine))

    def on_input(layer: int) -> Callable[..., None]:
        return lambda _module, args, kwargs: note(layer, "stream", args[0] if args else next(iter(kwargs.values())))

    def on_output(layer: int, what: str) -> Callable[..., None]:
        return lambda _module, _args, out: note(layer, what, out[0] if isinstance(out, tuple) else out)

    layers = [block for _, block in blocks(model)]
    hooks = []
    for layer, block in enumerate(layers):
        hooks.append(block.register_forward_pre_hook(on_input(layer), with_kwargs=True))
        for what, modules in branches(block).items():
            hooks.append(modules[-1].register_forward_hook(on_output(layer, what)))
    if layers:
        hooks.append(layers[-1].register_forward_hook(on_output(len(layers), "stream")))
    try:
        with evaluating(model), torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return rows
