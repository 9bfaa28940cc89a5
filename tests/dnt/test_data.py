import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dnt
from dnt.data import text
from dnt.data.text import prepare_text
from dnt.data.tokenizers import ByteTokenizer, CharTokenizer, tokenizer_from
from dnt.data.tokens import Windows, frequency_deciles


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def poem(tmp_path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text("".join(f"line {i} of a long poem, über alles\r\n" for i in range(400)), newline="")
    return path


# --- tokenizers -----------------------------------------------------------------------------------------------------


@given(st.text())
def test_bytes_decode_to_the_text_they_encode(words):
    ids = ByteTokenizer().encode(words)
    assert ids.tolist() == list(words.encode()) and ByteTokenizer().decode(ids.tolist()) == words


@given(st.text(min_size=1), st.data())
def test_characters_decode_to_the_text_they_encode(words, data):
    tokenizer = CharTokenizer("".join(sorted(set(words))))
    again = data.draw(st.text(alphabet=sorted(set(words))))
    assert tokenizer.decode(tokenizer.encode(again).tolist()) == again
    assert tokenizer_from(json.loads(json.dumps(tokenizer.describe()))) == tokenizer


def test_an_unknown_character_is_named():
    with pytest.raises(ValueError, match="character 'ß' is not among the 3"):
        CharTokenizer("abc").encode("abß")


def test_a_large_vocabulary_takes_four_bytes_a_token():
    many = CharTokenizer("".join(chr(0x20000 + i) for i in range(70_000)))
    assert many.dtype == np.uint32 and many.encode(many.characters[-1]).tolist() == [69_999]


# --- preparing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_file_is_split_by_position_and_nothing_is_lost(poem, tokenizer):
    prepared = prepare_text(str(poem), tokenizer)
    joined = np.concatenate([prepared.splits[s] for s in ("train", "validation", "test")])
    assert prepared.tokenizer.decode(joined.tolist()).encode() == poem.read_bytes()
    sizes = [len(prepared.splits[s]) for s in ("train", "validation", "test")]
    assert sizes[1] == sizes[2] == int(0.05 * sum(sizes))


def test_a_folder_is_split_by_file(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for i in range(40):
        (folder / ("sub" if i % 2 else ".") / f"{i}.txt").write_text(f"<{i}>" * 30)
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / ".hidden").write_text("<hidden>")
    prepared = prepare_text(str(folder))
    files = {}
    for split, tokens in prepared.splits.items():
        for document in prepared.tokenizer.decode(tokens.tolist()).split("\0")[:-1]:
            assert document == document[: document.index(">") + 1] * 30, "documents are whole"
            files[document[: document.index(">") + 1]] = split
    assert set(files) == {f"<{i}>" for i in range(40)}
    assert list(files.values()).count("validation") == list(files.values()).count("test") == 2


@pytest.mark.parametrize("small", [0, 1])
def test_a_folder_of_files_too_large_to_hold_out_is_split_by_position(tmp_path, small):
    """Four books, with and without a tiny file, which alone would be no validation."""
    folder = tmp_path / "books"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"book {i} " * 3000)
    for i in range(small):
        (folder / f"note{i}").write_text("abc")
    prepared = prepare_text(str(folder))
    sizes = {split: len(tokens) for split, tokens in prepared.splits.items()}
    total = sum(sizes.values())
    assert total == 4 * 21_000 + small * 3 + (4 + small), "with a separator after each file"
    assert sizes["validation"] == sizes["test"] == int(0.05 * total)


def test_stdlib_is_the_source_of_this_python_by_file():
    prepared = prepare_text("stdlib")
    everything = {s: prepared.tokenizer.decode(t.tolist()) for s, t in prepared.splits.items()}
    argparse_source = Path(__import__("argparse").__file__).read_text()
    assert sum(argparse_source in part for part in everything.values()) == 1
    assert min(len(t) for t in prepared.splits.values()) > 200_000
    assert max(len(prepared.splits["validation"]), len(prepared.splits["test"])) < 300_000
    assert len(prepared.splits["train"]) > 5_000_000


def test_tokens_are_prepared_once_and_again_when_the_text_changes(poem, cache):
    first = prepare_text(str(poem))
    [folder] = cache.iterdir()
    before = (folder / "tokens.bin").stat().st_mtime_ns
    assert prepare_text(str(poem)).sha256 == first.sha256
    assert (folder / "tokens.bin").stat().st_mtime_ns == before
    poem.write_text("changed " * 1000)
    assert prepare_text(str(poem)).sha256 != first.sha256 and len(list(cache.iterdir())) == 2


def test_a_half_written_preparation_is_never_taken_for_a_whole_one(poem, cache, monkeypatch):
    whole = prepare_text(str(poem))
    with monkeypatch.context() as broken:
        broken.setattr(text, "FORMAT", 99)  # another key
        broken.setattr(text, "write_json", lambda *_: 1 / 0)  # dies after tokens.bin, before meta.json
        with pytest.raises(ZeroDivisionError):
            prepare_text(str(poem))
    left = cache / ".unfinished-from-a-kill"
    left.mkdir()
    (left / "tokens.bin").write_bytes(b"\0\0")
    monkeypatch.setattr(text, "FORMAT", 99)
    again = prepare_text(str(poem))
    assert all(np.array_equal(again.splits[s], whole.splits[s]) for s in whole.splits)


