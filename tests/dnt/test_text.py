"""A corpus is prepared once, in bounded memory, whatever happens in between."""

import hashlib
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dnt.cli import main
from dnt.data import pieces, sources, text
from dnt.data.text import prepare_text
from tests.conftest import TINY
from tests.dnt.corpora import DOCUMENTS, SPLITS, bin_pair, child, documents_of, lines, parquet, same, tokens_of

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_any_number_of_threads_gives_the_same_tokens(small_pieces, tokenizer, cache):
    parquet("data/a.parquet", DOCUMENTS, rows=20)
    first = prepare_text("data", tokenizer, threads=1)
    ids = {split: np.array(tokens) for split, tokens in first.splits.items()}
    shutil.rmtree(cache)
    again = prepare_text("data", tokenizer, threads=4)
    assert all(np.array_equal(again.splits[split], ids[split]) for split in SPLITS)
    assert again.tokenizer == first.tokenizer and again.sha256 == first.sha256


KILLED = """
import os, signal, sys
from dnt.data import pieces, text
pieces.PIECE = 1000
write, written = text.write_part, []
def killing(part, *arguments):
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write(part, *arguments)
    written.append(part)
text.write_part = killing
text.prepare_text(sys.argv[1], sys.argv[2], threads=1)
"""


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_a_killed_preparation_goes_on_with_the_missing_parts(small_pieces, tokenizer, cache, monkeypatch):
    lines("a.jsonl", DOCUMENTS)
    with child(KILLED, "a.jsonl", tokenizer) as killed:
        assert killed.wait() == -9
    [folder] = cache.iterdir()
    (folder / "parts" / "000005.unfinished").mkdir()
    (folder / "parts" / "000005.unfinished" / "train.bin").write_bytes(b"half a par")
    done = {part.name: part.stat().st_mtime_ns for part in (folder / "parts").glob("??????")}
    assert len(done) == 5 and not (folder / "meta.json").exists()
    computed = []
    encode_piece = pieces.LinesPiece.fragments
    monkeypatch.setattr(
        pieces.LinesPiece, "fragments", lambda self: (computed.append(self.start), encode_piece(self))[1]
    )
    prepared = prepare_text("a.jsonl", tokenizer)
    total = len(list(pieces.lines_pieces("train", "a.jsonl", "text")))
    assert sorted(computed) == [1000 * i for i in range(5, total)], "the vocabulary was learned before the kill"
    ids = {split: np.array(tokens) for split, tokens in prepared.splits.items()}
    assert not (folder / "parts").exists()
    shutil.rmtree(cache)
    assert all(np.array_equal(prepare_text("a.jsonl", tokenizer).splits[split], ids[split]) for split in SPLITS)


def test_parts_of_another_state_of_the_files_are_not_taken_over(small_pieces):
    lines("a.jsonl", DOCUMENTS)
    with child(KILLED, "a.jsonl", "byte") as killed:
        assert killed.wait() == -9
    lines("a.jsonl", [words.upper() for words in DOCUMENTS])
    assert documents_of(prepare_text("a.jsonl")) == [words.upper() for words in DOCUMENTS]


def test_a_file_that_changes_while_it_is_read_is_an_error(monkeypatch, small_pieces, cache):
    lines("a.jsonl", DOCUMENTS)
    join = text.join_parts
    monkeypatch.setattr(text, "join_parts", lambda *arguments: (lines("a.jsonl", DOCUMENTS[::-1]), join(*arguments))[1])
    with pytest.raises(ValueError, match=r"'a.jsonl' changed while it was read; prepare it again."):
        prepare_text("a.jsonl")
    monkeypatch.undo()


COUNTING = """
import sys, time
from dnt.data import pieces, text
pieces.PIECE = 1000
write, written = text.write_part, []
text.write_part = lambda part, *arguments: (written.append(part), time.sleep(0.02), write(part, *arguments))
text.prepare_text(sys.argv[1])
print(len(written))
"""


def test_of_two_processes_at_once_one_prepares_and_one_waits(cache):
    lines("a.jsonl", DOCUMENTS)
    both = [child(COUNTING, "a.jsonl") for _ in range(2)]
    written = sorted(int(process.communicate()[0]) for process in both)
    assert all(process.returncode == 0 for process in both) and written[0] == 0 and written[1] > 10
    assert documents_of(prepare_text("a.jsonl")) == DOCUMENTS and len(list(cache.iterdir())) == 1


def test_an_error_in_one_piece_stops_the_others_soon(monkeypatch, small_pieces):
    lines("a.jsonl", ["x" * 900] * 500)
    with open("a.jsonl", "ab") as file:
        file.write(b"broken\n")
    written = []
    write = text.write_part

    def broken_first(part: Path, piece: pieces.Piece, *arguments: object) -> None:
        if int(part.name) == 1:
            raise ValueError("broken")
        time.sleep(0.01)
        written.append(part)
        write(part, piece, *arguments)

    monkeypatch.setattr(text, "write_part", broken_first)
    before = threading.active_count()
    with pytest.raises(ValueError, match="broken"):
        prepare_text("a.jsonl", threads=2)
    assert len(written) < 100 and threading.active_count() == before


