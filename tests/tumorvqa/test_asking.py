"""Questions: each subtype on a case whose answer is known by hand, what is not asked, options that tell nothing."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

import msgspec
import pytest

from tests.tumorvqa.by_hand import case, lesion, organ
from tumorvqa.asking import options
from tumorvqa.asking.ask import answered, ask, candidates, templates
from tumorvqa.asking.look import Class, Look, NotAsked, Number, both, either
from tumorvqa.asking.quantities import ANGLES, QUANTITIES
from tumorvqa.asking.subtypes import SUBTYPES
from tumorvqa.rules.packs import PACKS, load_pack
from tumorvqa.scans import Meta

KB, RADGPT = load_pack("kb-v2"), load_pack("radgpt")
IN_LIVER = [
    lesion("liver", "tumor", 1, 40, hu=20, place="liver_segment_4", gaps={"stomach": 2.0, "colon": 9.0}),
    lesion("liver", "cyst", 2, 20, hu=5, place="liver_segment_4"),
    lesion("liver", "lesion", 3, 10, hu=5, place="liver_segment_8"),
]
IN_KIDNEY = [
    lesion("kidney", "cyst", 1, 24, hu=5, place="kidney_left"),
    lesion("kidney", "tumor", 2, 12, place="kidney_right"),
]
HEAD = {"place": "pancreas_head"}
PDAC = lesion("pancreas", "pdac", 1, 30, hu=10, **HEAD, contacts={"superior_mesenteric_artery": 90})
CELIAC = case("celiac", lesion("pancreas", "pdac", **HEAD, contacts={"celiac_artery": 90}))
CYST = lesion("pancreas", "cyst", 1, 24, hu=5, place="pancreas_tail")
FULL = case("full", *IN_LIVER, *IN_KIDNEY, PDAC)
CYSTIC = case("cystic", CYST)
BALL = 3.14159265 / 6  # volume of a ball of diameter 1

# subtype, arguments, case, the answer by hand
KNOWN = [
    ("liver lesion existence", {}, FULL, "yes"),
    ("liver lesion existence", {}, CYSTIC, "no"),
    ("kidney lesion existence", {}, FULL, "yes"),
    ("pancreatic lesion existence", {}, CYSTIC, "yes"),
    ("colon lesion existence", {}, FULL, "no"),
    ("kidney tumor existence", {}, FULL, "yes"),
    ("kidney cyst existence", {}, CYSTIC, "no"),
    ("PDAC existence", {}, FULL, "yes"),
    ("PNET existence", {}, FULL, "no"),
    ("splenomegaly detection", {}, FULL, "no"),
    ("splenomegaly detection", {}, case(volumes={"spleen": 400}), "yes"),
    ("organ volume measurement", {"organ": "spleen"}, FULL, 200),
    ("organ HU measurement", {"organ": "liver"}, FULL, 60),
    ("lesion volume measurement", {"organ": "liver"}, FULL, BALL * (4**3 + 2**3 + 1)),
    ("organ HU ratio", {"organ": "liver"}, FULL, 60 / 50),
    ("organ HU ratio", {"organ": "pancreas"}, FULL, 40 / 50),
    ("tumor burden percentage", {"organ": "kidney"}, FULL, 100 * BALL * (2.4**3 + 1.2**3) / (150 + 160)),
    ("lesion counting", {"organ": "liver"}, FULL, 3),
    ("lesion counting", {"organ": "colon"}, FULL, 0),
    ("lesion count by location", {"organ": "liver", "place": "liver_segment_4"}, FULL, 2),
    ("lesion count by location", {"organ": "kidney", "place": "kidney_left"}, FULL, 1),
    ("largest lesion diameter", {"organ": "liver"}, FULL, 4.0),
    ("largest lesion slice", {"organ": "liver"}, FULL, 15),
    ("largest lesion location", {"organ": "liver"}, FULL, "liver_segment_4"),
    ("largest lesion attenuation", {"organ": "liver"}, FULL, "hypoattenuating"),
    ("largest lesion attenuation", {"organ": "liver"}, case("a", lesion("liver", hu=60.1)), "isoattenuating"),
    ("largest lesion attenuation", {"organ": "liver"}, case("a", lesion("liver", hu=90)), "hyperattenuating"),
    ("tumor organ HU difference", {"organ": "liver"}, FULL, 20 - 60),
    ("tumor organ HU difference", {"organ": "kidney"}, FULL, 5 - 30),
    ("organ aggregation", {"what": "volume", "organs": "liver+spleen"}, FULL, 1700),
    ("organ aggregation", {"what": "lesions", "organs": "liver+kidney"}, FULL, 5),
    ("inter-segment comparison", {"first": "liver_segment_4", "second": "liver_segment_8"}, FULL, "liver_segment_4"),
    ("inter-segment comparison", {"first": "liver_segment_1", "second": "liver_segment_2"}, FULL, "same"),
    ("adjacent organ", {"organ": "liver"}, FULL, "stomach"),
    ("kidney volume comparison", {}, FULL, "right"),
    ("kidney volume comparison", {}, case(volumes={"kidney_left": 158}), "same"),
    ("bilateral kidney asymmetry", {}, FULL, "left"),
    ("lesion outlier", {"organ": "liver"}, FULL, "yes"),
    ("lesion outlier", {"organ": "liver"}, case("a", *[lesion("liver", rank=i, mm=32 - i) for i in (1, 2, 3)]), "no"),
    ("liver lesion clustering", {}, FULL, "highly clustered"),
    ("multi-organ lesion burden comparison", {}, FULL, "pancreas"),
    ("organ enlargement", {"organ": "liver"}, FULL, "no"),
    ("organ enlargement", {"organ": "pancreas"}, case(volumes={"pancreas": 130}), "yes"),
    ("fatty liver", {}, FULL, "no fatty liver"),
    ("fatty liver", {}, case(hus={"liver": 30}), "fatty liver"),
    ("hepatic steatosis grading", {}, FULL, "G0"),
    ("hepatic steatosis grading", {}, case(hus={"liver": 45, "spleen": 42}), "G2"),  # by HU G2, by ratio G0
    ("hepatic steatosis grading", {}, case(hus={"liver": 62, "spleen": 70}), "G1"),  # by HU G0, by ratio G1
    ("pancreatic steatosis", {}, FULL, "no"),
    ("pancreatic steatosis", {}, case(hus={"pancreas": 20}), "yes"),
    ("splenomegaly grading", {}, case(volumes={"spleen": 600}), "moderate splenomegaly"),
    ("portal hypertension assessment", {}, FULL, "no"),
    ("portal hypertension assessment", {}, case(volumes={"spleen": 500, "liver_segment_1": 450}), "yes"),
    ("portal hypertension assessment", {}, case(volumes={"spleen": 200, "liver_segment_1": 450}), "no"),
    ("lesion type classification", {}, FULL, "cyst"),
    ("lesion type classification", {}, case("a", lesion("kidney", hu=60)), "tumor"),
    ("renal mass characterization", {}, FULL, "simple cyst"),
    ("renal mass characterization", {}, case("a", lesion("kidney", hu=45)), "indeterminate mass"),
    ("renal mass characterization", {}, case("a", lesion("kidney", hu=90)), "hyperattenuating cyst"),
    ("pseudocyst determination", {}, CYSTIC, "no"),
    ("pancreatic cyst resectability", {}, CYSTIC, "yes"),  # 7.2 cm^3, though 2.4 cm
    ("pancreatic cyst resectability", {}, case("a", lesion("pancreas", "cyst", mm=12)), "no"),
    ("pancreatic tumor staging", {}, FULL, "T2"),
    ("pancreatic tumor staging", {}, case("a", lesion("pancreas", "pdac", contacts={"celiac_artery": 270})), "T4"),
    ("pancreatic lesion resectability", {}, FULL, "borderline resectable"),
    ("pancreatic lesion resectability", {}, case("a", lesion("pancreas", "pdac", **HEAD)), "resectable"),
    ("pancreatic lesion resectability", {}, CELIAC, "unresectable"),
    ("PDAC vs PNET classification", {}, FULL, "PDAC"),
]  # fmt: skip


def answer(subtype, arguments, measurements, pack=KB):
    return SUBTYPES[subtype].program(Look(measurements, pack), **arguments)


@pytest.mark.parametrize(("subtype", "arguments", "measurements", "truth"), KNOWN)
def test_answer_is_the_one_by_hand(subtype, arguments, measurements, truth):
    assert arguments in SUBTYPES[subtype].about
    found = answer(subtype, arguments, measurements)
    assert found.value == (truth if isinstance(truth, str) else pytest.approx(truth, rel=1e-6))


def test_every_subtype_has_an_answer_by_hand_and_words():
    assert len(SUBTYPES) == 42
    assert {row[0] for row in KNOWN} == set(SUBTYPES)
    names = {name.split(" of volume")[0].split(" of lesions")[0] for name in templates()}
    assert names == set(SUBTYPES)
    assert all(len(set(words)) >= 3 for words in templates().values())


def test_subtypes_are_those_of_the_authors(shared):
    rows = (shared / "tumorvqa" / "subtype_schema.csv").read_text().splitlines()[1:]
    assert {(row.split(",")[0], row.split(",")[1]) for row in rows} == {(r.name, r.group) for r in SUBTYPES.values()}


@pytest.mark.parametrize("pack", sorted(PACKS))
def test_every_rule_of_a_pack_can_be_read_and_has_a_source(pack):
    rules = load_pack(pack).rules
    assert rules.keys() == KB.rules.keys()
    assert all(rule.quantity in (*QUANTITIES, *ANGLES) and rule.source for rule in rules.values())


def test_packs_differ_where_their_sources_do():
    large = case(volumes={"liver": 2400, "spleen": 600})
    assert answer("organ enlargement", {"organ": "liver"}, large).value == "yes"
    assert answer("organ enlargement", {"organ": "liver"}, large, RADGPT).value == "no"
    assert answer("splenomegaly grading", {}, large, RADGPT).value == "massively enlarged"


def test_bad_rule_packs_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"unknown rule pack 'kb'.*Did you mean 'kb-v2'"):
        load_pack("kb")
    bad = tmp_path / "mine.toml"
    bad.write_text(
        'version = "1"\n["a"]\nquantity = "liver HU"\ncuts = [2, 1]\nclasses = ["x", "y", "z"]\nsource = "me"'
    )
    with pytest.raises(ValueError, match=r"mine.toml cannot be read: rule 'a' has cuts \[2.0, 1.0\]"):
        load_pack(str(bad))
    bad.write_text('version = "1"\n["a"]\nquantity = "liver HU"')
    with pytest.raises(ValueError, match=r"mine.toml cannot be read: .*cuts"):
        load_pack(str(bad))


CUT = replace(FULL, organs=FULL.organs | {"liver": organ("liver", 9, status="truncated")})
CYSTS_ONLY = case("a", lesion("liver", "cyst"), annotated=("liver_cyst",))
TWINS = case("a", lesion("liver"), lesion("liver", rank=2))
ASTRIDE = case("a", lesion("liver", places={"liver_segment_4": 0.6, "liver_segment_8": 0.4}))
NOT_ASKED = [
    ("organ volume measurement", {"organ": "liver"}, CUT, "truncated"),
    ("organ volume measurement", {"organ": "liver"}, replace(FULL, organs={}), "not annotated"),
    ("liver lesion existence", {}, case("a", annotated=()), "not annotated"),
    ("liver lesion existence", {}, case("a", annotated=("liver_cyst",)), "not annotated"),
    ("PNET existence", {}, case("a", annotated=("pancreas_lesion",)), "not annotated"),
    ("lesion counting", {"organ": "liver"}, CYSTS_ONLY, "not all annotated"),
    ("largest lesion diameter", {"organ": "liver"}, CYSTIC, "none"),
    ("largest lesion diameter", {"organ": "liver"}, TWINS, "equally large"),
    ("largest lesion location", {"organ": "liver"}, ASTRIDE, "several parts"),
    ("adjacent organ", {"organ": "liver"}, case("a", lesion("liver", gaps={"stomach": 6.0})), "no organ is near"),
    ("organ HU ratio", {"organ": "liver"}, case(hus={"spleen": 0.1}), "denominator"),
    ("organ HU ratio", {"organ": "pancreas"}, case(hus={"pancreas": -6.4}), "ratio is -0.13"),
    ("organ HU ratio", {"organ": "liver"}, case(contrast="venous"), "plain"),
    ("fatty liver", {}, case(contrast="venous"), "this one is venous"),
    ("fatty liver", {}, case(contrast=None), "this one is None"),
    ("lesion outlier", {"organ": "kidney"}, FULL, "2 lesions"),
    ("renal mass characterization", {}, case("a", lesion("kidney", "tumor")), "tumor by its mask"),
    ("renal mass characterization", {}, case("a", lesion("kidney", hu=-40)), "says nothing of -40.0 HU"),
    ("PDAC vs PNET classification", {}, CYSTIC, "a cyst by its mask"),
    ("multi-organ lesion burden comparison", {}, case(), "no lesion"),
]  # fmt: skip


@pytest.mark.parametrize(("subtype", "arguments", "measurements", "why"), NOT_ASKED)
def test_what_is_not_known_is_not_asked(subtype, arguments, measurements, why):
    with pytest.raises(NotAsked, match=why):
        answer(subtype, arguments, measurements)


def test_no_question_where_the_truth_lies_within_measurement_error():
    for volume, asked in ((314.4, False), (316.5, True), (250.0, True)):  # an error of 0.2% is 0.63 cm^3
        found = ask([case(volumes={"spleen": volume})], KB, balanced=False, subtypes=["splenomegaly detection"])
        assert bool(found) == asked
    for gap, asked in ((4.9, False), (3.0, True)):  # 5 mm, known to 0.5 mm
        near = case("a", lesion("liver", gaps={"stomach": gap}))
        assert bool(ask([near], KB, balanced=False, subtypes=["adjacent organ"])) == asked


def test_errors_of_parts_add_up_in_quadrature():
    three, four = Number(30, 3, "cm^3"), Number(40, 4, "cm^3")
    assert (three + four).uncertainty == pytest.approx(5)
    assert (three / four).uncertainty == pytest.approx(0.75 * (0.1**2 + 0.1**2) ** 0.5)
    with pytest.raises(NotAsked):
        three / Number(5, 4, "HU")


def test_margins_of_and_and_or():
    yes, no, sure = (Class("yes", ("no", "yes"), 3), Class("no", ("no", "yes"), 1), Class("no", ("no", "yes"), 9))
    assert both(yes, no) == no and both(no, sure) == sure and both(yes, yes) == yes
    assert either(yes, sure) == yes and either(no, sure) == no


SIZES = sorted(set(options.UNITS) - {"lesions"})


def uniform(counts: Counter, of: int = 4) -> bool:
    """Whether the first `of` numbers are equally frequent, up to four standard errors."""
    total = sum(counts.values())
    return all(abs(counts[i] / total - 1 / of) < 4 * ((1 - 1 / of) / of / total) ** 0.5 for i in range(of))


@pytest.mark.parametrize("unit", SIZES)
def test_invented_options_put_the_truth_at_every_rank_equally_often(unit):
    random, counts = Random(f"options in {unit}"), Counter()
    for _ in range(400):
        values = options.numbers(Number(60.0, 0.2, unit), 1.0, None, random)
        assert values is not None and all(options.apart(unit, 0.2)(a, b) for a, b in combinations(values, 2))
        assert len({options.said(value, unit) for value in values}) == 4
        counts[sorted(values).index(60.0)] += 1
    assert uniform(counts)


@pytest.mark.parametrize("unit", SIZES)
def test_options_of_other_cases_are_changed_a_little_and_still_told_apart(unit):
    others = [40.0, 90.0, 75.0]
    values = options.numbers(Number(60.0, 0.2, unit), 1.0, others, Random(unit))
    assert values is not None and 60.0 in values
    assert all(min(abs(value / other - 1) for other in [*others, 60.0]) < 0.06 for value in values)
    assert all(options.apart(unit, 0.2)(a, b) for a, b in combinations(values, 2))


def test_counts_have_the_counts_that_are_asked_for_as_options():
    random, ranks = Random(0), Counter()
    for _ in range(200):
        for truth in range(6):
            values = options.counts(truth, range(6), random)
            assert len(set(values)) == 4 and truth in values and max(values) <= 5
            ranks[sorted(values).index(truth)] += 1
    assert uniform(ranks)
    assert len(set(options.counts(0, None, random))) == 4


def many(count: int = 60):
    """Cases with spleens, liver lesions and kidneys of every size, three quarters of them without a liver lesion."""
    random = Random(0)
    for i in range(count):
        found = [
            lesion("liver", rank=k + 1, mm=40 - 5 * k, place=f"liver_segment_{random.randrange(1, 9)}")
            for k in range(random.randrange(4) * (i % 4 == 0))
        ]
        yield case(
            f"case {i}", *found, volumes={"spleen": random.uniform(100, 900), "kidney_left": random.uniform(90, 300)}
        )


def test_answers_are_balanced_so_that_the_usual_one_is_not_usual():
    questions = ask(list(many()), KB)
    strata = {}
    for q in questions:
        if q.answer_type != "numeric" and q.subtype != "inter-segment comparison":
            strata.setdefault((q.subtype, *q.arguments.values()), Counter())[q.answer.value] += 1
    assert ("liver lesion existence",) in strata and len(strata) > 5
    assert all(len(counts) > 1 and len(set(counts.values())) == 1 for counts in strata.values())
    roles = Counter({q.arguments["first"]: "first", q.arguments["second"]: "second"}.get(q.answer.value, "same")
                    for q in questions if q.subtype == "inter-segment comparison")  # fmt: skip
    assert len(set(roles.values())) == 1 and len(roles) == 3


def test_questions_are_the_same_bytes_again_and_of_no_other_seed():
    cases = list(many())
    first, again, other = (msgspec.json.encode(ask(cases, KB, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_question_ids_are_unique_and_do_not_depend_on_the_other_cases():
    cases = list(many())
    few = {q.qid: q for q in ask(cases[:40], KB)}
    all_of_them = {q.qid: q for q in ask(cases, KB)}
    assert len(all_of_them) == len(ask(cases, KB))
    common = few.keys() & all_of_them.keys()
    assert len(common) > 50
    assert all(
        few[qid].text == all_of_them[qid].text and few[qid].arguments == all_of_them[qid].arguments for qid in common
    )


def test_no_case_is_asked_more_of_a_subtype_than_its_row_says():
    counts = Counter((q.case, q.subtype) for q in ask(list(many()), KB))
    assert all(number <= SUBTYPES[subtype].most * 5 for (_, subtype), number in counts.items())
    assert max(number for (_, subtype), number in counts.items() if subtype == "inter-segment comparison") <= 2


def test_trace_tells_every_step_and_evidence_shows_the_lesion():
    (question,) = (q for q in ask([FULL], KB, balanced=False) if q.subtype == "pancreatic tumor staging")
    assert [step.tool for step in question.trace].count("knowledge") == 2
    assert any(step.what.startswith("longest axial diameter") and step.result == 30 for step in question.trace)
    assert question.evidence.slice == 15 and "pancreas_pdac" in question.evidence.masks
    assert question.lesion_mm == 30 and question.rules.startswith("kb-v2 1-")


def test_another_measurement_of_the_same_case_chooses_the_nearest_option():
    questions = {q.subtype: q for q in ask([FULL], KB, balanced=False) if q.arguments in ({}, {"organ": "spleen"})}
    assert all(answered(q, FULL, KB) == q.answer for q in questions.values())
    volume = questions["organ volume measurement"]
    other = next(option for i, option in enumerate(volume.options) if i != volume.answer.index)
    found = answered(volume, replace(FULL, organs=FULL.organs | {"spleen": organ("spleen", 1.01 * other.value)}), KB)
    assert volume.options[found.index] == other
    stage = questions["pancreatic tumor staging"]
    grown = case("full", lesion("pancreas", "pdac", mm=50))
    assert answered(stage, grown, KB).value == "T3"


def test_plain_gate_reads_the_contrast_of_the_case():
    venous = replace(FULL, meta=Meta(contrast="venous"))
    names = {one.row.name for one in candidates(FULL, KB)} - {one.row.name for one in candidates(venous, KB)}
    gated = {"organ HU ratio", "fatty liver", "hepatic steatosis grading", "pancreatic steatosis"}
    assert names == gated | {"renal mass characterization"}


def test_templates_do_not_name_what_no_case_has(tmp_path: Path):
    words = [q.text for q in ask([FULL, CYSTIC], KB, balanced=False)]
    assert not any("_" in text or "{" in text or "  " in text for text in words)
