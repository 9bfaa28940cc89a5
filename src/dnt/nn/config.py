"""What fixes a model, and the named sizes: pure data, no torch."""

from dataclasses import dataclass, replace
from typing import Any

from dnt.lookup import lookup
from dnt.nn.placement import Placement, placement_named

ACTIVATIONS = ("gelu", "gelu-tanh", "relu")
INITS = ("dnt", "gpt2")
POSITIONS = ("learned",)


def check_choice(name: str, known: tuple[str, ...], what: str) -> None:
    lookup(dict.fromkeys(known), name, what)


@dataclass(frozen=True)
class GPTConfig:
    """A causal language model.

    context: longest sequence in tokens. depth: blocks. dim: width. placement: a name of PLACEMENTS or a Placement.
    activation: gelu is the exact one. bias: of linear layers and LayerNorms. init: see dnt.nn.init. dropout: on the
    embedding, on attention probabilities and on each branch.
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
        if self.hidden < 1 or self.init_std < 0 or self.norm_eps < 0:
            raise ValueError(
                f"mlp_ratio is {self.mlp_ratio}, init_std {self.init_std}, norm_eps {self.norm_eps}; "
                "mlp_ratio * dim must be at least 1, the others at least 0."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1).")

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
    attention = 4 * config.dim**2 + (4 * config.dim if with_bias else 0)
    mlp = 2 * config.dim * config.hidden + (config.hidden + config.dim if with_bias else 0)
    norms = sum(slots.pre + slots.mid + slots.post for slots in (placement.attn, placement.mlp)) * norm
    block = attention + mlp + norms + (2 * qk_norm if placement.qk else 0)
    embeddings = (config.vocab_size * (1 if config.tie_embeddings else 2) + config.context) * config.dim
    return embeddings + config.depth * block + (placement.input + placement.final) * norm
