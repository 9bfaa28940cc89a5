"""Pre-LN models as equal ones of RMSNorm or CRMSNorm."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dnt.lookup import lookup
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.gpt import GPT
from dnt.nn.placement import PLACEMENTS, placement_named
from dnt.nn.vit import ViT

WRITERS = {"tokens": -1, "positions": -1, "class_token": -1, "patches": 0, "f.out": 0}  # to the stream: on which axis


@torch.no_grad()
def convert_norm(model: GPT | ViT, norm: str) -> GPT | ViT:
    """The same function with RMSNorm or CRMSNorm for LayerNorm, since var(x) = mean(x^2) where mean(x) = 0.

    2305.14858. norm: rmsnorm or crmsnorm. What is added to the stream loses its mean over the features, which no
    LayerNorm sees; eps stays as it is. A LayerNorm's bias b goes into the linear layer W that reads it, as W b, the
    head's too. CRMSNorm leaves out the last feature, x_D = -(x_1 + ... + x_{D-1}), so that W becomes
    (W g)[:, :-1] - (W g)[:, -1:] with the gain g. A tied head becomes a matrix of its own, unless RMSNorm has one gain
    for all features before it. With dropout the two are equal in evaluation alone. ValueError for other models.
    """
    lookup(dict.fromkeys(("rmsnorm", "crmsnorm")), norm, "norm to convert to")
    check(model.config)
    old = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config = converted(model.config, norm, old)
    new = old | writers(old, config.stream) | readers(old, config)
    result: Any = type(model)(config)
    result.to(model.head.weight).train(model.training).recompute = model.recompute
    for name, parameter in result.named_parameters():
        parameter.copy_(new[name])
    return result


def check(config: GPTConfig | ViTConfig) -> None:
    given, known = placement_named(config.placement), PLACEMENTS["pre-ln"]
    pre_ln = replace(given, source=known.source, prescribes=known.prescribes) == known
    if not pre_ln or config.norm_name != "layernorm":
        raise ValueError(
            f"this model has placement {config.placement} and norm {config.norm_name}; only pre-ln with layernorm "
            "can be converted."
        )
    if config.parametrization != "plain":
        raise ValueError(
            f"weights is {config.parametrization!r}; only a model whose weights are plain can be converted."
        )
    if config.positions == "sincos":
        raise ValueError("positions='sincos' have a mean over the features that stays; only learned ones and rope go.")


def converted(config: Any, norm: str, weights: dict[str, Tensor]) -> Any:
    """The configuration of an equal model with these weights."""
    fields: dict[str, Any] = {"norm": norm}
    if norm == "crmsnorm":
        fields["placement"] = "pre-crmsnorm"
    if isinstance(config, GPTConfig):
        gain, bias = weights["final_norm.weight"], weights.get("final_norm.bias")
        sees_no_mean = norm == "rmsnorm" and bool(gain.eq(gain[0]).all())
        fields["tie_embeddings"] = config.tie_embeddings and sees_no_mean
        fields["head_bias"] = config.head_bias or (bias is not None and bool(bias.any()))
    return replace(config, **fields)


def writers(weights: dict[str, Tensor], features: int) -> dict[str, Tensor]:
    """Everything that is added to the stream, without its mean over the features; so many of them."""
    found = {}
    for name, tensor in weights.items():
        for module, axis in WRITERS.items():
            if name.rpartition(".")[0].endswith(module):
                found[name] = (tensor - tensor.mean(axis, keepdim=True)).narrow(axis, 0, features)
    return found


def readers(weights: dict[str, Tensor], config: GPTConfig | ViTConfig) -> dict[str, Tensor]:
    """The gain of every norm, and the linear layer that reads what it gives."""
    pairs = {"final_norm": "head"}
    for i in range(config.depth):
        pairs |= {f"blocks.{i}.attn.pre": f"blocks.{i}.attn.f.qkv", f"blocks.{i}.mlp.pre": f"blocks.{i}.mlp.f.up"}
    found = {}
    for norm, linear in pairs.items():
        gain, weight = weights[f"{norm}.weight"], weights[f"{linear}.weight"]
        if f"{norm}.bias" in weights:
            found[f"{linear}.bias"] = weights.get(f"{linear}.bias", 0.0) + weight @ weights[f"{norm}.bias"]
        if config.norm_name == "crmsnorm":
            weight = weight * gain
            weight, gain = weight[:, :-1] - weight[:, -1:], torch.ones_like(gain[:-1])
        found |= {f"{norm}.weight": gain, f"{linear}.weight": weight}
    return found
