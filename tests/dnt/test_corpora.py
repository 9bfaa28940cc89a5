"""Sources of every format -> the same tokens, in bounded memory, whatever happens in between."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dnt.cli import main
from dnt.data import hub, pieces, sources, text
from dnt.data.hub import HubDataset, nanogpt_split
from dnt.data.text import PreparedText, prepare_text
from dnt.redact import redacted
from tests.conftest import TINY

SPLITS = ("train", "validation", "test")
DOCUMENTS = [f"document {i}: " + "the thing in thé end\n" * (i % 7) for i in range(300)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces and slices so small that little text makes many."""
    monkeypatch.setattr(pieces, "PIECE", 1000)
    monkeypatch.setattr(pieces, "SLICE", 50)


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


def tokens_of(prepared: PreparedText) -> np.ndarray:
    return np.concatenate([prepared.splits[split] for split in SPLITS])


def documents_of(prepared: PreparedText, split: str | None = None) -> list[str]:
    ids = prepared.splits[split] if split else tokens_of(prepared)
    return prepared.tokenizer.decode(ids.tolist()).split("\0")[:-1]


def same(a: PreparedText, b: PreparedText) -> bool:
    return all(np.array_equal(a.splits[split], b.splits[split]) for split in SPLITS)


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


# --- formats --------------------------------------------------------------------------------------------------------


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


# --- splits ---------------------------------------------------------------------------------------------------------


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


def test_the_owt_split_is_that_of_datasets_and_test_comes_out_of_train(monkeypatch):
    """Against datasets' own train_test_split, which nanoGPT calls; documents keep their order here."""
    import datasets

    documents = [f"<{i}>" for i in range(5000)]
    theirs = datasets.Dataset.from_dict({"text": documents}).train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    files = [parquet(f"hub/{i}.parquet", documents[i * 1000 : (i + 1) * 1000], rows=300) for i in range(5)]
    asked = []

    def resolve(name: str, _: Path) -> HubDataset:
        asked.append(name)
        return HubDataset("c0ffee", {"train": tuple(files)})

    monkeypatch.setattr(hub, "resolve", resolve)
    prepared = prepare_text("owt")
    ours = {split: documents_of(prepared, split) for split in SPLITS}
    assert asked == ["Skylion007/openwebtext@refs/convert/parquet"]
    assert sorted(ours["validation"]) == sorted(theirs["test"]["text"]) and len(ours["validation"]) == 3
    assert sorted(ours["train"] + ours["test"]) == sorted(theirs["train"]["text"]) and len(ours["test"]) == 3
    assert all(sorted(part, key=documents.index) == part for part in ours.values())
    assert np.bincount(nanogpt_split(8_013_769)).tolist() == [8_005_755, 4_007, 4_007], "OpenWebText's own size"


# --- nanoGPT's files ------------------------------------------------------------------------------------------------


def bin_pair(prefix: str, train: list[int], val: list[int]) -> None:
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    Path(f"{prefix}train.bin").write_bytes(np.array(train, np.uint16).tobytes())
    Path(f"{prefix}val.bin").write_bytes(np.array(val, np.uint16).tobytes())


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


# --- one preparation ------------------------------------------------------------------------------------------------


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


# --- the cache ------------------------------------------------------------------------------------------------------


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


def test_a_hub_dataset_is_keyed_by_its_commit_and_its_splits_are_used(monkeypatch, cache):
    commits = iter(["first", "first", "second"])
    files = {"train": (lines("hub/a.jsonl", DOCUMENTS[:200]),), "validation": (lines("hub/b.jsonl", DOCUMENTS[200:]),)}
    monkeypatch.setattr(hub, "resolve", lambda *_: HubDataset(next(commits), files | {"extra": ("c.csv",)}))
    made = [prepare_text("owner/name:config@main") for _ in range(3)]
    assert len(list(cache.iterdir())) == 2 and made[0].sha256 == made[1].sha256 != made[2].sha256
    assert made[0].describe()["revision"] == "first" and documents_of(made[0], "train") == DOCUMENTS[:200]


