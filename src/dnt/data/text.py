"""Text sources -> tokens, prepared once into a memory-mapped file. No torch.

A source is "stdlib" (the Python source files of the standard library that runs this, tests left out), a text file, or
a folder of text files. Validation and test are 5% each, at most 256 KiB, since an evaluation reads them whole. One file
is split by position: train, validation, test. Several are split by file: in the order of the sha256 of their relative
paths, each goes to validation, then to test, if it still fits there, else to train. Files are joined by a NUL.

    <cache>/tokens/<key>/tokens.bin   all tokens, uint16 or uint32: train, then validation, then test
    <cache>/tokens/<key>/meta.json    where each split lies, the tokenizer, the sha256 of the text

The folder is renamed into place when it is complete, so a half-written one is never found.
"""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dnt.data.tokenizers import TOKENIZERS, ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_from
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
    lookup(dict.fromkeys(TOKENIZERS), tokenizer, "tokenizer")
    root, files = source_files(name)
    folder = cache_root() / "tokens" / cache_key(root, files, tokenizer)
    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
        try:
            write_tokens(unfinished, name, root, files, tokenizer, progress)
            try:
                unfinished.rename(folder)
            except OSError:
                if not (folder / "meta.json").exists():  # else another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return open_tokens(folder, name)


def open_tokens(folder: Path, name: str) -> PreparedText:
    meta = json.loads((folder / "meta.json").read_text())
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
        raise ValueError(f"no data at {name!r}. Give a text file, a folder of text files, or 'stdlib'.")
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
    if root.is_dir() and len(files) < 3:
        raise ValueError(
            f"{name!r} holds {len(files)} text file(s), but a split by file needs 3. "
            "Give one file by its own path: it is split by position."
        )
    return root, files


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


def split_by_file(root: Path, files: list[Path]) -> dict[str, list[Path]]:
    def rank(path: Path) -> str:
        return hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest()

    left = sorted(files, key=rank)
    budget = min(HELD_OUT * sum(path.stat().st_size for path in files), MOST_HELD_OUT)
    parts = {}
    for split in ("validation", "test"):
        taken, room = [], budget
        for path in left:
            if path.stat().st_size <= room:
                taken.append(path)
                room -= path.stat().st_size
        parts[split] = taken or left[:1]
        left = [path for path in left if path not in parts[split]]
    return {"train": left} | parts


def read_chunks(path: Path) -> Iterator[str]:
    """The text of a file piece by piece, newlines as they are; bytes that are not UTF-8 become U+FFFD."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def write_tokens(folder: Path, name: str, root: Path, files: list[Path], kind: str, show: bool) -> None:
    parts = split_by_file(root, files) if root.is_dir() else {"train": files}
    joiner = [SEPARATOR] if root.is_dir() else []

    def chunks(paths: list[Path]) -> Iterator[str]:
        for path in paths:
            yield from read_chunks(path)
            yield from joiner

    percent = TextColumn("{task.percentage:.0f}%")
    columns = (TextColumn(f"preparing {name}"), BarColumn(), percent, TimeRemainingColumn())
    shown = show and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        passes = 2 if kind == "char" else 1
        task = bar.add_task("", total=passes * sum(p.stat().st_size for p in files))
        advance: Callable[[str], None] = lambda text: bar.advance(task, len(text))  # noqa: E731
        tokenizer: Tokenizer = ByteTokenizer()
        if kind == "char":
            seen: set[str] = set()
            for text in chunks([path for paths in parts.values() for path in paths]):
                seen.update(text)
                advance(text)
            tokenizer = CharTokenizer("".join(sorted(seen)))
        digest, count, ends = hashlib.sha256(), 0, {}
        with (folder / "tokens.bin").open("wb") as out:
            for split, paths in parts.items():
                for text in chunks(paths):
                    digest.update(text.encode("utf-8", errors="surrogatepass"))
                    ids = tokenizer.encode(text)
                    ids.tofile(out)
                    count += len(ids)
                    advance(text)
                ends[split] = count
            out.flush()
            os.fsync(out.fileno())
    if root.is_file():
        held = max(1, min(int(HELD_OUT * count), MOST_HELD_OUT))
        ends = {"train": count - 2 * held, "validation": count - held, "test": count}
    meta = {"name": name, "sha256": digest.hexdigest(), "tokenizer": tokenizer.describe(), "ends": ends}
    (folder / "meta.json").write_text(json.dumps(meta))
