"""Scores, their intervals, comparisons and the leaderboard."""

import math
from collections import Counter
from dataclasses import replace
from importlib.resources import files
from io import StringIO

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, matthews_corrcoef

from tests.tumorvqa.handmade import EXAMPLES, EXISTENCE, SIDE, VOLUME, question
from tumorvqa.question import GROUPS, Answer, Prediction
from tumorvqa.scans import Meta
from tumorvqa.scoring.bootstrap import resampled_means
from tumorvqa.scoring.compare import compare, mcnemar
from tumorvqa.scoring.leaderboard import _table, leaderboard, reference, rows
from tumorvqa.scoring.predictions import predictions_log, read_predictions, write_predictions
from tumorvqa.scoring.score import mra_thresholded, quadratic_kappa, rank, score
from tumorvqa.scoring.scores import Scores
from tumorvqa.scoring.strata import strata

RIGHT = [Prediction(row.qid, "ABCD"[row.answer.index]) for row in EXAMPLES]
RNG = np.random.default_rng(0)


def existences(truths, answers=None):
    """Questions of yes or no, one a case, and what was answered (None: nothing)."""
    asked = [
        replace(EXISTENCE, qid=f"e{i}", case=f"c{i}", answer=Answer(truth, truth.capitalize(), int(truth == "no")))
        for i, truth in enumerate(truths)
    ]
    said = zip(asked, answers or (), strict=False)
    return asked, [Prediction(row.qid, text) for row, text in said if text is not None]


def test_right_letters_and_right_words_score_one():
    words = [Prediction(row.qid, row.answer.text) for row in EXAMPLES]
    for form, said in (("mc", RIGHT), ("free", words)):
        scores = score(EXAMPLES, said, form)
        assert scores.overall.accuracy.value == scores.macro_subtype.value == scores.macro_group.value == 1
        assert [row.parsed for row in scores.judged] == [row.answer.value for row in EXAMPLES]


def test_missing_answers_errors_and_unreadable_ones_are_wrong():
    said = [Prediction("q", "A"), Prediction("e", None), Prediction("s", "who knows")]
    overall = score(EXAMPLES, said).overall
    assert (overall.questions, overall.answered, overall.parsed) == (4, 2, 1)
    assert overall.accuracy.value == 0.25
    assert overall.details["coverage"] == 0.5
    assert overall.details["parse_rate"] == 0.25
    assert overall.details["accuracy_on_parsed"] == 1


def test_chance_of_a_uniform_choice_is_taken_off():
    scores = score(EXAMPLES, RIGHT)
    assert scores.overall.above_chance.value == pytest.approx(1 - (1 / 4 + 1 / 2 + 1 / 3 + 1 / 3) / 4)
    assert score(EXAMPLES, [], "free").overall.above_chance.value == 0


def test_macro_averages_weigh_subtypes_and_groups_alike():
    asked = [question(f"q{i}") for i in range(6)] + [EXISTENCE, SIDE]
    scores = score(asked, [Prediction(f"q{i}", "A") for i in range(6)])
    assert scores.overall.accuracy.value == 6 / 8
    assert scores.macro_subtype.value == scores.macro_group.value == pytest.approx(1 / 3)
    assert list(scores.groups) == [name for name in GROUPS if name in scores.groups]


def test_another_answer_key_replaces_the_answers():
    key = {"q": Answer(151.0, "151.0", 1), "e": Answer("maybe", "maybe", -1)}
    scores = score(EXAMPLES, RIGHT, answers=key, key="analytic")
    assert scores.key == "analytic"
    assert {row.qid: row.score for row in scores.judged} == {"q": 0, "e": 0, "s": 1, "f": 1}
    assert {row.qid: row.chance for row in scores.judged}["e"] == 0


