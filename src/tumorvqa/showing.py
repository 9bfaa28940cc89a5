"""The page of one case, from its files: measured, asked and shown in one call."""

from collections.abc import Sequence
from pathlib import Path

from tumorvqa.asking.ask import ask
from tumorvqa.doctor import check
from tumorvqa.formats import read_questions
from tumorvqa.measuring.case import measure
from tumorvqa.pages.case import show_case
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import CaseFiles
from tumorvqa.rules.packs import load_pack
from tumorvqa.scoring.predictions import read_predictions


def show_files(
    files: CaseFiles,
    out: Path,
    questions: Path | None = None,
    predictions: Sequence[Path] = (),
    rules: str = "kb-v2",
    memory_gb: float = 4.0,
) -> Path:
    """Without `questions` (of a set) every question that the case can answer is asked; `predictions` are files of
    models' answers, each called by its name.
    """
    scan = read_case(files, memory_gb=memory_gb)
    check(scan)
    measurements = measure(scan)
    if questions is None:
        asked = ask([measurements], load_pack(rules), balanced=False)
    else:
        asked = [question for question in read_questions(questions) if question.case == files.id]
        if not asked:
            raise ValueError(f"{questions} has no question about the case {files.id!r}.")
    said = {
        path.name.removesuffix(".jsonl"): {one.qid: one.raw for one in read_predictions(path) if one.raw is not None}
        for path in predictions
    }
    return show_case(scan, measurements, asked, out, said)
