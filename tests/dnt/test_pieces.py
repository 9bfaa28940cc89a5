"""Every format in pieces: the same documents, and none lost where a piece ends."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from dnt.data import pieces
from dnt.data.text import prepare_text
from tests.dnt.corpora import DOCUMENTS, documents_of, lines, parquet, same, tokens_of

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
def test_parquet_and_json_lines_give_the_same_tokens(small_pieces, tokenizer):
    made = [prepare_text(parquet("a.parquet", DOCUMENTS), tokenizer)]
    made += [
        prepare_text(lines(name, DOCUMENTS), tokenizer) for name in ("a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz")
    ]
    assert all(same(made[0], other) for other in made[1:]) or tokenizer == "bpe:300"  # which is learned by piece
    for prepared in made:
        end = prepared.tokenizer.decode(prepared.tokenizer.end)
        assert prepared.tokenizer.decode(tokens_of(prepared).tolist()) == "".join(words + end for words in DOCUMENTS)


def test_a_folder_of_texts_holds_the_same_documents():
    Path("texts").mkdir()
    for i, words in enumerate(DOCUMENTS):
        Path(f"texts/{i}.txt").write_text(words, newline="")
    assert sorted(documents_of(prepare_text("texts"))) == sorted(
        documents_of(prepare_text(parquet("p.parquet", DOCUMENTS)))
    )


def test_every_line_belongs_to_one_piece_wherever_the_ranges_fall(monkeypatch):
    lines("a.jsonl", [None, *DOCUMENTS[:40], "", "x" * 500])
    content = Path("a.jsonl").read_bytes().replace(b"\n", b"\n\n", 3) + b"   \n"
    Path("a.jsonl").write_bytes(content.rstrip(b" \n"))  # the last line has no end
    for size in (1, 7, 64, 499, 1000, 10**6):
        monkeypatch.setattr(pieces, "PIECE", size)
        parts = list(pieces.lines_pieces("train", "a.jsonl", "text"))
        found = [fragment.text for part in parts for fragment in part.fragments()]
        assert found == [*DOCUMENTS[:40], "", "x" * 500], "and null is no document"


def test_a_long_text_is_cut_into_pieces_and_none_of_it_lost(monkeypatch):
    content = ("wörd " * 30 + "\n" + "你好" * 60 + "\n" + "x" * 150) * 40
    Path("a.txt").write_text(content)
    for size in (64, 300, 10**6):
        monkeypatch.setattr(pieces, "PIECE", size)
        parts = list(pieces.text_pieces("train", [Path("a.txt")], separated=False))
        assert "".join(fragment.text for part in parts for fragment in part.fragments()) == content
        assert len(parts) > 10 or size == 10**6


def test_texts_of_parquet_may_be_large_strings_dictionaries_or_bytes():
    for kind in (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), pyarrow.binary()):
        column = pyarrow.array(["one", None, "two ü"]).cast(kind)
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), "a.parquet")
        assert documents_of(prepare_text("a.parquet")) == ["one", "two ü"]


def test_another_column_is_other_data():
    path = parquet("a.parquet", ["one", "two", "three"])
    assert documents_of(prepare_text(path, column="title")) == ["0", "1", "2"]
    assert documents_of(prepare_text(path)) == ["one", "two", "three"]


def test_half_a_surrogate_pair_in_json_is_replaced():
    Path("a.jsonl").write_text('{"text": "a \\ud800 b"}\n{"text": "\\ud83d\\ude42"}\n')
    assert documents_of(prepare_text("a.jsonl")) == ["a � b", "🙂"]


def test_a_document_beyond_what_memory_allows_is_named(monkeypatch):
    monkeypatch.setattr(pieces, "LONGEST", 1 << 20)
    for path in (lines("a.jsonl", ["ok", "x" * (1 << 21)]), parquet("a.parquet", ["ok", "x" * (1 << 21)])):
        with pytest.raises(
            ValueError, match=r"a.(jsonl, line 2|parquet, row 1 of row group 0): a document of more than 1 MiB"
        ):
            prepare_text(path)
