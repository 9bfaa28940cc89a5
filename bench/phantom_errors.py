# ruff: noqa: E402
"""How far measurements of masks are from the analytic truth of phantoms, by the size of lesions.

python bench/phantom_errors.py --count 200 --workers 2 --out bench/results/phantom-errors.json

Volume in percent, diameters in mm, angles in degrees; bias, root mean square, worst, and the share within two of the
measurement's own standard deviations. A lesion is found if a measured one lies nearer to it than to any other.
"""

import sys
from pathlib import Path

# Without this folder, in which tumorvqa.py hides the package of the same name
sys.path[:] = [path for path in sys.path if path != str(Path(__file__).resolve().parent)]

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.table import Table

from dnt.files import write_json
from tumorvqa.measurements import Lesion, Measurement, Measurements
from tumorvqa.measuring.case import measure
from tumorvqa.phantoms.draw import draw
from tumorvqa.phantoms.render import render
from tumorvqa.phantoms.truth import truth
from tumorvqa.structures import HOSTS, STRUCTURES
from tumorvqa.work import here, in_processes, progress_bar

EDGES = (10, 15, 20, 30, 50)  # mm of the true long axis
SIZES = ["< 10", *(f"{a} to {b}" for a, b in pairwise(EDGES)), f">= {EDGES[-1]}"]
Row = tuple[str, str, float, float]  # quantity, size, error, error over its uncertainty


def errors_of(index: int, seed: int) -> list[Row]:
    """Of one phantom."""
    phantom = draw(index, seed)
    return list(compared(measure(render(phantom)), truth(phantom)))


def compared(found: Measurements, true: Measurements) -> Iterator[Row]:
    for name, organ in true.organs.items():
        mine = found.organs[name]
        if organ.volume.status == mine.volume.status == "ok":
            yield row("volume of organs, %", STRUCTURES[name].kind, mine.volume, organ.volume, percent=True)
    for host in HOSTS:
        theirs = [x for x in true.lesions if x.organ == host]
        mine_too = [x for x in found.lesions if x.organ == host]
        pairs = matched(mine_too, theirs)
        yield ("number of lesions of an organ", "all", float(len(mine_too) - len(theirs)), math.nan)
        for of in theirs:
            size = size_of(of)
            match = pairs.get(id(of))
            yield ("lesions missed", size, float(match is None), math.nan)
            if match is None:
                continue
            yield row("volume of lesions, %", size, match.volume, of.volume, percent=True)
            yield row("long axis, mm", size, match.long_axis, of.long_axis)
            yield row("short axis, mm", size, match.short_axis, of.short_axis)
            yield row("slice of the long axis", size, match.slice, of.slice)
            for vessel in of.contacts.keys() | match.contacts.keys():
                none = Measurement(0.0, "degrees")
                angles = match.contacts.get(vessel, none), of.contacts.get(vessel, none)
                if any(angle.value for angle in angles):
                    yield row("contact angle, degrees", size, *angles)


def matched(found: list[Lesion], true: list[Lesion]) -> dict[int, Lesion]:
    """The measured lesion nearest to each true one, if that is the nearest to it."""
    pairs = {}
    for lesion in found:
        near = min(true, key=lambda of: math.dist(of.centroid, lesion.centroid), default=None)
        if near is not None and id(near) not in pairs:
            pairs[id(near)] = lesion
    return pairs


def size_of(lesion: Lesion) -> str:
    return SIZES[int(np.searchsorted(EDGES, lesion.long_axis.value or 0, side="right"))]


def row(quantity: str, size: str, found: Measurement, true: Measurement, percent: bool = False) -> Row:
    assert found.value is not None and true.value is not None
    error, scale = found.value - true.value, 100 / true.value if percent else 1.0
    return quantity, size, error * scale, error / found.uncertainty if found.uncertainty else math.nan


def summary(rows: list[Row]) -> list[dict[str, object]]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for one in rows:
        groups[one[:2]].append(one)
        groups[one[0], "all"] += [one] if one[1] != "all" else []
    order = ["volume of organs, %", "volume of lesions, %", "long axis, mm", "short axis, mm", "slice of the long axis",
             "contact angle, degrees", "lesions missed", "number of lesions of an organ"]  # fmt: skip
    sizes = ["organ", "vessel", "part", *SIZES, "all"]
    found = []
    for quantity, size in sorted(groups, key=lambda key: (order.index(key[0]), sizes.index(key[1]))):
        error = np.array([one[2] for one in groups[quantity, size]])
        own = np.array([one[3] for one in groups[quantity, size]])
        own = own[~np.isnan(own)]
        found.append(
            {
                "quantity": quantity,
                "size": size,
                "n": len(error),
                "bias": float(error.mean()),
                "rms": float(np.sqrt((error**2).mean())),
                "worst": float(np.abs(error).max()),
                "within_2_sd": float((np.abs(own) <= 2).mean()) if len(own) else None,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    run = in_processes(options.workers) if options.workers > 1 else here
    rows: list[Row] = []
    with progress_bar("phantoms", options.count) as step:
        for found in run(partial(errors_of, seed=options.seed), range(options.count), lambda index: []):
            rows += found
            step()
    result = summary(rows)
    table = Table("quantity", "size, mm", "n", "bias", "rms", "worst", "within 2 sd")
    for line in result:
        within = "" if line["within_2_sd"] is None else f"{line['within_2_sd']:.0%}"
        numbers = [f"{line[name]:.2f}" for name in ("bias", "rms", "worst")]
        table.add_row(str(line["quantity"]), str(line["size"]), str(line["n"]), *numbers, within)
    Console(width=140).print(table)
    if options.out:
        write_json(options.out, {"phantoms": options.count, "seed": options.seed, "rows": result})


if __name__ == "__main__":
    main()
