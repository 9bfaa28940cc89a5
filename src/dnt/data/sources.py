"""What a data name means: which files, of which format, in which splits. No torch.

| name                                          | what                                                                 |
|-----------------------------------------------|----------------------------------------------------------------------|
| stdlib                                        | the Python source files of the standard library that runs this      |
| a text file, or a folder of them              | text                                                                 |
| *.parquet, or a folder of them                | documents in a column                                                |
| *.jsonl, *.json, also .gz, or a folder        | documents in a field of one JSON object a line                       |
| a folder (or prefix) with train.bin, val.bin  | nanoGPT's tokens, uint16                                             |
| .tar, .tar.gz, .tgz, .tar.xz, .zip            | as the folder in it                                                  |
| OWNER/NAME[:CONFIG][@REVISION]                | a dataset of the Hugging Face hub, of parquet files or JSON lines    |
| owt                                           | OpenWebText from the hub, with nanoGPT's split                       |
"""

import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from dnt.data import hub
from dnt.data.archives import ARCHIVES, unpacked
from dnt.data.cache import cache_root
from dnt.data.pieces import SPLITS
from dnt.redact import redacted

HELD_OUT = 0.05  # share of validation, and of test
MOST_HELD_OUT = 1 << 18  # bytes by file, tokens by position
CHUNK = 1 << 22  # bytes copied or hashed at a time
FORMATS = {".parquet": "parquet", ".jsonl": "lines", ".jsonl.gz": "lines", ".json": "lines", ".json.gz": "lines"}
FORMATS |= {".bin": "bin"}
BESIDE_DATA = {"", ".md", ".json", ".yaml", ".yml", ".gitattributes"}  # suffixes of files that describe the others
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
NAMED_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?![a-zA-Z])")  # train.parquet, train-00000-of-00080.parquet


@dataclass(frozen=True)
class Source:
    """The files of each split, in order. `state` differs whenever their content may."""

    format: str  # text, parquet, lines or bin
    files: dict[str, list[str]]
    state: str
    separated: bool = True  # documents end, also a single text file if it is one of several
    revision: str | None = None  # the commit of a remote source
    nanogpt_split: bool = False

    @property
    def every(self) -> list[str]:
        """All files, train first."""
        return [file for split in SPLITS for file in self.files.get(split, [])]


def find_source(name: str) -> Source:
    """The source of a data name; ValueError with the nearest name if there is none."""
    check_no_url(name)
    if name == "owt":
        return remote_source(hub.OWT, nanogpt_split=True)
    root = Path(sysconfig.get_path("stdlib")) if name == "stdlib" else Path(name)
    if root.is_file() and root.name.endswith(ARCHIVES):
        root = unpacked(root, cache_root())
    if root.exists():
        return local_source(name, root)
    if (root.parent / f"{root.name}train.bin").exists():
        return bin_source(name, root.parent, root.name)
    if hub.ID.fullmatch(name) and not root.parent.exists() and format_of(root) is None and root.suffix != ".txt":
        return remote_source(name)
    raise no_data(
        name, ["stdlib", "owt"], "a file of text, parquet, JSON lines or .bin, a folder of them, 'stdlib', 'owt'"
    )


def check_no_url(name: str) -> None:
    if "://" in name:
        raise ValueError(
            f"{redacted(name)!r} is a URL, which is not read; give OWNER/NAME of the Hugging Face hub, or download it "
            "and give the file."
        )


def no_data(name: str, embedded: list[str], kinds: str) -> ValueError:
    """The error for a name that means nothing, with the nearest name that would."""
    there = [*embedded, *(str(Path(name).with_name(path.name)) for path in Path(name).parent.glob("*"))]
    near = get_close_matches(name, there, n=1, cutoff=0.0)[0]
    return ValueError(
        f"no data at {name!r}. Did you mean {near!r}? Give {kinds}, or OWNER/NAME of the Hugging Face hub."
    )


def local_source(name: str, root: Path) -> Source:
    if (root / "train.bin").is_file():
        return bin_source(name, root, "")
    files = [root] if root.is_file() else files_below(root, name == "stdlib")
    format = format_of(root) if root.is_file() else folder_format(files)
    if format is None:
        return text_source(name, root, files)
    if root.is_dir():
        files = data_files(files)
    groups = {"train": files} if root.is_file() else by_split_name(name, root, files)
    if not sum(path.stat().st_size for path in files):
        raise ValueError(f"{name!r} holds no text: it is empty.")
    return Source(format, as_names(groups), state_of(root, files))


def files_below(root: Path, stdlib: bool) -> list[Path]:
    """The files of a folder and its folders, in a fixed order; hidden ones, and Python's own tests, are left out."""
    left_out = {"site-packages", "test", "tests", "idle_test", "__pycache__"} if stdlib else set()
    found = []
    for path in root.rglob("*.py" if stdlib else "*"):
        parts = path.relative_to(root).parts
        if (
            left_out.isdisjoint(parts)
            and (stdlib or not any(part.startswith(".") for part in parts))
            and path.is_file()
        ):
            found.append(path)
    return sorted(found)


def format_of(path: Path) -> str | None:
    """By the name of a file; None for text."""
    return FORMATS.get("".join(path.suffixes[-2:]).lower()) or FORMATS.get(path.suffix.lower())


