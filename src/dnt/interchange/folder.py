"""Tensors in a folder, as transformers lays them out: safetensors, whole or in shards. Nothing is ever unpickled."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dnt.files import atomic_write, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
READABLE = (torch.float32, torch.bfloat16, torch.float16)


def write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    with atomic_write(path) as file:
        try:
            tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
            safetensors.torch.save_file(tensors, file.name, metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, which says by its model_type what the folder holds."""
    config = read_json(folder / "config.json", "a folder of transformers")
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{folder / 'config.json'} has no model_type; it is not a folder of transformers.")
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of model.safetensors, or of the shards that model.safetensors.index.json names."""
    if (folder / WEIGHTS).exists():
        return read_shard(folder / WEIGHTS)
    if (folder / INDEX).exists():
        return read_shards(folder)
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise ValueError(
            f"{folder} has no safetensors, only {pickles[0]}, a pickle, which can run code and is not opened. If you "
            f"trust it: transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained(NEW_FOLDER)."
        )
    raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}; copy the weights there too.")


def read_shards(folder: Path) -> dict[str, Tensor]:
    index = read_json(folder / INDEX, "a folder of transformers")
    try:
        shard_of = dict(index["weight_map"])
        names = {str(shard): {name for name in shard_of if shard_of[name] == shard} for shard in shard_of.values()}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / INDEX} is damaged: it has no weight_map of tensors to files.") from None
    for shard in names:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {shard!r}; only .safetensors files beside it are read.")
    tensors: dict[str, Tensor] = {}
    for shard in names:
        tensors |= (found := read_shard(folder / shard))
        if found.keys() != names[shard]:
            raise ValueError(f"{folder / shard} does not hold the tensors that {INDEX} says; copy both again.")
    return tensors


def read_shard(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy it again.") from None


def drop_tied(tensors: dict[str, Tensor], head: str, embedding: str, folder: Path) -> None:
    """Remove a head that is stored beside the embedding it is tied to, or rename it to the embedding; in place."""
    if head in tensors:
        copy = tensors.pop(head)
        if not torch.equal(copy, tensors.setdefault(embedding, copy)):
            raise ValueError(
                f"{folder}: {head} is not {embedding}, but its config.json ties them; set tie_word_embeddings to false."
            )


def fill(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy tensors over the parameters of the same names, float16 and bfloat16 widened; ValueError if one is left."""
    left = {"lacks": parameters.keys() - tensors.keys(), "also has": tensors.keys() - parameters.keys()}
    for what, names in left.items():
        if names:
            some = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ValueError(f"{folder} {what} the tensors {some}; these weights are not of this model.")
    for name, parameter in parameters.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise ValueError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, the model's is {tuple(parameter.shape)}; "
                "these weights are not of this model."
            )
        if tensor.dtype not in READABLE:
            raise ValueError(f"{folder}: {name} is {tensor.dtype}; save the model as float32, bfloat16 or float16.")
        parameter.copy_(tensor)
