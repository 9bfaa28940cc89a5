"""timm's VisionTransformer <-> ViT with the placement "pre-ln", or "s2" where it has qk_norm, bit for bit.

Only a folder's config.json and a timm module need timm.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnt.extras import extra
from dnt.files import read_json
from dnt.interchange.folder import WEIGHTS, fill, read_shard, write_weights
from dnt.nn.config import ViTConfig
from dnt.nn.placement import PLACEMENTS, placement_named
from dnt.nn.vit import ViT

MODULES = {  # ours: theirs; the part inside a block where there is one
    "patches": "patch_embed.proj", "final_norm": "norm", "head": "head",
    "attn.pre": "norm1", "attn.f.qkv": "attn.qkv", "attn.f.q_norm": "attn.q_norm", "attn.f.k_norm": "attn.k_norm",
    "attn.f.out": "attn.proj", "mlp.pre": "norm2", "mlp.f.up": "mlp.fc1", "mlp.f.out": "mlp.fc2",
}  # fmt: skip
TOKENS = {"class_token.weight": "cls_token", "positions.weight": "pos_embed"}  # (1, T, D) in timm
UNKNOWN = {  # a part of a tensor's name: what it belongs to, which ViT has not
    "ls1.": "layer scale",
    "gamma_": "layer scale",
    "reg_token": "register tokens",
    "dist_token": "a distillation token",
    "norm_pre.": "pre_norm",
    "fc_norm.": "fc_norm, a norm after the pooling",
    "attn_pool.": "attention pooling",
    "patch_embed.norm.": "a norm in its patch embedding",
    "attn.norm.": "a norm after attention",
    "mlp.norm.": "a norm inside the feed-forward branch",
}
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu-tanh", "ReLU": "relu"}
TIMM: dict[str, list[Any]] = {
    "norm": ["layernorm"],
    "bias": [True],
    "positions": ["learned"],
    "in_dims": [2],
    "weights": ["plain"],
    "activation": [*ACTIVATIONS.values()],
}
FREE = ("dropout", "drop_path", "init", "init_std")  # what changes training, not the function
UNSAID = ("heads", "norm_eps", "activation")  # by tensors alone


def load_timm(source: nn.Module | str | Path, **fields: Any) -> ViT:
    """A timm VisionTransformer, or one that timm saved, as a ViT in float32 and evaluation mode.

    source: the module, a folder with timm's config.json and model.safetensors, or a .safetensors file alone, of which
    heads must be given (norm_eps and activation if they are not timm's own). fields: these, and dropout, drop_path,
    init and init_std of ViTConfig; theirs are not taken over. ValueError for what ViT has not and for pickles.
    """
    if isinstance(source, nn.Module):
        where, tensors, theirs = type(source).__name__, source.state_dict(), source
    elif (path := Path(source)).is_dir():
        where, tensors, theirs = str(path), read_safetensors(path / WEIGHTS), skeleton(path)
    else:
        where, tensors, theirs = str(path), read_safetensors(path), None
    said = {} if theirs is None else describe(theirs)
    free = FREE if said else FREE + UNSAID
    if not_free := sorted(fields.keys() - set(free)):
        raise ValueError(f"{not_free[0]} is fixed by the weights in {where}; only {', '.join(free)} can be given.")
    model = ViT(vit_config_of(tensors if theirs is None else theirs.state_dict(), where, said | fields))
    fill(as_timm(model), tensors, Path(where))
    return model.eval()


def save_timm(model: ViT, path: str | Path) -> None:
    """Write the weights as a .safetensors file for timm.create_model(NAME, checkpoint_path=path), in float32.

    The file holds tensors alone: timm is told the shape, and act_layer, qk_norm, norm_layer where they are not its own,
    by name and arguments. ValueError if timm has no such model.
    """
    config, path = model.config, Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors, by which timm knows the format; name it so.")
    ours = asdict(config) | {"kv_heads": config.kv_heads or config.heads}
    formula = placement_named(config.placement).formula()
    ours["placement"] = next((p for p in ("pre-ln", "s2") if PLACEMENTS[p].formula() == formula), config.placement)
    for name, values in (TIMM | {"placement": ["pre-ln", "s2"], "kv_heads": [config.heads]}).items():
        if ours[name] not in values:
            raise ValueError(
                f"{name} is {ours[name]!r}, which timm's VisionTransformer has not (it has "
                f"{' or '.join(map(repr, values))}); write this model with dnt.save."
            )
    write_weights({name: view.float() for name, view in as_timm(model).items()}, path)


def as_timm(model: ViT) -> dict[str, Tensor]:
    """Views of the parameters under timm's names and in its shapes."""
    views = {}
    for name, parameter in model.named_parameters():
        if name in TOKENS:
            views[TOKENS[name]] = parameter.detach().view(1, -1, model.config.dim)
            continue
        match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name)
        assert match is not None
        block, module, kind = match.groups()
        views[f"blocks.{block}.{MODULES[module]}.{kind}" if block else f"{MODULES[module]}.{kind}"] = parameter.detach()
    return views


def read_safetensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file; others can run code and are not opened. If you trust it: "
            "dnt.load_timm(timm.create_model(NAME, checkpoint_path=...))."
        )
    if not path.exists():
        raise ValueError(f"there is no {path}; pickles beside it are not opened, since they can run code.")
    return read_shard(path)


