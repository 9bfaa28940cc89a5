"""What fixes a model, and the named sizes: pure data, no torch."""

from dataclasses import dataclass, replace
from typing import Any

from dnt.lookup import lookup
from dnt.nn.placement import Placement, placement_named

ACTIVATIONS = ("gelu", "gelu-tanh", "relu", "swiglu")
INITS = ("dnt", "gpt2")
POSITIONS = ("learned", "rope")


def check_choice(name: str, known: tuple[str, ...], what: str) -> None:
    lookup(dict.fromkeys(known), name, what)


@dataclass(frozen=True)
class GPTConfig:
    """A causal language model.

    context: longest sequence in tokens. depth: blocks. dim: width. placement: a name of PLACEMENTS or a Placement.
    activation: gelu is the exact one; swiglu has a third matrix (mlp_ratio=8/3 keeps the parameters of the others).
    bias: of linear layers and LayerNorms. init: see dnt.nn.init. dropout: on the embedding, on attention probabilities
    and on each branch. kv_heads: heads of keys and values, each shared by heads / kv_heads queries (2305.13245); as
    many as heads if not given. drop_path: probability of dropping the branches of the last block, rising from 0 at the
    first (1603.09382). positions: learned, or rope (2104.09864, the two halves of a head are the pairs) with its base.
    """

    vocab_size: int
    context: int
    depth: int
    dim: int
    heads: int
    placement: str | Placement = "dnt"
    norm: str = "rmsnorm"
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

    def __post_init__(self) -> None:
        placement_named(self.placement)
        check_choice(self.activation, ACTIVATIONS, "activation")
        check_choice(self.init, INITS, "init")
        check_choice(self.positions, POSITIONS, "positions")
        for field in ("vocab_size", "context", "depth", "dim", "heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be at least 1.")
        if self.dim % self.heads:
            near = min((h for h in range(1, self.dim + 1) if self.dim % h == 0), key=lambda h: abs(h - self.heads))
            raise ValueError(f"heads={self.heads} does not divide dim={self.dim}. Nearest that does: heads={near}.")
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}; choose one that does.")
        if self.positions == "rope" and (self.head_dim % 2 or self.rope_base <= 0):
            raise ValueError(
                f"rope turns pairs: the head width dim / heads = {self.head_dim} must be even, and rope_base "
                f"({self.rope_base}) positive."
            )
        if self.hidden < 1 or self.init_std < 0 or self.norm_eps < 0:
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, init_std {self.init_std}, norm_eps {self.norm_eps}; "
                "mlp_ratio * dim must be at least 1, the others at least 0."
            )
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be in [0, 1).")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward branch."""
        return int(self.mlp_ratio * self.dim)


GPT_SIZES: dict[str, GPTConfig] = {
    "gpt-tiny": GPTConfig(vocab_size=256, context=64, depth=4, dim=128, heads=4),
    "gpt2-small": GPTConfig(vocab_size=50257, context=1024, depth=12, dim=768, heads=12),
    "gpt2-large": GPTConfig(vocab_size=50257, context=1024, depth=36, dim=1280, heads=20),
    "gpt2-1.4b": GPTConfig(vocab_size=50257, context=1024, depth=48, dim=1536, heads=24),
}


def gpt_config(size: str, **fields: Any) -> GPTConfig:
    """A named size with any field of GPTConfig changed."""
    return replace(lookup(GPT_SIZES, size, "model"), **fields)


def gpt_parameters(config: GPTConfig) -> int:
    """Number of parameters in closed form, tied ones once (checked against the built models)."""
    placement = placement_named(config.placement)
    with_bias = config.bias
    norm = config.dim * (2 if with_bias and config.norm == "layernorm" else 1)
    qk_norm = norm // config.heads
    qkv = config.dim + 2 * (config.kv_heads or config.heads) * config.head_dim
    attention = (qkv + config.dim) * (config.dim + with_bias)
    up = config.hidden * (2 if config.activation == "swiglu" else 1)
    mlp = up * (config.dim + with_bias) + config.dim * (config.hidden + with_bias)
    norms = sum(slots.pre + slots.mid + slots.post for slots in (placement.attn, placement.mlp)) * norm
    block = attention + mlp + norms + (2 * qk_norm if placement.qk else 0)
    positions = config.context if config.positions == "learned" else 0
    embeddings = (config.vocab_size * (1 if config.tie_embeddings else 2) + positions) * config.dim
    return embeddings + config.depth * block + (placement.input + placement.final) * norm
