"""What each command can be told: one flat frozen dataclass each, from which the command line is made. No torch."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dnt.lookup import lookup
from dnt.nn.config import GPT_SIZES, VIT_SIZES, GPTConfig, ViTConfig
from dnt.optim.kinds import RATES
from dnt.optim.schedule import SCHEDULES

PRECISIONS = {  # as Fabric calls them
    "auto": "by capability",
    "32": "32-true",
    "bf16-mixed": "bf16-mixed",
    "bf16-weights": "bf16-mixed",
    "16-mixed": "16-mixed",
}
STRATEGIES = ("ddp", "fsdp")
LEAST = {
    **{"steps": 1, "batch_size": 1, "eval_every": 1, "eval_tokens": 0, "checkpoint_every": 1, "warmup": 0, "clip": 0},
    **{"clip_equilibrium": 0, "floor": 0, "calibrate": 0, "accumulate": 1, "devices": 1, "nodes": 1},
    **{"diagnose_every": 0},
}
OF_TEXT = ("tokenizer", "column", "context", "rope_base", "tie_embeddings", "vocab_multiple")  # nothing to a ViT
OF_IMAGES = ("image_size", "patch_size", "pool", "augment")  # nothing to a GPT
SHAPE = ("context", "depth", "dim", "heads", "patch_size")  # of a named size, unless given
OF_OPTIMIZERS = (
    "momentum",
    "nesterov",
    "bound",
    "momentum_in_grad",
    "betas",
    "adamw_lr",
)  # nothing to one that does not take them
OF_SGD = ("calibrate", "clip_equilibrium", "equilibrium")  # nothing to one without momentum
HOW = ("devices", "nodes", "strategy", "accumulate", "recompute")  # how a run is computed, not what: free on resuming
VARIATIONS: dict[str, dict[str, Any]] = {  # of the recipe, by name
    # what brings mSGDW to AdamW on a short schedule (docs/calibration.md)
    "calibrated": {"calibrate": 0.01, "bound": 0.03, "nesterov": True, "embedding_rate": 3.0, "gain_rate": 10.0},
    # the best found that the momentum can stand in the gradient with (docs/performance.md)
    "stateless": {
        **{"calibrate": 0.01, "bound": 0.03, "embedding_rate": 3.0, "gain_rate": 10.0},
        **{"momentum": 0.8, "clip": 0.0, "momentum_in_grad": True},
    },
}
FIXED = (  # in a comparison: what else is varied leaves the losses comparable
    *("data", "model", "tokenizer", "column", "image_size", "augment", "context", "vocab_multiple", "betas"),
    *("precision", "compile", "eval_every", "eval_tokens", "checkpoint_every", "diagnose_every", *HOW),
)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How any model is trained: the options of dnt.fit."""

    steps: int = 400
    batch_size: int = 64
    """sequences, or images, a step, over all processes and micro-batches"""
    schedule: str = "cosine"
    """cosine, wsd or constant"""
    warmup: int = 40
    """steps of linear warm-up"""
    floor: float = 0.1
    """where the schedule ends, as a share of the learning rate"""
    clip: float = 1.0
    """bound on the global gradient norm; 0 for none"""
    clip_equilibrium: float = 0.0
    """under mSGDW: likewise, as a multiple of (1 - momentum) sqrt(2 weight_decay / lr) ||w||, with the lr of the step;
    0 for none"""
    calibrate: float = 0.0
    """under mSGDW: first scale what QKNorm or MidNorm hides so that a step, without momentum, is this share of each
    matrix; 0 for none"""
    prescribed: bool = True
    """train as the placement's paper prescribes (dnt list): without weight decay or warm-up, with weights normalized
    after each step"""
    ema: float = 0.0
    """evaluate and save an exponential moving average of the weights, of this decay a step; 0 for the weights"""
    precision: str = "auto"
    """32, bf16-mixed, 16-mixed (GPU), or auto: bf16-mixed where there are bfloat16 matrix instructions, else 32;
    bf16-weights under mSGDW: bf16-mixed with the blocks' matrices, gradients and momentum in bfloat16"""
    compile: bool = True
    """torch.compile; without a C++ compiler a run is eager, with a warning"""
    eval_every: int = 200
    """steps between evaluations on the validation split"""
    eval_tokens: int = 1 << 19
    """of validation, and of test, that an evaluation reads; 0 for all (images of a ViT)"""
    checkpoint_every: int = 200
    diagnose_every: int = 0
    """steps between diagnoses for the log: gradients, tails, Jacobians, attention (docs/diagnostics.md); 0 for none"""
    devices: int | None = None
    """processes on each machine, one a GPU, or sharing the CPU's cores; 1 if not given"""
    nodes: int | None = None
    """machines; their processes are started by torchrun or SLURM (see docs/devices.md)"""
    strategy: str | None = None
    """of several processes: ddp (each holds the model; the default) or fsdp (FSDP2: it is divided among them)"""
    accumulate: int | None = None
    """micro-batches a step, to save memory"""
    recompute: bool = False
    """recompute each block's activations in the backward pass instead of keeping them, to save memory"""

    @property
    def processes(self) -> int:
        """Over all machines."""
        return (self.devices or 1) * (self.nodes or 1)

    def check(self) -> None:
        """ValueError for a value that nothing can be done with."""  # not in __post_init__: tyro would draw a box of it
        lookup(SCHEDULES, self.schedule, "schedule")
        lookup(PRECISIONS, self.precision, "precision")
        if self.strategy is not None:
            lookup(dict.fromkeys(STRATEGIES), self.strategy, "strategy")
        for field, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field} is {value}; give a number.")
        for field, least in LEAST.items():
            if (value := getattr(self, field)) is not None and value < least:
                raise ValueError(f"{field} is {value}; it must be at least {least}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}; it must be at least 0 (none) and less than 1, for example 0.999.")