def skeleton(folder: Path) -> Any:
    """The timm module that config.json describes, without memory."""
    models = extra("timm.models", "timm")
    described = read_json(folder / "config.json", "a folder of timm")
    try:
        name, pretrained = described["architecture"], described.get("pretrained_cfg", described)
        channels, _, size = pretrained.get("input_size", (3, None, None))
        given = {"num_classes": described.get("num_classes", pretrained.get("num_classes")), "in_chans": channels}
        given["img_size"] = size
        given = {key: value for key, value in given.items() if value is not None} | described.get("model_args", {})
        if not models.is_model(name):
            raise ValueError(f"{folder / 'config.json'}: timm has no architecture {name!r}.")
        with torch.device("meta"):
            return models.model_entrypoint(name)(pretrained=False, **given)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'} is not one that timm wrote ({error!r}).") from None


def describe(theirs: Any) -> dict[str, Any]:
    """What a VisionTransformer computes beyond its tensors: UNSAID; ValueError for what ViT has not."""
    vision, layers = extra("timm.models.vision_transformer", "timm"), extra("timm.layers", "timm")
    if type(theirs) is not vision.VisionTransformer:
        raise refusal(type(theirs).__name__, "is no plain timm VisionTransformer")
    refuse_unknown(theirs.state_dict(), "VisionTransformer")
    first, patches = theirs.blocks[0], theirs.patch_embed
    norms = [m for m in theirs.modules() if isinstance(m, nn.LayerNorm)]
    pooling = ("token", True) if theirs.has_class_token else ("avg", False)
    unlike = {
        "an image that its patches do not cover": patches.img_size
        != tuple(n * edge for n, edge in zip(patches.grid_size, patches.patch_size, strict=True)),
        "a dynamic image size": theirs.dynamic_img_size or not patches.strict_img_size or patches.dynamic_img_pad,
        f"global_pool={theirs.global_pool!r} with{'' if theirs.has_class_token else 'out'} a class token": (
            (theirs.global_pool, theirs.has_class_token) != pooling
        ),
        "blocks of its own": any(
            type(block) is not vision.Block
            or type(block.attn) is not layers.Attention
            or type(block.mlp) is not layers.Mlp
            for block in theirs.blocks
        ),
        "norms other than LayerNorm of one eps": len({norm.eps for norm in norms}) != 1,
        "no head": not isinstance(theirs.head, nn.Linear),
    }
    for what, it_is in unlike.items():
        if it_is:
            raise refusal("VisionTransformer", f"has {what}")
    activations = {activation_of(block.mlp.act) for block in theirs.blocks}
    if len(activations) > 1 or not activations <= set(ACTIVATIONS.values()):
        raise refusal("VisionTransformer", f"has the activation {first.mlp.act}")
    return {"heads": first.attn.num_heads, "norm_eps": norms[0].eps, "activation": activations.pop()}


def activation_of(module: nn.Module) -> str:
    name = type(module).__name__
    return "gelu-tanh" if getattr(module, "approximate", "none") == "tanh" else ACTIVATIONS.get(name, name)


def refusal(where: str, what: str) -> ValueError:
    return ValueError(f"{where} {what}, which dnt.ViT has not; keep this model in timm.")


def refuse_unknown(names: Mapping[str, Tensor], where: str) -> None:
    for part, what in UNKNOWN.items():
        if any(part in name for name in names):
            raise refusal(where, f"has {what}")


def vit_config_of(tensors: Mapping[str, Tensor], where: str, fields: dict[str, Any]) -> ViTConfig:
    """The configuration that the shapes of these tensors and the fields make."""
    refuse_unknown(tensors, where)
    needed = (
        "patch_embed.proj.weight",
        "pos_embed",
        "head.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.attn.qkv.bias",
    )
    for name in needed:
        if name not in tensors:
            raise ValueError(f"{where} has no tensor {name}; it is no VisionTransformer that dnt.ViT could be.")
    dim, channels, height, width = tensors["patch_embed.proj.weight"].shape
    tokens, cls = tensors["pos_embed"].shape[1], "cls_token" in tensors
    side = math.isqrt(tokens - cls)
    if height != width or side**2 != tokens - cls:
        raise refusal(
            where, f"has patches of {height} x {width} and {tokens} positions (not square, or not one for each token)"
        )
    if "blocks.0.attn.q_norm.weight" in tensors:
        fields = {"heads": dim // len(tensors["blocks.0.attn.q_norm.weight"])} | fields
    if "heads" not in fields:
        raise ValueError(f"{where} does not say how many heads it has; give it: dnt.load_timm({where!r}, heads=...).")
    hidden = len(tensors["blocks.0.mlp.fc1.weight"])
    ratio = hidden / dim
    return ViTConfig(
        image_size=side * width,
        patch_size=width,
        channels=channels,
        classes=len(tensors["head.weight"]),
        depth=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        dim=dim,
        placement="s2" if "blocks.0.attn.q_norm.weight" in tensors else "pre-ln",
        norm="layernorm",
        mlp_ratio=ratio if int(ratio * dim) == hidden else math.nextafter(ratio, math.inf),  # the quotient was rounded
        bias=True,
        pool="cls" if cls else "mean",
        **fields,
    )
