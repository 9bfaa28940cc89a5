"""Deeply Normalized Transformers, the rivals, and a fair comparison. Names load on first use: `import dnt` is free."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnt import analysis as analysis
    from dnt.data.augment import AUGMENTATIONS as AUGMENTATIONS
    from dnt.data.augment import Augment as Augment
    from dnt.data.images import prepare_images as prepare_images
    from dnt.data.tokens import prepare as prepare
    from dnt.experiments.ablate import ablate as ablate
    from dnt.experiments.benchmark import benchmark as benchmark
    from dnt.experiments.compare import compare as compare
    from dnt.experiments.tune import tune as tune
    from dnt.inspection import inspect_model as inspect_model
    from dnt.interchange.gpt2 import load_gpt2 as load_gpt2
    from dnt.interchange.gpt2 import save_gpt2 as save_gpt2
    from dnt.interchange.huggingface import DNTConfig as DNTConfig
    from dnt.interchange.huggingface import DNTForCausalLM as DNTForCausalLM
    from dnt.interchange.huggingface import export as export
    from dnt.interchange.timm import load_timm as load_timm
    from dnt.interchange.timm import save_timm as save_timm
    from dnt.nn.calibrate import calibrate as calibrate
    from dnt.nn.config import GPT_SIZES as GPT_SIZES
    from dnt.nn.config import VIT_SIZES as VIT_SIZES
    from dnt.nn.config import GPTConfig as GPTConfig
    from dnt.nn.config import ViTConfig as ViTConfig
    from dnt.nn.gpt import GPT as GPT
    from dnt.nn.gpt import gpt as gpt
    from dnt.nn.lossless import convert_norm as convert_norm
    from dnt.nn.norms import NORMS as NORMS
    from dnt.nn.placement import PLACEMENTS as PLACEMENTS
    from dnt.nn.placement import Placement as Placement
    from dnt.nn.placement import Slots as Slots
    from dnt.nn.vit import ViT as ViT
    from dnt.nn.vit import vit as vit
    from dnt.optim.factory import OPTIMIZERS as OPTIMIZERS
    from dnt.optim.groups import param_groups as param_groups
    from dnt.optim.msgdw import MSGDW as MSGDW
    from dnt.recipes import RECIPES as RECIPES
    from dnt.report.page import write_report as write_report
    from dnt.runs import Run as Run
    from dnt.sampling import sample as sample
    from dnt.train import fit as fit
    from dnt.weights import load as load
    from dnt.weights import save as save

__version__ = "0.1.0"

PUBLIC = {
    "AUGMENTATIONS": "dnt.data.augment",
    "Augment": "dnt.data.augment",
    "DNTConfig": "dnt.interchange.huggingface",
    "DNTForCausalLM": "dnt.interchange.huggingface",
    "GPT": "dnt.nn.gpt",
    "GPTConfig": "dnt.nn.config",
    "GPT_SIZES": "dnt.nn.config",
    "MSGDW": "dnt.optim.msgdw",
    "NORMS": "dnt.nn.norms",
    "OPTIMIZERS": "dnt.optim.factory",
    "PLACEMENTS": "dnt.nn.placement",
    "Placement": "dnt.nn.placement",
    "RECIPES": "dnt.recipes",
    "Run": "dnt.runs",
    "Slots": "dnt.nn.placement",
    "VIT_SIZES": "dnt.nn.config",
    "ViT": "dnt.nn.vit",
    "ViTConfig": "dnt.nn.config",
    "ablate": "dnt.experiments.ablate",
    "benchmark": "dnt.experiments.benchmark",
    "calibrate": "dnt.nn.calibrate",
    "compare": "dnt.experiments.compare",
    "convert_norm": "dnt.nn.lossless",
    "export": "dnt.interchange.huggingface",
    "fit": "dnt.train",
    "gpt": "dnt.nn.gpt",
    "inspect_model": "dnt.inspection",
    "load": "dnt.weights",
    "load_gpt2": "dnt.interchange.gpt2",
    "load_timm": "dnt.interchange.timm",
    "param_groups": "dnt.optim.groups",
    "prepare": "dnt.data.tokens",
    "prepare_images": "dnt.data.images",
    "sample": "dnt.sampling",
    "save": "dnt.weights",
    "save_gpt2": "dnt.interchange.gpt2",
    "save_timm": "dnt.interchange.timm",
    "tune": "dnt.experiments.tune",
    "vit": "dnt.nn.vit",
    "write_report": "dnt.report.page",
}
__all__ = [*PUBLIC, "analysis"]


def __getattr__(name: str) -> Any:
    if name == "analysis":
        return import_module("dnt.analysis")
    if name not in PUBLIC:
        raise AttributeError(f"module 'dnt' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
