"""What fixes a model, and the named sizes: pure data, no torch."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dnt.lookup import lookup
from dnt.nn.placement import Placement, factor, placement_named

ACTIVATIONS = ("gelu", "gelu-tanh", "relu", "swiglu")
INITS = ("dnt", "gpt2")
POSITIONS = ("learned", "rope")
IMAGE_POSITIONS = ("learned", "sincos")
POOLS = ("cls", "mean")
DEFAULT_NORM = "rmsnorm"
WITH_ZEROS = ("fixup", "sas")  # initializations of which some matrices are 0
WEIGHTS = ("plain", "weight-norm", "spectral-norm", "sigma-reparam")  # what those of linear layers are computed from
TURNING = ("spectral-norm", "sigma-reparam")  # of them: with singular vectors that a forward pass turns
OF_BATCHES = ("batchnorm", "powernorm", "unifiednorm", "prepbn")  # norms with statistics of all tokens of a batch
SCALE_FREE = ("layernorm", "rmsnorm", "prmsnorm", "scalenorm", "crmsnorm")  # norms of a token that hide its scale
LEARNED: dict[str, tuple[int, int, int]] = {  # by a norm: gains and biases of each feature, and scalars
    **dict.fromkeys(("layernorm", "centernorm", "batchnorm", "powernorm", "unifiednorm"), (1, 1, 0)),
    **dict.fromkeys(("rmsnorm", "prmsnorm", "crmsnorm"), (1, 0, 0)),
    **{"scalenorm": (0, 0, 1), "shift": (0, 0, 1), "dyt": (1, 1, 1), "prepbn": (2, 2, 1)},
}


def check_choice(name: str, known: tuple[str, ...], what: str) -> None:
    lookup(dict.fromkeys(known), name, what)


def check_counts(config: "GPTConfig | ViTConfig", *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be at least 1.")


def check_divides(part: str, whole: str, config: "GPTConfig | ViTConfig") -> None:
    wish, n = getattr(config, part), getattr(config, whole)
    if n % wish:
        near = min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - wish))
        raise ValueError(f"{part}={wish} does not divide {whole}={n}. Nearest that does: {part}={near}.")


def check_blocks(config: "GPTConfig | ViTConfig") -> None:
    """ValueError for what no Transformer can be built from; the fields that GPTConfig and ViTConfig share."""
    check_choice(config.activation, ACTIVATIONS, "activation")
    check_choice(config.init, INITS, "init")
    check_choice(config.weights, WEIGHTS, "weights")
    check_counts(config, "depth", "dim", "heads")
    check_divides("heads", "dim", config)
    if config.kv_heads is not None and (config.kv_heads < 1 or config.heads % config.kv_heads):
        raise ValueError(f"kv_heads={config.kv_heads} does not divide heads={config.heads}; choose one that does.")
    if config.hidden < 1 or config.init_std < 0 or config.norm_eps < 0:
        raise ValueError(
            f"mlp_ratio is {config.mlp_ratio}, init_std {config.init_std}, norm_eps {config.norm_eps}; "
            "mlp_ratio * dim must be at least 1, the others at least 0."
        )
    for field in ("dropout", "drop_path"):
        if not 0 <= getattr(config, field) < 1:
            raise ValueError(f"{field} is {getattr(config, field)}; it must be in [0, 1).")
    check_placement(config)


def check_placement(config: "GPTConfig | ViTConfig") -> None:
    """ValueError for a placement that is unknown, or does not go with the other fields."""
    placement, name = placement_named(config.placement), config.placement_name
    prescribes = placement.prescribes
    for field, default in (("norm", DEFAULT_NORM), ("init", INITS[0]), ("weights", WEIGHTS[0])):
        given, prescribed = getattr(config, field), getattr(prescribes, field)
        if prescribed and given not in (prescribed, default):
            raise ValueError(f"placement {name} prescribes {field}={prescribed!r}; drop {field}={given!r}.")
    check_choice(config.parametrization, WEIGHTS, "weights")
    if prescribes.unit_weights and config.weights != "plain":
        raise ValueError(f"placement {name} normalizes the weights itself; drop weights={config.weights!r}.")
    for block in placement.of_blocks(config.depth):
        for slots in (block.attn, block.mlp):
            for value in (slots.skip, slots.scale, slots.gain or 0.0):
                factor(value, 0, 1)
            if slots.gain is not None and slots.multiplier is not None:
                raise ValueError(f"placement {name} has a gain and a multiplier of one branch; drop one of them.")
        if block.after_rotary and block.qk == "all-heads":
            raise ValueError("QKNorm over all heads stands before the rotary positions; drop after_rotary.")
        if block.block in ("sas", "sas-p") and config.kv_heads not in (None, config.heads):
            raise ValueError(
                f"placement {name} has no values but the features of each head; drop kv_heads={config.kv_heads}."
            )
        if config.parametrization != "plain" and (block.prescribes.init in WITH_ZEROS or config.init_std == 0):
            raise ValueError(
                f"placement {name} begins with matrices of zeros, which {config.parametrization} would divide by their "
                "norm; use weights='plain', or another placement."
            )
        if config.norm_name == "crmsnorm" and block.block in ("ngpt", "sas", "sas-p"):
            raise ValueError(f"crmsnorm leaves out a feature, which {name} needs; use another norm.")
        inside = block.qk in (True, "all-heads") or block.v or block.attn.inner or block.mlp.inner or block.patch
        if config.norm_name == "crmsnorm" and inside:
            raise ValueError(
                "crmsnorm is of the residual stream, with one feature left out: no QKNorm, inner norm or norm of "
                "pixels can be it; use another norm."
            )


class Widths:
    """What follows from the fields that both configs have."""

    dim: int
    heads: int
    mlp_ratio: float
    norm: str
    init: str
    weights: str
    placement: str | Placement

    @property
    def placement_name(self) -> str:
        return self.placement if isinstance(self.placement, str) else "of its own"

    @property
    def norm_name(self) -> str:
        """The norm of the model: that which the placement prescribes, if it does."""
        return placement_named(self.placement).prescribes.norm or self.norm

    @property
    def init_name(self) -> str:
        """Of the initialization of the blocks, likewise."""
        return placement_named(self.placement).prescribes.init or self.init

    @property
    def parametrization(self) -> str:
        """Of the linear layers' weights, likewise."""
        return placement_named(self.placement).prescribes.weights or self.weights

    @property
    def stream(self) -> int:
        """Width of the residual stream: crmsnorm leaves out the last feature, minus the sum of the others."""
        return self.dim - (self.norm_name == "crmsnorm")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward branch."""
        return int(self.mlp_ratio * self.dim)


@dataclass(frozen=True)
class GPTConfig(Widths):
    """A causal language model.

    context: longest sequence in tokens. depth: blocks. dim: width. placement: a name of PLACEMENTS or a Placement.
    activation: gelu is the exact one; swiglu has a third matrix (mlp_ratio=8/3 keeps the parameters of the others).
    bias: of linear layers and LayerNorms; head_bias: of the head. init: see dnt.nn.init. dropout: on the embedding, on
    attention probabilities and on each branch. kv_heads: heads of keys and values, each shared by heads / kv_heads
    queries (2305.13245); as many as heads if not given. drop_path: probability of dropping the branches of the last
    block, rising from 0 at the first (1603.09382). positions: learned, or rope (2104.09864, the two halves of a head
    are the pairs) with its base. weights: of linear layers, see dnt.nn.reparametrized.
    """

    vocab_size: int
    context: int
    depth: int
    dim: int
    heads: int
    placement: str | Placement = "dnt"
    norm: str = DEFAULT_NORM
    norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    bias: bool = False
    init: str = "dnt"
    init_std: float = 0.02
    dropout: float = 0.0
    tie_embeddings: bool = True
    positions: str = "learned"
    rope_base: float = 10_000.0
    kv_heads: int | None = None
    drop_path: float = 0.0
    head_bias: bool = False
    weights: str = "plain"

    def __post_init__(self) -> None:
        check_blocks(self)
        check_choice(self.positions, POSITIONS, "positions")
        check_counts(self, "vocab_size", "context")
        if self.norm_name in OF_BATCHES:
            raise ValueError(
                f"norm is {self.norm_name!r}, whose statistics run over all tokens of a batch: a causal model would "
                "see later ones. Use a norm of each token, such as 'rmsnorm'; a ViT can have this one."
            )
        placement = placement_named(self.placement)
        if placement.patch or placement.block == "lape":
            what = "patches" if placement.patch else "positions in the plane"
            raise ValueError(
                f"placement {self.placement_name} normalizes {what}, which a GPT has none of; use it in a ViT."
            )
        if self.positions == "rope" and (self.head_dim % 2 or self.rope_base <= 0):
            raise ValueError(
                f"rope turns pairs: the head width dim / heads = {self.head_dim} must be even, and rope_base "
                f"({self.rope_base}) positive."
            )

    @property
    def tokens(self) -> int:
        """That a model reads at once."""
        return self.context


@dataclass(frozen=True)
class ViTConfig(Widths):
    """A classifier of images, or of volumes.

    image_size: edge of a square image or cubic volume, in pixels; patch_size: that of a patch. channels: of the image.
    classes: how many scores it gets. bias: of linear layers, the patch embedding, the head and LayerNorms. positions:
    learned, the class token's too, or sincos (1706.03762 for each axis), which the patches alone have. pool: what the
    head reads after the final norm, the class token or the mean of the patches; "mean" has no class token. in_dims: 2
    for images, 3 for volumes. The other fields are those of GPTConfig.
    """

    image_size: int
    patch_size: int
    channels: int
    classes: int
    depth: int
    dim: int
    heads: int
    placement: str | Placement = "dnt"
    norm: str = DEFAULT_NORM
    norm_eps: float = 1e-6
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    bias: bool = False
    init: str = "dnt"
    init_std: float = 0.02
    dropout: float = 0.0
    drop_path: float = 0.0
    positions: str = "learned"
    pool: str = "cls"
    in_dims: int = 2
    kv_heads: int | None = None
    weights: str = "plain"

    def __post_init__(self) -> None:
        check_blocks(self)
        check_choice(self.positions, IMAGE_POSITIONS, "positions")
        check_choice(self.pool, POOLS, "pool")
        check_counts(self, "image_size", "patch_size", "channels", "classes")
        check_divides("patch_size", "image_size", self)
        if self.in_dims not in (2, 3):
            raise ValueError(f"in_dims is {self.in_dims}; it must be 2 (images) or 3 (volumes).")
        if self.positions == "sincos" and self.stream != self.dim:
            raise ValueError("crmsnorm leaves out a feature, which fixed positions have; use positions='learned'.")
        if self.positions == "sincos" and self.dim % (2 * self.in_dims):
            raise ValueError(
                f"sincos has a sine and a cosine for each of {self.in_dims} axes: dim={self.dim} must be a multiple of "
                f"{2 * self.in_dims}."
            )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one image: channels, then an edge for each axis."""
        return (self.channels, *[self.image_size] * self.in_dims)

    @property
    def side(self) -> int:
        """Patches along an edge."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Patches, and the class token if there is one."""
        return self.side**self.in_dims + (self.pool == "cls")