def test_remote_files_are_read_like_local_ones(monkeypatch):
    parquet("hub/a.parquet", DOCUMENTS)
    lines("hub/b.jsonl.gz", DOCUMENTS)
    for name in ("a.parquet", "b.jsonl.gz"):
        url = Path("hub", name).resolve().as_uri()
        monkeypatch.setattr(hub, "resolve", lambda *_, url=url: HubDataset(url[-9:], {"train": (url,)}))
        assert documents_of(prepare_text(f"owner/{name.split('.')[0]}")) == DOCUMENTS


def test_a_connection_that_breaks_while_reading_is_one_line_without_secrets(monkeypatch):
    parquet("a.parquet", DOCUMENTS)
    url = "https://user:secret@host/a.parquet?token=hf_abcdefghijk"

    def breaking(location: str) -> object:
        raise RuntimeError(f"lost the\nconnection to {location}")

    monkeypatch.setattr(
        hub, "resolve", lambda *_: HubDataset("commit", {"train": (url.replace("?token=hf_abcdefghijk", ""),)})
    )
    monkeypatch.setattr(pieces, "open_binary", breaking)
    with pytest.raises(
        ConnectionError, match=r"^reading https://\*\*\*@host/a.parquet failed \(lost the connection"
    ) as error:
        prepare_text("owner/name")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


# --- archives -------------------------------------------------------------------------------------------------------


def archive(name: str, members: dict[str, bytes]) -> str:
    """Members by name; content that begins with -> is a symbolic link."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(name, "w") as file:
            for member, content in members.items():
                info = zipfile.ZipInfo(member)
                info.external_attr = (stat.S_IFLNK if content.startswith(b"->") else stat.S_IFREG) << 16
                file.writestr(info, content.removeprefix(b"->"))
        return name
    with tarfile.open(name, f"w:{name.rpartition('.')[2]}" if not name.endswith(".tar") else "w") as file:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            if content.startswith(b"->"):
                info.type, info.linkname = tarfile.SYMTYPE, content[2:].decode()
            else:
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if info.size else None)
    return name


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
def test_an_archive_is_the_folder_in_it(name):
    parquet("data/train.parquet", DOCUMENTS[:200])
    parquet("data/validation.parquet", DOCUMENTS[200:])
    members = {f"books/{path.name}": path.read_bytes() for path in Path("data").iterdir()}
    assert same(prepare_text(archive(name, members)), prepare_text("data"))
    assert prepare_text(name).sha256 == prepare_text("data").sha256


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_an_archive_with_broken_content_is_an_error_not_data(name, harm, cache):
    """Also where only the checksum at its very end tells: incompressible content is stored, not coded."""
    archive(name, {"words.txt": np.random.default_rng(0).integers(97, 123, 300_000, np.uint8).tobytes()})
    data = bytearray(Path(name).read_bytes())
    data[len(data) // 2] ^= 1
    Path(name).write_bytes(data if harm == "flipped" else data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"{name} cannot be unpacked"):
        prepare_text(name)
    assert not list(cache.glob("*/meta.json"))


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
@pytest.mark.parametrize(
    "members",
    [
        {"../outside.txt": b"text " * 99},
        {"a/../../outside.txt": b"text " * 99},
        {"link": b"->/etc", "fine.txt": b"text " * 99},
        {"link": b"->../..", "link/outside.txt": b"text " * 99},
        {"{there}/outside.txt": b"text " * 99},
    ],
)
def test_an_archive_that_reaches_outside_is_refused_or_harmless(name, members, tmp_path, cache):
    archive(name, {member.format(there=tmp_path): content for member, content in members.items()})
    try:
        prepare_text(name)
    except ValueError as error:
        assert "refused" in str(error) and "\n" not in str(error)
    assert not [path for path in tmp_path.rglob("outside.txt") if "archives" not in path.parts]
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink()]


# --- bad input ------------------------------------------------------------------------------------------------------


def broken_parquet() -> str:
    content = Path(parquet("whole.parquet", DOCUMENTS)).read_bytes()
    Path("cut.parquet").write_bytes(content[: len(content) // 2])
    return "cut.parquet"


def damaged_parquet() -> str:
    content = bytearray(Path(parquet("whole.parquet", DOCUMENTS)).read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    Path("damaged.parquet").write_bytes(content)
    return "damaged.parquet"


def written(name: str, content: bytes | str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


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


def test_a_document_beyond_what_memory_allows_is_named(monkeypatch):
    monkeypatch.setattr(pieces, "LONGEST", 1 << 20)
    for path in (lines("a.jsonl", ["ok", "x" * (1 << 21)]), parquet("a.parquet", ["ok", "x" * (1 << 21)])):
        with pytest.raises(
            ValueError, match=r"a.(jsonl, line 2|parquet, row 1 of row group 0): a document of more than 1 MiB"
        ):
            prepare_text(path)


def test_the_hub_out_of_reach_is_one_line(monkeypatch, capfd):
    import huggingface_hub

    def unreachable(self: object, *_: object, **__: object) -> None:
        raise ConnectionError("cannot reach\nhttps://huggingface.co/api?token=hf_abcdefghijkl")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    for name in ("owner/name", "owt"):
        assert main(["data", name]) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert "and the Hugging Face hub gave no such dataset (ConnectionError: cannot reach" in line
        assert "hf_abc" not in line and "token" not in line


def test_the_files_of_a_hub_dataset_are_those_of_datasets_at_a_commit_and_remembered(monkeypatch, tmp_path, capfd):
    """With datasets' own builder on a local folder in the place of the repository."""
    import datasets
    import huggingface_hub

    parquet("repository/data/train-00000-of-00001.parquet", DOCUMENTS[:200])
    parquet("repository/data/validation-00000-of-00001.parquet", DOCUMENTS[200:])
    builder, asked = datasets.load_dataset_builder, []

    def local(repo: str, config: str | None, revision: str) -> datasets.DatasetBuilder:
        asked.append((repo, config, revision))
        return builder(str(tmp_path / "repository"), cache_dir=str(tmp_path / "datasets"))

    monkeypatch.setattr(datasets, "load_dataset_builder", local)
    api = huggingface_hub.HfApi
    monkeypatch.setattr(
        api, "dataset_info", lambda self, repo, revision, timeout: SimpleNamespace(sha=f"{revision}-sha")
    )
    first = prepare_text("owner/name:config@v1.0")
    assert asked == [("owner/name", "config", "v1.0-sha")] and first.revision == "v1.0-sha"
    assert documents_of(first, "train") == DOCUMENTS[:200]

    monkeypatch.setattr(api, "dataset_info", lambda *_, **__: 1 / 0)
    assert same(prepare_text("owner/name:config@v1.0"), first)
    assert (
        "the hub is out of reach (ZeroDivisionError); owner/name:config@v1.0 as it was last seen"
        in capfd.readouterr().err
    )
    with pytest.raises(ValueError, match="no file 'owner/other' here, and the Hugging Face hub gave no such dataset"):
        prepare_text("owner/other")


