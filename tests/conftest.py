"""Small models and texts that train in a second."""

import json
import os
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import dnt
from dnt.cli import main
from dnt.data import pieces
from dnt.experiments import cells

hypothesis.settings.register_profile("same everywhere", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same everywhere")

# What a test run adds to `dnt train` or `dnt compare`: 20 thousand parameters, no compilation
TINY = ["--depth", "2", "--dim", "32", "--heads", "2", "--context", "16", "--batch-size", "4", "--warmup", "2"]
TINY += ["--no-compile", "--precision", "32"]
OPTIONS = {"steps": 8, "batch_size": 4, "warmup": 2, "compile": False, "precision": "32", "progress": False}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small are slower with more, and far slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """An empty current folder with a text to train on, and its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [f"{a}{b} " for a in ("ka", "lo", "mi", "nu") for b in ("ra", "se", "ti", "vo", "zu")]
    random = torch.Generator().manual_seed(0)
    order = torch.randint(len(words), (3000,), generator=random).tolist()
    Path("words.txt").write_text("".join(words[i] for i in order))
    return tmp_path


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where the tokens of corpora are kept, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """Pieces and slices so small that little text makes many."""
    monkeypatch.setattr(pieces, "PIECE", 1000)
    monkeypatch.setattr(pieces, "SLICE", 50)


@pytest.fixture
def cells_here(monkeypatch) -> None:
    """The cells of a comparison are trained in this process, which has imported torch already."""
    monkeypatch.setattr(cells, "run_child", lambda command: main(command[3:]))


@pytest.fixture
def shared() -> Path:
    """Real data (books, GPT-2's vocabulary) that some checkouts have beside them; DNT_SHARED if it lies elsewhere."""
    folder = Path(os.environ.get("DNT_SHARED") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real data beside this checkout")
    return folder


def small_corpora() -> None:
    """The corpora of the documentation: books (parquet), chats.jsonl, nano (.bin), photos (a folder of images)."""
    words = Path("words.txt").read_text()
    for folder in ("books", "nano"):
        Path(folder).mkdir(exist_ok=True)
    for split in ("train", "validation"):
        parquet.write_table(pyarrow.table({"text": [words] * 9}), f"books/{split}.parquet")
    Path("chats.jsonl").write_text("".join(json.dumps({"question": "?", "answer": words}) + "\n" for _ in range(9)))
    for split in ("train", "val"):
        Path(f"nano/{split}.bin").write_bytes(bytes([1, 0, 64, 0]) * 2000)
    for i in range(20):
        path = Path("photos", ("cat", "dog")[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20 + i, 30, 3), 9 * i, np.uint8)).save(path)


def tiny_model(seed: int = 0, **fields) -> dnt.GPT:
    torch.manual_seed(seed)
    config = {"vocab_size": 256, "context": 16, "depth": 2, "dim": 32, "heads": 2} | fields
    return dnt.GPT(dnt.GPTConfig(**config))


def tiny_msgdw(model: dnt.GPT, lr: float = 0.1) -> dnt.MSGDW:
    return dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-3), lr=lr)
