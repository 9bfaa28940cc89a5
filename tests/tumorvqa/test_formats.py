"""Sets of questions as files."""

import csv
import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.tumorvqa.handmade import EXAMPLES, EXISTENCE, FULL, SIDE, VOLUME, question
from tumorvqa.formats import read_questions, write_questions
from tumorvqa.formats.records import mc_text, options_of, question_of
from tumorvqa.measurements import Measurements
from tumorvqa.question import Answer, Evidence, Option
from tumorvqa.scans import Meta

CASE = Measurements(
    case="case 1",
    patient="patient 1",
    source="phantom",
    method="masks",
    shape=(512, 512, 116),
    spacing=(0.83, 0.83, 5.0),
    meta=Meta(sex="male", age=58, contrast="venous", scanner="HOSPITAL 12"),
    organs={},
    lesions=(),
    annotated=(),
    faults={},
)
# A record as the authors' data card shows it
PUBLISHED = {
    "qid": "bench_00017",
    "image_id": "BDMAP_00008446",
    "spacing": "[0.83 0.83 5.0]",
    "shape": "(512, 512, 116)",
    "sex": None,
    "age": None,
    "question": "How would you grade the spleen?",
    "answer": "Normal (no splenomegaly)",
    "mc_question": "How would you grade the spleen? A: Normal (no splenomegaly) B: Moderate C: Severe D: Mild",
    "correct_option": "A",
    "organ": "spleen",
    "lesion": False,
    "question_type": "medical reasoning",
    "question_subtype": "splenomegaly grading",
    "requires_tools": ["segment_organ", "measure", "lookup_medical_knowledge"],
}


def as_foreign(row, split=None):
    """What the authors' formats hold of a question."""
    organ = row.arguments.get("organ")
    return replace(
        row,
        patient=row.case,
        arguments={"organ": organ} if organ else {},
        trace=(),
        evidence=Evidence(None, None, ()),
        margin=None,
        lesion_mm=None,
        rules="",
        split=split,
    )


@pytest.mark.parametrize("name", ["set.jsonl", "set.parquet"])
def test_our_formats_hold_all_of_a_question(tmp_path, name):
    write_questions(tmp_path / name, EXAMPLES)
    assert read_questions(tmp_path / name) == list(EXAMPLES)


