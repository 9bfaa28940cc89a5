"""The authors' v2 JSON: {"version", "num_questions", "question_types", "questions": [...]}, or the list alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dnt.files import read_json, write_json
from tumorvqa.formats.records import question_of, record_of
from tumorvqa.measurements import Measurements
from tumorvqa.question import GROUPS, Question


def write_authors_v2(path: Path, questions: Sequence[Question], measurements: Mapping[str, Measurements]) -> None:
    """Laid down as benchmark/test_qa.json, their loader reads it."""
    asked = {question.group for question in questions}
    content = {
        "version": "tumorvqa",
        "num_questions": len(questions),
        "question_types": [name.lower() for name in GROUPS if name in asked],
        "questions": [record_of(question, measurements) for question in questions],
    }
    write_json(path, content)


def read_authors_v2(path: Path, patients: Mapping[str, str]) -> list[Question]:
    content = read_json(path, "a set of questions")
    records = content.get("questions") if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{path} is no set of questions: it has no list "questions".')
    questions = []
    for number, record in enumerate(records, start=1):
        try:
            questions.append(question_of(record, patients))
        except ValueError as error:
            raise ValueError(f"{path}, question {number}: {error}") from None
    return questions
