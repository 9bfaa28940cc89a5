"""A model as a folder: config.json and model.safetensors. Nothing is ever unpickled."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from dnt.files import atomic_write, write_json
from dnt.nn.config import GPTConfig
from dnt.nn.gpt import GPT
from dnt.nn.placement import Placement, Slots
from dnt.runs import Run

KINDS: dict[str, tuple[type[GPT], type[GPTConfig]]] = {"gpt": (GPT, GPTConfig)}


def describe_model(model: GPT) -> dict[str, Any]:
    """The kind and configuration of a model, as JSON."""
    kind = next((kind for kind, (cls, _) in KINDS.items() if type(model) is cls), None)
    if kind is None:
        raise ValueError(f"cannot describe a {type(model).__name__}; known models: {', '.join(KINDS)}.")
    return {"kind": kind} | asdict(model.config)


def build_model(description: dict[str, Any]) -> GPT:
    """A freshly initialized model of a description."""
    cls, config_cls = KINDS[description["kind"]]
    fields = {name: value for name, value in description.items() if name != "kind"}
    if isinstance(placement := fields["placement"], dict):
        fields["placement"] = Placement(
            **placement | {"attn": Slots(**placement["attn"]), "mlp": Slots(**placement["mlp"])}
        )
    return cls(config_cls(**fields))


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    with atomic_write(path) as file:
        try:
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file.name)
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error


def save(model: GPT, folder: str | Path) -> None:
    """Write a model so that `load` can read it back."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach() for name, p in model.named_parameters()}  # tied ones once
    write_weights(weights, folder / "model.safetensors")
    write_json(folder / "config.json", {"model": describe_model(model)})


def load(folder: str | Path) -> GPT:
    """The model of a run folder, or of one that `save` wrote, in evaluation mode."""
    run = Run(Path(folder))
    config = run.config
    if not run.weights.exists():
        raise ValueError(f"{folder} has no model.safetensors yet; let the run reach its first checkpoint.")
    try:
        model = build_model(config["model"])
        safetensors.torch.load_model(model, run.weights)
    except (SafetensorError, KeyError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} is damaged, its weights do not fit its config.json ({reason}).") from None
    return model.eval()
