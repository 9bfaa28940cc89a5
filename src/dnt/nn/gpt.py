"""GPT with any placement: a causal language model (L-DNT when the placement is "dnt")."""
# B batch, T new tokens, S cached and new ones, D width, V vocabulary, N = B T

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnt.nn.config import TURNING, GPTConfig, gpt_config
from dnt.nn.init import initialize
from dnt.nn.layers import KeyValueCache, rotation
from dnt.nn.ngpt import unit_weights
from dnt.nn.placement import placement_named
from dnt.nn.reparametrized import reparametrize
from dnt.nn.stack import closing, forking, head_of, opening, stack

MOST_LOGITS = 1 << 26  # N x V that are kept for the backward pass: 256 MiB of float32


class GPT(nn.Module):
    """Token and position embeddings, `depth` blocks, a head tied to the token embedding.

    With placement="pre-ln", norm="layernorm", norm_eps=1e-5, bias=True, activation="gelu-tanh" it is GPT-2.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.stream)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context, config.stream)
        self.input_norm = opening(config)
        self.drop = forking(config)
        self.blocks = stack(config, causal=True)
        self.final_norm = closing(config)
        self.head = head_of(config, config.vocab_size, config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.tokens.weight
        self.recompute = False  # whether the backward pass computes each block's activations again
        initialize(self, config)
        reparametrize(self, config.parametrization)
        self.after_step()

    def after_step(self) -> None:
        """What the placement prescribes after each step of an optimizer, in place."""
        if placement_named(self.config.placement).prescribes.unit_weights:
            unit_weights(self)

    @property
    def ends(self) -> dict[str, list[nn.Module]]:
        """Where tokens enter and predictions leave, by kind; a tied head is the embedding."""
        positions: list[nn.Module] = [self.positions] if self.config.positions == "learned" else []
        return {"embedding": [self.tokens], "position": positions, "head": [self.head]}

    def forward(
        self,
        tokens_BT: Tensor,
        caches: Sequence[KeyValueCache] | None = None,
        real_BS: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V). With caches (one a block) the tokens continue those cached.

        real (B, S) bool: which of the cached and new tokens are no padding; all of them if not given. Positions count
        the real ones alone, so that a padded sequence gets the logits of the sequence itself.
        """
        return self.head(self.hidden(tokens_BT, caches, real_BS))

    def hidden(
        self,
        tokens_BT: Tensor,
        caches: Sequence[KeyValueCache] | None = None,
        real_BS: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, (B, T, D); arguments as for forward."""
        config = self.config
        seen = len(caches[0]) if caches else 0
        end = seen + tokens_BT.shape[1]
        if end > config.context:
            raise ValueError(f"got {end} tokens, but the model's context is {config.context}; pass fewer.")
        positions = torch.arange(seen, end, device=tokens_BT.device)
        if real_BS is not None:
            positions = (real_BS.cumsum(-1) - 1).clamp(min=0)[:, seen:]
        context: dict[str, Any] = {"mask": attention_mask(seen, end, real_BS, tokens_BT.device)}
        x_BTD = self.tokens(tokens_BT)
        if config.positions == "rope":
            context["rotation"] = rotation(positions, config.head_dim, config.rope_base)
        elif real_BS is None:
            x_BTD = x_BTD + self.positions.weight[seen:end]
        else:
            x_BTD = x_BTD + self.positions(positions)
        x_BTD = self.drop(self.input_norm(x_BTD))
        for i, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled() and not caches:
                x_BTD = checkpoint(block, x_BTD, use_reentrant=False, **context)
            else:
                x_BTD = block(x_BTD, cache=caches[i] if caches else None, **context)
        return self.final_norm(x_BTD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets (B, T) that are not -1; () tensor.

        More than MOST_LOGITS logits are computed in chunks of tokens, and again in the backward pass, so that no
        (B, T, V) tensor is ever kept; but not those of a head that each forward pass changes.
        """
        hidden_ND, targets_N = self.hidden(tokens_BT).flatten(0, 1), targets_BT.flatten()
        rows = max(1, MOST_LOGITS // self.config.vocab_size)
        if self.config.parametrization in TURNING and not self.config.tie_embeddings:
            rows = len(targets_N)
        if len(targets_N) <= rows:
            return self.cross_entropy(hidden_ND, targets_N, "mean")
        chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        total = sum(checkpoint(self.cross_entropy, *chunk, "sum", use_reentrant=False) for chunk in chunks)
        return total / (targets_N >= 0).sum()

    def losses(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy in nats of each target, 0 where it is -1; (B, T).

        To be measured, not trained on: in chunks as in `loss`, but a backward pass would keep the logits of all.
        """
        hidden_ND, targets_N = self.hidden(tokens_BT).flatten(0, 1), targets_BT.flatten()
        rows = max(1, MOST_LOGITS // self.config.vocab_size)
        chunks = zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([self.cross_entropy(*chunk, "none") for chunk in chunks]).view_as(targets_BT)

    measures: ClassVar[tuple[str, ...]] = ("loss",)

    def measure(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """What an evaluation reports the means of, of each target, by the names in `measures`; (1, N)."""
        return self.losses(tokens_BT, targets_BT).flatten()[None]

    def cross_entropy(self, hidden_ND: Tensor, targets_N: Tensor, reduction: str) -> Tensor:
        """Of the head's predictions, at least in float32."""
        logits_NV = self.head(hidden_ND)
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        return F.cross_entropy(logits_NV, targets_N, ignore_index=-1, reduction=reduction)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        symbols: int | None = None,
    ) -> Tensor:
        """Continue tokens (B, T) one by one -> (B, T + max_new_tokens), prompt included.

        temperature 0 takes the likeliest token. symbols: draw from the first so many ids alone, where the vocabulary is
        padded. Keys and values are cached until the context is full; from there each
        token is predicted from the last `context` tokens anew, since learned positions shift with the window.
        """
        if tokens.shape[1] == 0:
            raise ValueError("the prompt is empty; generate needs at least one token to continue.")
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"temperature={temperature}, top_k={top_k}; temperature must be >= 0 and top_k >= 1.")
        was_training = self.training
        self.eval()
        caches: list[KeyValueCache] = []
        for _ in range(max_new_tokens):
            if caches and len(caches[0]) < self.config.context:
                logits_BV = self(tokens[:, -1:], caches)[:, -1]
            else:
                caches = [KeyValueCache() for _ in self.blocks]
                logits_BV = self(tokens[:, -self.config.context :], caches)[:, -1]
            tokens = torch.cat([tokens, draw(logits_BV[:, :symbols], temperature, top_k, generator)], dim=1)
        self.train(was_training)
        return tokens


def attention_mask(seen: int, end: int, real_BS: Tensor | None, device: torch.device) -> Tensor | None:
    """Which of the tokens up to `end` (S) those from `seen` on (T) may look at: (T, S), or (B, 1, T, S) with padding.

    None where causal attention, or a single token that sees all, says the same.
    """
    if real_BS is None and (seen == 0 or end - seen == 1):
        return None
    causal_TS = torch.ones(end - seen, end, dtype=torch.bool, device=device).tril(seen)
    if real_BS is None:
        return causal_TS
    itself_TS = torch.eye(end, dtype=torch.bool, device=device)[seen:]  # padding looks at itself, not at nothing
    return (causal_TS & real_BS.bool()[:, None, :] | itself_TS)[:, None]


def draw(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token (B, 1) from softmax(logits / temperature) over the top_k likeliest."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    logits_BV = logits_BV / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        smallest_kept = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)


def gpt(size: str, **fields: Any) -> GPT:
    """A GPT of a named size (gpt2-small, gpt2-large, gpt2-1.4b, gpt-tiny) with any field of GPTConfig changed."""
    return GPT(gpt_config(size, **fields))
