"""GPT-2 as transformers stores it <-> the placement "pre-ln", bit for bit. Needs no transformers."""

import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dnt.files import write_json
from dnt.interchange.folder import WEIGHTS, drop_tied, fill, read_config, read_tensors, write_weights
from dnt.nn.config import GPTConfig
from dnt.nn.gpt import GPT
from dnt.nn.placement import PLACEMENTS, placement_named

MODULES = {  # ours: theirs; the part inside a block where there is one
    "tokens": "transformer.wte", "positions": "transformer.wpe", "final_norm": "transformer.ln_f", "head": "lm_head",
    "attn.pre": "ln_1", "attn.f.qkv": "attn.c_attn", "attn.f.out": "attn.c_proj",
    "mlp.pre": "ln_2", "mlp.f.up": "mlp.c_fc", "mlp.f.out": "mlp.c_proj",
}  # fmt: skip
BUFFERS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # causal masks, in old files

SAME = {  # fields that differ in name alone
    "vocab_size": "vocab_size", "context": "n_positions", "depth": "n_layer", "dim": "n_embd", "heads": "n_head",
    "norm_eps": "layer_norm_epsilon", "init_std": "initializer_range", "tie_embeddings": "tie_word_embeddings",
}  # fmt: skip
ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu": "gelu", "relu": "relu"}
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
FIXED = {  # what our GPT has no other of
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
DEFAULTS = {  # of transformers.GPT2Config, for what a config.json leaves out
    "vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_embd": 768, "n_head": 12, "n_inner": None,
    "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True,
    "activation_function": "gelu_new", "embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1, **FIXED,
}  # fmt: skip
GPT2 = {"placement": "pre-ln", "norm": "layernorm", "bias": True, "positions": "learned", "weights": "plain"}
FREE = ("dropout", "drop_path", "init", "init_std")  # what changes training, not the function
END_OF_TEXT = 50256


def load_gpt2(folder: str | Path, **fields: Any) -> GPT:
    """The model of a folder that GPT2LMHeadModel or GPT2Model saved, in float32 and evaluation mode.

    fields: dropout, drop_path, init and init_std of GPTConfig, if not the folder's. float16 and bfloat16 weights are
    widened. ValueError for what our GPT has not, for tensors that do not fit, and for weights that are no safetensors.
    """
    folder = Path(folder)
    config = gpt_config_of(read_config(folder), folder, fields)
    tensors = {name: tensor for name, tensor in read_tensors(folder).items() if not BUFFERS.fullmatch(name)}
    if not any(name.startswith("transformer.") for name in tensors):  # GPT2Model
        tensors = {name if name == "lm_head.weight" else f"transformer.{name}": t for name, t in tensors.items()}
    if config.tie_embeddings:
        drop_tied(tensors, "lm_head.weight", "transformer.wte.weight", folder)
    model = GPT(config)
    fill(as_gpt2(model), tensors, folder)
    return model.eval()


def save_gpt2(model: GPT, folder: str | Path) -> None:
    """Write a model that is a GPT-2 so that transformers can read it, in float32; ValueError if it is none.

    drop_path and init, which change no output, have no place there.
    """
    config, folder = model.config, Path(folder)
    described = gpt2_config_of(config)
    write_weights({name: view.float() for name, view in as_gpt2(model).items()}, folder / WEIGHTS)
    write_json(folder / "config.json", described)


def as_gpt2(model: GPT) -> dict[str, Tensor]:
    """Views of the parameters, tied ones once, under GPT-2's names and in its layout: Conv1D stores W transposed."""
    views = {}
    for name, parameter in model.named_parameters():
        match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)", name)
        assert match is not None
        block, module, kind = match.groups()
        theirs = f"transformer.h.{block}.{MODULES[module]}" if block else MODULES[module]
        is_conv1d = ".f." in module and kind == "weight"
        views[f"{theirs}.{kind}"] = parameter.detach().T if is_conv1d else parameter.detach()
    return views


def gpt_config_of(described: dict[str, Any], folder: Path, fields: dict[str, Any]) -> GPTConfig:
    """Our configuration of a GPT2Config as JSON, with FREE fields changed."""
    if not_free := sorted(fields.keys() - set(FREE)):
        raise ValueError(f"{not_free[0]} is fixed by the weights in {folder}; only {', '.join(FREE)} can be given.")

    def refuse(name: str, known: str) -> ValueError:
        return ValueError(
            f"{folder / 'config.json'}: {name} is {theirs[name]!r}, which dnt.GPT has not (it has {known}); "
            "keep this model in transformers."
        )

    theirs: dict[str, Any] = DEFAULTS | described
    if theirs["model_type"] != "gpt2":
        raise ValueError(f"{folder} is a {theirs['model_type']!r} model; load_gpt2 reads 'gpt2' alone. Try dnt.load.")
    for name, value in FIXED.items():
        if theirs[name] != value:
            raise refuse(name, repr(value))
    if theirs["activation_function"] not in ACTIVATIONS:
        raise refuse("activation_function", ", ".join(ACTIVATIONS))
    dropouts = {theirs[name] for name in DROPOUTS}
    if "dropout" not in fields and len(dropouts) > 1:
        rates = ", ".join(f"{name} {theirs[name]}" for name in DROPOUTS)
        raise ValueError(
            f"{folder / 'config.json'}: {rates}; dnt.GPT has one rate, so choose it: dnt.load_gpt2(..., dropout=0.1)."
        )
    same = {ours: theirs[name] for ours, name in SAME.items()}
    ratio = 4.0 if theirs["n_inner"] is None else theirs["n_inner"] / theirs["n_embd"]
    if theirs["n_inner"] is not None and int(ratio * theirs["n_embd"]) < theirs["n_inner"]:
        ratio = math.nextafter(ratio, math.inf)  # the quotient was rounded down
    rest = {"mlp_ratio": ratio, "activation": ACTIVATIONS[theirs["activation_function"]], "dropout": min(dropouts)}
    return GPTConfig(**same | GPT2 | rest | fields)


def gpt2_config_of(config: GPTConfig) -> dict[str, Any]:
    """The GPT2Config, as JSON, of a configuration that is GPT-2's."""
    ours = asdict(config) | {"placement": config.placement, "kv_heads": config.kv_heads or config.heads}
    if placement_named(config.placement).formula() == PLACEMENTS["pre-ln"].formula():
        ours["placement"] = "pre-ln"
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first name of each
    known = {name: [value] for name, value in GPT2.items()}
    for name, values in (known | {"kv_heads": [config.heads], "activation": list(activations)}).items():
        if ours[name] not in values:
            raise ValueError(
                f"{name} is {ours[name]!r}, which GPT-2 has not (it has {' or '.join(map(repr, values))}); write this "
                "model with dnt.save, or for transformers with DNTForCausalLM.from_dnt(model).save_pretrained."
            )
    end = END_OF_TEXT if config.vocab_size > END_OF_TEXT else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "dtype": "float32",
        **{theirs: ours[name] for name, theirs in SAME.items()},
        **dict.fromkeys(DROPOUTS, config.dropout),
        "n_inner": None if config.hidden == 4 * config.dim else config.hidden,
        "activation_function": activations[config.activation],
        "bos_token_id": end,
        "eos_token_id": end,
        **FIXED,
    }
