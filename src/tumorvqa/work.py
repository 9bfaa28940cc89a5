"""Many cases, one after another or in several processes: results on disk, what fails set aside with its reason."""

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dnt.files import atomic_write, exclusive, write_json
from tumorvqa.doctor import check
from tumorvqa.measurements import Measurements
from tumorvqa.measuring.case import measure
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import CaseFiles
from tumorvqa.scans import CaseFault

DEFINITIONS = "2"  # of measurements; another one measures every case again
# The seam: (function, items, lost) -> results in any order; lost(item) is the result of one whose process died twice. A
# cluster's map can take its place.
Executor = Callable[[Callable[[Any], Any], Sequence[Any], Callable[[Any], Any]], Iterator[Any]]


@dataclass(frozen=True)
class CaseResult:
    """What became of a case: measurements, or why there are none. `key` is of its content and of the definitions."""

    case: str
    key: str
    measurements: Measurements | None = None
    fault: str | None = None


def measure_all(
    cases: Sequence[CaseFiles],
    out: Path,
    workers: int = 1,
    salt: str = "",
    memory_gb: float = 4.0,
    progress: bool = True,
) -> list[CaseResult]:
    """Measure every case into `out`/cases/<id>.json; what is there already, of the same content, is kept.

    `out`/quarantine.jsonl names the cases that could not be measured, and why, `out`/measured.json the others. Stopping
    it, also with kill -9, loses the cases under way only. Two runs on one folder wait for each other.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}; it takes at least one process.")
    if twice := [name for name, number in Counter(case.id for case in cases).items() if number > 1]:
        raise ValueError(f"two cases are called {twice[0]!r}; rename one of their folders.")
    run: Executor = in_processes(workers) if workers > 1 else here
    one = partial(measure_one, folder=out / "cases", salt=salt, memory_gb=memory_gb)
    results = {}
    with exclusive(out / "lock", f"measuring into {out}"):
        with progress_bar("measuring", len(cases), progress) as step:
            for result in run(one, cases, lost):
                results[result.case] = result
                step()
        ordered = [results[case.id] for case in cases]
        with atomic_write(out / "quarantine.jsonl") as file:
            for result in ordered:
                if result.fault is not None:
                    file.write(json.dumps({"case": result.case, "reason": result.fault}).encode() + b"\n")
        write_json(out / "measured.json", [result.case for result in ordered if result.measurements is not None])
    return ordered


def measure_one(case: CaseFiles, folder: Path, salt: str, memory_gb: float) -> CaseResult:
    """The result of a case, from disk if it is there already."""
    path, key = folder / f"{case.id}.json", ""
    try:
        key = content_key(case, salt)
        kept = stored(path)
        if kept is not None and kept.key == key and kept.fault is None:  # a fault may have been of memory
            return kept
        scan = read_case(case, salt=salt, memory_gb=memory_gb)
        check(scan)
        result = CaseResult(case.id, key, measurements=measure(scan))
    except CaseFault as fault:
        result = CaseResult(case.id, key, fault=str(fault))
    except MemoryError:
        result = CaseResult(case.id, key, fault="not enough memory; measure with fewer --workers")
    with atomic_write(path) as file:
        file.write(msgspec.json.encode(result))
    return result


def content_key(case: CaseFiles, salt: str) -> str:
    """A hash of every byte of a case, of what its patient is called with, and of how things are measured; CaseFault if
    a file cannot be read.
    """
    digest = sha256(f"{DEFINITIONS} {salt} {sorted(case.row.items())}".encode())
    for path in case.paths:
        try:
            with path.open("rb") as file:
                digest.update(path.name.encode() + file_digest(file, "sha256").digest())
        except OSError:
            raise CaseFault(f"{case.name(path)} cannot be read: not a file, missing, or not yours to read.") from None
    return digest.hexdigest()


def stored(path: Path) -> CaseResult | None:
    """A result on disk; None if there is none or not one of this version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CaseResult)
    except (FileNotFoundError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def lost(case: CaseFiles) -> CaseResult:
    return CaseResult(case.id, "", fault="its process died twice, perhaps for want of memory; use fewer --workers")


def here(function: Callable[[Any], Any], items: Sequence[Any], lost: Callable[[Any], Any]) -> Iterator[Any]:
    """One after another, in this process."""
    return map(function, items)


def in_processes(workers: int) -> Executor:
    """In processes of their own; an item whose process dies is tried once more alone."""

    def run(function: Callable[[Any], Any], items: Sequence[Any], lost: Callable[[Any], Any]) -> Iterator[Any]:
        waiting = list(reversed(items))
        suspects: list[Any] = []
        while waiting:
            running: dict[Future[Any], Any] = {}
            with pool(workers) as processes:
                try:
                    while waiting or running:
                        while waiting and len(running) < 2 * workers:  # few, so that one death makes few suspects
                            item = waiting.pop()
                            running[processes.submit(function, item)] = item
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            result = future.result()
                            del running[future]
                            yield result
                except BrokenProcessPool:
                    suspects += running.values()
        for item in suspects:
            with pool(1) as process:
                try:
                    result = process.submit(function, item).result()
                except BrokenProcessPool:
                    result = lost(item)
            yield result

    return run


def pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=50)


@contextmanager
def progress_bar(what: str, total: int, shown: bool = True) -> Iterator[Callable[[], None]]:
    """On a terminal; a function that moves it one step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disabled = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=disabled) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
