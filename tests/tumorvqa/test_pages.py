"""Pages of a case and of a set: self-contained, escaped, and driven in a browser where there is one."""

import base64
import html
import json
import math
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ
from tumorvqa.pages import pixels
from tumorvqa.pages.case import COLORS, show_case
from tumorvqa.pages.report import verdict, write_report
from tumorvqa.pages.words import margin, mark, said, significant
from tumorvqa.question import GROUPS, Answer, Evidence, Option, Question, Step, Value
from tumorvqa.scans import EMPTY, Frame, Meta, Region, Scan
from tumorvqa.scoring.scores import Interval, Judged, Part, Scores
from tumorvqa.structures import STRUCTURES

SHAPE = (120, 90, 50)
SPACING = np.array([3.0, 3.2, 4.0])
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">&amp;"
ELLIPSOIDS = {  # center and half axes in mm from the lower right posterior corner, HU
    "liver": ((240, 150, 120), (80, 65, 60), 105),
    "spleen": ((85, 110, 125), (30, 45, 40), 110),
    "kidney_right": ((235, 75, 75), (26, 28, 45), 160),
    "kidney_left": ((120, 75, 80), (26, 28, 45), 160),
    "pancreas": ((165, 150, 95), (55, 15, 14), 90),
    "aorta": ((172, 95, 100), (11, 11, 110), 190),
    "liver_tumor": ((265, 160, 130), (16, 14, 13), 55),
    "liver_cyst": ((215, 180, 105), (8, 8, 9), 5),
    "kidney_cyst": ((120, 60, 60), (10, 10, 10), 8),
}


