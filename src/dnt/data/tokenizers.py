"""Tokenizers: text <-> token ids. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dnt.lookup import lookup


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes; 256 symbols, any text."""

    vocab_size: ClassVar[int] = 256
    dtype: ClassVar[Any] = np.uint16

    def can_encode(self, text: str) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, str]:
        return {"kind": "byte"}


@dataclass(frozen=True)
class CharTokenizer:
    """The distinct characters of a corpus, in code-point order."""

    characters: str
    code_points: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_points", code_points(self.characters))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def dtype(self) -> Any:
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    def can_encode(self, text: str) -> bool:
        return set(text) <= set(self.characters)

    def encode(self, text: str) -> np.ndarray:
        points = code_points(text)
        ids = np.searchsorted(self.code_points, points).clip(max=self.vocab_size - 1)
        unknown = points[self.code_points[ids] != points]
        if unknown.size:
            raise ValueError(
                f"character {chr(unknown[0])!r} is not among the {self.vocab_size} of this character vocabulary; "
                "leave it out or train with --tokenizer byte."
            )
        return ids.astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def describe(self) -> dict[str, str]:
        return {"kind": "char", "characters": self.characters}


Tokenizer = ByteTokenizer | CharTokenizer
TOKENIZERS: dict[str, type[Tokenizer]] = {"byte": ByteTokenizer, "char": CharTokenizer}


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def tokenizer_from(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `describe()` described."""
    fields = {name: value for name, value in description.items() if name != "kind"}
    try:
        return lookup(TOKENIZERS, description["kind"], "tokenizer")(**fields)
    except (KeyError, TypeError):
        raise ValueError(f"{dict(description)!r} describes no tokenizer; its file is damaged.") from None
