"""A question a line, all that a Question holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from dnt.files import atomic_write
from tumorvqa.formats.records import question_of
from tumorvqa.measurements import Measurements
from tumorvqa.question import Question


def write_jsonl(path: Path, questions: Sequence[Question], measurements: Mapping[str, Measurements]) -> None:
    with atomic_write(path) as file:
        file.writelines(msgspec.json.encode(question) + b"\n" for question in questions)


def read_jsonl(path: Path, patients: Mapping[str, str]) -> list[Question]:
    """Ours, or the authors' flat form of v2."""
    ours = msgspec.json.Decoder(Question)
    theirs = msgspec.json.Decoder(dict)
    questions = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            if b'"image_id"' in line:
                questions.append(question_of(theirs.decode(line), patients))
            else:
                questions.append(ours.decode(line))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {number} is no question ({error}).") from None
    return questions