@pytest.mark.parametrize(
    "asked, said, message",
    [
        ([], [], "no questions to score"),
        (EXAMPLES, [*RIGHT, RIGHT[1]], "1 qids occur more than once in the predictions, the first is 'e'"),
        ([VOLUME, VOLUME], [], "more than once in the questions, the first is 'q'"),
        (EXAMPLES, [Prediction("x", "A")], "1 of 1 predictions are to no question, the first with qid 'x'"),
    ],
    ids=["nothing", "twice", "same question", "unknown"],
)
def test_predictions_that_do_not_fit_are_an_error_in_either_mode(asked, said, message):
    for strict in (False, True):
        with pytest.raises(ValueError, match=message):
            score(asked, said, strict_authors=strict)


def test_scores_survive_json():
    scores = score(EXAMPLES, RIGHT)
    assert msgspec.json.decode(msgspec.json.encode(scores), type=Scores) == scores


# Numbers


@pytest.mark.parametrize("error, expected", [(0, 1), (0.1, 0.8), (0.2, 0.6), (0.5, 0), (0.05, 0.9), (0.04, 1), (2, 0)])
@pytest.mark.parametrize("truth", [1.0, 10.0, 0.7, -40.0, 1e-7])
def test_thresholded_accuracy_is_strict_at_its_thresholds_whatever_the_float(error, expected, truth):
    said = float(f"{truth * (1 + error):.12g}")
    assert mra_thresholded(said, truth) == expected


@given(st.floats(-1e9, 1e9), st.integers(-(10**6), 10**6).filter(bool))
def test_thresholded_accuracy_is_the_mean_over_ten_thresholds(said, truth):
    relative = abs(said - truth) / abs(truth)
    if min(abs(relative - k / 20) for k in range(1, 11)) > 1e-9:
        thresholds = [0.5 + 0.05 * k for k in range(10)]
        assert mra_thresholded(said, truth) == pytest.approx(np.mean([relative < 1 - t for t in thresholds]))


def test_a_truth_of_zero_asks_for_zero():
    assert mra_thresholded(0.0, 0.0) == 1
    assert mra_thresholded(1e-9, 0.0) == 0


def test_both_mean_relative_accuracies_and_bands_by_hand():
    asked = [question(f"q{i}", case=f"c{i}", options=(100.0,)) for i in range(5)]
    said = [Prediction(f"q{i}", text) for i, text in enumerate(("100", "110", "80 ml", "150", "none of them"))]
    details = score(asked, said, "free").overall.details
    assert details["mra_linear"] == pytest.approx((1 + 0.9 + 0.8 + 0.5) / 5)
    assert details["mra_thresholded"] == pytest.approx((1 + 0.8 + 0.6 + 0) / 5)
    assert [details[f"within_{p}%"] for p in (5, 10, 20, 50)] == [0.2, 0.4, 0.6, 0.8]
    assert details["mae"] == pytest.approx((0 + 10 + 20 + 50) / 4)
    assert details["bias"] == pytest.approx(10)
    assert details["median_relative_error"] == pytest.approx(0.15)


def test_concordance_is_correlation_where_means_and_spreads_agree_and_falls_with_a_shift():
    truths = RNG.normal(100, 20, 40).round(3)
    same = np.roll(truths, 1)  # same mean, same spread
    for said, expected in ((same, np.corrcoef(truths, same)[0, 1]), (truths, 1.0), (truths + 50, None)):
        asked = [question(f"q{i}", case=f"c{i}", options=(float(value),)) for i, value in enumerate(truths)]
        details = score(asked, [Prediction(f"q{i}", str(x)) for i, x in enumerate(said)], "free").overall.details
        ccc = 2 * np.var(truths) / (2 * np.var(truths) + 2500) if expected is None else expected
        assert details["ccc"] == pytest.approx(ccc)


def test_errors_of_different_quantities_are_not_averaged():
    asked = [VOLUME, question("d", "largest lesion diameter", (12.0, 3.0), 0, "mm")]
    scores = score(asked, [Prediction("q", "120"), Prediction("d", "13")], "free")
    assert "mae" not in scores.overall.details
    assert scores.subtypes["largest lesion diameter"].details["mae"] == 1


