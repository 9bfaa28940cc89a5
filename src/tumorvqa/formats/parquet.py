"""Questions as columns: a row group per subtype, nested fields as JSON. `place` is a question's place in the set."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from dnt.files import atomic_write
from tumorvqa.measurements import Measurements
from tumorvqa.question import Question

NESTED = ("arguments", "options", "answer", "trace", "evidence")
NUMBERS = ("margin", "lesion_mm")
PLACE = "place"


def write_parquet(path: Path, questions: Sequence[Question], measurements: Mapping[str, Measurements]) -> None:
    """The schema's metadata name the rule packs and the version that wrote the file."""
    import pyarrow
    from pyarrow import parquet

    names = [field.name for field in fields(Question)]
    kinds = {name: pyarrow.float64() if name in NUMBERS else pyarrow.string() for name in names}
    metadata = {
        "tumorvqa.rules": ",".join(sorted({question.rules for question in questions})),
        "tumorvqa.version": _version(),
    }
    schema = pyarrow.schema([*kinds.items(), (PLACE, pyarrow.int32())], metadata=metadata)
    by_subtype: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_subtype.setdefault(question.subtype, []).append(place)
    with atomic_write(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for _, places in sorted(by_subtype.items()):
            columns = {name: [_cell(name, questions[i]) for i in places] for name in names} | {PLACE: places}
            writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=len(places))


def _cell(name: str, question: Question) -> str | float | None:
    value = getattr(question, name)
    return msgspec.json.encode(value).decode() if name in NESTED else value


def read_parquet(path: Path, patients: Mapping[str, str]) -> list[Question]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(path).sort_by(PLACE).to_pylist()
        return [_question(row) for row in rows]
    except (pyarrow.ArrowException, KeyError, msgspec.DecodeError, OSError) as error:
        raise ValueError(f"{path} is no set of questions ({str(error).splitlines()[0]}).") from None


def _question(row: dict[str, object]) -> Question:
    """Field types are checked as in JSON."""
    record = {
        field.name: msgspec.json.decode(str(row[field.name])) if field.name in NESTED else row[field.name]
        for field in fields(Question)
    }
    return msgspec.convert(record, Question)


def _version() -> str:
    try:
        return version("dnt-torch")
    except PackageNotFoundError:  # run from a source tree
        return "source"
