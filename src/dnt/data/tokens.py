"""Token streams -> batches. The training batch is a function of (seed, step) and nothing else."""
# B batch, T tokens (the context)

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dnt.data.pieces import SPLITS
from dnt.data.text import PreparedText, prepare_text
from dnt.data.tokenizers import Tokenizer

CHUNK = 1 << 20  # tokens counted at a time


@dataclass(frozen=True)
class Windows:
    """A token stream cut into windows of `context` inputs, each with its next-token targets.

    An epoch visits every window once, in an order drawn from (seed, epoch); where the first window starts is drawn too,
    so that the cuts move.
    """

    tokens: np.ndarray
    context: int
    name: str = "given"

    def __post_init__(self) -> None:
        if len(self.tokens) < 2 * self.context:
            raise ValueError(
                f"the context of {self.context} tokens is too long for the {self.name} split of {len(self.tokens)} "
                "tokens (it needs twice the context); "
                f"use --context {max(1, len(self.tokens) // 2)} or less, or more data."
            )

    @property
    def per_epoch(self) -> int:
        return len(self.tokens) // self.context - 1

    def starts(self, samples: np.ndarray, seed: int) -> np.ndarray:
        """First token of each of the given samples of the endless sequence of epochs."""
        epochs, windows = np.divmod(samples, self.per_epoch)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs):
            offset, order = epoch_order(seed, int(epoch), self.per_epoch, self.context)
            here = epochs == epoch
            starts[here] = offset + order[windows[here]] * self.context
        return starts

    def batch(self, seed: int, step: int, batch_size: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (B, T) int64 each, of one training step, or of some rows of it."""
        samples = np.arange(step * batch_size, (step + 1) * batch_size)[rows]
        drawn = self.tokens[self.starts(samples, seed)[:, None] + np.arange(self.context + 1)].astype(np.int64)
        return torch.from_numpy(drawn[:, :-1].copy()), torch.from_numpy(drawn[:, 1:].copy())

    def beginning(self, targets: int) -> "Windows":
        """The first so many targets alone; all if 0."""
        return replace(self, tokens=self.tokens[: (targets and targets + 1) or None])

    def whole(self, batch_size: int, rows: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
        """The stream once, every target exactly once, in batches (B, T) of one shape, of which `rows` are given.

        Padding has target -1.
        """
        targets = len(self.tokens) - 1
        per_batch = batch_size * self.context
        for start in range(0, targets, per_batch):
            part = self.tokens[start : start + per_batch + 1].astype(np.int64)
            x, y = np.zeros(per_batch, np.int64), np.full(per_batch, -1, np.int64)
            x[: len(part) - 1], y[: len(part) - 1] = part[:-1], part[1:]
            yield (
                torch.from_numpy(x.reshape(batch_size, self.context)[rows]),
                torch.from_numpy(y.reshape(batch_size, self.context)[rows]),
            )


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, windows: int, context: int) -> tuple[int, np.ndarray]:
    """The offset of the first window and the order of all."""
    random = np.random.default_rng([seed, epoch])
    return int(random.integers(context)), random.permutation(windows)


def frequency_deciles(counts: np.ndarray) -> np.ndarray:
    """The tenth of all tokens, frequent symbols first, that each symbol lies in: 0 to 9 (2402.19449).

    Each cut lies between two symbols, as near to its tenth as it can: a symbol lies in the decile of its middle token.
    So one that fills more than a tenth may leave a neighbouring decile empty. What never occurs lies in the last.
    """
    order = np.argsort(-counts, kind="stable")
    sorted_counts = counts[order]
    middles = 2 * sorted_counts.cumsum() - sorted_counts  # in half tokens
    deciles = np.empty_like(order)
    deciles[order] = np.minimum(10 * middles // (2 * counts.sum()), 9)
    return deciles


@dataclass(frozen=True)
class TextData:
    """A prepared text, windowed for a context."""

    prepared: PreparedText
    context: int
    train: Windows
    validation: Windows
    test: Windows
    unit: ClassVar[str] = "tokens"

    @property
    def per_sample(self) -> int:
        """Units in a sample."""
        return self.context

    @property
    def tokenizer(self) -> Tokenizer:
        return self.prepared.tokenizer

    @property
    def vocab_size(self) -> int:
        return self.prepared.tokenizer.vocab_size

    def deciles(self) -> np.ndarray:
        """The decile of each symbol by its frequency in the training split, which is read once."""
        counts = np.zeros(self.vocab_size, np.int64)
        for start in range(0, len(self.train.tokens), CHUNK):
            counts += np.bincount(self.train.tokens[start : start + CHUNK], minlength=self.vocab_size)
        return frequency_deciles(counts)

    def describe(self) -> dict[str, object]:
        return self.prepared.describe() | {"context": self.context}


def prepare(
    name: str = "stdlib", tokenizer: str = "byte", context: int = 64, progress: bool = True, column: str = "text"
) -> TextData:
    """Data ready to train on; names, tokenizers and columns as for dnt.data.text.prepare_text (docs/data.md)."""
    prepared = prepare_text(name, tokenizer, progress, column)
    return TextData(prepared, context, *(Windows(prepared.splits[name], context, name) for name in SPLITS))
