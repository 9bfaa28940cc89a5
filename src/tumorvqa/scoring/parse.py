"""What a model's words say: an option, a number, yes or no, a class. None where they do not say it.

Of several candidates the one after the last cue ("the answer is", "actually") counts; without a cue, and where the
rules below leave more than one, an answer of words is not guessed.
"""

import math
import re
from functools import lru_cache
from string import ascii_uppercase
from typing import Literal

from tumorvqa.question import Question, Value
from tumorvqa.scoring.scores import Format
from tumorvqa.scoring.synonyms import CLASSES, words_of


def parse(question: Question, raw: str | None, format: Format) -> Value | int | None:
    """The index of the option that `raw` chooses ("mc"), or the value it states, in the question's unit ("free")."""
    text = spoken(raw)
    if not text:
        return None
    if format == "free":
        return _value(question, text)
    chosen = letter(text, tuple(option.text for option in question.options))
    if chosen is not None:
        return chosen
    value = _value(question, text)
    same = [i for i, option in enumerate(question.options) if value is not None and agrees(value, option.value)]
    return same[0] if len(same) == 1 else None


def spoken(raw: str | None) -> str:
    """`raw` without its thinking and its markup; "" for a recorded error. Thinking that never ends is all there is."""
    if raw is None or raw.lstrip().upper().startswith("[ERROR]"):
        return ""
    text = re.sub(r"<think>.*?</think>", " ", raw, flags=re.DOTALL).rpartition("</think>")[2]
    return re.sub(r"\*\*|__|`", "", text.replace("<think>", " ")).replace("’", "'").strip()


def agrees(a: Value, b: Value) -> bool:
    """Equal as an answer: words whatever their case, numbers to float rounding."""
    if isinstance(a, str) or isinstance(b, str):
        return str(a).casefold().strip() == str(b).casefold().strip()
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _value(question: Question, text: str) -> Value | None:
    if question.answer_type == "numeric":
        return number(text, question.unit)
    if question.answer_type == "binary":
        return yes_or_no(text)
    classes = dict.fromkeys(str(value) for value in (*(o.value for o in question.options), question.answer.value))
    texts = {str(option.value): option.text for option in question.options}
    return class_name(text, tuple(sorted((name, texts.get(name, name)) for name in classes)))


# Letters

NEGATED_AFTER = (
    r"(?!\W+(?:(?:is|was|are|would be|seems|can be|must be)\W+)?(?:incorrect|wrong|false|excluded|ruled)"
    r"|\W+(?:(?:is|was|does|would|can|could|may)(?:n't|\W+not\b)|cannot\b))"
)
NOT_ARTICLE = r"(?:because|since|as|due|given|and|with|for|based|which|or|is|was|seems)\b"
CUED_LETTER = re.compile(
    r"(?<!\bnot )(?<!n't )(?<!never )"
    r"\b(?:answers?|option|choice|choose|chose|pick|select|go with|correct one|boxed|(?:so|therefore|thus|hence),?)"
    r"(?!\w)"
    r"(?:[\s:=(\[{\"'#-]|\b(?:is|be|was|would|must|should|the|answer|correct|option|choice|letter|therefore|text)\b)*"
    r"(?<![A-Za-z0-9'])(?P<letter>[A-Za-z])(?![A-Za-z0-9']|-[a-z])"
    r"(?! (?:and|or) (?:option )?[A-Z]\b)" + NEGATED_AFTER,
    re.IGNORECASE,
)
LETTER_IS_IT = re.compile(
    r"(?<![A-Za-z0-9'])(?P<letter>[A-Z])\b\W*\s(?:is|seems)\s(?:the\s)?(?:correct|right|best|answer|true)"
)
LONE_LETTER = re.compile(r"^[^\w\n]*(?P<letter>[A-Za-z])[^\w\n]*$", re.MULTILINE)
ANY_LETTER = re.compile(
    r"(?<!\bnot )(?<!\bthan )(?<!neither )(?<!\bnor )(?<!n't )(?<!\bnot option )(?<!\bnot choose )"
    r"(?<!hepatitis )(?<!vitamin )(?<!type )(?<!grade )(?<!class )(?<!stage )(?<!pugh )"
    r"(?<![A-Za-z0-9'])(?P<letter>[A-Z])(?![A-Za-z0-9']|-[a-z])" + NEGATED_AFTER
)


