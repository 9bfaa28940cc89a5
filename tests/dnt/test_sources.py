"""What a data name means, which splits it has, and what is said of one that cannot be used."""

import gzip
import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dnt.cli import main
from dnt.data.text import prepare_text
from tests.dnt.corpora import DOCUMENTS, SPLITS, bin_pair, documents_of, lines, parquet, written

pytestmark = pytest.mark.usefixtures("cache")


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "validation.parquet", "test.parquet"),
        ("train-00000-of-00001.parquet", "valid_0.parquet", "test.1.parquet"),
        ("plain/train/0000.parquet", "plain/val/0000.parquet", "plain/test/0000.parquet"),
        ("train.jsonl", "val.jsonl", "test.jsonl.gz"),
    ],
)
def test_named_splits_are_used_as_they_are(names):
    for i, name in enumerate(names):
        (parquet if "parquet" in name else lines)(f"data/{name}", DOCUMENTS[i * 100 : (i + 1) * 100])
    for beside in ("README.md", "LICENSE", "dataset_info.json", ".gitattributes"):
        Path("data", beside).write_text("{}")
    prepared = prepare_text("data")
    assert [documents_of(prepared, split) for split in SPLITS] == [DOCUMENTS[:100], DOCUMENTS[100:200], DOCUMENTS[200:]]


def test_a_validation_without_a_test_is_halved_by_position():
    parquet("data/train.parquet", DOCUMENTS[:200])
    parquet("data/validation.parquet", DOCUMENTS[200:])
    prepared = prepare_text("data")
    held = np.concatenate([prepared.splits["validation"], prepared.splits["test"]])
    assert prepared.tokenizer.decode(held.tolist()).split("\0")[:-1] == DOCUMENTS[200:]
    assert len(held) // 2 == len(prepared.splits["validation"]) and documents_of(prepared, "train") == DOCUMENTS[:200]


def test_a_test_without_a_validation_takes_the_end_of_train_for_it():
    parquet("data/train.parquet", DOCUMENTS[:200])
    parquet("data/test.parquet", DOCUMENTS[200:])
    prepared = prepare_text("data")
    assert documents_of(prepared, "test") == DOCUMENTS[200:]
    train = sum(len(prepared.splits[split]) for split in ("train", "validation"))
    assert len(prepared.splits["validation"]) == int(0.05 * train)


def test_one_file_is_split_by_position_also_if_it_is_called_train():
    parquet("data/train.parquet", DOCUMENTS)
    parquet("data/validation.parquet", ["unseen"])
    prepared = prepare_text("data/train.parquet")
    assert documents_of(prepared) == DOCUMENTS
    sizes = {split: len(tokens) for split, tokens in prepared.splits.items()}
    assert sizes["validation"] == sizes["test"] == int(0.05 * sum(sizes.values()))


# --- nanoGPT's files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "name"), [("data/", "data"), ("data/words_", "data/words_")])
def test_bin_files_are_used_in_place_and_nothing_beside_them_is_opened(prefix, name, cache):
    class Poison:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    bin_pair(prefix, list(range(60)) * 4, [1, 2, 3, 4])
    Path(f"{prefix}meta.pkl").write_bytes(pickle.dumps(Poison()))
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
    prepared = prepare_text(name, "ids:65")
    assert any("train.bin" in path for path in opened) and not any("meta.pkl" in path for path in opened)
    assert not Path("executed").exists()
    assert [prepared.splits[split].tolist() for split in SPLITS] == [list(range(60)) * 4, [1, 2], [3, 4]]
    assert prepared.describe()["tokenizer"] == "ids:65" and prepared.tokenizer.decode([1, 2]) == "1 2"
    content = Path(f"{prefix}train.bin").read_bytes() + Path(f"{prefix}val.bin").read_bytes()
    assert prepared.sha256 == hashlib.sha256(content).hexdigest()
    assert not list(cache.rglob("*.bin")), "the tokens are not copied"


@pytest.mark.parametrize(
    ("train", "val", "spec", "message"),
    [
        (b"\1\0\2", b"\1\0", "ids:65", "train.bin has 3 bytes, no even number above 0"),
        (b"", b"\1\0", "ids:65", "train.bin has 0 bytes"),
        (
            b"\1\0\2\0",
            b"\1\0\x41\0",
            "ids:65",
            "val.bin holds the id 65 at position 1, outside of the vocabulary of 65 of",
        ),
        (b"\1\0\2\0", b"\1\0", "char", "'data' holds tokens, not text, and the tokenizer 'char' did not make them"),
        (b"\1\0\2\0", b"\1\0", "bpe:300", "and the tokenizer 'bpe:300' did not make them"),
        (
            b"\1\0\2\0",
            None,
            "ids:65",
            "'data' has no val.bin; it needs both, or give the one file data/train.bin alone.",
        ),
    ],
)
def test_unusable_bin_files_are_named(train, val, spec, message):
    written("data/train.bin", train)
    if val is not None:
        written("data/val.bin", val)
    with pytest.raises(ValueError) as error:
        prepare_text("data", spec)
    assert message in str(error.value)


