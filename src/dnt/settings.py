"""What each command can be told: one flat frozen dataclass each, from which the command line is made. No torch."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from dnt.lookup import lookup
from dnt.nn.config import GPTConfig, gpt_config
from dnt.optim.schedule import SCHEDULES

PRECISIONS = {"auto": "by capability", "32": "32-true", "bf16-mixed": "bf16-mixed"}  # as Fabric calls them
LEAST = {"steps": 1, "batch_size": 1, "eval_every": 1, "checkpoint_every": 1, "warmup": 0, "clip": 0, "floor": 0}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How any model is trained: the options of dnt.fit."""

    steps: int = 400
    batch_size: int = 64
    """sequences a step, over all processes"""
    schedule: str = "cosine"
    """cosine, wsd or constant"""
    warmup: int = 40
    """steps of linear warm-up"""
    floor: float = 0.1
    """where the schedule ends, as a share of the learning rate"""
    clip: float = 1.0
    """bound on the global gradient norm; 0 for none"""
    precision: str = "auto"
    """32, bf16-mixed, or auto: bf16-mixed where the hardware has bfloat16 matrix instructions, else 32"""
    compile: bool = True
    """torch.compile; without a C++ compiler a run is eager, with a warning"""
    eval_every: int = 200
    """steps between evaluations on the whole validation split"""
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        lookup(SCHEDULES, self.schedule, "schedule")
        lookup(PRECISIONS, self.precision, "precision")
        for field, least in LEAST.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least {least}.")


@dataclass(frozen=True, kw_only=True)
class Recipe(FitSettings):
    """What all runs of a comparison share."""

    data: str = "stdlib"
    """"stdlib", "owt", OWNER/NAME of the Hugging Face hub, or a path: text, parquet, JSON lines, .bin (docs/data.md)"""
    tokenizer: str = "byte"
    """byte, char, gpt2, bpe:VOCAB, ids:VOCAB, or the path of a tokenizer.json"""
    column: str = "text"
    """the text column of parquet and JSON lines"""
    model: str = "gpt-tiny"
    """a named size (see dnt list); the vocabulary is always the data's"""
    context: int | None = None
    """tokens a sequence, if not the size's own; likewise depth, dim and heads"""
    depth: int | None = None
    dim: int | None = None
    heads: int | None = None
    norm: str = GPTConfig.norm
    norm_eps: float = GPTConfig.norm_eps
    mlp_ratio: float = GPTConfig.mlp_ratio
    activation: str = GPTConfig.activation
    bias: bool = GPTConfig.bias
    init: str = GPTConfig.init
    """dnt: W_o and W_2 over sqrt(2 depth) where no MidNorm follows; gpt2: always"""
    init_std: float = GPTConfig.init_std
    dropout: float = GPTConfig.dropout
    tie_embeddings: bool = GPTConfig.tie_embeddings
    momentum: float = 0.9
    """msgdw only"""
    nesterov: bool = False
    """msgdw only"""
    betas: tuple[float, float] = (0.9, 0.95)
    """adamw only"""

    def model_config(self, vocab_size: int, placement: str) -> GPTConfig:
        """The model these settings describe."""
        shape = {name: getattr(self, name) for name in ("context", "depth", "dim", "heads")}
        given = {name: value for name, value in shape.items() if value is not None}
        shared = {field.name for field in fields(GPTConfig)} & {field.name for field in fields(Recipe)} - set(shape)
        same = {name: getattr(self, name) for name in shared}
        return gpt_config(self.model, **given, **same, vocab_size=vocab_size, placement=placement)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Recipe):
    """Train one model into a run folder."""

    placement: str = GPTConfig.placement  # type: ignore[assignment]  # by name here
    optimizer: str = "msgdw"
    lr: float | None = None
    """learning rate; the optimizer's default if not given (see dnt list)"""
    weight_decay: float | None = None
    """likewise"""
    seed: int = 0
    """of the initial weights, the order of the data, and dropout"""
    out: str | None = None
    """the run folder; runs/DATE-TIME if not given"""
    resume: str | None = None
    """continue this run folder with its own settings; takes no other option"""

    def as_json(self) -> dict[str, Any]:
        """The settings that say what a run is, not where it lies."""
        return {name: value for name, value in asdict(self).items() if name not in ("out", "resume")}


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Recipe):
    """Train every placement with every optimizer, learning rate and seed on the same data.

    Finished cells are not run again. lr and weight_decay are lists of KEY=VALUE[,VALUE...], where KEY is an optimizer
    or PLACEMENT/OPTIMIZER (the closer one counts); several values make a grid.
    """

    placements: tuple[str, ...] = ("pre-ln", "dnt")
    optimizers: tuple[str, ...] = ("adamw", "msgdw")
    seeds: tuple[int, ...] = (0,)
    lr: tuple[str, ...] = ()
    """e.g. adamw=1e-3,3e-3 dnt/msgdw=0.3"""
    weight_decay: tuple[str, ...] = ()
    """e.g. adamw=0.1 msgdw=1e-4"""
    out: str | None = None
    """the folder of all cells; runs/compare-DATA if not given"""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Continue a prompt with the model of a run."""

    prompt: str | None = None
    """if not given, the model begins after the end of a document, or at a new line"""
    tokens: int = 200
    """how many new ones"""
    temperature: float = 0.8
    """0 takes the likeliest token each time"""
    top_k: int | None = None
    seed: int = 0
