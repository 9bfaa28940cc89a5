"""Tokenizers: text <-> token ids. No torch; the packages behind them load on first use.

A tokenizer is asked for by a short text, its spec: a row of SPECS, or a path to a tokenizer file. What `describe()`
returns is all of it, so that a run can be sampled years later without the files or the network it was made with.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dnt.extras import extra
from dnt.files import read_json
from dnt.lookup import lookup

SPECS = {
    "byte": "UTF-8 bytes, 256 symbols",
    "char": "the distinct characters of the data",
    "gpt2": "GPT-2's byte-pair encoding, 50257 symbols",
    "bpe:VOCAB": "a byte-pair encoding of VOCAB symbols, learned from the training text",
    "ids:VOCAB": "token ids as numbers, for .bin data of an unknown tokenizer",
}
END_OF_TEXT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")  # where a tokenizer file names none
# GPT-2's rule for what a token may not cross (Radford et al. 2019); possessive where that is the same but faster
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def smallest_dtype(vocab_size: int) -> Any:
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes; 256 symbols, any text."""

    vocab_size: ClassVar[int] = 256
    dtype: ClassVar[Any] = np.uint16
    identity: ClassVar[str] = "byte"
    end: ClassVar[tuple[int, ...]] = (0,)
    start: ClassVar[tuple[int, ...]] = (ord("\n"),)

    def can_encode(self, text: str) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict[str, Any]:
        return {"kind": "byte"}