def scan(case: str = "phantom-0007") -> Scan:
    """Ellipsoids in a body, noise that is smooth; the pancreas cyst was looked for and is not there."""
    at = np.stack(np.meshgrid(*(np.arange(n) * mm for n, mm in zip(SHAPE, SPACING, strict=True)), indexing="ij"), -1)

    def inside(center: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
        return (((at - center) / axes) ** 2).sum(-1) < 1

    hu = np.where(inside((180, 130, 100), (165, 115, 400)), -95.0, -1000.0)
    hu[inside((180, 130, 100), (150, 100, 400))] = 45
    hu[inside((178, 45, 100), (18, 18, 400))] = 330
    masks = {}
    for name, (center, axes, value) in ELLIPSOIDS.items():
        masks[name] = inside(center, axes)
        hu[masks[name]] = value
    noise = np.random.default_rng(0).normal(0, 25, SHAPE)
    hu += (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
    frame = Frame(np.diag([*SPACING, 1.0]) + np.array([[0, 0, 0, v] for v in (-180, -140, -620, 0)]), SHAPE)
    regions = {name: Region.of(mask) for name, mask in masks.items()} | {"pancreas_cyst": EMPTY}
    meta = Meta("female", 63, "venous")
    return Scan(case, "patient-f3a9c1", "phantom", frame, hu.astype(np.int16), regions, meta, {}, "phantom")


def measured(of: Scan) -> Measurements:
    """By counting, as far as a page needs it."""

    def volume(name: str) -> float:
        return of.regions[name].count * of.frame.voxel_mm3 / 1000

    def hu(name: str) -> Measurement:
        return Measurement(ELLIPSOIDS[name][2], "HU", 0.4)

    organs = {}
    for name in ("spleen", "liver", "pancreas", "kidney_left", "kidney_right", "aorta"):
        cut = name == "aorta"
        size = Measurement(None, "cm^3", status="truncated") if cut else Measurement(volume(name), "cm^3", 4.2)
        sd = Measurement(17.0, "HU", 0.3)
        faces = ("superior", "inferior") if cut else ()
        organs[name] = Organ(name, size, hu(name), sd, hu(name), faces, 2 if name == "spleen" else 1)
    lesions = []
    for rank, (host, kind) in enumerate((("liver", "tumor"), ("liver", "cyst"), ("kidney", "cyst")), start=1):
        name = f"{host}_{kind}"
        box = of.regions[name].box
        places = {"liver_segment_7": 0.8, "liver_segment_8": 0.2} if host == "liver" else {"kidney_left": 1.0}
        lesions.append(
            Lesion(
                host,
                kind,
                rank if host == "liver" else 1,
                Measurement(volume(name), "cm^3", 0.3),
                Measurement(2.0 * ELLIPSOIDS[name][1][0], "mm", 1.2),
                Measurement(2.0 * ELLIPSOIDS[name][1][1], "mm", 1.2),
                Measurement((box[2][0] + box[2][1]) // 2, "slice"),
                hu(name),
                (0.0, 0.0, 0.0),
                places,
                {},
                {"aorta": Measurement(0.0, "degrees")},
                box,
            )
        )
    annotated = ("liver_tumor", "liver_cyst", "kidney_cyst", "pancreas_cyst")
    spacing = tuple(SPACING.tolist())
    return Measurements(
        of.case, of.patient, of.source, "masks", SHAPE, spacing, of.meta, organs, tuple(lesions), annotated,
        {"stomach": "frame_mismatch"}, "phantom",
    )  # fmt: skip


def question(of: Scan, number: int, subtype: str, group: str, text: str, options: tuple, truth: int, unit: str = "",
             masks: tuple[str, ...] = (), margin: float | None = None) -> Question:  # fmt: skip
    values = [option.split(" ")[0].replace(",", "") if isinstance(option, str) else option for option in options]
    kind = "numeric" if isinstance(options[0], int | float) else "binary" if len(options) == 2 else "categorical"
    chosen = options[truth]
    region = of.regions.get(masks[-1]) if masks else None
    box = region.box if region and region.count else None
    at = (box[2][0] + box[2][1]) // 2 if box else None
    steps = tuple(Step("segment", name.replace("_", " "), "found") for name in masks)
    steps += (Step("measure", text.rstrip("?"), chosen, unit),)
    return Question(
        f"{of.case}-{number:03d}", of.case, of.patient, subtype, group, kind, {"organ": masks[0] if masks else ""},
        text, tuple(Option(str(o), o if kind == "numeric" else v) for o, v in zip(options, values, strict=True)),
        Answer(chosen, str(chosen), truth), unit, steps, Evidence(at, box, masks), margin, None, "kb-v2", "test",
    )  # fmt: skip


def questions(of: Scan) -> list[Question]:
    rec, mea, vis, med = GROUPS
    in_liver, in_kidney = ("liver", "liver_tumor"), ("kidney_left", "kidney_cyst")
    spleen, pancreas, no_yes = ("spleen",), ("pancreas",), ("No", "Yes")
    segments = ("segment 7", "segment 4", "segment 2", "segment 8")
    spread = ("highly clustered", "somewhat clustered", "widely spread")
    near, sides = ("spleen", "liver", "pancreas", "aorta"), ("left", "right", "about the same")
    grades, numbers = ("normal", "mild", "moderate", "severe"), (1306.9, 1012.5, 1630.1, 880.4)
    rows = [
        ("liver lesion existence", rec, "Is there a lesion in the liver?", ("Yes", "No"), 0, "", in_liver),
        ("kidney cyst existence", rec, "Does either kidney have a cyst?", no_yes, 1, "", in_kidney),
        ("pancreatic lesion existence", rec, "Is a pancreatic lesion present?", no_yes, 0, "", pancreas),
        ("PDAC existence", rec, "Can a PDAC be seen?", ("Yes", "No"), 1, "", pancreas),
        ("splenomegaly detection", rec, "Is the spleen enlarged?", no_yes, 0, "", spleen, 11.2),
        ("organ volume", mea, "What is the volume of the liver?", numbers, 0, "cm^3", ("liver",), 22.0),
        ("organ volume", mea, "How large is the spleen?", (226.1, 180.0, 290.3, 340.8), 0, "cm^3", spleen, 13.0),
        ("organ HU", mea, "What is the mean HU of the pancreas?", (60.0, 90.0, 120.0, 75.0), 1, "HU", pancreas, 30.0),
        ("lesion volume", mea, "How large are all liver lesions?", (9.1, 14.6, 21.0, 30.2), 1, "cm^3", in_liver, 6.0),
        ("tumor burden", mea, "What share of the liver is lesion?", (1.1, 2.4, 0.5, 4.9), 0, "%", in_liver, 3.1),
        ("lesion counting", vis, "How many lesions does the liver have?", (1, 3, 2, 5), 2, "", in_liver),
        ("diameter", vis, "How long is the largest liver lesion?", (32.0, 22.5, 41.7, 55.0), 0, "mm", in_liver, 8.0),
        ("slice", vis, "Where is the largest liver lesion longest?", (12, 32, 22, 41), 1, "slice", in_liver, 2.0),
        ("location", vis, "Where does the largest liver lesion lie?", segments, 0, "", in_liver),
        ("comparison", vis, "Which kidney is larger?", sides, 2, "", ("kidney_left", "kidney_right"), 2.2),
        ("adjacent organ", vis, "What lies nearest to the largest kidney lesion?", near, 0, "", in_kidney, 1.4),
        ("liver lesion clustering", vis, "How are the liver lesions spread?", spread, 0, "", in_liver),
        ("splenomegaly grading", med, "How enlarged is the spleen?", grades, 0, "", spleen, 11.2),
        ("lesion type", med, "What is the largest kidney lesion?", ("tumor", "cyst"), 1, "", in_kidney, 5.5),
        ("resectability", med, "Should the pancreatic cyst be resected?", no_yes, 0, "", ("pancreas_cyst",)),
    ]
    return [question(of, i, *row) for i, row in enumerate(rows)]


# What is sent


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def test_sent_voxels_are_those_of_the_scan_as_a_radiologist_looks_at_them():
    hu = scan().hu
    factor, text = pixels.packed_volume(hu)
    codes = unpacked(text).reshape(SHAPE[::-1]).cumsum(axis=0, dtype=np.uint8)
    sent = np.array(pixels.decoded())[codes]
    seen = hu[::-1, ::-1].transpose(2, 1, 0).astype(int)  # slices, rows from anterior, columns from the right
    tissue = (seen > -200) & (seen < 300)
    assert factor == 1 and abs(sent - seen)[tissue].max() <= 2 + 1 and abs(sent - seen)[seen > -1024].max() <= 8 + 1


def test_a_scan_too_large_to_send_is_shown_at_block_means():
    hu = np.repeat(np.repeat(scan().hu[:30, :20], 3, 0), 3, 1)
    factor, text = pixels.packed_volume(hu, side=30)
    assert factor == 3 and text == pixels.packed_volume(hu[::3, ::3])[1]
    whole = pixels.packed_volume(hu)[1]
    smaller, less = pixels.packed_volume(hu, limit=len(whole) // 4)
    assert smaller > 1 and len(base64.b64decode(less)) <= len(whole) // 4


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_sent_masks_are_blocks_of_which_a_voxel_is_in_the_mask(factor):
    draw = np.random.default_rng(factor)
    masks = {"one": np.zeros(SHAPE, bool), "two": np.zeros(SHAPE, bool)}
    masks["one"][31:80, 22:71, 3:9] = draw.random((49, 49, 6)) < 0.05
    masks["two"][119, 0, 49] = True
    boxes, text = pixels.packed_masks({name: Region.of(mask) for name, mask in masks.items()}, SHAPE, factor)
    offset = 0
    for mask, box in zip(masks.values(), boxes, strict=True):
        sizes = [end - start for start, end in box]
        length = -(-math.prod(sizes) // 8)
        bits = np.unpackbits(unpacked(text)[offset : offset + length], bitorder="little")[: math.prod(sizes)]
        offset += length
        rows, columns = -(-SHAPE[1] // factor), -(-SHAPE[0] // factor)
        sent = np.zeros((SHAPE[2], rows, columns), bool)
        sent[tuple(slice(*ends) for ends in box)] = bits.reshape(sizes)
        blocks = np.zeros_like(sent)
        for x, y, z in np.argwhere(mask):
            blocks[z, rows - 1 - y // factor, columns - 1 - x // factor] = True
        assert (sent == blocks).all()


# What a page says


def hostile_case() -> tuple[Scan, list[Question]]:
    """Every text that comes from somewhere else wants to be markup."""
    of = scan(HOSTILE)
    asked = [
        replace(q, text=HOSTILE + q.text, options=(replace(q.options[0], text=HOSTILE), *q.options[1:]))
        for q in questions(of)
    ]
    return of, asked


def page_of(tmp_path: Path, of: Scan, asked: list[Question], answers: dict[str, dict[str, str]] | None = None) -> str:
    return show_case(of, measured(of), asked, tmp_path / "case.html", answers).read_text()


def loads_nothing(page: str) -> bool:
    """Neither from the net nor from files."""
    found = re.findall(r"""https?:|\bsrc\s*=\s*["']|<link|@import|url\(|\bfetch\(|import\(""", page)
    return not found and "default-src 'none'" in page


def test_a_case_is_one_file_that_holds_all_its_questions(tmp_path):
    of = scan()
    asked = questions(of)
    page = page_of(tmp_path, of, [*asked, replace(asked[0], case="another case", text="Of another case?")])
    assert loads_nothing(page)
    assert all(html.escape(question.text) in page for question in asked) and "Of another case?" not in page
    cards = re.findall(r'<article class="question.*?</article>', page, re.DOTALL)
    for question, card in zip(asked, cards, strict=True):
        marked = re.findall(r'<li class="right"><b>(.)</b>(.*?) ✓</li>', card)
        assert marked == [("ABCD"[question.answer.index], question.answer.text)]
        jump = re.search(r'data-jump="(.*?)"', card)
        if question.evidence.slice is not None:
            assert json.loads(html.unescape(jump[1]))["slice"] == question.evidence.slice


@pytest.mark.parametrize(
    ("masks", "shown"),
    [
        (("pancreas_cyst", "pancreas", "liver"), ["pancreas", "liver"]),
        (("kidney_left", "kidney_right"), ["kidney_left", "kidney_right"]),
        (("pancreas_cyst", "colon"), None),
        ((), None),
    ],
)
def test_evidence_of_masks_alone_leads_to_the_middle_of_the_first_that_is_there(tmp_path, masks, shown):
    """The middle by the ellipsoid's center, to a slice."""
    of = scan()
    asked = replace(questions(of)[3], evidence=Evidence(None, None, masks))
    card = re.search(r'<article class="question.*?</article>', page_of(tmp_path, of, [asked]), re.DOTALL)[0]
    found = re.search(r'data-jump="(.*?)"', card)
    if shown is None:
        assert found is None
    else:
        jump = json.loads(html.unescape(found[1]))
        assert jump["masks"] == shown and jump["box"] is None
        assert abs(jump["slice"] - ELLIPSOIDS[shown[0]][0][2] / SPACING[2]) <= 1


def test_everything_on_a_case_page_is_escaped(tmp_path):
    of, asked = hostile_case()
    page = page_of(tmp_path, of, asked, {HOSTILE: {question.qid: HOSTILE for question in asked}})
    assert "<img" not in page and page.count("<script") == page_of(tmp_path, scan(), questions(scan())).count("<script")
    assert page.count(html.escape(HOSTILE)[:30]) > 60


def test_a_page_tells_no_more_than_it_should(tmp_path):
    of = replace(scan(), meta=Meta("female", 63, "venous", "General Hospital, room of J. Doe"))
    page = page_of(tmp_path, of, questions(of))
    assert "Hospital" not in page and "J. Doe" not in page and of.patient not in page


def test_none_found_is_told_from_nobody_looked(tmp_path):
    page = page_of(tmp_path, scan(), [])
    unmarked = re.search(r"Nobody marked: (.*?)\.", page)[1]
    assert "PDAC" in unmarked and "Pancreatic cyst" not in unmarked
    assert "cut off by the edge of the scan; touches the superior, inferior edge" in page
    assert "Stomach (its mask belongs to another frame)" in page


def test_answers_are_marked_as_the_option_they_choose_and_numbers_by_how_far_they_are_off():
    by_text = {question.text: question for question in questions(scan())}
    cyst, liver = by_text["Does either kidney have a cyst?"], by_text["What is the volume of the liver?"]
    said = {"B": (True, "right"), " yes. ": (True, "right"), "The answer is A.": (False, "wrong")}
    said |= {"No": (False, "wrong"), "perhaps": (None, "cannot be read")}
    assert {words: mark(cyst, words) for words in said} == said
    said = {"1306.9 cm^3": (True, "right"), "C": (False, "wrong"), "1437.59 ml": (None, "10.0% off")}
    assert {words: mark(liver, words) for words in said} == said


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (999.7, 3, "1,000"),
        (9999.7, 4, "10,000"),
        (12345.6, 4, "12,346"),
        (0.00002, 4, "0.00002"),
        (1e-9, 4, "0"),
        (-1e-9, 4, "0"),
        (0, 4, "0"),
        (-0.05, 4, "−0.05"),
        (17.25, 3, "17.2"),
        (100, 3, "100"),
    ],
)
def test_numbers_are_written_without_exponents(value, digits, text):
    assert significant(value, digits) == text
    if digits == 4:
        assert said(value) == text
    elif value > 0:
        assert margin(replace(questions(scan())[0], margin=value)) == text


@pytest.mark.parametrize("kind", ["organ", "vessel", "part"])
def test_no_two_structures_of_a_kind_share_a_color(kind):
    """Apart by 20 in CIELAB, where 2.3 can just be seen."""
    names = [name for name, row in STRUCTURES.items() if row.kind == kind]
    assert len(set(COLORS[kind])) == len(COLORS[kind]) >= len(names)
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in COLORS[kind]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(linear @ to_xyz.T / to_xyz.sum(axis=1)).T  # none is dark enough for the linear part
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert apart[~np.eye(len(lab), dtype=bool)].min() > 20


# The report


def part(of: list[Question], right: list[bool], chance: float = 0.3) -> Part:
    share = float(np.mean(right))
    accuracy = Interval(share, share - 0.1, share + 0.1)
    above = Interval(share - chance, share - chance - 0.1, share - chance + 0.1)
    return Part(len(of), len(of), len(of), accuracy, above, {})


def scored(
    asked: list[Question], wrong: set[str], model: str = "tried", format: str = "mc", said: float = 1.0
) -> Scores:
    """Numbers are said `said` times too large; of the rest those in `wrong` get another option's value."""
    judged = []
    for question in asked:
        value: Value = question.answer.value
        if question.qid in wrong:
            value = question.options[question.answer.index - 1].value
        elif isinstance(value, int | float):
            value = value * said
        judged.append(Judged(question.qid, value, float(question.qid not in wrong), 1 / len(question.options)))
    right = [question.qid not in wrong for question in asked]
    groups = {q.group: [p for p in asked if p.group == q.group] for q in asked}
    subtypes = {q.subtype: [p for p in asked if p.subtype == q.subtype] for q in asked}

    def parts(of: dict[str, list[Question]]) -> dict[str, Part]:
        return {name: part(found, [q.qid not in wrong for q in found]) for name, found in of.items()}

    whole = part(asked, right)
    return Scores(model, format, "masks", False, whole, parts(groups), parts(subtypes), whole.accuracy, whole.accuracy,
                  tuple(judged))  # fmt: skip


def test_a_report_is_one_file_that_shows_what_it_is_given(tmp_path):
    asked = questions(scan())
    wrong = {asked[3].qid, asked[6].qid}
    reference = [{"format": "mc", "model": "RadFM FT", "input": "3D vol", "mode": "direct", "overall": 58.9,
                  "groups": {"Recognition": 62.3}}]  # fmt: skip
    page = write_report(
        asked, [scored(asked, wrong), scored(asked, wrong, "speaker", "free", 1.1)], tmp_path / "report.html",
        measurements=[measured(scan())], leaks={"patients in two splits": 0}, shortcuts=[scored(asked, wrong, "prior")],
        reference=reference, case_pages={scan().case: "cases/7.html"}, notes=["A note."], title="Twenty questions",
    ).read_text()  # fmt: skip
    assert loads_nothing(page)
    assert all(question.subtype in page for question in asked)
    given = ["Twenty questions", "A note.", "RadFM FT", "58.9%", "62.3%", "90.0%", "patients in two splits", "prior"]
    made = [f'href="cases/7.html#q-{asked[3].qid}"', "on their own questions", "cm³, key: masks"]
    assert all(words in page for words in given + made)


def test_intervals_are_read_without_hovering_and_need_not_be_symmetric(tmp_path):
    asked = questions(scan())
    skewed = replace(part(asked, [True] * 20), accuracy=Interval(0.984, 0.971, 0.993))
    of = replace(scored(asked, set()), overall=skewed, groups={GROUPS[0]: skewed}, macro_subtype=Interval(1.0))
    page = write_report(asked, [of], tmp_path / "report.html").read_text()
    row = re.search(r"<tr><td class=\"name\">tried.*?</tr>", page, re.DOTALL)[0]
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r'<td class="number.*?">(.*?)</td>', row)]
    assert cells == ["98.4% (97.1–99.3)", "98.4% (97.1–99.3)", "–", "–", "–", "100.0%", "100%"]


def test_a_report_of_questions_alone_has_no_empty_sections(tmp_path):
    page = write_report(questions(scan()), [], tmp_path / "report.html").read_text()
    assert re.findall(r'<section class="card" id="(\w+)"', page) == ["questions"]


def test_everything_in_a_report_is_escaped(tmp_path):
    _, asked = hostile_case()
    asked = [replace(question, subtype=HOSTILE, unit=HOSTILE) for question in asked]
    all_wrong = {question.qid for question in asked}
    models = [scored(asked, all_wrong, HOSTILE), scored(asked, set(), HOSTILE, "free", 1.1)]
    blind = [scored(asked, all_wrong, HOSTILE + "blind")]
    more = {"leaks": {HOSTILE: HOSTILE}, "shortcuts": blind, "notes": [HOSTILE], "title": HOSTILE}
    page = write_report(asked, models, tmp_path / "report.html", **more).read_text()
    assert "<img" not in page and "<script>document" not in page and page.count(html.escape(HOSTILE)[:30]) > 60


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (-0.02, 0.3, ""),
        (0.0, 0.2, ""),
        (0.01, 0.04, ""),
        (0.01, 0.06, "look"),
        (0.06, 0.2, "shortcut"),
        (None, None, ""),
    ],
)
def test_a_shortcut_is_an_interval_above_chance_that_reaches_beyond_five_points(low, high, found):
    assert verdict(Interval(0.1, low, high)) == found


def test_failures_come_clearest_first_and_exact_ones_last(tmp_path):
    asked = questions(scan())
    page = write_report(asked, [scored(asked, {q.qid for q in asked})], tmp_path / "report.html").read_text()
    margins = re.findall(r'<td class="number">([\d.]+|exact)</td>\s*<td>phantom', page)
    clear = [float(margin) for margin in margins if margin != "exact"]
    assert clear == sorted((q.margin for q in asked if q.margin is not None), reverse=True)
    assert margins[len(clear) :] == ["exact"] * sum(q.margin is None for q in asked)


def test_of_more_failures_than_rows_the_share_that_is_shown_is_said(tmp_path):
    asked = [replace(q, qid=f"{q.qid}-{i}") for i in range(3) for q in questions(scan())]
    page = write_report(asked, [scored(asked, {q.qid for q in asked})], tmp_path / "report.html").read_text()
    assert "(40 of 60 shown)</option>" in page and page.count("<tr data-model") == 40


@pytest.mark.parametrize(
    ("low", "high", "listed"), [(-0.01, 0.2, False), (0.0, 0.2, False), (0.01, 0.2, True), (-0.4, -0.1, True)]
)
def test_failures_of_a_model_that_cannot_be_told_from_guessing_are_left_out(tmp_path, low, high, listed):
    asked = questions(scan())
    of = scored(asked, {q.qid for q in asked[:9]}, "guesser")
    of = replace(of, overall=replace(of.overall, above_chance=Interval((low + high) / 2, low, high)))
    scores = [of, scored(asked, {asked[0].qid}, "seer")]
    page = write_report(asked, scores, tmp_path / "report.html").read_text()
    assert page.count('<tr data-model="guesser') == 9 * listed and page.count('<tr data-model="seer') == 1
    assert ("Left out, as they see no image or cannot be told from guessing: guesser." in page) == (not listed)


def test_failures_of_a_model_that_sees_no_image_are_left_out_in_both_formats(tmp_path):
    asked = questions(scan())
    blind = scored(asked, {asked[0].qid}, "prior")
    scores = [blind, scored(asked, {asked[0].qid}, "prior", "free")]
    page = write_report(asked, scores, tmp_path / "report.html", shortcuts=[blind]).read_text()
    assert 'id="failures"' not in page


def test_failures_by_another_key_show_what_that_key_calls_right(tmp_path):
    asked = questions(scan())
    other = replace(scored(asked, {asked[8].qid}), key="analytic")
    page = write_report(asked, [other], tmp_path / "report.html").read_text()
    assert 'id="failures"' not in page
    key = {asked[8].qid: Answer(17.3, "17.3 cm^3", -1)}
    page = write_report(asked, [other], tmp_path / "report.html", keys={"analytic": key}).read_text()
    assert "<td>17.3 cm^3</td>" in page and "<td>14.6" not in page


def test_bland_altman_lines_are_mean_and_spread_of_the_differences(tmp_path):
    asked = [question for question in questions(scan()) if question.unit == "cm^3"]
    page = write_report(asked, [scored(asked, set(), "m", "free", 1.25)], tmp_path / "report.html").read_text()
    differences = np.array([0.25 * question.answer.value for question in asked])
    bias, spread = differences.mean(), 1.96 * differences.std(ddof=1)
    shown = re.search(r"3 numbers, mean difference ([^ ]+), 95% between ([^ ]+) and ([^<]+)<", page)
    values = [float(text.replace("−", "-").replace(",", "")) for text in shown.groups()]
    assert values == pytest.approx([bias, bias - spread, bias + spread], rel=1e-3)


# In a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WATCH = """<script>
window.faults = [];
window.requestAnimationFrame = paint => setTimeout(paint);  // a browser that only dumps its page draws no frames
addEventListener("error", event => faults.push(event.message));
addEventListener("unhandledrejection", event => faults.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => faults.push("refused: " + event.blockedURI));
</script>"""
DRIVE = """<script>
const ready = setInterval(async () => {
  if (document.querySelector("[aria-busy]")) return;
  clearInterval(ready);
  const drawn = () => new Promise(done => setTimeout(done, 100));
  const found = {};
  try { %s } catch (error) { faults.push(String(error)); }
  const block = document.createElement("pre");
  block.id = "test";
  block.textContent = JSON.stringify({faults, title: document.title, ...found});
  document.body.append(block);
}, 20);
</script>"""


def driven(page: Path, script: str, size: str = "1400,1000") -> dict:
    """What `script` puts into `found` in a copy of the page, with its errors and title."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    copy = page.with_name("driven.html")
    text = page.read_text()
    copy.write_text(text.replace("<title>", WATCH + "<title>", 1).replace("</body>", DRIVE % script + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--virtual-time-budget=10000"]
    options += [f"--user-data-dir={page.parent / 'browser'}", f"--window-size={size}", "--dump-dom"]
    shown = subprocess.run([BROWSER, *options, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search(r'<pre id="test">(.*?)</pre>', shown.stdout, re.DOTALL)[1]))


def test_a_browser_moves_through_slices_and_jumps_to_evidence(tmp_path):
    of = scan()
    asked = questions(of)
    goal = next(question for question in asked if question.text == "Does either kidney have a cyst?")
    page = show_case(of, measured(of), asked, tmp_path / "case.html")
    found = driven(
        page,
        """
        const [slider, at, view] = ["slice", "at", "view"].map(id => document.getElementById(id));
        const picture = () => view.toDataURL();
        const shown = () => [...document.querySelectorAll("input.structure:checked")].map(box => box.value);
        await drawn();
        found.first = at.textContent; found.shown = shown();
        const before = picture();
        slider.value = 7; slider.dispatchEvent(new Event("input")); await drawn();
        found.moved = at.textContent; found.changed = picture() !== before;
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp", bubbles: true})); await drawn();
        found.key = at.textContent;
        document.getElementById("stage").dispatchEvent(new WheelEvent("wheel", {deltaY: 120})); await drawn();
        found.wheel = at.textContent;
        document.querySelector("#q-phantom-0007-001 button.jump").click(); await drawn();
        found.jumped = at.textContent; found.evidence = shown();
        const boxed = picture();
        document.getElementById("boxed").click(); await drawn();
        found.box = picture() !== boxed;
        const soft = picture();
        document.querySelectorAll("button.window")[1].click(); await drawn();
        found.window = document.getElementById("window").textContent; found.windowed = picture() !== soft;
        document.querySelector('button.group[data-group="Measurement"]').click();
        found.cards = [...document.querySelectorAll("article.question")].filter(card => card.offsetParent).length;
        found.wide = document.documentElement.scrollWidth <= innerWidth;
        """,
    )
    assert found["faults"] == []
    area = of.regions["liver_tumor"].mask.sum(axis=(0, 1))
    assert found["first"].startswith(f"slice {of.regions['liver_tumor'].box[2][0] + area.argmax()} of 0 to 49")
    assert found["moved"] == f"slice 7 of 0 to 49 · z −{620 - 7 * 4}.0 mm" and found["changed"]
    assert found["key"].startswith("slice 8 ") and found["wheel"].startswith("slice 7 ")
    assert found["jumped"].startswith(f"slice {goal.evidence.slice} ") and found["box"]
    assert found["evidence"] == ["kidney_cyst", "kidney_left"] and "aorta" not in found["shown"]
    assert found["window"] == "W 150 L 70" and found["windowed"]
    assert found["cards"] == sum(question.group == "Measurement" for question in asked) and found["wide"]


def test_a_browser_draws_a_lesion_where_it_lies(tmp_path):
    """Without masks: the window that splits cyst from liver leaves the cyst's pixels dark, on the patient's right."""
    of = scan()
    page = show_case(of, measured(of), [], tmp_path / "case.html")
    center, _, _ = ELLIPSOIDS["liver_cyst"]
    x, y, z = (round(c / mm) for c, mm in zip(center, SPACING, strict=True))
    found = driven(
        page,
        f"""
        const view = document.getElementById("view");
        for (const box of document.querySelectorAll("input.structure")) if (box.checked) box.click();
        for (const [id, value] of [["width", 2], ["level", 60]]) {{
          document.getElementById(id).value = value;
          document.getElementById(id).dispatchEvent(new Event("input"));
        }}
        document.getElementById("slice").value = {z};
        document.getElementById("slice").dispatchEvent(new Event("input")); await drawn();
        const gray = (x, y) => {{
          const across = ({SHAPE[0]} - x - 0.5) / {SHAPE[0]}, down = ({SHAPE[1]} - y - 0.5) / {SHAPE[1]};
          return view.getContext("2d").getImageData(across * view.width, down * view.height, 1, 1).data[0];
        }};
        found.cyst = gray({x}, {y}); found.liver = gray({x} + 6, {y} - 6);
        found.ratio = view.height / view.width;
        """,
    )
    assert found["faults"] == [] and found["cyst"] < 40 and found["liver"] > 215
    assert found["ratio"] == pytest.approx(SHAPE[1] * SPACING[1] / (SHAPE[0] * SPACING[0]), rel=0.01)


def test_a_browser_shows_hostile_text_as_text(tmp_path):
    of, asked = hostile_case()
    page = show_case(of, measured(of), asked, tmp_path / "case.html", {HOSTILE: {q.qid: HOSTILE for q in asked}})
    script = """
        found.heading = document.querySelector("h1").textContent;
        found.option = document.querySelector(".options li").textContent;
        found.images = document.images.length;
    """
    found = driven(page, script, "800,1000")
    assert found["faults"] == [] and found["images"] == 0
    assert found["heading"] == f"Case {HOSTILE}" and HOSTILE in found["option"]
    assert found["title"].startswith("Case </script>")


def test_a_browser_filters_failures_by_model(tmp_path):
    asked = questions(scan())
    models = [scored(asked, {asked[0].qid}, HOSTILE), scored(asked, {q.qid for q in asked[:4]}, "other")]
    blind = [scored(asked, {q.qid for q in asked}, "blind")]
    page = write_report(asked, models + blind, tmp_path / "report.html", shortcuts=blind)
    found = driven(
        page,
        """
        const rows = () => [...document.querySelectorAll("#wrong tr")].filter(row => row.offsetParent).length;
        found.all = rows();
        const select = document.getElementById("model");
        select.selectedIndex = 1; select.dispatchEvent(new Event("change"));
        found.one = rows(); found.name = select.value;
        found.wide = document.documentElement.scrollWidth <= innerWidth;
        """,
    )
    assert found["faults"] == [] and (found["all"], found["one"]) == (5, 1)
    assert found["name"].startswith(HOSTILE) and found["wide"]


def test_a_browser_shows_a_lesion_and_all_it_touches_without_scrolling(tmp_path):
    of = scan()
    vessels = [name for name, row in STRUCTURES.items() if row.kind == "vessel"]
    touched = {name: Measurement(244.0, "degrees", 18.0) for name in vessels}
    places = {f"liver_segment_{k}": 0.2 for k in range(4, 9)}
    known = measured(of)
    lesions = tuple(replace(lesion, contacts=touched, places=places) for lesion in known.lesions)
    page = show_case(of, replace(known, lesions=lesions), [], tmp_path / "case.html")
    script = """
        const cut = table => table.scrollWidth > table.clientWidth;
        found.cut = [...document.querySelectorAll(".scroll")].filter(table => table.offsetParent && cut(table)).length;
        found.touched = document.querySelector("td.touch").textContent;
    """
    found = driven(page, script)
    assert found["faults"] == [] and found["cut"] == 0 and found["touched"].count("244 ± 18°") == len(vessels)
