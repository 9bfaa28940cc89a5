"""Text sources -> tokens, prepared once into a memory-mapped file. No torch.

A source is "stdlib" (the Python source files of the standard library that runs this, tests left out), a text file, or
a folder of text files, joined by NUL characters. Validation and test are 5% each, at most 256 KiB, since an evaluation
reads them whole. A folder is split by file: in the order of the sha256 of their relative paths, each file goes to
validation, then to test, if it still fits there, else to train. One file, or a folder of files too large for that, is
split by position: train, validation, test.

    <cache>/tokens/<key>/tokens.bin   all tokens, uint16 or uint32: train, then validation, then test
    <cache>/tokens/<key>/meta.json    where each split lies, the tokenizer, the sha256 of the text

The folder is renamed into place when it is complete, so a half-written one is never found.
"""

import hashlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dnt.data.tokenizers import TOKENIZERS, ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from
from dnt.files import read_json, write_json
from dnt.lookup import lookup

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.05  # share of validation, and of test
MOST_HELD_OUT = 1 << 18  # bytes by file, tokens by position
CHUNK = 1 << 22  # characters or bytes read at a time
SEPARATOR = "\0"
FORMAT = 1  # part of the cache key; raise it when what this file writes changes


@dataclass(frozen=True)
class PreparedText:
    """Token ids of each split (memory-mapped, 1-D), and where they come from."""

    name: str
    sha256: str
    tokenizer: Tokenizer
    splits: dict[str, np.ndarray]

    def describe(self) -> dict[str, object]:
        """What a table made from this data must state."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "tokenizer": self.tokenizer.describe()["kind"],
            "vocab_size": self.tokenizer.vocab_size,
            "tokens": {split: len(tokens) for split, tokens in self.splits.items()},
        }


def prepare_text(name: str, tokenizer: str = "byte", progress: bool = True) -> PreparedText:
    """Tokens of a text source, from the cache ($DNT_CACHE, else ~/.cache/dnt) if they were prepared before."""
    lookup(TOKENIZERS, tokenizer, "tokenizer")
    root, files = source_files(name)
    folder = cache_root() / "tokens" / cache_key(root, files, tokenizer)
    if not (folder / "meta.json").exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as parent:
                unfinished = Path(parent) / folder.name
                unfinished.mkdir()
                write_tokens(unfinished, name, root, files, tokenizer, progress)
                move_into_place(unfinished, folder)
        except OSError as error:
            raise OSError(f"cannot prepare {name} in {folder.parent}: {error}. Make room, or set DNT_CACHE.") from error
    return open_tokens(folder, name)


def move_into_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not (folder / "meta.json").exists():  # else another process was first, with the same content
            raise


def open_tokens(folder: Path, name: str) -> PreparedText:
    meta = read_json(folder / "meta.json", "a token cache (delete its folder)")
    tokenizer = tokenizer_from(meta["tokenizer"])
    tokens = np.memmap(folder / "tokens.bin", dtype=tokenizer.dtype, mode="r")
    if len(tokens) != meta["ends"]["test"]:
        raise ValueError(
            f"{folder / 'tokens.bin'} holds {len(tokens)} tokens, not {meta['ends']['test']}; delete {folder}."
        )
    starts = [0, meta["ends"]["train"], meta["ends"]["validation"]]
    splits = {split: tokens[start : meta["ends"][split]] for split, start in zip(SPLITS, starts, strict=True)}
    return PreparedText(name, meta["sha256"], tokenizer, splits)


def cache_root() -> Path:
    base = os.environ.get("DNT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dnt"
    return Path(base)


def source_files(name: str) -> tuple[Path, list[Path]]:
    """The root of a text source and its non-empty text files, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib")) if name == "stdlib" else Path(name)
    if not root.exists():
        there = ["stdlib", *(str(Path(name).with_name(path.name)) for path in root.parent.glob("*"))]
        near = get_close_matches(name, there, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"no data at {name!r}. Did you mean {near!r}? Give a text file, a folder of them, or 'stdlib'."
        )
    if root.is_file():
        files = [root]
    elif name == "stdlib":
        left_out = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
        files = [p for p in root.rglob("*.py") if not left_out.intersection(p.relative_to(root).parts)]
    else:
        files = [p for p in root.rglob("*") if not any(part.startswith(".") for part in p.relative_to(root).parts)]
    files = sorted(p for p in files if p.is_file() and p.stat().st_size and not is_binary(p))
    if not files:
        raise ValueError(f"{name!r} holds no text: it is empty, or its files are empty or binary.")
    return root, files


