"""What `dnt inspect` looks at: a run, a named size, a model of timm or transformers, or what a function returns."""
# B batch, T tokens, V vocabulary

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from dnt.data.images import prepare_images
from dnt.data.tokens import prepare
from dnt.extras import extra
from dnt.files import read_json
from dnt.lookup import lookup
from dnt.nn.config import GPT_SIZES, VIT_SIZES, GPTConfig, ViTConfig
from dnt.nn.gpt import GPT, gpt
from dnt.nn.vit import ViT, vit
from dnt.runs import Run
from dnt.settings import InspectSettings
from dnt.train import data_and_config, stored_settings
from dnt.weights import load

MOST_TOKENS = 256  # of a sequence, if not asked for otherwise
IMAGE_SIZE = 224  # where transformers does not say
RANDOM = "random"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, as many batches as will be asked for, their loss; run: where it was trained."""

    name: str
    model: nn.Module
    batches: Iterable[Sequence[Any]]
    loss: Callable[..., Tensor]
    data: str
    run: Run | None = None


def find_subject(what: str, settings: InspectSettings) -> Subject:
    """ValueError if there is no such thing, or it does not hear what was asked of it."""
    kind = kind_of(what)
    make, hears = KINDS[kind]
    for name in sorted({name for _, names in KINDS.values() for name in names}):
        if name not in hears and getattr(settings, name) != getattr(InspectSettings, name):
            raise ValueError(f"--{name.replace('_', '-')} says nothing to {kind}; drop it.")
    torch.manual_seed(settings.seed)
    found = make(what, settings)
    found.model.to(DEVICE).eval()
    return found


def kind_of(what: str) -> str:
    if what.startswith("timm:"):
        return "a timm model"
    if Path(what).is_dir():
        config = read_json(Path(what) / "config.json", "a run or a folder of transformers")
        return "a folder of transformers" if isinstance(config, dict) and "model_type" in config else "a run"
    if ":" in what:
        return "a function"
    if os.sep in what or what.startswith("."):
        raise ValueError(f"there is no folder {what}; give a run, a folder of transformers or a name.")
    lookup(dict.fromkeys((*GPT_SIZES, *VIT_SIZES)), what, "model (and no folder of this name is here)")
    return "a size of ViT" if what in VIT_SIZES else "a size of GPT"


def dnt_loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return model.loss(x, y)


def held_out(data: Any, settings: InspectSettings) -> Iterator[Sequence[Any]]:
    """Of the validation split."""
    batches = list(islice(data.validation.whole(settings.batch_size), wanted(settings)))
    if len(batches) < wanted(settings):
        raise ValueError(
            f"the validation split has {len(batches)} batches of {settings.batch_size}, {wanted(settings)} were asked "
            "for; take fewer, or smaller ones."
        )
    return iter(batches)


def wanted(settings: InspectSettings) -> int:
    return max(settings.batches, settings.noise)


def of_run(what: str, settings: InspectSettings) -> Subject:
    """Its last checkpoint, on the validation split of what it read; of a folder of dnt.save random data."""
    run, model = Run(Path(what)), load(what)
    if not run.log and settings.data is None:
        return Subject(what, model, random_batches(model.config, settings), dnt_loss, RANDOM)
    try:
        stored = stored_settings(run)
    except ValueError:
        made_by = "dnt.fit" if run.log else "dnt.save"
        raise ValueError(
            f"{what} was made by {made_by} and does not say how to read data; give MODULE:FUNCTION that does."
        ) from None
    data, config = data_and_config(replace(stored, data=settings.data or stored.data), progress=False)
    check_readable(run, model, data, config)
    return Subject(what, model, list(held_out(data, settings)), dnt_loss, data.describe()["name"], run)  # type: ignore[arg-type]


def check_readable(run: Run, model: GPT | ViT, data: Any, config: GPTConfig | ViTConfig) -> None:
    """ValueError if other data than those of the training, or changed ones, mean something else to the model."""
    for name in ("vocab_size", "classes", "channels", "image_size"):
        if (wants := getattr(model.config, name, None)) != (has := getattr(config, name, None)):
            raise ValueError(f"{name} is {wants} in {run.path} and {has} with these data; give --data that fit.")
    if data.tokenizer and data.tokenizer.describe() != read_json(run.path / "tokenizer.json", "a run folder"):
        raise ValueError(f"these data have another alphabet than {run.path}; give --data of the same characters.")


def of_size(what: str, settings: InspectSettings) -> Subject:
    """At its start, with the vocabulary or classes of the data if there are any."""
    placement = settings.placement or GPTConfig.placement
    name = f"{what} {placement}"
    if what in VIT_SIZES:
        if settings.data is None:
            model: GPT | ViT = vit(what, placement=placement)
            return Subject(name, model, random_batches(model.config, settings), dnt_loss, RANDOM)
        images = prepare_images(settings.data, None)
        shape = {"classes": images.classes, "channels": images.channels, "image_size": images.image_size}
        model = vit(what, placement=placement, **shape)
        return Subject(name, model, list(held_out(images, settings)), dnt_loss, settings.data)
    context = settings.context or min(MOST_TOKENS, GPT_SIZES[what].context)
    if settings.data is None:
        model = gpt(what, placement=placement, context=context)
        return Subject(name, model, random_batches(model.config, settings), dnt_loss, RANDOM)
    text = prepare(settings.data, settings.tokenizer, context, column=settings.column)
    model = gpt(what, placement=placement, context=context, vocab_size=text.vocab_size)
    return Subject(name, model, list(held_out(text, settings)), dnt_loss, settings.data)


def random_batches(config: GPTConfig | ViTConfig, settings: InspectSettings) -> list[Sequence[Tensor]]:
    if isinstance(config, GPTConfig):
        return random_tokens(config.vocab_size, config.context, settings)
    return random_images(config.image_shape, config.classes, settings)


def random_tokens(vocab_size: int, context: int, settings: InspectSettings) -> list[Sequence[Tensor]]:
    shape = (settings.batch_size, context + 1)
    drawn = [torch.randint(vocab_size, shape) for _ in range(wanted(settings))]
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in drawn]


def random_images(shape: tuple[int, ...], classes: int, settings: InspectSettings) -> list[Sequence[Tensor]]:
    B = settings.batch_size
    return [(torch.randn(B, *shape), torch.randint(classes, (B,))) for _ in range(wanted(settings))]


def score_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of scores, or of an output that has them as its logits."""
    out = model(x)
    scores = out if isinstance(out, Tensor) else out.logits
    return F.cross_entropy(scores.flatten(0, -2).float(), y.flatten())


