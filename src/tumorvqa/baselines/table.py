"""Every baseline by name, and how one answers the questions of a set."""

from pathlib import Path

from dnt.lookup import lookup
from tumorvqa.baselines.agent import agent
from tumorvqa.baselines.blind import cross_validated
from tumorvqa.baselines.views import views
from tumorvqa.formats import read_questions
from tumorvqa.measurements import Measurements
from tumorvqa.question import Prediction
from tumorvqa.readers.folders import find_cases
from tumorvqa.sets import measured_in, pack_of, salt_of

BASELINES = {
    "uniform": "nothing; any option",
    "prior": "the question; the usual answer of its subtype",
    "option-shape": "the options; their order and rank",
    "blind-text": "question and options; logistic regression on words and numbers",
    "metadata": "spacing, shape, sex, age, contrast, scanner; logistic regression",
    "agent-oracle": "tools on the masks of the truth",
    "agent-perturbed": "tools on masks as an imperfect segmenter makes them (--images)",
    "agent-none": "tools without masks; guesses",
    "hu-threshold": "tools on masks made of HU and position, nothing learned (--images)",
}
OF_VIEW = {"agent-perturbed": "perturbed", "hu-threshold": "threshold"}


def run(name: str, out: Path, free: bool = False, seed: int = 0, images: Path | None = None) -> list[Prediction]:
    """The answers of a baseline to all questions of a set; what learns is cross-validated by patient."""
    lookup(BASELINES, name, "baseline")
    questions = read_questions(out / "questions.jsonl")
    measured = {case.case: case for case in measured_in(out)}
    if not name.startswith("agent") and name not in OF_VIEW:
        if free:
            raise ValueError(f"{name} chooses among options; it has no answer in free form.")
        return cross_validated(name, questions, measured, seed=seed)
    masks: dict[str, Measurements] = measured if name == "agent-oracle" else {}
    if view := OF_VIEW.get(name):
        if images is None:
            raise ValueError(f"{name} looks at the scans; say where they are: --images FOLDER.")
        asked = {question.case for question in questions}
        cases = [case for case in find_cases(images) if case.id in asked]
        masks = views(cases, out / "views", [view], salt_of(out))[view]
    return agent(questions, masks, pack_of(out, questions), free, seed)
