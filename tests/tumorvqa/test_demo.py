"""The demo end to end on a few phantoms: two keys, baselines, the same bytes again, a page."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tumorvqa.asking.ask import answered, ask
from tumorvqa.cli import main
from tumorvqa.demo import SALT, analytic_key, demo, differences, truth_of, write_phantoms
from tumorvqa.formats import read_questions
from tumorvqa.measuring.case import measure
from tumorvqa.phantoms.draw import draw
from tumorvqa.phantoms.render import render
from tumorvqa.phantoms.write import write
from tumorvqa.question import Answer
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import find_cases
from tumorvqa.rules.packs import load_pack
from tumorvqa.sets import ask_into, measured_in, read_key, read_scores
from tumorvqa.work import measure_all

CASES = 16
KB = load_pack("kb-v2")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    demo(out, cases=CASES, workers=1)
    return out


def scores(out: Path, name: str):
    return read_scores(out / "scores" / f"{name}.json")


def test_the_oracle_is_right_by_the_masks_and_nearly_by_the_analytic_truth(made):
    assert scores(made, "agent-oracle.mc.masks").overall.accuracy.value == 1
    assert scores(made, "agent-oracle.free.masks").overall.accuracy.value == 1
    analytic = scores(made, "agent-oracle.mc.analytic").overall
    assert analytic.accuracy.value >= 0.97
    missed = [json.loads(line) for line in (made / "misses.jsonl").read_text().splitlines()]
    assert len(missed) == round(analytic.questions * (1 - analytic.accuracy.value))


def test_a_spacing_wrong_by_a_tenth_is_noticed_by_the_analytic_key(made):
    right, wrong = (
        scores(made, f"agent-{name}.mc.analytic").overall.accuracy.value for name in ("oracle", "stretched")
    )
    assert wrong < right - 0.05


def test_worse_masks_answer_worse_and_no_masks_by_chance(made):
    best, perturbed, none = (scores(made, f"agent-{name}.mc.masks").overall for name in ("oracle", "perturbed", "none"))
    assert best.accuracy.value > perturbed.accuracy.value > none.accuracy.value
    assert none.above_chance.low < 0 < none.above_chance.high
    threshold = scores(made, "hu-threshold.mc.masks").overall
    assert threshold.above_chance.low > 0


def test_a_second_key_differs_only_where_the_measurement_does(made):
    questions = read_questions(made / "questions.jsonl")
    files = {case.id: case for case in find_cases(made / "images")}
    measured = {case.case: case for case in measured_in(made)}
    key, without = analytic_key(questions, {name: truth_of(case) for name, case in files.items()}, KB)
    assert key == read_key(made / "keys" / "analytic.json")
    assert len(key) + len(without) == len(questions) and len(without) < 0.02 * len(questions)
    assert all(answered(question, measured[question.case], KB) == question.answer for question in questions)


def test_a_wrong_measurement_is_a_listed_miss(made):
    questions = read_questions(made / "questions.jsonl")
    (wrong,) = [q for q in questions if q.subtype == "organ volume measurement"][:1]
    other = next(i for i in range(4) if i != wrong.answer.index)
    option = wrong.options[other]
    (miss,) = differences([wrong], {wrong.qid: Answer(option.value, option.text, other)})
    assert miss["qid"] == wrong.qid and miss["masks"] == wrong.answer.text and miss["analytic"] == option.text
    assert any("volume of the" in step for step in miss["measured"])


def test_a_count_that_is_no_option_is_not_the_nearest_one(made):
    measured = {case.case: case for case in measured_in(made)}
    question = next(q for q in read_questions(made / "questions.jsonl") if q.subtype == "lesion counting")
    case = measured[question.case]
    few = [option for option in question.options if option != question.options[question.answer.index]]
    assert answered(replace(question, options=tuple(few)), case, KB).index == -1


def test_the_same_seed_asks_the_same_bytes_in_another_folder_with_more_processes(made, tmp_path):
    write_phantoms(tmp_path / "images", CASES, workers=2)
    measure_all(find_cases(tmp_path / "images"), tmp_path, workers=2, salt=SALT)
    ask_into(tmp_path)
    for name in ("questions.jsonl", "leaks.json"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()


def test_phantoms_of_another_seed_are_not_mixed_in(made):
    with pytest.raises(ValueError, match="phantoms of another seed"):
        write_phantoms(made / "images", 2, seed=1)


def test_splits_keep_patients_together_though_phantoms_share_them(made):
    questions = read_questions(made / "questions.jsonl")
    splits, cases = {}, {}
    for question in questions:
        splits.setdefault(question.patient, set()).add(question.split)
        cases.setdefault(question.patient, set()).add(question.case)
    assert any(len(those) > 1 for those in cases.values())
    assert all(len(those) == 1 for those in splits.values())


@pytest.mark.parametrize("turned", [((0, 1), (1, 1), (2, 1)), ((2, -1), (0, 1), (1, -1)), ((1, -1), (2, 1), (0, -1))])
def test_a_file_asks_the_same_questions_whichever_way_it_lies(turned, tmp_path):
    phantom = replace(draw(3, 0), turned=turned)
    (case,) = find_cases(write(phantom, tmp_path))
    here, there = measure(render(phantom)), measure(read_case(case))
    asked = [ask([replace(one, patient="", source="")], KB, balanced=False) for one in (here, there)]
    assert len(asked[0]) > 40
    assert msgspec.json.encode(asked[0]) == msgspec.json.encode(asked[1])


def test_pages_and_tables_come_out_of_the_command_line(made, tmp_path, capsys):
    said = str(made / "predictions" / "agent-perturbed.mc.jsonl")
    other = str(made / "predictions" / "prior.mc.jsonl")
    questions = str(made / "questions.jsonl")
    key = str(made / "keys" / "analytic.json")
    for command in (
        ["score", questions, said, "--key", key, "--to", str(tmp_path / "s.json")],
        ["score", questions, said, "--strict-authors", "--split", "train"],
        ["score", questions, said, "--strata"],
        ["compare", questions, said, other],
        ["leaderboard", str(tmp_path / "s.json")],
        ["report", str(made)],
        ["convert", questions, str(tmp_path / "v2.json")],
        ["convert", str(tmp_path / "v2.json"), str(tmp_path / "v1.csv")],
        ["baseline", "agent-oracle", str(made), "--to", str(tmp_path / "oracle.jsonl")],
        ["show", str(made / "images" / "phantom_00001"), "--out", str(tmp_path / "c.html"), "--predictions", said],
    ):
        assert main(command) == 0, command
    assert read_scores(tmp_path / "s.json").key == "analytic"
    assert len(read_questions(tmp_path / "v1.csv")) == len(read_questions(Path(questions)))
    for page in (made / "report.html", tmp_path / "c.html"):
        assert page.stat().st_size > 50_000
    assert "McNemar" in capsys.readouterr().out


def test_scores_of_questions_that_are_asked_no_more_stay_on_disk_and_leave_the_page(made, tmp_path):
    copied = tmp_path / "set"
    shutil.copytree(made, copied, ignore=shutil.ignore_patterns("images", "views", "pages"))
    assert main(["report", str(copied)]) == 0
    assert "agent-perturbed" in (copied / "report.html").read_text()
    assert main(["ask", str(copied), "--seed", "3"]) == 0
    assert main(["report", str(copied)]) == 0
    assert "agent-perturbed" not in (copied / "report.html").read_text()
    assert (copied / "scores" / "agent-perturbed.mc.masks.json").exists()


BAD = [
    (["doctor", "nowhere"], "'nowhere' is not a folder"),
    (["measure", ".", "out"], "no case in"),
    (["ask", "."], "no measured cases"),
    (["rules", "kb"], "Did you mean 'kb-v2'"),
    (["show", "x.nii.gz"], "is not a folder"),
    (["baseline", "oracle", "."], "unknown baseline 'oracle'"),
    (["score", "q.jsonl", "p.jsonl"], "q.jsonl is no file"),
    (["leaderboard", "s.json"], "s.json is not a file of scores"),
    (["convert", "q.txt", "q.jsonl"], "unknown suffix of a file of questions '.txt'"),
    (["lern"], "unknown command 'lern'"),
]


@pytest.mark.parametrize(("command", "words"), BAD)
def test_bad_input_gets_one_line_and_status_2(command, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("tumorvqa: ") and said.count("\n") == 1