def test_truncated_tokens_are_an_error_not_data(poem, cache):
    prepare_text(str(poem))
    [folder] = cache.iterdir()
    os.truncate(folder / "tokens.bin", 100)
    with pytest.raises(ValueError, match="holds 50 tokens, not"):
        prepare_text(str(poem))


def test_the_digest_is_the_sha256_of_the_text(poem):
    import hashlib

    digest = prepare_text(str(poem)).describe()["sha256"]
    assert digest == hashlib.sha256(poem.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "no data at"),
        (lambda p: write(p / "empty.txt", ""), "holds no text"),
        (lambda p: write(p / "texts" / "binary", "\0").parent, "holds no text"),
        (lambda p: write(p / "stdlb", "").with_name("stdli"), "Did you mean "),
        (lambda p: write(p / "binary", "\0\0"), "holds no text"),
    ],
)
def test_unusable_sources_are_named(tmp_path, make, message):
    with pytest.raises(ValueError) as error:
        prepare_text(str(make(tmp_path)))
    assert message in str(error.value)


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


# --- batches --------------------------------------------------------------------------------------------------------


def test_targets_are_the_next_tokens_and_batches_a_function_of_seed_and_step():
    windows = Windows(np.arange(1000, dtype=np.uint16), context=16)
    x, y = windows.batch(seed=3, step=5, batch_size=8)
    assert x.shape == y.shape == (8, 16) and x.dtype == torch.int64 and torch.equal(y, x + 1)
    for other in range(4):
        windows.batch(seed=other, step=other, batch_size=4)
    assert torch.equal(windows.batch(3, 5, 8)[0], x)
    assert not torch.equal(windows.batch(4, 5, 8)[0], x) and not torch.equal(windows.batch(3, 6, 8)[0], x)


@given(st.integers(4, 20), st.integers(1, 7), st.integers(0, 9))
def test_an_epoch_visits_every_window_once(context, batch_size, seed):
    windows = Windows(np.arange(12 * context + 5, dtype=np.uint16), context)
    n = windows.per_epoch
    firsts = [windows.batch(seed, step, batch_size)[0][:, 0] for step in range(3 * n // batch_size + 1)]
    stream = torch.cat(firsts)
    for epoch in range(2):
        starts = stream[epoch * n : (epoch + 1) * n].sort().values
        assert torch.equal(starts - starts[0], torch.arange(n) * context) and starts[0] < context
    assert not torch.equal(stream[:n], stream[n : 2 * n]), "another order each epoch"


def test_smaller_batches_slice_the_same_stream():
    windows = Windows(np.arange(1000, dtype=np.uint16), context=16)
    whole = windows.batch(0, 3, 8)[0]
    assert torch.equal(whole, torch.cat([windows.batch(0, 6, 4)[0], windows.batch(0, 7, 4)[0]]))


@given(st.integers(2, 9), st.integers(1, 5), st.integers(20, 200))
def test_an_evaluation_predicts_every_token_but_the_first_exactly_once(context, batch_size, length):
    tokens = np.arange(length, dtype=np.uint16)
    seen = []
    for x, y in Windows(tokens, context).whole(batch_size):
        assert x.shape == y.shape == (batch_size, context)
        assert torch.equal(y[y >= 0], x[y >= 0] + 1)
        seen += y[y >= 0].tolist()
    assert seen == list(range(1, length))


def test_a_context_longer_than_the_data_is_named(poem):
    with pytest.raises(ValueError, match=r"the context of 9000 tokens is too long for the train split of \d+ tokens"):
        dnt.prepare(str(poem), context=9000)


# --- frequencies ----------------------------------------------------------------------------------------------------


def test_deciles_hold_a_tenth_of_the_tokens_each_frequent_symbols_first():
    assert frequency_deciles(np.array([7] * 30)).tolist() == [i // 3 for i in range(30)]  # ties: by id
    shuffled = np.random.default_rng(0).permutation(1000)
    counts = (1e9 / (1 + shuffled)).astype(np.int64)  # Zipf: the first symbol alone is 13% of all
    deciles = frequency_deciles(counts)
    assert (np.diff(deciles[np.argsort(shuffled)]) >= 0).all(), "never a rarer symbol before"
    shares = np.bincount(deciles, counts) / counts.sum()
    assert shares[3:] == pytest.approx(0.1, abs=0.01) and len(shares) == 10


def test_a_symbol_of_more_than_a_tenth_lies_where_its_middle_does_and_an_unseen_one_is_rare():
    # of 100: 0-44, 44-74, 74-84, 84-94, 94-97, 97-100, nothing
    assert frequency_deciles(np.array([44, 30, 10, 10, 3, 3, 0])).tolist() == [2, 5, 7, 8, 9, 9, 9]
    assert frequency_deciles(np.array([0, 5])).tolist() == [9, 5]


def test_deciles_count_the_training_split(tmp_path):
    (tmp_path / "ab.txt").write_text("a" * 6000 + "b" * 3999 + "c")
    data = dnt.prepare(str(tmp_path / "ab.txt"), context=8)
    deciles = data.deciles()
    train = bytes(data.train.tokens.tolist())
    assert len(deciles) == 256 and deciles[ord("c")] == 9
    assert deciles[ord("a")] == 10 * (train.count(b"a") / 2) // len(train)
    assert deciles[ord("b")] == 10 * (train.count(b"a") + train.count(b"b") / 2) // len(train)
