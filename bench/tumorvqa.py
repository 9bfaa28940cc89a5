# ruff: noqa: E402
"""How long tumorvqa takes where there is much: a large case, the questions of many cases, the scores of many answers.

python bench/tumorvqa.py --out bench/results/tumorvqa.json

One core each. A case is read and measured in a process of its own, whose peak memory is told; files are in the page
cache. --small is for tests.
"""

import sys
from pathlib import Path

# Without this folder, in which this file hides the package of the same name
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import replace
from random import Random

import nibabel
import numpy as np

from dnt.files import write_json
from tumorvqa.asking.ask import ask
from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ
from tumorvqa.measuring.case import measure
from tumorvqa.question import Prediction
from tumorvqa.readers.cases import read_case
from tumorvqa.readers.folders import find_cases
from tumorvqa.rules.packs import load_pack
from tumorvqa.scans import Meta
from tumorvqa.scoring.score import score
from tumorvqa.structures import HOSTS, LESIONS, PLACES, STRUCTURES

ORGANS = [name for name, row in STRUCTURES.items() if row.kind in ("organ", "vessel")][:25]


def large_case(folder: Path, shape: tuple[int, int, int], lesions: int) -> None:
    """A label map of 25 organs as ellipsoids, and balls in the liver; noise of 12 HU."""
    random = np.random.default_rng(0)
    labels = np.zeros(shape, np.uint8)
    hu = random.normal(-100, 12, shape).astype(np.int16)
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]

    def fill(center: np.ndarray, radii: np.ndarray, label: int, value: int) -> None:
        box = tuple(slice(max(0, int(c - r)), int(c + r) + 2) for c, r in zip(center, radii, strict=True))
        parts = [axis[tuple(b if axis.shape[i] > 1 else slice(None) for i, b in enumerate(box))] for axis in grid]
        inside = sum(((x - c) / r) ** 2 for x, c, r in zip(parts, center, radii, strict=True)) <= 1
        labels[box][inside] = label
        hu[box][inside] += value - int(hu[box][inside].mean())

    size = np.array(shape)
    for i, name in enumerate(ORGANS):
        large = name == "liver"
        center = size * (0.3, 0.5, 0.5) if large else size * (0.62 + 0.08 * (i % 5), 0.12 + 0.18 * (i // 5), 0.5)
        fill(center, size * (0.2, 0.3, 0.35) if large else size * (0.035, 0.08, 0.3), i + 1, 30 + 2 * i)
    spots = np.stack(np.meshgrid(*(np.linspace(-0.5, 0.5, 4),) * 3), -1).reshape(-1, 3)[:lesions]
    for spot in spots:
        fill(size * (0.3, 0.5, 0.5) + spot * size * (0.2, 0.3, 0.35), np.full(3, 0.012 * shape[0]), 30, 0)
    folder.mkdir(parents=True)
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(hu, affine), folder / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "combined_labels.nii.gz")
    names = {i + 1: name for i, name in enumerate(ORGANS)} | {30: "liver_lesion"}
    (folder / "labels.json").write_text(json.dumps(names))


def measured_case(folder: Path) -> dict[str, float]:
    """In this process: seconds to read and to measure, peak memory."""
    start = time.perf_counter()
    (case,) = find_cases(folder)
    scan = read_case(case)
    read = time.perf_counter()
    found = measure(scan)
    end = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "voxels": scan.hu.size,
        "organs": len(found.organs),
        "lesions": len(found.lesions),
        "read_s": read - start,
        "measure_s": end - read,
        "total_s": end - start,
        "peak_gb": peak,
    }


def many_cases(count: int) -> list[Measurements]:
    """Measurements of made-up cases with organs, parts, vessels and up to six lesions an organ."""
    random = Random(0)

    def number(value: float, unit: str, error: float = 0.01) -> Measurement:
        return Measurement(value, unit, error * abs(value))  # type: ignore[arg-type]

    cases = []
    for i in range(count):
        organs = {
            name: Organ(
                name,
                number(random.lognormvariate(5, 0.8), "cm^3"),
                *(number(random.uniform(10, 90), "HU") for _ in range(3)),
                box=((0, 9), (0, 9), (0, 9)),
            )
            for name, row in STRUCTURES.items()
            if row.kind != "lesion"
        }
        lesions = []
        for host in HOSTS:
            sizes = sorted((random.uniform(5, 60) for _ in range(random.randrange(7))), reverse=True)
            for rank, mm in enumerate(sizes, 1):
                place = random.choice(PLACES.get(host, ("colon",)))
                kind = "pdac" if host == "pancreas" else "lesion"
                axes = (number(mm, "mm"), number(mm, "mm"), number(random.randrange(100), "slice"))
                lesions.append(
                    Lesion(
                        host,
                        kind,
                        rank,
                        number(0.0005 * mm**3, "cm^3"),
                        *axes,
                        number(random.uniform(-10, 90), "HU"),
                        (0.0, 0.0, 0.0),
                        {place: 1.0},
                        {"stomach": number(random.uniform(0, 9), "mm")},
                        {"superior_mesenteric_artery": number(random.uniform(0, 360), "degrees")},
                        ((0, 9), (0, 9), (0, 9)),
                    )
                )
        meta = Meta(contrast=random.choice(("plain", "venous")))
        frame = ((100, 100, 100), (1.0, 1.0, 1.0))
        cases.append(
            Measurements(
                f"case {i}",
                f"patient {i}",
                "made up",
                "masks",
                *frame,
                meta,
                organs,
                tuple(lesions),
                tuple(LESIONS),
                {},
            )
        )
    return cases


def timed(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return result, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measured_case(options.case)))
        return
    shape, cases, answers = ((96, 96, 48), 40, 500) if options.small else ((512, 512, 200), 1000, 10_000)

    with tempfile.TemporaryDirectory() as folder:
        large_case(Path(folder, "large"), shape, 35)
        command = [sys.executable, __file__, "--case", str(Path(folder, "large"))]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=one_core()).stdout)
            for _ in range(1 if options.small else 3)
        ]
    case = min(runs, key=lambda run: run["total_s"])
    measurements = many_cases(cases)
    questions, asking = timed(ask, measurements, load_pack("kb-v2"))
    held = 991 if not options.small else 30
    some = Random(0).sample([q for q in questions if int(q.case.split()[1]) < held], answers)
    said = [Prediction(q.qid, "ABCD"[Random(q.qid).randrange(len(q.options))]) for q in some]
    _, scoring = timed(score, some, said)
    words = [replace(one, raw=q.answer.text) for one, q in zip(said, some, strict=True)]
    _, free = timed(score, some, words, "free")
    result = {
        "case": case,
        "case_runs": runs,
        "asking": {"cases": cases, "questions": len(questions), "seconds": asking},
        "scoring": {"answers": answers, "cases": len({q.case for q in some}), "mc_s": scoring, "free_s": free},
    }
    print(f"{case['voxels'] / 1e6:.0f}M voxels, {case['organs']} organs, {case['lesions']} lesions: "
          f"{case['total_s']:.2f} s, {case['peak_gb']:.2f} GB")  # fmt: skip
    print(f"{cases} cases: {len(questions):,} questions in {asking:.1f} s")
    print(f"{answers:,} answers scored with 2,000 resamples: {scoring:.2f} s (free form {free:.2f} s)")
    if options.out:
        write_json(options.out, result)


def one_core() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
