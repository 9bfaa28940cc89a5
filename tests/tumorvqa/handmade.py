"""Questions written by hand, one of each kind of answer."""

from dataclasses import replace

from tumorvqa.question import Answer, Evidence, Option, Question, Step, Value


def question(
    qid: str = "q",
    subtype: str = "organ volume measurement",
    options: tuple[Value, ...] = (120.5, 151.0, 98.2, 240.0),
    right: int = 0,
    unit: str = "cm^3",
    **fields,
) -> Question:
    """Options are shown as they are, "yes" and "no" with a capital."""
    said = tuple(Option(str(value).capitalize() if value in ("yes", "no") else str(value), value) for value in options)
    kind = "binary" if options[0] in ("yes", "no") else "categorical" if isinstance(options[0], str) else "numeric"
    groups = {"numeric": "Measurement", "binary": "Recognition", "categorical": "Visual Reasoning"}
    plain = Question(
        qid=qid,
        case="case 1",
        patient="patient 1",
        subtype=subtype,
        group=groups[kind],
        answer_type=kind,
        arguments={"organ": "spleen"},
        text="What is it?",
        options=said,
        answer=Answer(options[right], said[right].text, right),
        unit=unit if kind == "numeric" else "",
        trace=(),
        evidence=Evidence(None, None, ()),
        margin=None,
        lesion_mm=None,
        rules="",
    )
    return replace(plain, **fields)


VOLUME = question()
EXISTENCE = question("e", "liver lesion existence", ("yes", "no"), 1)
SIDE = question("s", "kidney volume comparison", ("left kidney", "right kidney", "same"), 2)
FULL = question(
    "f",
    "largest lesion diameter",
    (12.5, 31.0, 8.0),
    1,
    "mm",
    group="Visual Reasoning",
    arguments={"organ": "liver", "kind": "tumor"},
    text='How long is the "largest" liver tumor, in mm?\nSecond line, with a comma',
    trace=(Step("segment", "liver tumor", "found"), Step("measure", "long axis", 31.0, "mm")),
    evidence=Evidence(17, ((1, 5), (2, 6), (16, 19)), ("liver", "liver_tumor")),
    margin=7.25,
    lesion_mm=31.0,
    rules="kb-v2",
    split="test",
)
EXAMPLES = (VOLUME, EXISTENCE, SIDE, FULL)