# --- bad input --------------------------------------------------------------------------------------------------------


def broken_parquet() -> str:
    content = Path(parquet("whole.parquet", DOCUMENTS)).read_bytes()
    Path("cut.parquet").write_bytes(content[: len(content) // 2])
    return "cut.parquet"


def damaged_parquet() -> str:
    content = bytearray(Path(parquet("whole.parquet", DOCUMENTS)).read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    Path("damaged.parquet").write_bytes(content)
    return "damaged.parquet"


def numbers(name: str) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), name)
    return name


BAD = [
    (
        lambda: parquet("a.parquet", DOCUMENTS, "content"),
        "a.parquet: no column 'text'; there are: title, content. Choose one with --column.",
    ),
    (
        lambda: lines("a.jsonl", DOCUMENTS, "content"),
        "a.jsonl, line 1: no column 'text'; there are: title, content. Choose one with --column.",
    ),
    (
        lambda: parquet("a.parquet", DOCUMENTS, "image"),
        "a.parquet: no column 'text'; there are: title, image. Choose one with --column, or --images for images.",
    ),
    (lambda: numbers("a.parquet"), "a.parquet: column 'text' holds int64, not text; choose another with --column."),
    (broken_parquet, "cut.parquet cannot be read ("),
    (damaged_parquet, "damaged.parquet cannot be read ("),
    (lambda: written("a.parquet", ""), "'a.parquet' holds no text: it is empty."),
    (
        lambda: parquet("a.parquet", pyarrow.array([None, None], "string")),
        "'a.parquet' holds 0 tokens to train on; that is too little.",
    ),
    (lambda: written("a.jsonl", '{"text": "a"}\n\n{"text": \n'), "a.jsonl, line 3: broken JSON ("),
    (lambda: written("a.json", '[{"text": "a"},\n{"text": "b"}]'), "one JSON array; write one object a line."),
    (lambda: written("a.jsonl", '{"text": "a"}\n["b"]\n'), "a.jsonl, line 2: a JSON list, not an object with a text"),
    (lambda: written("a.jsonl", '{"text": 3}\n'), "a.jsonl, line 1: column 'text' holds '3', not a text; choose"),
    (lambda: written("a.jsonl", b'{"text": "\xff"}\n'), "a.jsonl, line 1: broken JSON ("),
    (lambda: written("a.jsonl", "[" * 100_000 + "\n"), "a.jsonl, line 1: "),
    (lambda: written("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999)[:-20]), "a.jsonl.gz cannot be read ("),
    (lambda: written("a.jsonl.gz", "plain"), "a.jsonl.gz cannot be read ("),
    (lambda: written("a.tar.gz", "plain"), "a.tar.gz cannot be unpacked ("),
    (lambda: written("a.zip", "plain"), "a.zip cannot be unpacked ("),
    (
        lambda: str(Path(parquet("d/extra.parquet", DOCUMENTS), parquet("d/train.parquet", DOCUMENTS)).parents[-2]),
        "but not of 'extra.parquet'; let it begin with train",
    ),
    (
        lambda: str(Path(parquet("d/validation.parquet", DOCUMENTS)).parent),
        "'d' has a split 'validation' but none to train on",
    ),
    (
        lambda: written("a.bin", b"\0\0" * 9),
        "'a.bin' holds tokens, not text, and the tokenizer 'byte' did not make them; name theirs: gpt2, ",
    ),
    (
        lambda: "https://user:secret@host/a.txt?token=x",
        "'https://***@host/a.txt?***' is a URL, which is not read; give OWNER/NAME",
    ),
    (lambda: "data/nothing.parquet", "no data at 'data/nothing.parquet'. Did you mean "),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_unusable_data_is_one_line_with_the_fix(make, message, capfd):
    assert main(["data", make()]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("dnt: ") and message in line and "secret" not in line


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("datasets", "owner/name")])
def test_a_missing_package_is_named_with_its_installation(package, name, monkeypatch):
    parquet("a.parquet", DOCUMENTS)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=rf"needs the package {package}.*: pip install 'dnt-torch\[text\]'$"):
        prepare_text(name)
