"""Text to ids and back, by every tokenizer; what a stored description is good for."""

import base64
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnt.data import pieces
from dnt.data.text import prepare_text
from dnt.data.tokenizers import (
    END_OF_TEXT,
    TOKENIZERS,
    ByteTokenizer,
    CharTokenizer,
    FileTokenizer,
    GPT2Tokenizer,
    IdsTokenizer,
    file_tokenizer,
    learn_bpe,
    parse_spec,
    ready_made,
    tokenizer_from,
)

MERGES = [b"th", b"the", b" t", b" the", b"er", b"in", b"ing", b"  ", b"\n\n", "é".encode(), b"<|"]
TINY_GPT2 = GPT2Tokenizer(
    " ".join(base64.b64encode(token).decode() for token in [*(bytes([i]) for i in range(256)), *MERGES])
)
LEARNED = learn_bpe(["the thing there, über alles\n\nin the end; 12 123 don't <|endoftext|>\n"] * 9, 400)
FILE = FileTokenizer(LEARNED.content, LEARNED.end)
ANY_TEXT = [ByteTokenizer(), TINY_GPT2, LEARNED, FILE]
WORDS = st.text(st.sampled_from("the in'sdtmé12 \n\t\xa0,.<|>ß") | st.characters(codec="utf-8"), max_size=60)


def gpt2_files(shared: Path, folder: Path) -> Path:
    """GPT-2's vocab.json and merges.txt as transformers names them."""
    folder.mkdir()
    merges, vocabulary = sorted((shared / "gpt2-bpe").iterdir(), key=lambda path: path.stat().st_size)
    shutil.copy(vocabulary, folder / "vocab.json")
    shutil.copy(merges, folder / "merges.txt")
    return folder


@pytest.mark.parametrize("tokenizer", ANY_TEXT, ids=lambda t: t.identity)
@given(words=WORDS)
def test_any_text_is_decoded_from_its_ids(tokenizer, words):
    ids = tokenizer.encode(words)
    assert ids.dtype == tokenizer.dtype and all(ids < tokenizer.vocab_size)
    assert tokenizer.decode(ids.tolist()) == words


@pytest.mark.parametrize("tokenizer", [*ANY_TEXT, CharTokenizer("\0abc"), IdsTokenizer(65)], ids=lambda t: t.identity)
def test_a_description_in_json_is_all_that_a_tokenizer_is(tokenizer):
    again = tokenizer_from(json.loads(json.dumps(tokenizer.describe())))
    assert again == tokenizer and TOKENIZERS[tokenizer.describe()["kind"]] is type(tokenizer)
    assert (again.end, again.start, again.vocab_size) == (tokenizer.end, tokenizer.start, tokenizer.vocab_size)
    assert again.identity == tokenizer.identity
    assert all(i < again.vocab_size for i in (*again.end, *again.start)) and again.start


@pytest.mark.parametrize("tokenizer", [TINY_GPT2, LEARNED, FILE], ids=lambda t: t.identity)
def test_a_literal_end_of_text_is_ordinary_text(tokenizer):
    ids = tokenizer.encode(f"one {END_OF_TEXT} two")
    assert tokenizer.end[0] not in ids and tokenizer.decode(ids.tolist()) == f"one {END_OF_TEXT} two"
    assert tokenizer.decode(tokenizer.end) == END_OF_TEXT


@pytest.mark.parametrize("tokenizer", [TINY_GPT2, LEARNED], ids=lambda t: t.identity)
@given(words=WORDS)
def test_a_text_may_be_cut_wherever_long_texts_are_cut(tokenizer, words):
    words = f"in {words} the"
    for place in pieces.CUT_TEXT.finditer(words):
        parts = [tokenizer.encode(words[: place.start()]), tokenizer.encode(words[place.start() :])]
        assert np.array_equal(np.concatenate(parts), tokenizer.encode(words))


@given(st.text(alphabet="a b\n", max_size=200), st.integers(1, 20))
def test_slices_are_the_text_and_bounded(words, size):
    original, pieces.SLICE = pieces.SLICE, size
    try:
        parts = list(pieces.slices(words))
    finally:
        pieces.SLICE = original
    assert "".join(parts) == words and max(map(len, parts)) <= 2 * size


def test_bpe_is_learned_the_same_each_time_and_makes_text_shorter():
    text = Path(json.__file__).read_text()
    first, again = (learn_bpe([text], 600) for _ in range(2))
    assert first == again and first.vocab_size == 600
    assert len(first.encode(text)) < 0.6 * len(text)