def test_a_hub_dataset_of_another_format_is_named(monkeypatch):
    for files, message in (
        (
            {"train": ("hf://a.csv",)},
            "is not made of parquet files or of JSON lines; its revision @refs/convert/parquet",
        ),
        ({"all": ("hf://a.parquet",)}, "has no split called train (but all)"),
        ({"test": ("hf://a.parquet",)}, "has a split 'test' but none to train on"),
        ({}, "has no split called train (but no files at all)"),
    ):
        monkeypatch.setattr(hub, "resolve", lambda *_, files=files: HubDataset("commit", files))
        with pytest.raises(ValueError) as error:
            prepare_text("owner/name")
        assert message in str(error.value)


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("datasets", "owner/name")])
def test_a_missing_package_is_named_with_its_installation(package, name, monkeypatch):
    parquet("a.parquet", DOCUMENTS)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=rf"needs the package {package}.*: pip install 'dnt-torch\[text\]'$"):
        prepare_text(name)


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("https://me:pass@host/x?sig=abc&b=1 failed", "https://***@host/x?*** failed"),
        ("401 for url (https://host/a?token=abc)", "401 for url (https://host/a?***"),
        ("token hf_AbCdEfGhIjKl is invalid", "token hf_*** is invalid"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("s3://key:secret@bucket/x", "s3://***@bucket/x"),
        ("what? a plain user@host text", "what? a plain user@host text"),
    ],
)
def test_secrets_are_not_shown(secret, shown):
    assert redacted(secret) == shown


# --- runs -----------------------------------------------------------------------------------------------------------


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


def test_comparisons_pass_the_column_on():
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
