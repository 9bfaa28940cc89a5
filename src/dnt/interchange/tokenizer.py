"""A run's tokenizer as one of the `tokenizers` library, with the same ids for every text it can encode."""

import json
from collections.abc import Callable
from typing import Any

from dnt.data.tokenizers import END_OF_TEXT, FileTokenizer, GPT2Tokenizer, Tokenizer, byte_level
from dnt.extras import extra
from dnt.lookup import lookup

NUL = "\0"  # between two documents where a tokenizer has no token for that


def as_fast(tokenizer: Tokenizer) -> tuple[Any, str]:
    """A tokenizers.Tokenizer, and the token that ends a text.

    If no single token does, NUL becomes one more id, for padding alone: it may lie outside the model's vocabulary.
    """
    fast = lookup(FAST, tokenizer.describe()["kind"], "tokenizer")(tokenizer)
    return fast, fast.id_to_token(tokenizer.end[0]) if len(tokenizer.end) == 1 else NUL


def from_symbols(symbols: list[str]) -> Any:
    """One symbol a character, or a byte of it, as byte fallback spells bytes: BPE without a merge."""
    tokenizers = extra("tokenizers", "transformers")
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[], byte_fallback=True))
    fast.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    return fast


def from_ranks(tokenizer: GPT2Tokenizer) -> Any:
    """Tiktoken's ranks as merges: each token of several bytes is the merge of the two it falls into without itself."""
    tokenizers = extra("tokenizers", "transformers")
    tokens = [tokenizer.encoding.decode_single_token_bytes(rank) for rank in range(tokenizer.vocab_size - 1)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    spelled = spelling()
    texts = ["".join(spelled[byte] for byte in token) for token in tokens]
    merges = [tuple(texts[ranks[half]] for half in halves(token, ranks)) for token in tokens if len(token) > 1]
    fast = byte_level(tokenizers.models.BPE(vocab={text: rank for rank, text in enumerate(texts)}, merges=merges))
    fast.add_special_tokens([END_OF_TEXT])
    return fast


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that byte-pair encoding merges last into `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def spelling() -> list[str]:
    """GPT-2's printable character for each byte: its own where it has one, else the next from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def from_file(tokenizer: FileTokenizer) -> Any:
    """Its tokenizer.json without what adds, cuts or pads tokens, as it was when the corpus was prepared."""
    bare = json.loads(tokenizer.content) | {"post_processor": None, "truncation": None, "padding": None}
    return extra("tokenizers", "transformers").Tokenizer.from_str(json.dumps(bare))


FAST: dict[str, Callable[[Any], Any]] = {  # by kind; "ids" has no text
    "byte": lambda _: from_symbols([chr(byte) if byte < 128 else f"<0x{byte:02X}>" for byte in range(256)]),
    "char": lambda tokenizer: from_symbols(list(tokenizer.characters)),
    "gpt2": from_ranks,
    "bpe": from_file,
    "file": from_file,
}
