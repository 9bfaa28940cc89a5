"""What a model's words are read as."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tumorvqa.handmade import EXISTENCE, SIDE, VOLUME, question
from tumorvqa.scoring.parse import class_name, letter, number, parse, spoken, yes_or_no

OPTIONS = ("liver", "spleen", "left kidney", "colon")
LETTERS = {
    "B": 1,
    "b": 1,
    "(b)": 1,
    "**D**": 3,
    "C.": 2,
    "Answer: B": 1,
    "answer is d": 3,
    "The correct answer is (C).": 2,
    "\\boxed{B}": 1,
    "Based on the scan, the answer is D": 3,
    "Definitely B": 1,
    "The answer is a cyst: B": 1,
    "Answer: A because the liver is large": 0,
    "Answer: A liver": 0,
    "I think A. Wait, the answer is C": 2,
    "Answer: B. Actually no, answer: D": 3,
    "Option A is wrong, so C": 2,
    "The answer is not B but D": 3,
    "A is not the answer; C is.": 2,
    "B is correct, C is wrong": 1,
    "D\n\nB is not right, since A is no organ.": 3,
    "C: left kidney, because A and B are smaller": 2,
    "A: liver B: spleen C: left kidney D: colon. The answer is B": 1,
    "I would go with D.": 3,
    "Answer: B, not A": 1,
    "B, not A": 1,
    "A isn't right and B cannot be, so it must be C": 2,
    "I would not choose B; D fits": 3,
    "A large mass. Hepatitis B. I choose C": 2,
}
NO_LETTERS = (
    "",
    "Cannot determine",
    "Benign",
    "Both",
    "A cyst is seen",
    "It is A or B",
    "Answer: A or B",
    "Neither A nor C",
    "Answer: E",
    "vitamin D",
    "A: liver B: spleen C: left kidney D: colon",
)


@pytest.mark.parametrize("text", LETTERS)
def test_a_letter_is_the_last_one_with_a_cue_and_the_article_is_none(text):
    assert letter(text, OPTIONS) == LETTERS[text]


@pytest.mark.parametrize("text", NO_LETTERS)
def test_no_letter_is_read_where_none_or_several_are_said(text):
    assert letter(text, OPTIONS) is None


def test_text_of_an_option_chooses_it_in_multiple_choice():
    assert parse(SIDE, "The right kidney is larger than the left kidney", "mc") == 1
    assert parse(VOLUME, "about 151 ml", "mc") == 1
    assert parse(VOLUME, "152", "mc") is None
    assert parse(EXISTENCE, "No, there is none.", "mc") == 1


def test_fifth_option_has_a_letter_too():
    assert parse(question(options=(1.0, 2.0, 3.0, 4.0, 5.0)), "Answer: E", "mc") == 4


NUMBERS = {  # (text, unit): value
    ("1,234", ""): 1234,
    ("12,345.6 cm3", "cm^3"): 12345.6,
    (".5", ""): 0.5,
    ("-.5", ""): -0.5,
    ("−12.5 HU", "HU"): -12.5,
    ("minus 7", "HU"): -7,
    ("1e3", ""): 1000,
    ("1.2 x 10^3 mm3", "mm^3"): 1200,
    ("three", ""): 3,
    ("There are twenty-one lesions.", ""): 21,
    ("none", ""): 0,
    ("There are no liver lesions", ""): 0,
    ("250 ml", "cm^3"): 250,
    ("0.25 l", "cm^3"): 250,
    ("5000 mm^3", "cm^3"): 5,
    ("25 mm", "cm"): 2.5,
    ("2.5cm", "mm"): 25,
    ("2.5 x 1.8 cm", "mm"): 25,
    ("3x2 cm", "mm"): 30,
    ("10-12 mm", "mm"): 10,
    ("120.5 ± 3 cm^3", "cm^3"): 120.5,
    ("120.5 +/- 3 ml", "cm^3"): 120.5,
    ("10 and 12 mm", "mm"): 10,
    ("45 Hounsfield units", "HU"): 45,
    ("12.5%", "%"): 12.5,
    ("120%", ""): 1.2,
    ("cm^3: 45.6", "cm^3"): 45.6,
    ("volume (cm3) = 45.6", "cm^3"): 45.6,
    ("Segment 4 has 12", ""): 12,
    ("Segments 4 and 8 hold 12", ""): 12,
    ("T2 tumor of 31 mm", "mm"): 31,
    ("the largest lesion 12 mm long", "mm"): 12,
    ("Lesion 2 measures 12 mm", "mm"): 12,
    ("In slice 40 it is 12", "mm"): 12,
    ("slice 40", "slice"): 40,
    ("the 45th slice", "slice"): 45,
    ("The 3D volume is 7 in total", ""): 7,
    ("It has one lesion of 12 mm", ""): 1,
    ("First 100, then 120. Answer: 110 cm3, normal is under 315", "cm^3"): 110,
    ("40 + 60 = 100", ""): 100,
    ("2 of 5", ""): 2,
    ("45.", ""): 45,
}


@pytest.mark.parametrize("text, unit", NUMBERS)
def test_a_number_is_read_in_the_unit_of_the_question(text, unit):
    assert number(text, unit) == pytest.approx(NUMBERS[text, unit], rel=1e-12)


@pytest.mark.parametrize("text", ["", "T2", "segment 4", "cm^3", "large", "12 HU", "3D", "I have no idea", "1e9999"])
def test_labels_and_other_quantities_are_no_number_of_millimetres(text):
    assert number(text, "mm") is None


@given(st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from(["{}", "about {}", "{} cm3", "The volume is {} ml."]))
def test_a_printed_number_is_read_back(value, sentence):
    assert number(sentence.format(value), "cm^3") == value


@given(st.integers(0, 10**9))
def test_groups_of_thousands_do_not_change_a_number(value):
    assert number(f"{value:,}", "") == value


BINARY = {
    "Yes": "yes",
    "no.": "no",
    "N": "no",
    "True": "yes",
    "Yes, there is no doubt": "yes",
    "No doubt: yes": "yes",
    "no... actually yes": "yes",
    "There is no lesion": "no",
    "The answer is no, though yes was likely": "no",
    "Normal": None,
    "not enlarged": None,
    "None": None,
    "Noyes": None,
    "yesterday": None,
    "maybe yes, maybe no": None,
    "": None,
}


@pytest.mark.parametrize("text", BINARY)
def test_yes_and_no_are_words_not_beginnings(text):
    assert yes_or_no(text) == BINARY[text]


SIDES = (("left", "left kidney"), ("right", "right kidney"), ("same", "Same"))
CLASSES = {
    ("Left kidney", SIDES): "left",
    ("the right one", SIDES): "right",
    ("They are equal", SIDES): "same",
    ("The left kidney is larger than the right", SIDES): "left",
    ("Left, with the right one smaller", SIDES): "left",
    ("left or right", SIDES): None,
    ("Left? No. Answer: right", SIDES): "right",
    ("not left but right", SIDES): "right",
    ("PDAC", SIDES): "PDAC",
    ("purple", SIDES): None,
    ("hypodense", (("hypo", "hypoattenuating"), ("hyper", "hyperattenuating"), ("iso", "isoattenuating"))): "hypo",
    ("no fatty liver", (("fatty liver", "Fatty liver"), ("no fatty liver", "No fatty liver"))): "no fatty liver",
    ("not resectable", (("resectable", "resectable"), ("unresectable", "unresectable"))): "unresectable",
    ("borderline", (("resectable", "resectable"), ("borderline resectable", "Borderline resectable"))): (
        "borderline resectable"
    ),
    ("head/body", (("head", "head"), ("head/body", "head/body"), ("48", "48"))): "head/body",
    ("4/8", (("48", "48"), ("4/8", "4/8"))): "4/8",
    ("segment IV", (("liver_segment_4", "segment 4"), ("liver_segment_8", "segment 8"))): "liver_segment_4",
    ("adenocarcinoma of the head", (("PDAC", "PDAC"), ("PNET", "PNET"))): "PDAC",
    ("Normal", (("Normal (no splenomegaly)", "Normal (no splenomegaly)"), ("Mild", "Mild"))): (
        "Normal (no splenomegaly)"
    ),
}


@pytest.mark.parametrize("text, classes", CLASSES)
def test_a_class_is_read_by_its_synonyms(text, classes):
    assert class_name(text, classes) == CLASSES[text, classes]


def test_thinking_is_not_the_answer_and_an_error_is_none():
    assert parse(VOLUME, "<think>A? Answer: D</think>B", "mc") == 1
    assert parse(VOLUME, "so D</think>\nB", "mc") == 1
    assert parse(VOLUME, "<think>it may be A or B, the answer is C", "mc") == 2
    assert parse(VOLUME, "[ERROR] CUDA device 0: 12 cm3", "free") is None
    assert parse(VOLUME, None, "free") is None
    assert spoken("**B**") == "B"


@given(st.text())
def test_any_text_is_read_or_not_without_an_error(text):
    for asked in (VOLUME, EXISTENCE, SIDE):
        chosen = parse(asked, text, "mc")
        assert chosen is None or 0 <= chosen < len(asked.options)
        parse(asked, text, "free")


@given(st.sampled_from([VOLUME, EXISTENCE, SIDE]), st.integers(0, 3), st.sampled_from(["{}", "({})", "Answer: {}."]))
def test_letter_and_own_text_of_an_option_choose_it(asked, index, sentence):
    index %= len(asked.options)
    assert parse(asked, sentence.format("ABCD"[index]), "mc") == index
    assert parse(asked, sentence.format(asked.options[index].text), "mc") == index
    assert parse(asked, sentence.format(asked.options[index].text), "free") == asked.options[index].value