def letter(text: str, options: tuple[str, ...]) -> int | None:
    """Index of the option whose letter is said: after the last cue, alone on a line, before its own text, or as the
    only letter of the text. The article "a" is no letter.
    """

    def said(match: re.Match[str]) -> int | None:
        index = ascii_uppercase.index(match["letter"].upper())
        if index >= len(options) or (index == 0 and _article(text[match.end("letter") :], options[0])):
            return None
        return index

    cued = sorted((*CUED_LETTER.finditer(text), *LETTER_IS_IT.finditer(text)), key=lambda match: match.start("letter"))
    for found in (cued, LONE_LETTER.finditer(text)):
        indices = [index for match in found if (index := said(match)) is not None]
        if indices:
            return indices[-1]
    every = [(match, index) for match in ANY_LETTER.finditer(text) if (index := said(match)) is not None]
    before_own_text = {index for match, index in every if _follows(text[match.end() :], options[index])}
    for chosen in (before_own_text, {index for _, index in every}):
        if len(chosen) == 1:
            return chosen.pop()
    return None


def _follows(rest: str, option: str) -> bool:
    return bool(option) and re.match(r"\W*?" + re.escape(option) + r"(?!\w)", rest, re.IGNORECASE) is not None


def _article(rest: str, first_option: str) -> bool:
    """Whether the "a" before `rest` is one: a word follows that is neither a conjunction nor the option's own text."""
    if not re.match(r"\s+[A-Za-z]", rest):
        return False
    return not re.match(r"\s+" + NOT_ARTICLE, rest, re.IGNORECASE) and not _follows(rest, first_option)


# Numbers

UNITS: dict[str, tuple[str, float, str]] = {  # unit: quantity, size, how it is written
    "cm^3": ("volume", 1.0, r"cm ?(?:\^ ?)?3|cm³|ccm|cc|ml|millilit(?:er|re)s?|cubic cent?imet(?:er|re)s?"),
    "mm^3": ("volume", 1e-3, r"mm ?(?:\^ ?)?3|mm³|cubic millimet(?:er|re)s?"),
    "l": ("volume", 1e3, r"l|lit(?:er|re)s?"),
    "mm": ("length", 1.0, r"mm|millimet(?:er|re)s?"),
    "cm": ("length", 10.0, r"cm|cent?imet(?:er|re)s?"),
    "HU": ("attenuation", 1.0, r"hu|hounsfield(?: units?)?"),
    "degrees": ("angle", 1.0, r"°|deg(?:ree)?s?"),
    "%": ("number", 0.01, r"%|percent|per cent"),
}
UNIT = re.compile(
    r"\s*(?:" + "|".join(f"(?P<u{i}>{row[2]})" for i, row in enumerate(UNITS.values())) + r")(?![A-Za-z0-9^²³])",
    re.IGNORECASE,
)
LABEL = (
    r"\b(?:segments|stages|grades|lesions) ?[0-9]\b[ab]?(?:\s*(?:/|-|–|&|,|and|to)\s*[0-9]\b[ab]?)+"
    r"|\b(?:segments?|seg|couinaud|stages?|grades?|types?|class|phase|series|figure|fig|step|question|option|lesion|tumou?r"
    r"|cyst)[ #]*[0-9]+[a-z]?\b(?!\.[0-9]|\s?(?:[mc]m|ml|cc|hu|%))(?:[/&][0-9][ab]?)*"
    r"|(?<![A-Za-z])(?!x[0-9])[A-Za-z]+[\^_-]?[0-9]+[a-z]?(?![0-9.]*[0-9])"
)
SLICE_LABEL = r"\b(?:slices?|images?|level)\s*(?:number|no\.?|index|#)?\s*[0-9]+(?:\s*(?:-|–|to)\s*[0-9]+)?"
NUMBER = (
    r"(?P<sign>(?<![0-9A-Za-z.)])[-−–]|\b(?:minus|negative) )?"
    r"(?P<digits>(?:[0-9]{1,3}(?:[,\u00a0\u2009\u202f][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|(?<![0-9])\.[0-9]+)"
    r"(?:e(?P<exponent>[+-]?[0-9]+)(?![A-Za-z0-9])| ?[x×*·] ?10 ?(?:\^ ?(?P<power>[-−]?[0-9]+)))?"
)
SCAN = {
    False: re.compile(f"(?P<label>{SLICE_LABEL}|{LABEL})|{NUMBER}", re.IGNORECASE),
    True: re.compile(f"(?P<label>{LABEL})|{NUMBER}", re.IGNORECASE),
}
VALUE_CUE = re.compile(r"\b(?:answer|result|total|conclusion|estimate|actually|correction|boxed)\b|[=≈]", re.IGNORECASE)
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
SMALL_WORDS = {word: i for i, word in enumerate(SMALL.split())}
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
WORD = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(TENS)})(?:[- ](?P<ones>{'|'.join(list(SMALL_WORDS)[1:10])}))?"
    rf"|(?P<small>{'|'.join(SMALL_WORDS)}))\b",
    re.IGNORECASE,
)
NONE = re.compile(r"^\W*none\W*$|\bno (?:\w+ ){0,2}(?:lesions?|tumou?rs?|cysts?|mass(?:es)?)\b", re.IGNORECASE)


