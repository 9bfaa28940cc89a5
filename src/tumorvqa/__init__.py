"""DeepTumorVQA (arXiv 2505.18915): CT volumes and masks become measurements, questions, scored answers. No torch.

Names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tumorvqa.asking.ask import ask as ask
    from tumorvqa.formats import read_questions as read_questions
    from tumorvqa.formats import write_questions as write_questions
    from tumorvqa.measuring.case import measure as measure
    from tumorvqa.pages.case import show_case as show_case
    from tumorvqa.pages.report import write_report as write_report
    from tumorvqa.phantoms.draw import draw_all as draw_all
    from tumorvqa.phantoms.insert import insert_lesion as insert_lesion
    from tumorvqa.readers.cases import read_case as read_case
    from tumorvqa.readers.folders import case_files as case_files
    from tumorvqa.readers.folders import find_cases as find_cases
    from tumorvqa.rules.packs import load_pack as load_pack
    from tumorvqa.scoring.compare import compare as compare
    from tumorvqa.scoring.score import score as score
    from tumorvqa.splits import split as split
    from tumorvqa.work import measure_all as measure_all

PUBLIC = {
    "ask": "tumorvqa.asking.ask",
    "case_files": "tumorvqa.readers.folders",
    "compare": "tumorvqa.scoring.compare",
    "draw_all": "tumorvqa.phantoms.draw",
    "find_cases": "tumorvqa.readers.folders",
    "insert_lesion": "tumorvqa.phantoms.insert",
    "load_pack": "tumorvqa.rules.packs",
    "measure": "tumorvqa.measuring.case",
    "measure_all": "tumorvqa.work",
    "read_case": "tumorvqa.readers.cases",
    "read_questions": "tumorvqa.formats",
    "score": "tumorvqa.scoring.score",
    "show_case": "tumorvqa.pages.case",
    "split": "tumorvqa.splits",
    "write_questions": "tumorvqa.formats",
    "write_report": "tumorvqa.pages.report",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'tumorvqa' has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
