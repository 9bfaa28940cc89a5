"""A case as others see it: with an imperfect segmenter's masks, with masks made of HU, with a wrong spacing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np

from dnt.files import atomic_write
from tumorvqa.baselines.perturb import perturb
from tumorvqa.baselines.threshold import segment
from tumorvqa.measurements import Measurements
from tumorvqa.measuring.case import measure
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import CaseFiles
from tumorvqa.scans import Frame, Scan
from tumorvqa.work import DEFINITIONS, Executor, content_key, here, in_processes, progress_bar


def stretched(scan: Scan, factor: float = 1.1) -> Scan:
    """A header whose spacing is wrong by a factor."""
    return replace(scan, frame=Frame(scan.frame.affine @ np.diag([factor, factor, factor, 1]), scan.frame.shape))


VIEWS: dict[str, Callable[[Scan], Scan]] = {
    "perturbed": partial(perturb, seed=0),
    "threshold": segment,
    "stretched": stretched,
}


def views(
    cases: Sequence[CaseFiles], folder: Path, names: Sequence[str], salt: str = "", workers: int = 1
) -> dict[str, dict[str, Measurements]]:
    """Name of a view -> case -> measurements; kept in `folder`, so that stopping loses the cases under way only."""
    run: Executor = in_processes(workers) if workers > 1 else here
    one = partial(view, folder=folder, names=tuple(names), salt=salt)
    found: dict[str, dict[str, Measurements]] = {name: {} for name in names}
    with progress_bar("other eyes", len(cases)) as step:
        for case, seen in run(one, cases, lost):
            for name, measurements in seen.items():
                found[name][case] = measurements
            step()
    return found


def lost(case: CaseFiles) -> NoReturn:
    raise ValueError(f"{case.id}: its process died twice, perhaps for want of memory; use --workers 1.")


def view(case: CaseFiles, folder: Path, names: Sequence[str], salt: str) -> tuple[str, dict[str, Measurements]]:
    seen, scan = {}, None
    key = f"{content_key(case, salt)[:16]}-{DEFINITIONS}"
    for name in names:
        path = folder / name / f"{case.id}.{key}.json"
        try:
            seen[name] = msgspec.json.decode(path.read_bytes(), type=Measurements)
        except (FileNotFoundError, msgspec.DecodeError):
            scan = scan or read_case(case, salt=salt)
            seen[name] = measure(VIEWS[name](scan))
            with atomic_write(path) as file:
                file.write(msgspec.json.encode(seen[name]))
    return case.id, seen