GPT_SIZES: dict[str, GPTConfig] = {
    "gpt-tiny": GPTConfig(vocab_size=256, context=64, depth=4, dim=128, heads=4),
    "gpt2-small": GPTConfig(vocab_size=50257, context=1024, depth=12, dim=768, heads=12),
    "gpt2-large": GPTConfig(vocab_size=50257, context=1024, depth=36, dim=1280, heads=20),
    "gpt2-1.4b": GPTConfig(vocab_size=50257, context=1024, depth=48, dim=1536, heads=24),
}


IMAGENET = partial(ViTConfig, image_size=224, channels=3, classes=1000)
VIT_SIZES: dict[str, ViTConfig] = {
    "vit-tiny": IMAGENET(patch_size=16, depth=12, dim=192, heads=3),
    "vit-small": IMAGENET(patch_size=16, depth=12, dim=384, heads=6),
    "vit-base": IMAGENET(patch_size=16, depth=12, dim=768, heads=12),
    "vit-large": IMAGENET(patch_size=16, depth=24, dim=1024, heads=16),
    "vit-huge": IMAGENET(patch_size=14, depth=32, dim=1280, heads=16),
}


def gpt_config(size: str, **fields: Any) -> GPTConfig:
    """A named size with any field of GPTConfig changed."""
    return replace(lookup(GPT_SIZES, size, "model"), **fields)