# Words


def test_binary_figures_equal_sklearn_where_all_is_answered():
    truths, said = (RNG.choice(["yes", "no"], 60).tolist() for _ in range(2))
    details = score(*existences(truths, said), "free").overall.details
    assert details["sensitivity"] == np.mean([a == "yes" for a, t in zip(said, truths, strict=True) if t == "yes"])
    assert details["specificity"] == np.mean([a == "no" for a, t in zip(said, truths, strict=True) if t == "no"])
    assert details["ppv"] == np.mean([t == "yes" for a, t in zip(said, truths, strict=True) if a == "yes"])
    assert details["npv"] == np.mean([t == "no" for a, t in zip(said, truths, strict=True) if a == "no"])
    assert details["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truths, said))
    assert details["mcc"] == pytest.approx(matthews_corrcoef(truths, said))
    assert details["abstentions"] == 0


def test_silence_is_no_correct_no():
    details = score(*existences(["no", "no", "yes", "yes"], [None, "no", None, "yes"]), "free").overall.details
    assert (details["sensitivity"], details["specificity"], details["abstentions"]) == (0.5, 0.5, 0.5)
    assert (details["ppv"], details["npv"], details["mcc"]) == (1, 1, 1)


def test_multiple_choice_of_yes_and_no_has_the_same_figures():
    asked, said = existences(["no", "yes", "yes"], ["A", "A", "B"])
    details = score(asked, said, "mc").overall.details
    assert (details["sensitivity"], details["specificity"]) == (0.5, 0)


STAGES = ("T1", "T2", "T3", "T4")


def stages(truths, said):
    asked = [
        question(f"s{i}", "pancreatic tumor staging", STAGES, STAGES.index(truth), case=f"c{i}")
        for i, truth in enumerate(truths)
    ]
    return score(asked, [Prediction(f"s{i}", text) for i, text in enumerate(said)], "free").overall.details


def test_macro_f1_and_quadratic_kappa_equal_sklearn():
    truths, said = (RNG.choice(STAGES, 80).tolist() for _ in range(2))
    details = stages(truths, said)
    assert details["macro_f1"] == pytest.approx(f1_score(truths, said, average="macro"))
    assert details["quadratic_kappa"] == pytest.approx(cohen_kappa_score(truths, said, weights="quadratic"))


def test_kappa_is_one_for_agreement_and_falls_faster_for_far_stages():
    truths = ["T1", "T2", "T3", "T4"]
    near, far = (stages(truths, ["T2", *truths[1:]]), stages(truths, ["T4", *truths[1:]]))
    assert stages(truths, truths)["quadratic_kappa"] == 1 > near["quadratic_kappa"] > far["quadratic_kappa"]
    assert near["macro_f1"] < 1
    assert quadratic_kappa([(2, 2), (2, 2)]) is None


def test_grades_have_ranks():
    names = ("T1a", "T4", "G0", "Grade 3", "Normal (no splenomegaly)", "mild splenomegaly", "Severe", "unknown")
    assert [rank(name) for name in names] == [1, 4, 0, 3, 0, 1, 3, None]


# Intervals


def test_interval_is_that_of_the_mean_of_independent_cases():
    """2,000 resamples of 400 coins: low and high lie 1.96 standard errors from the mean, within Monte Carlo error."""
    truths = ["yes"] * 400
    asked, said = existences(truths, ["yes", "no"] * 200)
    accuracy = score(asked, said, "free").overall.accuracy
    half = 1.96 * 0.5 / math.sqrt(400)
    assert accuracy.low == pytest.approx(0.5 - half, abs=0.1 * half)
    assert accuracy.high == pytest.approx(0.5 + half, abs=0.1 * half)


def test_questions_of_one_case_widen_the_interval_as_whole_cases_do():
    """Four copies of a question in each case say no more than one: the interval is that of the cases."""
    asked, said = existences(["yes"] * 100, ["yes", "no"] * 50)
    copies = [replace(row, qid=f"{row.qid}-{k}") for row in asked for k in range(4)]
    told = [Prediction(f"{row.qid}-{k}", row.raw) for row in said for k in range(4)]
    assert score(copies, told, "free").overall.accuracy == score(asked, said, "free").overall.accuracy


def test_resampled_means_equal_those_of_drawn_cases_written_out():
    values, cases = RNG.normal(size=(30, 2)), [f"c{i % 7}" for i in range(30)]
    parts = np.stack([np.ones(30, bool), np.arange(30) < 12], axis=1)
    means = resampled_means(values, cases, parts, 50, 3)
    draws = np.random.default_rng(3).integers(7, size=(50, 7))
    for draw, expected in zip(draws, means, strict=True):
        drawn = [i for c in draw for i in range(30) if i % 7 == c]
        for part, mean in zip(parts.T, expected, strict=True):
            assert mean == pytest.approx(values[[i for i in drawn if part[i]]].mean(0))


def test_seed_decides_and_one_case_has_no_interval():
    asked = [question(f"q{i}", case=f"c{i}", options=(float(100 + i),)) for i in range(40)]
    said = [Prediction(f"q{i}", "100") for i in range(40)]
    one, again, other = (score(asked, said, "free", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.overall.accuracy.low != other.overall.accuracy.low
    assert score(EXAMPLES, RIGHT).overall.accuracy.low is None
    assert score(asked, said, "free", resamples=0).overall.accuracy.low is None


# Two models


def test_difference_of_a_model_and_itself_is_nothing():
    asked, said = existences(["yes", "no"] * 20, ["yes"] * 40)
    scores = score(asked, said, "free")
    same = compare(scores, scores, asked)
    assert all((row.value, row.low, row.high) == (0, 0, 0) for row in same.differences.values())
    assert (same.only_a, same.only_b, same.p_value) == (0, 0, 1)


def test_pairing_narrows_the_interval_of_a_difference():
    truths = ["yes"] * 200
    answers = ["yes", "no"] * 100
    better = ["yes" if i % 20 == 1 else answer for i, answer in enumerate(answers)]
    a, b = (score(*existences(truths, said), "free", model=name) for name, said in (("a", better), ("b", answers)))
    found = compare(a, b, existences(truths)[0])
    overall = found.differences["overall"]
    assert overall.value == pytest.approx(0.05)
    assert overall.low > 0
    assert overall.high - overall.low < a.overall.accuracy.high - a.overall.accuracy.low
    assert (found.only_a, found.only_b) == (10, 0)
    assert found.p_value == pytest.approx(2 * 0.5**10)
    assert "a minus b, 200 questions" in found.table()


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_fair_coin_on_the_questions_that_differ(a, b):
    n, least = a + b, min(a, b)
    exact = min(1, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)
    assert mcnemar(a, b) == pytest.approx(exact)
    assert not n or mcnemar(a, b) == pytest.approx(binomtest(b, n).pvalue)


def test_a_number_within_five_percent_is_right_for_mcnemar():
    a, b = (score([VOLUME], [Prediction("q", text)], "free") for text in ("126.525", "126.6"))
    assert (compare(a, b, [VOLUME]).only_a, compare(a, b, [VOLUME]).only_b) == (1, 0)


def test_scores_of_different_sets_or_formats_do_not_compare():
    a = score(EXAMPLES, RIGHT)
    with pytest.raises(ValueError, match=r"with format 'mc'.*'free'"):
        compare(a, score(EXAMPLES, [], "free"), EXAMPLES)
    with pytest.raises(ValueError, match="1 questions are not in both, among them 'q'"):
        compare(a, score(EXAMPLES[1:], []), EXAMPLES)


# Strata


def test_strata_divide_the_questions_that_are_known_of():
    sizes = (4.0, 10.0, 39.9, 80.0, None)
    asked = [question(f"q{i}", case=f"c{i % 2}", lesion_mm=mm) for i, mm in enumerate(sizes)]
    metas = {"c0": Meta(sex="female", age=75, contrast="venous"), "c1": Meta(age=20)}
    found = strata(score(asked, [Prediction("q0", "A"), Prediction("q3", "A")]), asked, metas)
    accuracy = {
        row: {band: (s.questions, s.accuracy.value) for band, s in bands.items()} for row, bands in found.items()
    }
    assert accuracy == {
        "contrast": {"venous": (3, 1 / 3)},
        "sex": {"female": (3, 1 / 3)},
        "age": {"75 years or more": (3, 1 / 3), "under 40 years": (2, 0.5)},
        "lesion size": {"under 10 mm": (1, 1), "10 to 20 mm": (1, 0), "20 to 40 mm": (1, 0), "40 mm or more": (1, 1)},
    }
    assert list(found["lesion size"]) == ["under 10 mm", "10 to 20 mm", "20 to 40 mm", "40 mm or more"]


# Leaderboard


def test_reference_rows_are_the_authors_and_micro_averages():
    counts = Counter()
    for row in _table("subtype_schema.csv"):
        counts[row["task_group"]] += int(row["n_benchmark"])
    assert tuple(counts[name] for name in GROUPS) == (2023, 2023, 4049, 1905)
    assert (len(reference("mc")), len(reference("free"))) == (38, 24)
    for row in (*reference("mc"), *reference("free")):
        if "radiologist" not in row.model:
            micro = sum(row.groups[name] * counts[name] for name in counts) / counts.total()
            assert micro == pytest.approx(row.overall, abs=0.1), row.model


def test_reference_rows_equal_the_published_files(shared):
    for name in ("leaderboard.csv", "leaderboard_freeform.csv", "subtype_schema.csv"):
        ours = files("tumorvqa.scoring").joinpath(name).read_bytes()
        assert ours.endswith((shared / "tumorvqa" / name).read_bytes())


def test_leaderboard_ranks_ours_among_theirs_and_marks_which_were_measured():
    scores = score(EXAMPLES, RIGHT, model="[bold]mine[/]")
    ranked = rows([scores, score(EXAMPLES, [], "free")])
    assert [row.overall for row in ranked] == sorted((row.overall for row in ranked), reverse=True)
    assert (ranked[0].overall, [row.measured for row in ranked].count(True)) == (100, 1)
    console = Console(width=200, record=True, file=StringIO())
    console.print(leaderboard([scores]))
    text = console.export_text()
    assert "[bold]mine[/] " in text
    assert "Meissa-4B FT (organ) *" in text
    assert "not measured here" in text


# Predictions


def test_predictions_are_read_as_written(tmp_path):
    said = [Prediction("a", "B\n\u2028é", 0.5, 12), Prediction("b", ""), Prediction("c", None)]
    write_predictions(tmp_path / "p.jsonl", said)
    assert read_predictions(tmp_path / "p.jsonl") == said


@pytest.mark.parametrize("line", ["{", '{"raw": "A"}', '{"qid": 3, "raw": "A"}', '{"qid": "a"}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"qid": "a", "raw": "A"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl, line 3 is no prediction"):
        read_predictions(path)


def test_a_run_goes_on_behind_its_last_whole_line_and_tries_errors_again(tmp_path):
    path = tmp_path / "run" / "p.jsonl"
    with predictions_log(path) as (done, add):
        assert done == set()
        add(Prediction("a", "A"))
        add(Prediction("b", None))
    with path.open("a") as file:
        file.write('{"qid": "c", "ra')  # killed here
    with predictions_log(path) as (done, add):
        assert done == {"a"}
        add(Prediction("b", "B"))
        add(Prediction("c", "C"))
    assert read_predictions(path) == [Prediction("a", "A"), Prediction("b", "B"), Prediction("c", "C")]