@dataclass(frozen=True)
class CharTokenizer:
    """The distinct characters of a corpus, in code-point order."""

    characters: str
    code_points: np.ndarray = field(init=False, repr=False, compare=False)
    identity: ClassVar[str] = "char"

    def __post_init__(self) -> None:
        object.__setattr__(self, "code_points", code_points(self.characters))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def dtype(self) -> Any:
        return smallest_dtype(self.vocab_size)

    @property
    def end(self) -> tuple[int, ...]:
        return (self.characters.index("\0"),) if "\0" in self.characters else ()

    @property
    def start(self) -> tuple[int, ...]:
        return (max(0, self.characters.find("\n")),)

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

    def describe(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


@dataclass(frozen=True)
class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, by tiktoken. A literal <|endoftext|> in a text is ordinary text."""

    ranks: str = field(repr=False)  # base64 of the bytes of each token, in order of rank, separated by spaces
    identity: ClassVar[str] = "gpt2"

    @property
    def vocab_size(self) -> int:
        return self.ranks.count(" ") + 2

    @property
    def dtype(self) -> Any:
        return smallest_dtype(self.vocab_size)

    @property
    def end(self) -> tuple[int, ...]:
        return (self.vocab_size - 1,)

    start = end

    @cached_property
    def encoding(self) -> Any:
        tokens = [base64.b64decode(token) for token in self.ranks.split(" ")]
        return extra("tiktoken").Encoding(
            "gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
            special_tokens={END_OF_TEXT: len(tokens)},
        )

    def can_encode(self, text: str) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        return self.encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return self.encoding.decode([int(i) for i in ids])

    def describe(self) -> dict[str, Any]:
        return {"kind": "gpt2", "ranks": self.ranks}


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer.json of the `tokenizers` library. Its special tokens are ordinary text where a text contains them."""

    content: str = field(repr=False)  # of the tokenizer.json
    end: tuple[int, ...]
    kind: ClassVar[str] = "file"

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", tuple(self.end))

    @cached_property
    def model(self) -> Any:
        model = extra("tokenizers").Tokenizer.from_str(self.content)
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        return model

    @cached_property
    def vocab_size(self) -> int:
        return max(self.model.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps

    @property
    def dtype(self) -> Any:
        return smallest_dtype(self.vocab_size)

    @property
    def start(self) -> tuple[int, ...]:
        return self.end or (0,)

    @property
    def identity(self) -> str:
        return f"{self.kind}:{hashlib.sha256(self.content.encode()).hexdigest()[:16]}"

    def can_encode(self, text: str) -> bool:
        return True

    def encode(self, text: str) -> np.ndarray:
        [encoding] = self.model.encode_batch_fast([text], add_special_tokens=False)  # the one that lets threads run
        return np.array(encoding.ids, self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return self.model.decode([int(i) for i in ids], skip_special_tokens=False)

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "content": self.content, "end": list(self.end)}


class BPETokenizer(FileTokenizer):
    """A byte-level byte-pair encoding that was learned from the data."""

    kind = "bpe"


@dataclass(frozen=True)
class IdsTokenizer:
    """No text, only numbers: the ids of a tokenizer that is not known here."""

    vocab_size: int
    end: ClassVar[tuple[int, ...]] = ()
    start: ClassVar[tuple[int, ...]] = (0,)

    @property
    def dtype(self) -> Any:
        return smallest_dtype(self.vocab_size)

    @property
    def identity(self) -> str:
        return f"ids:{self.vocab_size}"

    def can_encode(self, text: str) -> bool:
        return all(word.isdecimal() and int(word) < self.vocab_size for word in text.split())

    def encode(self, text: str) -> np.ndarray:
        for word in text.split():
            if not self.can_encode(word):
                raise ValueError(
                    f"{word!r} is no id: with the tokenizer {self.identity} a text is numbers from 0 to "
                    f"{self.vocab_size - 1}, such as '1 2 3'."
                )
        return np.array([int(word) for word in text.split()], self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def describe(self) -> dict[str, Any]:
        return {"kind": "ids", "vocab_size": self.vocab_size}


Tokenizer = ByteTokenizer | CharTokenizer | GPT2Tokenizer | FileTokenizer | IdsTokenizer
TOKENIZERS: dict[str, type[Tokenizer]] = {
    "byte": ByteTokenizer,
    "char": CharTokenizer,
    "gpt2": GPT2Tokenizer,
    "bpe": BPETokenizer,
    "file": FileTokenizer,
    "ids": IdsTokenizer,
}


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)


def tokenizer_from(description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that `describe()` described."""
    fields = {name: value for name, value in description.items() if name != "kind"}
    try:
        return lookup(TOKENIZERS, description["kind"], "tokenizer")(**fields)
    except (KeyError, TypeError):
        shown = str(dict(description))
        raise ValueError(f"{shown[:80]} describes no tokenizer; its file is damaged.") from None


# --- from a spec ----------------------------------------------------------------------------------------------------


def parse_spec(spec: str) -> tuple[str, int | Path | None]:
    """The kind of tokenizer that a spec asks for, with its vocabulary size or path; ValueError naming what is wrong."""
    kind, _, number = spec.partition(":")
    if spec in ("byte", "char", "gpt2"):
        return spec, None
    if kind in ("bpe", "ids"):
        least = 257 if kind == "bpe" else 1
        if not number.isdecimal() or int(number) < least:
            what = "256 bytes and the end of a text" if kind == "bpe" else "one symbol"
            raise ValueError(
                f"tokenizer {spec!r} needs a vocabulary size of at least {least} ({what}), as in {kind}:8192."
            )
        return kind, int(number)
    if Path(spec).exists():
        return "file", Path(spec)
    if "/" in spec or Path(spec).suffix:
        raise ValueError(
            f"no tokenizer at {spec!r}; give a tokenizer.json, a folder that holds one, or {', '.join(SPECS)}."
        )
    return lookup(dict.fromkeys(SPECS, ("", None)), spec, "tokenizer")


def ready_made(spec: str) -> Tokenizer | None:
    """The tokenizer of a spec; None for one that is learned from the data."""
    kind, argument = parse_spec(spec)
    if kind == "byte":
        return ByteTokenizer()
    if kind == "gpt2":
        return gpt2_tokenizer()
    if kind == "ids":
        return IdsTokenizer(argument)  # type: ignore[arg-type]
    return file_tokenizer(argument) if isinstance(argument, Path) else None


def gpt2_tokenizer() -> GPT2Tokenizer:
    """GPT-2's own ranks, from tiktoken's cache ($TIKTOKEN_CACHE_DIR) or the network."""
    try:
        encoding = extra("tiktoken").get_encoding("gpt2")
    except OSError as error:  # requests' errors are OSErrors
        raise ValueError(
            f"the GPT-2 vocabulary is not in tiktoken's cache and cannot be downloaded ({type(error).__name__}); "
            "connect, set TIKTOKEN_CACHE_DIR to a folder that has it, or give the path of a tokenizer.json."
        ) from None
    tokens = (encoding.decode_single_token_bytes(rank) for rank in range(encoding.eot_token))
    return GPT2Tokenizer(" ".join(base64.b64encode(token).decode() for token in tokens))


def file_tokenizer(path: Path) -> FileTokenizer:
    """The tokenizer of a tokenizer.json, of a folder that holds one, or of vocab.json and merges.txt in a folder."""
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if file.suffix == ".model" or (not file.exists() and any(folder.glob("*.model"))):
        raise ValueError(
            f"{path} is a sentencepiece model; convert it once: "
            "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes its tokenizer.json."
        )
    pair = folder / "vocab.json", folder / "merges.txt"
    try:
        if file.exists():
            content = file.read_text(encoding="utf-8")
        elif all(part.exists() for part in pair):
            content = byte_level(extra("tokenizers").models.BPE.from_file(*map(str, pair))).to_str()
        else:
            raise ValueError(f"{path} holds no tokenizer.json, nor vocab.json with merges.txt.")
        model = extra("tokenizers").Tokenizer.from_str(content)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    except Exception as error:  # the library raises Exception itself
        if isinstance(error, ValueError) and not isinstance(error, UnicodeDecodeError):
            raise
        raise ValueError(f"{file} is not the tokenizer.json of a tokenizer ({error}).") from None
    return FileTokenizer(content, end_of_document(model, folder / "tokenizer_config.json"))


def end_of_document(model: Any, config: Path) -> tuple[int, ...]:
    """The ids that end a document: the end token that the config names, else a known one, else a blank line."""
    named = read_json(config, "the folder of a tokenizer").get("eos_token") if config.exists() else None
    if isinstance(named, dict):
        named = named.get("content")
    for token in (named, *KNOWN_ENDS):
        if token and model.token_to_id(token) is not None:
            return (model.token_to_id(token),)
    return tuple(model.encode("\n\n", add_special_tokens=False).ids)


def byte_level(model: Any) -> Any:
    """A `tokenizers` tokenizer that splits text as GPT-2 does and has no unknown symbols."""
    tokenizers = extra("tokenizers")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def learn_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """A byte-level BPE of at most vocab_size symbols (fewer if the text is too small for them); deterministic."""
    tokenizers = extra("tokenizers")
    model = byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    content = json.dumps(json.loads(model.to_str()), ensure_ascii=False)
    return BPETokenizer(content, (model.token_to_id(END_OF_TEXT),))