@dataclass(frozen=True, kw_only=True)
class Recipe(FitSettings):
    """What all runs of a comparison share."""

    data: str = "stdlib"
    """"stdlib", "owt", OWNER/NAME of the Hugging Face hub, or a path: text, parquet, JSON lines, .bin (docs/data.md)

    For a ViT: digits, a folder of images, parquet, OWNER/NAME (docs/images.md).
    """
    tokenizer: str = "byte"
    """byte, char, gpt2, bpe:VOCAB, ids:VOCAB, or the path of a tokenizer.json"""
    column: str = "text"
    """the text column of parquet and JSON lines"""
    model: str = "gpt-tiny"
    """a named size (see dnt list), of a GPT or a ViT; the vocabulary or the classes are always the data's"""
    context: int | None = None
    """tokens a sequence, if not the size's own; likewise depth, dim, heads and patch_size"""
    depth: int | None = None
    dim: int | None = None
    heads: int | None = None
    patch_size: int | None = None
    image_size: int | None = None
    """side in pixels that images are brought to, if not their own"""
    pool: str = ViTConfig.pool
    """cls (class token) or mean, of a ViT"""
    augment: str = "none"
    """of training images: none, flip-crop or deit (docs/images.md)"""
    norm: str = GPTConfig.norm
    norm_eps: float = GPTConfig.norm_eps
    mlp_ratio: float = GPTConfig.mlp_ratio
    activation: str = GPTConfig.activation
    """gelu, gelu-tanh, relu or swiglu"""
    bias: bool = GPTConfig.bias
    init: str = GPTConfig.init
    """dnt: W_o and W_2 over sqrt(2 depth) where no MidNorm follows; gpt2: always"""
    init_std: float = GPTConfig.init_std
    dropout: float = GPTConfig.dropout
    """on the embedding, the attention probabilities and each branch"""
    drop_path: float = GPTConfig.drop_path
    """probability of dropping the branches of the last block; 0 at the first, linear between"""
    weights: str = GPTConfig.weights
    """of linear layers: plain, or computed by weight-norm, spectral-norm or sigma-reparam from what is stored"""
    tie_embeddings: bool = GPTConfig.tie_embeddings
    positions: str = GPTConfig.positions
    """learned; rope (GPT); sincos (ViT)"""
    rope_base: float = GPTConfig.rope_base
    kv_heads: int | None = GPTConfig.kv_heads
    """heads of keys and values; as many as heads if not given"""
    vocab_multiple: int = 1
    """the vocabulary is rounded up to a multiple of it; 64 suits GPUs"""
    momentum: float = 0.9
    """msgdw and msgdw-adamw"""
    nesterov: bool = False
    """likewise"""
    bound: float = 0.0
    """likewise: no step moves a matrix by more than this share of its norm; 0 for none"""
    momentum_in_grad: bool = False
    """msgdw: keep the momentum where gradients are, so that the optimizer holds nothing; with clip 0, without nesterov
    """
    embedding_rate: float = 1.0
    """learning rate of the embeddings and the class token, as a multiple of lr; a tied head is the embedding"""
    position_rate: float | None = None
    """likewise of learned positions; the embeddings' if not given"""
    head_rate: float = 1.0
    """likewise of a head that is not tied"""
    gain_rate: float = 1.0
    """likewise of the norms' gains, and of the blocks' biases"""
    equilibrium: float = 0.0
    """under mSGDW: in place of weight_decay, the share of a hidden matrix at which its step settles; 0 for none"""
    betas: tuple[float, float] = (0.9, 0.95)
    """adamw and msgdw-adamw"""
    adamw_lr: float = 3e-3
    """msgdw-adamw only: the learning rate of its AdamW; lr and weight_decay are mSGDW's"""

    def check(self) -> None:
        super().check()
        for name in ("bound", "equilibrium", *RATES):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must be at least 0.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; it must be at least 0 and less than 1.")

    @property
    def reads_images(self) -> bool:
        return self.model in VIT_SIZES

    def model_config(self, placement: str, **of_data: Any) -> GPTConfig | ViTConfig:
        """The model these settings describe, for data with this vocab_size, or classes, channels and image_size."""
        size: GPTConfig | ViTConfig = lookup(GPT_SIZES | VIT_SIZES, self.model, "model")  # type: ignore[operator]
        for name in OF_TEXT if self.reads_images else OF_IMAGES:
            if getattr(self, name) != getattr(Recipe, name):
                reads = "images" if self.reads_images else "text"
                raise ValueError(
                    f"--{name.replace('_', '-')} says nothing to {self.model}, which reads {reads}; drop it."
                )
        if self.reads_images and self.data == Recipe.data:
            raise ValueError(f"{self.model} reads images; give --data: 'digits', a folder, parquet (docs/images.md).")
        if self.vocab_multiple < 1:
            raise ValueError(f"vocab_multiple is {self.vocab_multiple}; it must be at least 1.")
        if "vocab_size" in of_data:
            of_data["vocab_size"] = -(-of_data["vocab_size"] // self.vocab_multiple) * self.vocab_multiple
        if isinstance(size, ViTConfig):  # until the data says more: one patch
            of_data = {"image_size": self.patch_size or size.patch_size} | of_data
        known = {field.name for field in fields(size)} & {field.name for field in fields(Recipe)} - {"image_size"}
        given = {name: getattr(self, name) for name in known if name not in SHAPE or getattr(self, name) is not None}
        return replace(size, **given, **of_data, placement=placement)


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
    """continue this run folder with its own settings; takes no other options but --devices and the like"""
    dry_run: bool = False
    """say what would be trained, and build it without memory; reads no data"""

    def as_json(self) -> dict[str, Any]:
        """The settings that say what a run is, not where it lies."""
        return {name: value for name, value in asdict(self).items() if name not in ("out", "resume", "dry_run")}

    def flags(self) -> list[str]:
        """The options of `dnt train` that say the same: those that differ from the defaults."""
        words: list[str] = []
        default = TrainSettings()
        for name, value in asdict(self).items():
            if value == getattr(default, name):
                continue
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return words


@dataclass(frozen=True, kw_only=True)
class Cells(Recipe):
    """What the cells of an experiment are."""

    placements: tuple[str, ...] = ("pre-ln", "dnt")
    optimizers: tuple[str, ...] = ("adamw", "msgdw")
    vary: tuple[str, ...] = ()
    """KEY=VALUE[,VALUE...] of fields of the recipe: every cell again with each value alone, e.g. clip=0 momentum=0.95

    Joined by + they are varied together, in the cells to which all say something: calibrate=0.01+clip=0.
    "calibrated" stands for the recipe of docs/calibration.md, "stateless" for that of docs/performance.md. A
    batch_size changes the steps so that all runs read equally much.
    """
    seeds: tuple[int, ...] = (0,)
    out: str | None = None
    """the folder of all runs; runs/COMMAND-DATA if not given"""

    @property
    def data_name(self) -> str:
        return Path(self.data).resolve().stem


UNMEASURED = (  # fields of a recipe that change nothing in what a step computes, or have another name in a benchmark
    *("steps", "schedule", "warmup", "floor", "calibrate", "eval_every", "eval_tokens", "checkpoint_every"),
    *("diagnose_every", "data", "tokenizer", "column", "devices", "nodes", "strategy", "precision"),
)


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Recipe):
    """Time training steps of one model in every combination, side by side, and say what they hold in memory.

    Each has a process of its own; all stay in memory, and one computes at a time (docs/performance.md). The data are
    random and in memory.
    """

    data: str = "random"
    placements: tuple[str, ...] = (GPTConfig.placement,)  # type: ignore[assignment]  # by name here
    optimizers: tuple[str, ...] = ("msgdw",)
    precisions: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = ()
    """of the CPU; as many as a training would have if not given"""
    vocab_size: int | None = None
    """of a GPT, if not the named size's own"""
    rounds: int = 7
    """in each of which every combination has its turn, in alternating order"""
    steps_per_round: int = 3
    """and one log row after them; in a training it is ten steps a row"""
    suggest: bool = False
    """time the precisions this machine has, numbers of threads, compiled and eager; name the fastest and change nothing

    Of one placement and one optimizer; what is given of precisions, threads and --no-compile is kept.
    """
    out: str | None = None
    """a JSON file of all numbers"""

    def check(self) -> None:
        super().check()
        for name in UNMEASURED:
            if getattr(self, name) != getattr(BenchSettings, name):
                instead = {"precision": "give --precisions", "tokenizer": "give --vocab-size"}.get(name, "drop it")
                raise ValueError(f"--{name.replace('_', '-')} says nothing to a benchmark; {instead}.")
        for name in ("placements", "optimizers", "precisions"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is empty; name at least one, or leave it out.")
        for name in self.precisions:
            lookup(PRECISIONS, name, "precision")
        for name in ("rounds", "steps_per_round", "vocab_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if min(self.threads, default=1) < 1:
            raise ValueError(f"threads is {min(self.threads)}; it must be at least 1.")
        if self.suggest and (len(self.placements) > 1 or len(self.optimizers) > 1):
            raise ValueError("--suggest is for one placement and one optimizer; name one of each.")
        if self.reads_images and self.vocab_size is not None:
            raise ValueError(f"--vocab-size says nothing to {self.model}, which reads images; drop it.")


@dataclass(frozen=True, kw_only=True)
class CompareSettings(Cells):
    """Train every placement with every optimizer, learning rate and seed on the same data.

    Finished runs are not run again. lr and weight_decay are lists of KEY=VALUE[,VALUE...], where KEY is an optimizer,
    PLACEMENT/OPTIMIZER, "calibrated" or "stateless" (the closest counts); several values make a grid.
    """

    vary: tuple[str, ...] = ("calibrated",)
    lr: tuple[str, ...] = ()
    """e.g. adamw=1e-3,3e-3 dnt/msgdw=0.3"""
    weight_decay: tuple[str, ...] = ()
    """e.g. adamw=0.1 msgdw=1e-4"""


@dataclass(frozen=True, kw_only=True)
class TuneSettings(Cells):
    """Tune every cell with the same number of trials, then run the winners on fresh seeds (docs/protocol.md).

    Start the same command again to go on, or several times at once, on several machines that share the folder and the
    storage, to share the work: each takes the next trial.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """of the winners' runs, which alone are reported"""
    tuning_seeds: tuple[int, ...] = (1000,)
    """of the trials; none of the above"""
    points: int = 4
    """learning rates that each cell begins with: half decades around its optimizer's default"""
    most_points: int = 10
    """learning rates after which a winner may stay at the edge of its grid, with a warning"""
    decays: tuple[float, ...] = (1e-4, 0, 1e-3)
    """lr x weight decay: the first is held while the rate is tuned; extended by decades while the largest wins"""
    storage: str | None = None
    """URL of Optuna's storage, such as postgresql://...; a SQLite file in the folder if not given"""

    def check(self) -> None:
        super().check()
        if shared := sorted(set(self.seeds) & set(self.tuning_seeds)):
            raise ValueError(f"seed {shared[0]} is both a tuning seed and a seed; winners need fresh ones.")
        if not self.tuning_seeds or not self.decays:
            raise ValueError(f"--{'decays' if self.tuning_seeds else 'tuning-seeds'} is empty; give at least one.")
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise ValueError(f"--decays has {decay}; lr x weight decay is at least 0 and less than 1.")
        if not 3 <= self.points <= self.most_points:
            raise ValueError(
                f"points is {self.points}, most-points {self.most_points}; a winner inside its grid takes 3 points or "
                "more, and most-points is no fewer."
            )


ABLATED = (
    *("pre-ln", "s2", "s3", "s4", "dnt"),  # S1 to S5
    *("dnt-no-input", "dnt-no-pre", "dnt-no-qk", "dnt-no-mid", "input-only", "qk-only", "mid-only", "no-norm"),
)


@dataclass(frozen=True, kw_only=True)
class AblateSettings(TuneSettings):
    """Tune S1 to S5, and each norm alone (of PreNorm that is pre-ln) and left out of dnt (docs/protocol.md)."""

    placements: tuple[str, ...] = ABLATED
    optimizers: tuple[str, ...] = ("msgdw",)
    init: str = "gpt2"
    """of all rows"""
    own_init: str = "dnt"
    """of one more row of the placement dnt"""


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


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """See why momentum SGD can or cannot train a model: gradients, tails, Jacobians, weights, attention.

    One page, and the same numbers as parquet. A model without data of its own reads random ones, at its start.
    """

    data: str | None = None
    """what to read, as for dnt train; a run's own if not given, of a named size random tokens or pixels"""
    tokenizer: str = Recipe.tokenizer
    """of a named size with --data"""
    column: str = Recipe.column
    """likewise"""
    placement: str | None = None
    """of a named size; dnt if not given"""
    context: int | None = None
    """tokens a sequence, of a named size or a folder of transformers; at most 256 if not given"""
    batch_size: int = 8
    batches: int = 1
    """of which the mean gradient is taken"""
    noise: int = 0
    """batches, 64 or more, whose gradients are taken one by one for their noise; 0 for none"""
    jacobians: bool = True
    """singular values of blocks, branches and the whole stack: most of the time that this takes"""
    tokens: int = 64
    """of one sample, that Jacobians are taken over; fewer where that gives all singular values"""
    singular_values: int = 16
    """the largest so many, where not all can be had"""
    pretrained: bool = False
    """of timm: with the weights that timm downloads"""
    statements: bool = False
    """measure what each placement does not see, on small models (docs/why-it-works.md)"""
    seed: int = 0
    """of random data and initial weights"""
    out: str | None = None
    """the folder of the page; RUN/inspection, or inspections/NAME, if not given"""

    def check(self) -> None:
        for name in ("batch_size", "batches", "tokens", "singular_values", "context"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if 0 < self.noise < 64 or self.noise < 0:
            raise ValueError(f"noise is {self.noise}; of fewer than 64 batches it says little. Give 64 or more, or 0.")