@lru_cache
def _quantity(unit: str) -> tuple[str, float]:
    """Of a question's unit; counts, ratios and slices are plain numbers."""
    for name, (quantity, size, written) in UNITS.items():
        if unit == name or re.fullmatch(written, unit.strip(), re.IGNORECASE):
            return quantity, size
    return "number", 1.0


def number(text: str, unit: str = "") -> float | None:
    """The number said, in `unit`. One with another quantity's unit is not meant, one with the right unit is preferred
    to one without; digits of labels (T2, segment 4, cm^3, 3D, slice 9 where no slice is asked for) are none.
    """
    quantity, size = _quantity(unit)
    found: list[
        tuple[int, int, float, tuple[str, float] | None]
    ] = []  # start, end, value, (quantity, size of its unit)
    for match in SCAN[unit == "slice"].finditer(text):
        if match["label"] is not None:
            continue
        written = UNIT.match(text, match.end())
        if written is None and re.match(_no_number(unit), text[match.end() :], re.IGNORECASE):
            continue
        exponent = (match["exponent"] or match["power"] or "0").replace("−", "-")
        if len(exponent) > 4:
            continue
        value = float(re.sub(r"[,\u00a0\u2009\u202f]", "", match["digits"]) + f"e{exponent}")
        which = None
        if written is not None:
            kind, bigger, _ = list(UNITS.values())[int(str(written.lastgroup)[1:])]
            which = (kind, bigger)
        if math.isfinite(value):
            end = written.end() if written else match.end()
            found.append((match.start(), end, -value if match["sign"] else value, which))
    for i in range(len(found) - 2, -1, -1):  # 2.5 x 1.8 cm, 10-12 mm, 120.5 ± 3 ml: one unit for both
        between = text[found[i][1] : found[i + 1][0]]
        if found[i][3] is None and re.fullmatch(r"\s*(?:x|×|by|to|and|-|–|±|\+/-)?\s*", between, re.IGNORECASE):
            found[i] = (*found[i][:3], found[i + 1][3])
    right = [row for row in found if row[3] is not None and row[3][0] == quantity]
    usable = right or [row for row in found if row[3] is None]
    if not usable:
        return _number_in_words(text) if quantity == "number" or not found else None
    for cue in reversed(list(VALUE_CUE.finditer(text))):
        after = [row for row in usable if row[0] >= cue.end()]
        if after:
            usable = after
            break
    _, _, value, which = usable[0]
    return value if which is None or which[1] == size else value * which[1] / size


