"""GPT with any placement: a causal language model (L-DNT when the placement is "dnt")."""
# B batch, T tokens, D width, V vocabulary

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.lookup import lookup
from dnt.nn.config import GPTConfig, gpt_config
from dnt.nn.init import initialize
from dnt.nn.layers import MLP, Attention, Block, KeyValueCache
from dnt.nn.norms import NORMS
from dnt.nn.placement import placement_named


class GPT(nn.Module):
    """Token and position embeddings, `depth` blocks, a head tied to the token embedding.

    With placement="pre-ln", norm="layernorm", norm_eps=1e-5, bias=True, activation="gelu-tanh" it is GPT-2.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        placement = placement_named(config.placement)
        norm = partial(lookup(NORMS, config.norm, "norm"), eps=config.norm_eps, bias=config.bias)
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.context, config.dim)
        self.input_norm = norm(config.dim) if placement.input else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                placement,
                norm,
                config.dim,
                Attention(config.dim, config.heads, norm if placement.qk else None, config.bias, config.dropout),
                MLP(config.dim, config.hidden, config.activation, config.bias),
                config.dropout,
            )
            for _ in range(config.depth)
        )
        self.final_norm = norm(config.dim) if placement.final else nn.Identity()
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.tokens.weight
        initialize(self, config.depth, config.init_std, config.init)

    def forward(self, tokens_BT: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """tokens (B, T) int64 -> logits (B, T, V). With caches (one a block) the tokens continue those cached."""
        seen = len(caches[0]) if caches else 0
        end = seen + tokens_BT.shape[1]
        if end > self.config.context:
            raise ValueError(f"got {end} tokens, but the model's context is {self.config.context}; pass fewer.")
        x_BTD = self.tokens(tokens_BT) + self.positions.weight[seen:end]
        x_BTD = self.drop(self.input_norm(x_BTD))
        for i, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cache=caches[i] if caches else None)
        return self.head(self.final_norm(x_BTD))

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets (B, T) that are not -1; () tensor."""
        logits = self(tokens_BT)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue tokens (B, T) one by one -> (B, T + max_new_tokens), prompt included.

        temperature 0 takes the likeliest token. Keys and values are cached until the context is full; from there each
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
            tokens = torch.cat([tokens, draw(logits_BV, temperature, top_k, generator)], dim=1)
        self.train(was_training)
        return tokens


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