@pytest.mark.parametrize("name", ["set.json", "set.csv"])
def test_the_authors_formats_hold_what_they_have_fields_for(tmp_path, name):
    asked = [replace(row, unit="cm") if row is FULL else row for row in EXAMPLES]  # theirs are in cm, unsaid
    write_questions(tmp_path / name, asked)
    split = {"set.json": lambda row: None, "set.csv": lambda row: row.split}[name]
    assert read_questions(tmp_path / name) == [as_foreign(row, split(row)) for row in asked]


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
WORDS = st.text("abcxyz -.,%()é^", min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(TEXTS, st.lists(WORDS, min_size=1, max_size=5, unique=True), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_survives(tmp_path, text, options, number):
    said = tuple(Option(option, option) for option in options)
    row = replace(SIDE, text=text, options=said, answer=Answer(number, options[0], 0), margin=number)
    for name in ("any.jsonl", "any.parquet"):
        write_questions(tmp_path / name, [row])
        assert read_questions(tmp_path / name) == [row]
    row = replace(SIDE, text=text, options=said, answer=Answer(options[0], options[0], 0))
    for name in ("any.json", "any.csv"):
        write_questions(tmp_path / name, [row])
        assert read_questions(tmp_path / name) == [as_foreign(row)]


def test_parquet_has_a_row_group_a_subtype_and_says_who_made_it(tmp_path):
    asked = [*EXAMPLES, question("q2"), question("q3")]
    write_questions(tmp_path / "set.parquet", asked)
    file = parquet.ParquetFile(tmp_path / "set.parquet")
    groups = [set(file.read_row_group(i)["subtype"].to_pylist()) for i in range(file.num_row_groups)]
    assert sorted(map(sorted, groups)) == sorted([row.subtype] for row in EXAMPLES)
    assert file.schema_arrow.metadata[b"tumorvqa.rules"] == b",kb-v2"
    assert file.schema_arrow.metadata[b"tumorvqa.version"]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert read_questions(tmp_path / "set.parquet") == asked


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.json"])
def test_the_same_questions_are_the_same_bytes(tmp_path, name):
    for folder in ("one", "two"):
        write_questions(tmp_path / folder / name, EXAMPLES)
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == [name]


def test_a_published_v2_record_is_read_nested_flat_and_as_a_list(tmp_path):
    (tmp_path / "nested.json").write_text(json.dumps({"num_questions": 1, "questions": [PUBLISHED]}))
    (tmp_path / "list.json").write_text(json.dumps([PUBLISHED]))
    (tmp_path / "flat.jsonl").write_text(json.dumps(PUBLISHED) + "\n")
    for name in ("nested.json", "list.json", "flat.jsonl"):
        (row,) = read_questions(tmp_path / name, {"BDMAP_00008446": "group 5"})
        assert [option.text for option in row.options] == ["Normal (no splenomegaly)", "Moderate", "Severe", "Mild"]
        assert (row.qid, row.case, row.patient) == ("bench_00017", "BDMAP_00008446", "group 5")
        assert (row.group, row.answer_type, row.subtype) == (
            "Medical Reasoning",
            "categorical",
            "splenomegaly grading",
        )
        assert row.answer == Answer("Normal (no splenomegaly)", "Normal (no splenomegaly)", 0)
        assert (row.trace, row.margin, row.arguments) == ((), None, {"organ": "spleen"})


def test_a_record_is_written_as_the_published_one(tmp_path):
    (tmp_path / "their.json").write_text(json.dumps([PUBLISHED]))
    (row,) = read_questions(tmp_path / "their.json")
    case = replace(CASE, case=row.case, meta=Meta())
    write_questions(tmp_path / "ours.json", [row], measurements={row.case: case})
    content = json.loads((tmp_path / "ours.json").read_text())
    (record,) = content["questions"]
    assert (content["num_questions"], content["question_types"]) == (1, ["medical reasoning"])
    expected = PUBLISHED | {"spacing": "[0.83 0.83 5]", "contrast": None, "requires_tools": []}
    assert record == expected  # no trace, so no tools


def test_tools_and_case_are_written_and_the_scanner_is_not(tmp_path):
    write_questions(tmp_path / "a.json", [FULL], measurements={"case 1": CASE})
    (record,) = json.loads((tmp_path / "a.json").read_text())["questions"]
    assert record["requires_tools"] == ["segment_organ", "measure"]
    assert record["lesion"] is True
    assert (record["sex"], record["age"], record["contrast"]) == ("male", 58, "venous")
    for name in ("a.json", "a.csv"):
        write_questions(tmp_path / name, [FULL], measurements={"case 1": CASE})
        assert "HOSPITAL" not in (tmp_path / name).read_text()


@pytest.mark.parametrize("blank", [" ", "_", "-"])
def test_v1_headers_are_read_however_they_are_joined(tmp_path, blank):
    headers = ("image id", "question type", "question subtype", "multiple choice question", "correct option")
    row = ("BDMAP_1", "recognition", "liver_lesion_existence", "Any liver lesion? A: No B: Yes", "B")
    with (tmp_path / "v1.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(header.replace(" ", blank) for header in headers), "question", "answer", "sex"])
        writer.writerows([[*row, "Any liver lesion?", "Yes", "F"]] * 2)
    first, second = read_questions(tmp_path / "v1.csv")
    assert first.subtype == "liver lesion existence"
    assert first.options == (Option("No", "no"), Option("Yes", "yes"))
    assert first.answer == Answer("yes", "Yes", 1)
    assert (first.answer_type, first.case, first.patient) == ("binary", "BDMAP_1", "BDMAP_1")
    assert second == replace(first, qid=f"{first.qid}-2")


def test_numbers_of_foreign_answers_are_numbers():
    record = PUBLISHED | {"question_subtype": "organ volume measurement", "answer": "1,234.5"}
    record |= {"mc_question": "How large? A: 900.1 B: 1,234.5", "question": "How large?", "correct_option": "B"}
    row = question_of(record, {})
    assert (row.answer.value, row.answer_type, row.unit) == (1234.5, "numeric", "cm^3")
    assert [option.value for option in row.options] == [900.1, 1234.5]
    assert question_of(record | {"answer": "not measurable"}, {}).answer_type == "categorical"
    for answer, kind in (("7", "numeric"), ("-7.5%", "numeric"), ("T2", "categorical"), ("NO", "binary")):
        assert question_of(record | {"question_subtype": "something new", "answer": answer}, {}).answer_type == kind


@pytest.mark.parametrize(
    "text, options",
    [
        ("Which? A: 1 B: 2", ["1", "2"]),
        ("Which? (A) 1 (B) 2", ["1", "2"]),
        ("Which?\nA. left side\nB. right side\nC. same", ["left side", "right side", "same"]),
        ("Which? A) 1 B) 2", ["1", "2"]),
        ("Which?", []),
    ],
)
def test_inline_options_are_found_in_order(text, options):
    assert options_of(text, "Which?") == options


def test_options_are_found_behind_a_question_that_looks_like_one():
    row = replace(VOLUME, text="Is it A: large or B: small?")
    assert options_of(mc_text(row), row.text) == [option.text for option in row.options]


@pytest.mark.parametrize("text", ["x B: y", " blank"])
def test_options_that_could_not_be_read_again_are_not_written(tmp_path, text):
    row = replace(SIDE, options=(Option(text, "left"), Option("right", "right")))
    for name in ("a.json", "a.csv"):
        with pytest.raises(ValueError, match="options of question s cannot be written inline"):
            write_questions(tmp_path / name, [row])
        assert not (tmp_path / name).exists()


BAD = [
    ("a.txt", "", "unknown suffix of a file of questions '.txt'"),
    ("a.jsonl", msgspec.json.encode(EXISTENCE).decode() + "\n{}\n", r"a\.jsonl, line 2 is no question"),
    ("a.jsonl", '{"image_id": "x"}', r"line 1 is no question \(a question lacks 'question'"),
    ("a.parquet", "PAR1", r"a\.parquet is no set of questions"),
    ("a.json", "{}", 'has no list "questions"'),
    ("a.json", "[1]", 'has no list "questions"'),
    ("a.json", json.dumps([PUBLISHED, PUBLISHED | {"correct_option": "E"}]), "question 2: .* 'E' of 4 options"),
    ("a.json", json.dumps([PUBLISHED | {"question_type": "recogniton"}]), "Did you mean 'recognition'"),
    ("a.csv", "Image ID,question\nx,\n", r"a\.csv, line 2: a question lacks 'question'; it has image_id"),
]


@pytest.mark.parametrize("name, content, message", BAD, ids=[f"{row[0]} {i}" for i, row in enumerate(BAD)])
def test_files_that_are_no_questions_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / name)


def test_a_format_that_its_suffix_denies_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"a file of format 'parquet' ends in \.parquet, not in '\.json'"):
        write_questions(tmp_path / "a.json", EXAMPLES, "parquet")
    with pytest.raises(ValueError, match="unknown format of questions 'paquet'"):
        write_questions(tmp_path / "a.json", EXAMPLES, "paquet")
    with pytest.raises(ValueError, match="is no file"):
        read_questions(tmp_path / "none.json")