def check_outside(name: str, out: str | Path) -> None:
    """ValueError if runs would be written into the folder they read: each would change the data of the next."""
    root = Path(name).resolve()
    if root.is_dir() and Path(out).resolve().is_relative_to(root):
        raise ValueError(f"the runs in {out} would become part of the data in {name}; choose an --out outside of it.")


def is_binary(path: Path) -> bool:
    """Git's rule: a NUL among the first 8000 bytes."""
    with path.open("rb") as file:
        return b"\0" in file.read(8000)


def cache_key(root: Path, files: list[Path], tokenizer: str) -> str:
    """Changes with any file's path, size or modification time, with the tokenizer, and with this format."""
    key = hashlib.sha256(f"{FORMAT} {tokenizer} {root.resolve()}".encode())
    for path in files:
        stat = path.stat()
        key.update(f"\n{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}".encode())
    return key.hexdigest()[:24]


def by_hash(root: Path, files: list[Path]) -> list[Path]:
    """In an order that depends on nothing but the relative paths."""
    return sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest())


def split_by_file(files: list[Path]) -> dict[str, list[Path]] | None:
    """The files of each split; None if they are too large to fill half of what validation and test may hold."""
    sizes = {path: path.stat().st_size for path in files}
    budget = min(HELD_OUT * sum(sizes.values()), MOST_HELD_OUT)
    parts: dict[str, list[Path]] = {"train": files}
    for split in ("validation", "test"):
        left: list[Path] = []
        taken: list[Path] = []
        room = budget
        for path in parts["train"]:
            fits = sizes[path] <= room
            (taken if fits else left).append(path)
            room -= sizes[path] if fits else 0
        if room > budget / 2:
            return None
        parts |= {"train": left, split: taken}
    return parts


def read_chunks(path: Path) -> Iterator[str]:
    """The text of a file piece by piece, newlines as they are; bytes that are not UTF-8 become U+FFFD."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def vocabulary(texts: Iterable[str]) -> CharTokenizer:
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharTokenizer("".join(sorted(characters)))


def write_tokens(folder: Path, name: str, root: Path, files: list[Path], kind: str, show: bool) -> None:
    """tokens.bin and meta.json of a source."""
    ordered = by_hash(root, files)
    parts = split_by_file(ordered) if root.is_dir() else None
    groups = parts or {"train": ordered}
    joiner = [SEPARATOR] if root.is_dir() else []

    percent = TextColumn("{task.percentage:.0f}%")
    columns = (TextColumn("preparing {task.description}", markup=False), BarColumn(), percent, TimeRemainingColumn())
    shown = show and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        passes = 2 if kind == "char" else 1
        task = bar.add_task(name, total=passes * sum(path.stat().st_size for path in files))

        def texts(paths: list[Path]) -> Iterator[str]:
            for path in paths:
                for text in chain(read_chunks(path), joiner):
                    bar.advance(task, len(text))
                    yield text

        tokenizer = vocabulary(texts(ordered)) if kind == "char" else ByteTokenizer()
        digest, count, ends = hashlib.sha256(), 0, {}
        with (folder / "tokens.bin").open("wb") as out:
            for split, paths in groups.items():
                for text in texts(paths):
                    digest.update(text.encode("utf-8", errors="surrogatepass"))
                    ids = tokenizer.encode(text)
                    out.write(ids.tobytes())
                    count += len(ids)
                ends[split] = count
            out.flush()
            os.fsync(out.fileno())
    if parts is None:
        held = max(1, min(int(HELD_OUT * count), MOST_HELD_OUT))
        ends = {"train": count - 2 * held, "validation": count - held, "test": count}
    meta = {"name": name, "sha256": digest.hexdigest(), "tokenizer": tokenizer.describe(), "ends": ends}
    write_json(folder / "meta.json", meta)