def of_timm(what: str, settings: InspectSettings) -> Subject:
    """Untrained, unless pretrained weights are asked for; on random pixels of the size that it reads."""
    name = what.removeprefix("timm:")
    models, timm = extra("timm.models", "timm"), extra("timm", "timm")
    lookup(dict.fromkeys(models.list_models()), name.split(".")[0], "timm model")
    try:
        model = timm.create_model(name, pretrained=settings.pretrained)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from None
    if not getattr(model, "num_classes", 0):
        raise ValueError(f"{what} has no classes, hence no loss; give one that has, or MODULE:FUNCTION.")
    shape = tuple(model.pretrained_cfg["input_size"])
    return Subject(what, model, random_images(shape, model.num_classes, settings), score_loss, RANDOM)


def of_folder(what: str, settings: InspectSettings) -> Subject:
    """A language model or an image classifier of transformers, from safetensors, in float32; on random inputs.

    No code of the folder is run: its class is one of transformers' own, by the name in config.json.
    """
    transformers = extra("transformers", "transformers")
    config = read_json(Path(what) / "config.json", "a folder of transformers")
    if config["model_type"] == "dnt":
        model: Any = load(what)
        return Subject(what, model, random_batches(model.config, settings), dnt_loss, RANDOM)
    name = next(iter(config.get("architectures") or ()), "")
    cls = getattr(transformers, name, None)
    is_model = isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)
    if cls is None or not is_model:
        raise ValueError(
            f"{what}/config.json names the class {name!r}, which is no model of transformers "
            f"{transformers.__version__}; load it in a function and give MODULE:FUNCTION."
        )
    try:
        safe: Any = {
            "use_safetensors": True,
            "trust_remote_code": False,
            "attn_implementation": "sdpa",
        }  # none of a hub
        model = cls.from_pretrained(what, dtype=torch.float32, **safe)
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from None
    if name.endswith("ForImageClassification"):
        c = model.config
        size = getattr(c, "image_size", IMAGE_SIZE)
        shape = (c.num_channels, size, size)
        return Subject(what, model, random_images(shape, c.num_labels, settings), score_loss, RANDOM)
    if model.config.is_encoder_decoder or not model.get_output_embeddings():
        raise ValueError(f"{what} is a {name}, which predicts no tokens; give MODULE:FUNCTION with a loss.")
    longest = getattr(model.config, "max_position_embeddings", MOST_TOKENS)
    context = settings.context or min(MOST_TOKENS, longest)
    if context > longest:
        raise ValueError(f"--context is {context}; {what} has {longest} positions.")
    return Subject(what, model, random_tokens(model.config.vocab_size, context, settings), score_loss, RANDOM)


def of_function(what: str, settings: InspectSettings) -> Subject:
    """MODULE:FUNCTION, called without arguments: (model, batches, loss_fn), where loss_fn(model, *batch) -> scalar."""
    module, _, name = what.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}: {error}; give MODULE:FUNCTION that can be imported from here.") from None
    finally:
        sys.path.remove(here)
    must = f"{what} must take nothing and return (model, batches, loss_fn)"
    try:
        model, batches, loss = function()
        batches = list(islice(batches, wanted(settings)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{must} ({error}).") from None
    if not isinstance(model, nn.Module) or not callable(loss):
        raise ValueError(f"{must}, not a {type(model).__name__} and a {type(loss).__name__}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{what}: its model has no parameters that train, hence no gradient.")
    for batch in batches:
        if not isinstance(batch, tuple | list):
            raise ValueError(f"{must}: a batch is the tuple of what loss_fn is given, not a {type(batch).__name__}.")
    if len(batches) < wanted(settings):
        raise ValueError(f"{what} gives {len(batches)} batches, {wanted(settings)} were asked for; take fewer.")
    return Subject(what, model, batches, loss, "its own")


KINDS: dict[str, tuple[Callable[[str, InspectSettings], Subject], tuple[str, ...]]] = {  # and the options each hears
    "a run": (of_run, ("data", "batch_size")),
    "a size of GPT": (of_size, ("data", "tokenizer", "column", "placement", "context", "batch_size")),
    "a size of ViT": (of_size, ("data", "placement", "batch_size")),
    "a timm model": (of_timm, ("pretrained", "batch_size")),
    "a folder of transformers": (of_folder, ("context", "batch_size")),
    "a function": (of_function, ()),
}
