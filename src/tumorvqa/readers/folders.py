"""Which files make a case.

AbdomenAtlas: ID/ct.nii.gz, ID/segmentations/NAME.nii.gz (a leading `_` marks a mask made by AI) and/or
ID/combined_labels.nii.gz with labels.json {"1": NAME}, an optional ID/meta.json, and a metadata.csv beside the cases.
TotalSegmentator: the same folders with its own names, or a CT and a label map or a folder of masks that lie anywhere.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tumorvqa.readers import totalsegmentator
from tumorvqa.structures import NAMED

SUFFIXES = (".nii.gz", ".nii")
LAST = 65535  # label of a map
COLUMNS = {  # of metadata.csv and keys of meta.json -> what they are to us
    "patient": "patient",
    "original id": "patient",
    "source": "source",
    "provenance": "provenance",
    "sex": "sex",
    "age": "age",
    "contrast": "contrast",
    "scanner": "scanner",
}
IDS = ("BDMAP ID", "BDMAP_ID", "AbdomenAtlas_id", "id")  # columns of metadata.csv that may name the case


@dataclass(frozen=True)
class CaseFiles:
    """One case on disk. `masks` are files by structure (of several, the union counts), `maps` label maps with the names
    of their labels as the data set spells them; `by_ai` the structures whose mask an AI made; `unknown` the names that
    structures.py lacks. `row` is what a table says of the case: never shown, since it may say who it is. `fault` is why
    the case cannot be read: raised by reading it, so that other cases of its folder are not lost with it.
    """

    id: str
    layout: Literal["abdomenatlas", "totalsegmentator"]
    ct: Path
    masks: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    maps: tuple[tuple[Path, dict[int, str]], ...] = ()
    names: tuple[Path, ...] = ()  # labels.json
    meta: Path | None = None
    row: dict[str, str] = field(default_factory=dict, repr=False)
    by_ai: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()
    fault: str | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files, in one order; what a hash of the case's content covers together with `row`."""
        masks = (path for name in sorted(self.masks) for path in self.masks[name])
        maps = (path for path, _ in self.maps)
        return (self.ct, *masks, *maps, *self.names, *([self.meta] if self.meta else []))

    def name(self, path: Path) -> str:
        """How errors call a file: relative to the case, so that no folder of the machine is named."""
        return path.relative_to(self.ct.parent).as_posix() if path.is_relative_to(self.ct.parent) else path.name