PEAK = r"""
import re, sys
from dnt.data.text import prepare_text
tokens = prepare_text(sys.argv[1], "byte", threads=8).describe()["tokens"]
print(sum(tokens.values()), re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("format", ["txt", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_corpus(format):
    """250 MB by 8 threads; the row groups are of 10 MB, and all of each is one page."""
    line = "the thing in the end " * 50
    path = f"large.{format}"
    if format == "parquet":
        table = pyarrow.table({"text": pyarrow.array([line * 10] * 1000)})
        with pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False) as writer:
            for _ in range(24):
                writer.write_table(table)
    else:
        row = line + "\n" if format == "txt" else json.dumps({"text": line}) + "\n"
        with open(path, "w") as file:
            for _ in range(240):
                file.write(row * 1000)
    process = child(PEAK, path)
    tokens, peak = map(int, process.communicate()[0].split())
    assert process.returncode == 0 and tokens > 250_000_000
    assert peak * 1024 < (500e6 if format == "parquet" else 250e6), "of 1 GB that is allowed"


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_digest_of_one_file_is_its_sha256_and_of_several_that_of_their_contents_ended_by_nul():
    for path in (parquet("a/train.parquet", DOCUMENTS), lines("a.jsonl", DOCUMENTS)):
        assert prepare_text(path).sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    parquet("a/validation.parquet", DOCUMENTS[:9])
    contents = [Path(f"a/{split}.parquet").read_bytes() + b"\0" for split in ("train", "validation")]
    assert prepare_text("a").sha256 == hashlib.sha256(b"".join(contents)).hexdigest()


def test_the_key_is_the_content_of_a_tokenizer_file_not_its_path(cache):
    path = lines("a.jsonl", DOCUMENTS)
    learned = prepare_text(path, "bpe:300").tokenizer
    for name in ("one.json", "two.json"):
        Path(name).write_text(learned.content)
    first, second = (prepare_text(path, name) for name in ("one.json", "two.json"))
    assert same(first, second) and len(list(cache.iterdir())) == 2
    assert first.describe()["tokenizer"] == f"file:{hashlib.sha256(learned.content.encode()).hexdigest()[:16]}"
    Path("two.json").write_text(prepare_text(path, "bpe:290").tokenizer.content)
    assert len(prepare_text(path, "two.json").splits["train"]) > len(first.splits["train"])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["bpe:300", "tokenizer.json", "ids:60"])
def test_a_run_is_sampled_with_nothing_but_its_folder(tokenizer, capfd):
    if tokenizer == "ids:60":
        bin_pair("data/", list(range(60)) * 40, list(range(60)) * 9)
        data = "data"
    else:
        data = lines("a.jsonl", DOCUMENTS)
        Path("tokenizer.json").write_text(prepare_text(data, "bpe:280").tokenizer.content)
    train = ["train", "--data", data, "--tokenizer", tokenizer, "--steps", "3", *TINY]
    assert main([*train, "--out", "run"]) == 0
    for gone in ("a.jsonl", "tokenizer.json"):
        Path(gone).unlink(missing_ok=True)
    shutil.rmtree("cache")
    prompt = "1 2 3" if tokenizer == "ids:60" else "the thing"
    capfd.readouterr()
    assert main(["sample", "run", "--prompt", prompt, "--tokens", "9"]) == 0
    assert capfd.readouterr().out.startswith(prompt)
    assert main(["sample", "run", "--tokens", "9"]) == 0
    assert json.loads(Path("run/config.json").read_text())["settings"]["column"] == "text"


def test_comparisons_pass_the_column_on(cells_here):
    lines("a.jsonl", DOCUMENTS, "content")
    only = ["--placements", "dnt", "--optimizers", "msgdw", "--steps", "3", "--out", "cmp"]
    assert main(["compare", "--data", "a.jsonl", "--column", "content", *TINY, *only]) == 0


def test_the_books_are_whole_in_any_encoding(shared, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "gpt2-bpe"))
    path = str(shared / "books" / "validation.parquet")
    texts = pyarrow.parquet.read_table(path)["text"].to_pylist()
    prepared = prepare_text(path, "gpt2")
    ids = tokens_of(prepared)
    whole = prepared.tokenizer.encode(texts[3])
    starts = np.flatnonzero(ids == 50256) + 1
    assert np.array_equal(ids[starts[2] : starts[3] - 1], whole), "the tokens of a book are those of its text at once"
    assert prepared.tokenizer.decode(ids.tolist()) == "".join(words + "<|endoftext|>" for words in texts)
    assert sources.find_source(str(shared / "books")).files.keys() == {"train", "validation"}