def vit_config(size: str, **fields: Any) -> ViTConfig:
    """A named size with any field of ViTConfig changed."""
    return replace(lookup(VIT_SIZES, size, "model"), **fields)


def gpt_parameters(config: GPTConfig) -> int:
    """Number of parameters in closed form, tied ones once; for norms and placements as in block_parameters."""
    positions = config.context if config.positions == "learned" else 0
    embeddings = (config.vocab_size * (1 if config.tie_embeddings else 2) + positions) * config.dim
    head = () if config.tie_embeddings else (config.vocab_size,)
    return embeddings + config.vocab_size * config.head_bias + block_parameters(config) + beside(config, *head)


def vit_parameters(config: ViTConfig) -> int:
    """Number of parameters in closed form; for norms and placements as in block_parameters."""
    patches = config.dim * (config.channels * config.patch_size**config.in_dims + config.bias)
    positions = config.dim * (config.tokens if config.positions == "learned" else 0)
    class_token = config.dim if config.pool == "cls" else 0
    head = config.classes * (config.dim + config.bias)
    kernel = (1,) if config.weights == "sigma-reparam" else ()
    ends = patches + positions + class_token + head + beside(config, config.classes, *kernel)
    return ends + block_parameters(config)


def beside(config: GPTConfig | ViTConfig, *heights: int) -> int:
    """What linear layers with so many rows store beside their matrices."""
    return {"weight-norm": sum(heights), "sigma-reparam": len(heights)}.get(config.weights, 0)


def norm_parameters(config: GPTConfig | ViTConfig, width: int) -> int:
    """Of a norm so wide."""
    gains, biases, scalars = LEARNED[config.norm]
    return (gains + biases * config.bias) * width + scalars


def block_parameters(config: GPTConfig | ViTConfig) -> int:
    """Of all blocks, and of the norms before and after them: S1 to S5 and the like, with LayerNorm or RMSNorm."""
    placement = placement_named(config.placement)
    with_bias = config.bias
    norm, qk_norm = norm_parameters(config, config.dim), norm_parameters(config, config.head_dim)
    qkv = config.dim + 2 * (config.kv_heads or config.heads) * config.head_dim
    attention = (qkv + config.dim) * (config.dim + with_bias)
    up = config.hidden * (2 if config.activation == "swiglu" else 1)
    mlp = up * (config.dim + with_bias) + config.dim * (config.hidden + with_bias)
    norms = sum(slots.pre + slots.mid + slots.post for slots in (placement.attn, placement.mlp)) * norm
    block = attention + mlp + norms + (2 * qk_norm if placement.qk else 0)
    block += beside(config, qkv, config.dim, up, config.dim)
    return config.depth * block + (placement.input + placement.final) * norm
