"""Sets of questions as files: our JSON lines and Parquet, and the authors' two formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnt.lookup import lookup
from tumorvqa.formats.authors_v1 import read_authors_v1, write_authors_v1
from tumorvqa.formats.authors_v2 import read_authors_v2, write_authors_v2
from tumorvqa.formats.jsonl import read_jsonl, write_jsonl
from tumorvqa.formats.parquet import read_parquet, write_parquet
from tumorvqa.measurements import Measurements
from tumorvqa.question import Question


@dataclass(frozen=True)
class FileFormat:
    suffix: str
    read: Callable[[Path, Mapping[str, str]], list[Question]]
    write: Callable[[Path, Sequence[Question], Mapping[str, Measurements]], None]


FORMATS = {
    "jsonl": FileFormat(".jsonl", read_jsonl, write_jsonl),
    "parquet": FileFormat(".parquet", read_parquet, write_parquet),
    "authors-v1": FileFormat(".csv", read_authors_v1, write_authors_v1),
    "authors-v2": FileFormat(".json", read_authors_v2, write_authors_v2),
}
SUFFIXES = {row.suffix: name for name, row in FORMATS.items()}


def read_questions(path: Path, patients: Mapping[str, str] | None = None) -> list[Question]:
    """By the suffix. The authors' files know no patients: there a question's patient is that of `patients` (by case),
    or its case. They have no trace, evidence or margin either.
    """
    name = lookup(SUFFIXES, path.suffix.lower(), "suffix of a file of questions")
    if not path.is_file():
        raise ValueError(f"{path} is no file; make a set of questions first or give its path.")
    return FORMATS[name].read(path, patients or {})


def write_questions(
    path: Path,
    questions: Sequence[Question],
    format: str | None = None,
    measurements: Mapping[str, Measurements] | None = None,
) -> None:
    """By `format` (a key of FORMATS), or by the suffix. The authors' formats take a case's spacing, shape, sex, age and
    contrast from `measurements` (by case).
    """
    name = format or lookup(SUFFIXES, path.suffix.lower(), "suffix of a file of questions")
    row = lookup(FORMATS, name, "format of questions")
    if path.suffix.lower() != row.suffix:
        raise ValueError(
            f"a file of format {name!r} ends in {row.suffix}, not in {path.suffix!r}; it could not be read again."
        )
    row.write(path, questions, measurements or {})