def data_files(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix.lower() not in BESIDE_DATA]


def folder_format(files: list[Path]) -> str | None:
    """parquet or lines if all data of a folder is; else None: text."""
    formats = {format_of(path) for path in data_files(files)}
    return formats.pop() if formats in ({"parquet"}, {"lines"}) else None


def by_split_name(name: str, root: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files of each split, after the start of their names or of their folders'; all are train if none is named."""
    groups: dict[str, list[Path]] = {}
    unnamed: list[Path] = []
    for path in files:
        relative = path.relative_to(root)
        found = [NAMED_SPLIT.match(part) for part in (relative.name, *reversed(relative.parts[:-1]))]
        split = next((SPLIT_NAMES[match[1]] for match in found if match), None)
        (groups.setdefault(split, []) if split else unnamed).append(path)
    if not groups:
        return {"train": files}
    if unnamed:
        raise ValueError(
            f"{name!r} names the splits of some files, but not of {unnamed[0].name!r}; let it begin with train, "
            "validation or test, or move it away."
        )
    return check_train(name, groups)


def check_train(name: str, groups: dict[str, list]) -> dict[str, list]:
    if "train" not in groups:
        raise ValueError(f"{name!r} has a split {next(iter(groups))!r} but none to train on; name its files train*.")
    return groups


def as_names(groups: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [str(path) for path in paths] for split, paths in groups.items()}


def state_of(root: Path, files: Iterable[Path]) -> str:
    """Path, size and modification time of every file."""
    lines = [str(root.resolve())]
    for path in files:
        stat = path.stat()
        lines.append(f"{path.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}")
    return "\n".join(lines)


def digest(source: Source, check: Callable[[], None] = lambda: None) -> str:
    """sha256 of the files: of one file its own, of several each followed by a NUL, of .bin one after the other.

    Of a remote source, of its commit and the names of its files. `check` is called now and then and may raise.
    """
    found = hashlib.sha256()
    if source.revision:
        found.update(source.state.encode())
        return found.hexdigest()
    several = len(source.every) > 1 or (source.format == "text" and source.separated)
    for path in source.every:
        with open(path, "rb") as file:
            while data := file.read(CHUNK):
                found.update(data)
                check()
        if several and source.format != "bin":
            found.update(b"\0")
    return found.hexdigest()


# --- text -----------------------------------------------------------------------------------------------------------


def text_source(name: str, root: Path, files: list[Path]) -> Source:
    files = [path for path in files if path.stat().st_size and not is_binary(path)]
    if not files:
        raise ValueError(f"{name!r} holds no text: it is empty, or its files are empty or binary.")
    if root.is_file():
        return Source("text", {"train": [str(root)]}, state_of(root, files), separated=False)
    ordered = sorted(files, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).hexdigest())
    return Source("text", as_names(split_by_file(ordered) or {"train": ordered}), state_of(root, files))


def is_binary(path: Path) -> bool:
    """Git's rule: a NUL among the first 8000 bytes."""
    with path.open("rb") as file:
        return b"\0" in file.read(8000)


def split_by_file(files: list[Path]) -> dict[str, list[Path]] | None:
    """The files of each split; None if they are too large to fill half of what validation and test may hold."""
    sizes = {path: path.stat().st_size for path in files}
    budget = min(HELD_OUT * sum(sizes.values()), MOST_HELD_OUT)
    parts: dict[str, list[Path]] = {"train": files}
    for split in ("validation", "test"):
        left: list[Path] = []
        taken: list[Path] = []
        room = budget
        for path in parts["train"]:
            fits = sizes[path] <= room
            (taken if fits else left).append(path)
            room -= sizes[path] if fits else 0
        if room > budget / 2:
            return None
        parts |= {"train": left, split: taken}
    return parts


# --- tokens and the hub ---------------------------------------------------------------------------------------------


def bin_source(name: str, folder: Path, prefix: str) -> Source:
    """nanoGPT's train.bin and val.bin; nothing else in their folder is opened, meta.pkl least of all."""
    files = [folder / f"{prefix}train.bin", folder / f"{prefix}val.bin"]
    for path in files:
        if not path.is_file():
            raise ValueError(f"{name!r} has no {path.name}; it needs both, or give the one file {files[0]} alone.")
    return Source("bin", as_names({"train": files[:1], "validation": files[1:]}), state_of(folder, files))


def remote_source(name: str, nanogpt_split: bool = False) -> Source:
    found = hub.resolve(name, cache_root())
    groups = {SPLIT_NAMES[split]: list(files) for split, files in found.files.items() if split in SPLIT_NAMES}
    if not groups:
        raise ValueError(f"{name!r} has no split called train (but {', '.join(found.files) or 'no files at all'}).")
    formats = {format_of(Path(file)) for files in check_train(name, groups).values() for file in files}
    if len(formats) != 1 or not formats <= {"parquet", "lines"}:
        raise ValueError(
            f"{name!r} is not made of parquet files or of JSON lines; its revision @refs/convert/parquet may be."
        )
    state = "\n".join([found.commit, *(f"{split} {file}" for split in groups for file in groups[split])])
    return Source(formats.pop() or "", groups, state, revision=found.commit, nanogpt_split=nanogpt_split)
