"""Datasets of the Hugging Face hub as lists of files, pinned to a commit. No torch.

`datasets` says which files belong to a dataset (since its version 4 it runs no code of a repository); their text is
then read over the network as it is tokenized, and nothing but tokens is stored.
"""

import re
import sys
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np

from dnt.extras import extra
from dnt.files import read_json, write_json
from dnt.redact import redacted

ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
OWT = "Skylion007/openwebtext@refs/convert/parquet"
TIMEOUT = 20  # seconds until the hub counts as out of reach
OWT_HELD_OUT, OWT_SEED = 0.0005, 2357  # nanoGPT's, data/openwebtext/prepare.py


@dataclass(frozen=True)
class HubDataset:
    """The files of each split, by the names that the hub gives them, and the commit they are of."""

    commit: str
    files: dict[str, tuple[str, ...]]


def resolve(name: str, cache: Path) -> HubDataset:
    """OWNER/NAME[:CONFIG][@REVISION] -> its files now, or as last seen if the hub is out of reach.

    ValueError in one line if there is no such dataset, or if it was never seen.
    """
    asked = ID.fullmatch(name)
    assert asked, name
    repo, config, revision = asked["repo"], asked["config"], asked["revision"]
    hub, datasets = extra("huggingface_hub"), extra("datasets")
    known = cache / "hub" / f"{name.replace('/', '--')}.json"
    try:
        commit = hub.HfApi().dataset_info(repo, revision=revision, timeout=TIMEOUT).sha
        found = datasets.load_dataset_builder(repo, config, revision=commit).config.data_files or {}
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"no dataset {name!r} on the Hugging Face hub, and no such file here ({type(error).__name__}). "
            "Check the name; a private or gated one needs `hf auth login`."
        ) from None
    except Exception as error:  # of any network layer, and of `datasets`
        if known.exists():
            print(f"the hub is out of reach ({type(error).__name__}); {name} as it was last seen", file=sys.stderr)
            seen = read_json(known, "a list of the files of a dataset")
            return HubDataset(seen["commit"], {split: tuple(files) for split, files in seen["files"].items()})
        said = redacted(" ".join(str(error).split()))[:200]
        raise ValueError(
            f"no file {name!r} here, and the Hugging Face hub gave no such dataset ({type(error).__name__}: {said}). "
            "Check the name and the network, or give a local file."
        ) from None
    dataset = HubDataset(commit, {str(split): tuple(map(str, files)) for split, files in found.items()})
    write_json(known, asdict(dataset))
    return dataset


def nanogpt_split(documents: int, held_out: float = OWT_HELD_OUT, seed: int = OWT_SEED) -> np.ndarray:
    """The split of every document, 0 train, 1 validation, 2 test; (documents,) uint8.

    Validation is that of datasets' train_test_split(held_out, seed=seed, shuffle=True), which nanoGPT uses: the first
    documents of a permutation. nanoGPT has no test split; ours are as many documents, the next of the permutation,
    which nanoGPT trains on.
    """
    order = np.random.default_rng(seed).permutation(documents)
    held = ceil(held_out * documents)
    splits = np.zeros(documents, np.uint8)
    splits[order[:held]] = 1
    splits[order[held : 2 * held]] = 2
    return splits