def _no_number(unit: str) -> str:
    """What follows digits that are a name or a place (3D, 2nd), though not those of 2x3 cm, nor of the 45th slice."""
    return r"(?!x ?[0-9.])(?!(?:st|nd|rd|th)\b)[a-z]" if unit == "slice" else r"(?!x ?[0-9.])[a-z]"


def _number_in_words(text: str) -> float | None:
    match = WORD.search(text)
    if match is None:
        return 0.0 if NONE.search(text) else None
    if match["small"]:
        return float(SMALL_WORDS[match["small"].lower()])
    return float(TENS[match["tens"].lower()] + SMALL_WORDS[(match["ones"] or "zero").lower()])


# Words

IDIOM = re.compile(r"\bno (?:doubt|question|idea|answer)\b", re.IGNORECASE)
YES_NO = re.compile(r"\b(?:(?P<yes>yes|true)|(?P<no>no|false))\b", re.IGNORECASE)


def yes_or_no(text: str) -> Literal["yes", "no"] | None:
    """The token after the last cue, else the one that the text begins with, else the only one there."""
    text = IDIOM.sub(" ", text)
    if re.fullmatch(r"\W*[yn]\W*", text, re.IGNORECASE):
        return "yes" if "y" in text.lower() else "no"
    found: list[tuple[int, Literal["yes", "no"]]] = [
        (match.start(), "yes" if match["yes"] else "no") for match in YES_NO.finditer(text)
    ]
    for cue in reversed(list(VALUE_CUE.finditer(text))):
        after = [token for start, token in found if start >= cue.end()]
        if after:
            return after[0]
    if found and not re.search(r"\w", text[: found[0][0]]):
        return found[0][1]
    return found[0][1] if len({token for _, token in found}) == 1 else None


DENIED = re.compile(
    r"(?:\b(?:not|no|without|neither|nor|rather than|instead of|(?:larger|bigger|greater|more|higher) than)|n't)"
    r"\s+(?:a\s+|an\s+|the\s+|that of the\s+|in the\s+)?$",
    re.IGNORECASE,
)


def class_name(text: str, classes: tuple[tuple[str, str], ...] = ()) -> str | None:
    """The class said, of `classes` (name, how an option says it) or their synonyms; else the name of a known class that
    is not among them. Two different ones in a text without a cue: the one that is alone in its first clause, or None.
    """
    text = re.sub(r"\s+", " ", text)
    for known in dict.fromkeys((classes, ())):
        pattern, names = _phrases(known)
        whole = names.get(text.lower().strip(" .!\"'"))
        if whole is not None:
            return whole
        found = [
            (match.start(), name)
            for match in pattern.finditer(text)
            if (name := names.get(match[0].lower()))
            and not DENIED.search(text[max(0, match.start() - 40) : match.start()])
        ]
        if found:
            return _chosen(text, found)
    return None


def _chosen(text: str, found: list[tuple[int, str]]) -> str | None:
    for cue in reversed(list(VALUE_CUE.finditer(text))):
        after = [name for start, name in found if start >= cue.end()]
        if after:
            return after[0]
    clause = re.search(r"[.,;:(]\s|$", text)
    first = {name for start, name in found if clause and start < clause.start()}
    for mentioned in ({name for _, name in found}, first):
        if len(mentioned) == 1:
            return mentioned.pop()
    return None


@lru_cache(maxsize=4096)
def _phrases(classes: tuple[tuple[str, str], ...]) -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern of all phrases, the longest first, and the class of each (lower case); without `classes`, all known."""
    names: dict[str, str] = {}
    unclear = set()
    own = {said.lower(): name for name, text in classes for said in (name, text) if said}
    rows = [(name, {*words_of(name), *words_of(text)}) for name, text in classes]
    for name, words in rows or [(row[0], set(row)) for row in CLASSES]:
        for word in (said.lower() for said in words if said):
            if names.setdefault(word, name) != name:
                unclear.add(word)
    for word in unclear:
        del names[word]
    names |= own
    longest = sorted(names, key=len, reverse=True)
    return re.compile(r"(?<![\w/])(?:" + "|".join(map(re.escape, longest)) + r")(?![\w/])", re.IGNORECASE), names
