"""Datasets of the Hugging Face hub, with a local folder in its place."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dnt.cli import main
from dnt.data import hub, pieces
from dnt.data.hub import HubDataset, nanogpt_split
from dnt.data.text import prepare_text
from tests.dnt.corpora import DOCUMENTS, SPLITS, documents_of, lines, parquet, same

pytestmark = pytest.mark.usefixtures("cache")


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


# --- what cannot be read ----------------------------------------------------------------------------------------------


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