def find_cases(folder: Path | str) -> list[CaseFiles]:
    """All cases in `folder`, in the order of their ids: its folders with a ct.nii.gz, or itself if it has one (of which
    the metadata.csv beside it tells as it does of all).
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder.name!r} is not a folder; give the folder that holds the cases' folders.")
    at = (
        [folder]
        if ct_in(folder)
        else sorted(path for path in folder.iterdir() if path.is_dir() and ct_in(path) and path.name[0] != ".")
    )
    if not at:
        raise ValueError(f"no case in {folder.name!r}: none of its folders holds a ct.nii.gz.")
    rows = table(folder / "metadata.csv")
    if at == [folder]:
        rows |= table(folder.parent / "metadata.csv")
    return [case_folder(case, rows.get(case.name, {})) for case in at]


def case_files(ct: Path | str, labels: Path | str) -> CaseFiles:
    """A CT and, wherever it lies, a TotalSegmentator label map (or one with a labels.json beside it) or a folder of
    one-structure files.
    """
    ct, labels = Path(ct), Path(labels)
    case = ct.absolute().parent.name if stem(ct) == "ct" else stem(ct)
    for path in (ct, labels):
        if not path.exists():
            raise ValueError(f"no file or folder {path.name!r}.")
    if labels.is_dir():
        masks, by_ai, unknown = masks_in(labels)
        return CaseFiles(case, layout(labels), ct, masks, by_ai=by_ai, unknown=unknown)
    if (names := labels.parent / "labels.json").is_file():
        named, fault = label_names(names)
        return CaseFiles(case, "abdomenatlas", ct, maps=((labels, named),), names=(names,), fault=fault)
    return CaseFiles(case, "totalsegmentator", ct, maps=((labels, totalsegmentator.LABELS),))


def case_folder(folder: Path, row: dict[str, str]) -> CaseFiles:
    masks, by_ai, unknown = masks_in(folder / "segmentations")
    maps: tuple[tuple[Path, dict[int, str]], ...] = ()
    names: tuple[Path, ...] = ()
    fault = None
    combined = next((path for path in (folder / f"combined_labels{s}" for s in SUFFIXES) if path.is_file()), None)
    if combined and (folder / "labels.json").is_file():
        names = (folder / "labels.json",)
        named, fault = label_names(names[0])
        maps = ((combined, named),)
        unknown += tuple(sorted(set(unknown_of(named.values())) - set(unknown)))
    elif combined and not masks:
        maps = ((combined, {}),)
        fault = f"{combined.name} has no labels.json beside it that names its labels."
    ct, meta = ct_in(folder), folder / "meta.json"
    assert ct
    kind = layout(folder / "segmentations")
    return CaseFiles(
        folder.name, kind, ct, masks, maps, names, meta if meta.is_file() else None, row, by_ai, unknown, fault
    )


def ct_in(folder: Path) -> Path | None:
    return next((path for path in (folder / f"ct{suffix}" for suffix in SUFFIXES) if path.is_file()), None)


def stem(path: Path) -> str:
    return next((path.name.removesuffix(s) for s in SUFFIXES if path.name.endswith(s)), path.stem)


def mask_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.nii*") if path.name.endswith(SUFFIXES)) if folder.is_dir() else []


def layout(folder: Path) -> Literal["abdomenatlas", "totalsegmentator"]:
    """TotalSegmentator's if a file is of a class that only TotalSegmentator has, such as a vertebra, or if all are of
    its classes and one is spelled as only TotalSegmentator does.
    """
    classes, names = set(totalsegmentator.CLASSES), {stem(path) for path in mask_files(folder)}
    only = names & (classes - set(NAMED)) or (names <= classes and names & totalsegmentator.OWN_SPELLINGS)
    return "totalsegmentator" if only else "abdomenatlas"


def masks_in(folder: Path) -> tuple[dict[str, tuple[Path, ...]], frozenset[str], tuple[str, ...]]:
    """Mask files by structure, the structures drawn by AI, the names nobody knows. A mask without `_` comes first."""
    drawn: dict[str, list[Path]] = {}
    machine: dict[str, list[Path]] = {}
    for path in mask_files(folder):
        name = totalsegmentator.structure(stem(path).removeprefix("_"))
        if name:
            (machine if path.name.startswith("_") else drawn).setdefault(name, []).append(path)
    masks = {name: tuple(paths) for name, paths in (machine | drawn).items()}
    return masks, frozenset(machine) - frozenset(drawn), unknown_of(stem(path) for path in mask_files(folder))


def unknown_of(names: Iterable[str]) -> tuple[str, ...]:
    known = set(totalsegmentator.CLASSES)
    return tuple(sorted(n for n in set(names) if n.removeprefix("_") not in known | set(NAMED)))


def label_names(path: Path) -> tuple[dict[int, str], str | None]:
    """labels.json {"1": "liver"}, and what is wrong with it; "0", the background, may be named too."""
    try:
        names = {int(label): str(name) for label, name in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, AttributeError, OSError, RecursionError):
        return {}, f'{path.name} is damaged; {{"1": "liver", ...}} is expected.'
    if not all(0 <= label <= LAST for label in names):
        return {}, f"{path.name} names a label that no map can hold; labels are 0 to {LAST}."
    return {label: name for label, name in names.items() if label}, None


def table(path: Path) -> dict[str, dict[str, str]]:
    """metadata.csv as case -> what it says, under our names; no file, no rows."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError, OSError):
        raise ValueError(f"{path.name} cannot be read as a table; save it as CSV in UTF-8.") from None
    return {str(row[key]): ours(row) for row in rows for key in IDS if row.get(key)}


def ours(row: dict) -> dict[str, str]:
    """What we keep of a row or of meta.json."""
    named = {str(key).strip().lower(): str(value) for key, value in row.items() if value not in (None, "")}
    return {COLUMNS[key]: value for key, value in named.items() if key in COLUMNS}
