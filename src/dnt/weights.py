"""A model as a folder: config.json and model.safetensors. Nothing is ever unpickled."""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dnt.files import read_json, write_json
from dnt.interchange.folder import drop_tied, fill, read_config, read_tensors, write_weights
from dnt.interchange.gpt2 import load_gpt2
from dnt.lookup import lookup
from dnt.nn.config import GPTConfig, ViTConfig
from dnt.nn.gpt import GPT
from dnt.nn.placement import placement_from
from dnt.nn.vit import ViT
from dnt.runs import Run

KINDS: dict[str, tuple[type[GPT | ViT], type[GPTConfig | ViTConfig]]] = {
    "gpt": (GPT, GPTConfig),
    "vit": (ViT, ViTConfig),
}


def describe_model(model: GPT | ViT) -> dict[str, Any]:
    """The kind and configuration of a model, as JSON."""
    kind = next((kind for kind, (cls, _) in KINDS.items() if type(model) is cls), None)
    if kind is None:
        raise ValueError(f"cannot describe a {type(model).__name__}; known models: {', '.join(KINDS)}.")
    return {"kind": kind} | asdict(model.config)


def build_model(description: dict[str, Any]) -> Any:
    """A freshly initialized model, GPT or ViT, of a description."""
    cls, _ = KINDS[description["kind"]]
    return cls(build_config(description))


def build_config(description: dict[str, Any]) -> Any:
    """The configuration, GPTConfig or ViTConfig, of a description."""
    _, config_cls = KINDS[description["kind"]]
    given = {name: value for name, value in description.items() if name != "kind"}
    if isinstance(placement := given["placement"], dict):
        given["placement"] = placement_from(placement)
    return config_cls(**given)


def state_of(model: Any) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that are to be kept, by name."""
    kept = model.state_dict().keys()
    state = {name: p.detach() for name, p in model.named_parameters()}
    return state | {name: buffer for name, buffer in model.named_buffers() if name in kept}


def save(model: GPT | ViT, folder: str | Path) -> None:
    """Write a model so that `load` can read it back."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(state_of(model), folder / "model.safetensors")
    write_json(folder / "config.json", {"model": describe_model(model)})


def load(folder: str | Path) -> GPT | ViT:
    """The model of a run folder, or of one that `save` or transformers wrote (GPT-2, DNT), in evaluation mode."""
    folder = Path(folder)
    try:
        config = read_json(folder / "config.json", "a run folder")
        if isinstance(config, dict) and "model_type" in config:
            return lookup(TRANSFORMERS, config["model_type"], "model_type")(folder)
        return load_run(Run(folder))
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} is damaged, its weights do not fit its config.json ({reason}).") from None


def load_run(run: Run) -> GPT | ViT:
    config = run.config
    if not run.weights.exists():
        raise ValueError(f"{run.path} has no model.safetensors yet; let the run reach its first checkpoint.")
    model = build_model(config["model"])
    safetensors.torch.load_model(model, run.weights)
    return model.eval()


def load_dnt(folder: Path) -> GPT:
    """The model inside a DNTForCausalLM that save_pretrained wrote."""
    config = read_config(folder)
    known = {field.name for field in fields(GPTConfig)}
    model = build_model({"kind": "gpt"} | {name: value for name, value in config.items() if name in known})
    tensors = read_tensors(folder)
    if model.config.tie_embeddings:
        drop_tied(tensors, "gpt.head.weight", "gpt.tokens.weight", folder)
    fill({f"gpt.{name}": tensor for name, tensor in state_of(model).items()}, tensors, folder)
    return model.eval()


TRANSFORMERS: dict[str, Callable[[Path], GPT]] = {"dnt": load_dnt, "gpt2": load_gpt2}  # by model_type
