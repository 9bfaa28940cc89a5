"""Corpora -> tokens, prepared once into memory-mapped files. No torch.

A corpus (dnt.data.sources) is read in pieces (dnt.data.pieces) by a few threads; tokenizers, hashes and parquet run
beside each other there, and memory does not grow with the corpus. Each piece becomes a part, and the parts are joined:

    <cache>/tokens/<key>/tokenizer.json   written first: what is learned from the data is learned once
    <cache>/tokens/<key>/parts/000012/    the tokens of a piece by split; renamed into place when it is complete
    <cache>/tokens/<key>/tokens.bin       all tokens, uint16 or uint32: train, then validation, then test
    <cache>/tokens/<key>/meta.json        where each split lies, the tokenizer, the sha256; written last: it is complete

The key is a hash of the files' state, the tokenizer and the column. An interrupted preparation goes on with the parts
that are missing. Splits that a corpus names are its own; what it lacks is cut off by position, 5% and at most 256 Ki
tokens, since an evaluation reads them whole.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from dnt.data.cache import MOST_THREADS, cache_root, cores, prepare_once, progress_bar
from dnt.data.hub import nanogpt_split
from dnt.data.pieces import SPLITS, Piece, RowGroup, lines_pieces, row_groups, slices, text_pieces
from dnt.data.sources import CHUNK, HELD_OUT, MOST_HELD_OUT, Source, digest, find_source
from dnt.data.tokenizers import CharTokenizer, Tokenizer, learn_bpe, parse_spec, ready_made, tokenizer_from
from dnt.files import UNFINISHED, atomic_write, read_json, write_json

SEPARATOR = "\0"
MEMORY = 3 << 27  # bytes that the pieces in work may take together
BPE_TEXT = 1 << 26  # bytes that a vocabulary is learned from
BPE_PIECES = 256  # and from how many pieces at most
FORMAT = 2  # part of the cache key; raise it when what this file writes changes
Result = TypeVar("Result")
Item = TypeVar("Item")


@dataclass(frozen=True)
class PreparedText:
    """Token ids of each split (memory-mapped, 1-D), and where they come from."""

    name: str
    sha256: str
    tokenizer: Tokenizer
    splits: dict[str, np.ndarray]
    revision: str | None = None  # the commit of a dataset of the hub

    def describe(self) -> dict[str, object]:
        """What a table made from this data must state."""
        description = {
            "name": self.name,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer.identity,
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": {split: len(tokens) for split, tokens in self.splits.items()},
        }
        return description | ({"revision": self.revision} if self.revision else {})


def prepare_text(
    name: str, tokenizer: str = "byte", progress: bool = True, column: str = "text", threads: int | None = None
) -> PreparedText:
    """Tokens of a corpus, from the cache ($DNT_CACHE, else ~/.cache/dnt) if they were prepared before.

    name: see dnt.data.sources; tokenizer: a row of dnt.data.tokenizers.SPECS or a path; column: of parquet and JSON
    lines; threads: of this machine's cores at most 8, if not given. ValueError in one line for what cannot be used.
    """
    kind, _ = parse_spec(tokenizer)
    source = find_source(name)
    if source.format == "bin" and kind in ("byte", "char", "bpe"):
        raise ValueError(
            f"{name!r} holds tokens, not text, and the tokenizer {tokenizer!r} did not make them; name theirs: gpt2, a "
            "tokenizer file, or ids:VOCAB."
        )
    folder = cache_root() / "tokens" / cache_key(source, tokenizer, column)
    prepare_once(
        folder,
        name,
        lambda: write_tokens(folder, name, source, tokenizer, column, progress, threads),
        lambda: bool(source.revision) or find_source(name).state == source.state,
        progress,
    )
    return open_tokens(folder, name)


def open_tokens(folder: Path, name: str) -> PreparedText:
    meta = read_json(folder / "meta.json", "a token cache (delete its folder)")
    tokens = {}
    for path, count in meta["files"].items():
        tokens[path] = np.memmap(folder / path, dtype=meta["dtype"], mode="r")
        if len(tokens[path]) != count:
            raise ValueError(f"{folder / path} holds {len(tokens[path])} tokens, not {count}; delete {folder}.")
    splits = {split: tokens[path][start:stop] for split, (path, start, stop) in meta["splits"].items()}
    tokenizer = tokenizer_from(read_json(folder / "tokenizer.json", "a token cache (delete its folder)"))
    return PreparedText(name, meta["sha256"], tokenizer, splits, meta["revision"])


def check_outside(name: str, out: str | Path) -> None:
    """ValueError if runs would be written into the folder they read: each would change the data of the next."""
    root = Path(name).resolve()
    if root.is_dir() and Path(out).resolve().is_relative_to(root):
        raise ValueError(f"the runs in {out} would become part of the data in {name}; choose an --out outside of it.")


def cache_key(source: Source, tokenizer: str, column: str) -> str:
    """Changes with the state of any file, with the tokenizer (a file's content), the column and this format."""
    if parse_spec(tokenizer)[0] == "file":
        learned = ready_made(tokenizer)
        assert learned
        tokenizer = f"{learned.identity} {learned.end}"
    column = column if source.format in ("parquet", "lines") else ""
    return hashlib.sha256(f"{FORMAT} {tokenizer} {column} {source.state}".encode()).hexdigest()[:24]


# --- writing --------------------------------------------------------------------------------------------------------


def write_tokens(
    folder: Path, name: str, source: Source, spec: str, column: str, show: bool, threads: int | None
) -> dict[str, Any]:
    """The tokens of a source; what meta.json says of them."""
    if source.format == "bin":
        meta = check_bin(folder, source, spec)
    else:
        meta = tokenize(folder, name, source, spec, column, show, threads)
    return {"name": name, "revision": source.revision} | meta


def tokenize(
    folder: Path, name: str, source: Source, spec: str, column: str, show: bool, threads: int | None
) -> dict[str, Any]:
    """tokens.bin and tokenizer.json; what meta.json says of the tokens."""
    pieces = all_pieces(source, column)
    heaviest = max((piece.memory for piece in pieces), default=1)
    threads = max(1, min(threads or min(MOST_THREADS, cores()), MEMORY // heaviest))
    total = sum(piece.size for piece in pieces) * (2 if spec == "char" else 1)
    with progress_bar(name, total, show) as advance, Crew(threads) as crew:
        sha256 = crew.pool.submit(digest, source, crew.check)
        tokenizer = settled_tokenizer(folder / "tokenizer.json", spec, source, pieces, crew, advance)

        def write(i: int) -> int:
            write_part(folder / "parts" / f"{i:06d}", pieces[i], tokenizer, crew)
            return pieces[i].size

        for size in crew.each(write, range(len(pieces))):
            advance(size)
        sizes = join_parts(folder, len(pieces), tokenizer.dtype)
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        splits = {
            split: ["tokens.bin", starts[within] + first, starts[within] + last]
            for split, (within, first, last) in divided(name, sizes).items()
        }
        files = {"tokens.bin": sum(sizes.values())}
        return {"sha256": sha256.result(), "dtype": np.dtype(tokenizer.dtype).name, "files": files, "splits": splits}


def all_pieces(source: Source, column: str) -> list[Piece]:
    pieces: list[Piece] = []
    for split, files in source.files.items():
        if source.format == "text":
            pieces += text_pieces(split, [Path(file) for file in files], source.separated)
        else:
            pieces_of = row_groups if source.format == "parquet" else lines_pieces
            for file in files:
                pieces += pieces_of(split, file, column)
    if source.nanogpt_split:
        groups = [piece for piece in pieces if isinstance(piece, RowGroup)]
        ends = np.cumsum([group.rows for group in groups])
        labels = np.split(nanogpt_split(int(ends[-1])), ends[:-1])
        return [replace(group, splits=rows) for group, rows in zip(groups, labels, strict=True)]
    return pieces


def settled_tokenizer(
    path: Path, spec: str, source: Source, pieces: list[Piece], crew: "Crew", advance: Callable[[int], None]
) -> Tokenizer:
    """The tokenizer that an interrupted preparation began with, else that of the spec, stored at the path."""
    if path.exists():
        return tokenizer_from(read_json(path, "a token cache (delete its folder)"))
    kind, vocab_size = parse_spec(spec)
    if kind == "char":
        characters = {SEPARATOR} if source.separated else set()
        for size, found in crew.each(characters_of, pieces):
            characters |= found
            advance(size)
        tokenizer: Tokenizer | None = CharTokenizer("".join(sorted(characters)))
    elif kind == "bpe":
        assert isinstance(vocab_size, int)
        tokenizer = learn_bpe(training_text(source, pieces), vocab_size)
    else:
        tokenizer = ready_made(spec)
    assert tokenizer
    write_json(path, tokenizer.describe())
    return tokenizer


def characters_of(piece: Piece) -> tuple[int, set[str]]:
    characters: set[str] = set()
    for fragment in piece.fragments():
        characters.update(fragment.text)
    return piece.size, characters


def training_text(source: Source, pieces: list[Piece]) -> Iterator[str]:
    """At most BPE_TEXT bytes of the training text, as much from each of at most BPE_PIECES pieces, evenly spread.

    Of a corpus whose splits are cut by position, nothing of its end.
    """
    pieces = [piece for piece in pieces if piece.split == "train"]
    *starts, stop = accumulate((piece.size for piece in pieces), initial=0)
    if len(source.files) == 1 and not source.nanogpt_split:
        stop -= int(2 * HELD_OUT * stop)
    some = list(zip(starts, pieces, strict=True))[:: ceil(len(pieces) / BPE_PIECES) or 1]
    for start, piece in some:
        left = min(BPE_TEXT // len(some), stop - start)
        for fragment in piece.fragments():
            if left <= 0:
                break
            for part in slices(fragment.text) if fragment.split == "train" else ():
                data = part.encode()[: max(0, left)]
                left -= len(data)
                yield data.decode(errors="ignore")


def write_part(part: Path, piece: Piece, tokenizer: Tokenizer, crew: "Crew") -> None:
    """The tokens of a piece, a file for each split; nothing if they are there."""
    if part.exists():
        return
    unfinished = part.with_name(part.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    end = np.array(tokenizer.end, tokenizer.dtype).tobytes()
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for split, text, ends in piece.fragments():
            if split not in files:
                files[split] = stack.enter_context((unfinished / f"{split}.bin").open("wb"))
            for some in slices(text):
                crew.check()
                files[split].write(tokenizer.encode(some).tobytes())
            if ends:
                files[split].write(end)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    unfinished.rename(part)


def join_parts(folder: Path, count: int, dtype: Any) -> dict[str, int]:
    """tokens.bin from all parts; how many tokens of each split there are, in the order in which they lie."""
    sizes = {}
    with atomic_write(folder / "tokens.bin") as out:
        for split in SPLITS:
            begin = out.tell()
            for i in range(count):
                part = folder / "parts" / f"{i:06d}" / f"{split}.bin"
                if part.exists():
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, out, CHUNK)
            if out.tell() > begin or split == "train":
                sizes[split] = (out.tell() - begin) // np.dtype(dtype).itemsize
    return sizes


def divided(name: str, sizes: dict[str, int]) -> dict[str, tuple[str, int, int]]:
    """Where every split lies: in which of those that are there, from which token to which.

    Splits that are there are used as they are, but for a validation split without a test split: its second half is the
    test. Without validation, it is cut off the end of train; without either, both are.
    """
    train, validation = sizes["train"], sizes.get("validation", 0)
    held = max(1, min(int(HELD_OUT * train), MOST_HELD_OUT))
    if train < 3:
        raise ValueError(f"{name!r} holds {train} tokens to train on; that is too little.")
    whole = {split: (split, 0, size) for split, size in sizes.items()}
    if "validation" not in sizes and "test" not in sizes:
        ends = {"train": train - 2 * held, "validation": train - held, "test": train}
        starts = {"train": 0, "validation": train - 2 * held, "test": train - held}
        return {split: ("train", starts[split], ends[split]) for split in SPLITS}
    if "test" not in sizes:
        half = validation // 2
        return whole | {"validation": ("validation", 0, half), "test": ("validation", half, validation)}
    if "validation" not in sizes:
        return {
            "train": ("train", 0, train - held),
            "validation": ("train", train - held, train),
            "test": whole["test"],
        }
    return whole


# --- nanoGPT's files ------------------------------------------------------------------------------------------------


def check_bin(folder: Path, source: Source, spec: str) -> dict[str, Any]:
    """What meta.json says of .bin files, which stay where they are; ValueError for ids outside of the vocabulary."""
    tokenizer = ready_made(spec)
    assert tokenizer
    files, sizes = {}, {}
    for split, [name] in source.files.items():
        size = Path(name).stat().st_size
        if size % 2 or not size:
            raise ValueError(
                f"{name} has {size} bytes, no even number above 0: it is no file of uint16 ids, or truncated."
            )
        ids = np.memmap(name, np.uint16, mode="r")
        for start in range(0, len(ids), CHUNK):
            wrong = np.flatnonzero(ids[start : start + CHUNK] >= tokenizer.vocab_size)
            if wrong.size:
                at = start + int(wrong[0])
                raise ValueError(
                    f"{name} holds the id {ids[at]} at position {at}, outside of the vocabulary of "
                    f"{tokenizer.vocab_size} of {spec!r}; name the tokenizer that made it, or a larger ids:VOCAB."
                )
        files[str(Path(name).resolve())] = sizes[split] = len(ids)
    paths = dict(zip(sizes, files, strict=True))
    splits = {split: [paths[within], *span] for split, (within, *span) in divided(name, sizes).items()}
    write_json(folder / "tokenizer.json", tokenizer.describe())
    return {"sha256": digest(source), "dtype": "uint16", "files": files, "splits": splits}


# --- what is done beside each other ---------------------------------------------------------------------------------


class Stopped(Exception):
    """Another thread failed, or the user interrupted."""


class Crew:
    """A few threads for the pieces; when the block is left by an error, they stop after the text they are at."""

    def __init__(self, threads: int):
        self.pool = ThreadPoolExecutor(threads)
        self.stopping = threading.Event()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error:
            self.stopping.set()
        self.pool.shutdown(cancel_futures=True)

    def check(self) -> None:
        if self.stopping.is_set():
            raise Stopped

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results, as they come."""
        for done in as_completed([self.pool.submit(function, item) for item in items]):
            yield done.result()
