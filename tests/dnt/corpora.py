"""Corpora that several tests read, and what became of them."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from dnt.data.text import PreparedText

SPLITS = ("train", "validation", "test")
DOCUMENTS = [f"document {i}: " + "the thing in thé end\n" * (i % 7) for i in range(300)]


def parquet(path: str, documents: list[str | None], column: str = "text", rows: int = 40) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"title": [str(i) for i in range(len(documents))], column: documents})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def lines(path: str, documents: list[str | None], column: str = "text") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps({"title": i, column: words}) + "\n" for i, words in enumerate(documents)).encode()
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return path


def bin_pair(prefix: str, train: list[int], val: list[int]) -> None:
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    Path(f"{prefix}train.bin").write_bytes(np.array(train, np.uint16).tobytes())
    Path(f"{prefix}val.bin").write_bytes(np.array(val, np.uint16).tobytes())


def written(name: str, content: bytes | str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def tokens_of(prepared: PreparedText) -> np.ndarray:
    return np.concatenate([prepared.splits[split] for split in SPLITS])


def documents_of(prepared: PreparedText, split: str | None = None) -> list[str]:
    ids = prepared.splits[split] if split else tokens_of(prepared)
    return prepared.tokenizer.decode(ids.tolist()).split("\0")[:-1]


def same(a: PreparedText, b: PreparedText) -> bool:
    return all(np.array_equal(a.splits[split], b.splits[split]) for split in SPLITS)


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