def test_the_gpt2_pattern_keeps_words_numbers_punctuation_and_contractions_apart():
    """Against the rule written out for Python's re, on ASCII; no pretoken is ever merged with another."""
    import re

    slow = re.compile(r"'(?:[sddnt]|ll|ve|re)| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
    text = "I'll  say 'the' 42 things:\n\n\tthere's  no\n end...   \n"
    parts = slow.findall(text)
    assert "".join(parts) == text
    assert TINY_GPT2.encode(text).tolist() == [i for part in parts for i in TINY_GPT2.encode(part)]


def test_gpt2_is_tiktokens_gpt2(shared, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "gpt2-bpe"))
    import tiktoken

    text = (shared / "text/shakespeare.txt").read_text() + "  naïve Zürich 你好 🙂 \r\n\t 1234567 <|endoftext|>"
    tokenizer = ready_made("gpt2")
    assert tokenizer.vocab_size == 50257 and tokenizer.end == (50256,) and tokenizer.dtype == np.uint16
    stored = tokenizer_from(json.loads(json.dumps(tokenizer.describe())))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nowhere")
    ids = stored.encode(text)
    assert ids.tolist() == tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert stored.decode(ids.tolist()) == text
    parts = [stored.encode(part) for part in pieces.slices(text)]
    assert len(parts) > 3 and np.array_equal(np.concatenate(parts), ids)


def test_gpt2_is_the_tokenizer_file_that_transformers_writes(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "gpt2-bpe"))
    from transformers import GPT2TokenizerFast

    pair = gpt2_files(shared, tmp_path / "pair")
    GPT2TokenizerFast.from_pretrained(str(pair)).save_pretrained(str(tmp_path / "saved"))
    text = (shared / "text/shakespeare.txt").read_text()[:200_000] + " don't naïve 你好 🙂 \r\n\t 1234567"
    expected = ready_made("gpt2").encode(text)
    for path in (tmp_path / "pair", tmp_path / "saved", tmp_path / "saved" / "tokenizer.json"):
        tokenizer = ready_made(str(path))
        assert np.array_equal(tokenizer.encode(text), expected) and tokenizer.end == (50256,)


def test_the_end_of_a_document_is_what_the_files_say(tmp_path):
    saved = tmp_path / "tokenizer.json"
    saved.write_text(LEARNED.content)
    assert file_tokenizer(tmp_path).end == LEARNED.end, "a known token"
    for eos in ("the", {"content": "the", "special": True}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        assert file_tokenizer(saved).end == tuple(LEARNED.encode("the")), "the one that the config names"
    (tmp_path / "tokenizer_config.json").unlink()
    saved.write_text(LEARNED.content.replace(END_OF_TEXT, "<|other|>"))
    assert file_tokenizer(tmp_path).decode(file_tokenizer(tmp_path).end) == "\n\n", "none: a blank line"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bytes", "unknown tokenizer 'bytes'. Did you mean 'byte'? Known: byte, char, gpt2, bpe:VOCAB, ids:VOCAB."),
        ("bpe:100", "tokenizer 'bpe:100' needs a vocabulary size of at least 257"),
        ("bpe", "tokenizer 'bpe' needs a vocabulary size of at least 257"),
        ("ids:many", "tokenizer 'ids:many' needs a vocabulary size of at least 1"),
        ("no/such.json", "no tokenizer at 'no/such.json'; give a tokenizer.json, a folder that holds one, or byte, "),
        ("empty", "empty holds no tokenizer.json, nor vocab.json with merges.txt."),
        ("broken.json", "broken.json is not the tokenizer.json of a tokenizer ("),
        ("llama/tokenizer.model", "is a sentencepiece model; convert it once: transformers.AutoTokenizer"),
        ("llama", "llama is a sentencepiece model; convert it once"),
    ],
)
def test_unusable_tokenizers_are_named_before_any_data_is_read(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken.json").write_text("{}")
    Path("llama").mkdir()
    Path("llama/tokenizer.model").write_bytes(b"\x0a\x0e")
    with pytest.raises(ValueError) as error:
        parse_spec(spec)
        ready_made(spec)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("spec", "package"), [("gpt2", "tiktoken"), ("bpe:300", "tokenizers")])
def test_a_missing_package_is_named_with_its_installation(tmp_path, monkeypatch, spec, package):
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "text.txt").write_text("some text " * 50)
    with pytest.raises(ValueError, match=rf"needs the package {package}.*: pip install 'dnt-torch\[text\]'$"):
        prepare_text(str(tmp_path / "text.txt"), spec)


def test_gpt2_without_its_vocabulary_and_network_is_one_line(tmp_path, monkeypatch):
    import requests
    import tiktoken.registry

    def unreachable(*_, **__):
        raise requests.exceptions.ConnectionError("HTTPSConnectionPool(host='openaipublic...')")

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(requests, "get", unreachable)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"not in tiktoken's cache and cannot be downloaded \(ConnectionError\); connect"
    ):
        ready_made("gpt2")


def test_numbers_are_their_own_ids():
    tokenizer = IdsTokenizer(65)
    assert tokenizer.encode("1 2 64").tolist() == [1, 2, 64] and tokenizer.decode([1, 2, 64]) == "1 2 64"
    for wrong in ("65", "-1", "x"):
        with pytest.raises(
            ValueError, match=f"'{wrong}' is no id: with the tokenizer ids:65 a text is numbers from 0 to 64"
        ):
            tokenizer.encode(f"1 {wrong}")
