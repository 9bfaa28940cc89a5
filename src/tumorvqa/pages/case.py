"""A case, its measurements and its questions -> one self-contained page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dnt.files import atomic_write
from tumorvqa.measurements import Lesion, Measurement, Measurements
from tumorvqa.pages import pixels, words
from tumorvqa.question import GROUPS, Question
from tumorvqa.scans import Box, Region, Scan
from tumorvqa.structures import HOSTS, LESIONS, MEASURED, STRUCTURES

WINDOWS = {"soft tissue": (400, 50), "liver": (150, 70), "lung": (1500, -600), "bone": (1800, 400)}  # width, level
COLORS = {  # a lesion is warm, everything else is not; no two organs, vessels or parts share a color
    "lesion": ("#ff3b30", "#ffd60a", "#ff2d95", "#ff9500", "#ff6b6b", "#ffb3c7"),
    "organ": (
        "#2ec4b6", "#5b8cff", "#8ac926", "#b388ff", "#00b4d8", "#26ffa8", "#768149", "#efdcfc", "#d0ecb1", "#7b7998",
        "#198f3d", "#b6eced", "#56857c", "#0082ca", "#adf58c", "#6b8609", "#00ffd6", "#956ab6", "#94b1ea", "#69c386",
        "#a7b962",
    ),
    "vessel": ("#4cc9f0", "#cef057", "#35e6a9", "#cc9fee", "#e0e6c3", "#94bd6b", "#e6deff"),
    "part": (
        "#74c69d", "#cc9fee", "#cef057", "#00befd", "#55ff9a", "#b8ebf9", "#a7b962", "#00ffd6", "#68c643", "#e0e6c3",
        "#b4accd",
    ),
}  # fmt: skip
KINDS = {"lesion": "Lesions", "organ": "Organs", "vessel": "Vessels", "part": "Parts"}


def template(name: str) -> Any:
    """Everything that a template shows is escaped."""
    return Environment(
        loader=PackageLoader("tumorvqa", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    ).get_template(name)  # fmt: skip


def show_case(
    scan: Scan,
    measurements: Measurements,
    questions: Sequence[Question],
    path: Path,
    answers: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write the page to `path`; `answers` maps a model's name to what it said by question id. The path."""
    factor, volume = pixels.packed_volume(scan.hu)
    there = {name: scan.regions[name] for name in STRUCTURES if name in scan.regions and scan.regions[name].count}
    boxes, bits = pixels.packed_masks(there, scan.frame.shape, factor)
    structures = list(_structures(there, boxes))
    of_questions = [question for question in questions if question.case == scan.case]
    x, y, _ = (size / 2 for size in scan.frame.shape)
    heights = [float((scan.frame.affine @ (x, y, k, 1))[2]) for k in range(scan.frame.shape[2])]
    page = template("case.html").render(
        case=scan.case,
        facts=_facts(scan),
        data={
            "shape": [scan.frame.shape[2], *(-(-scan.frame.shape[axis] // factor) for axis in (1, 0))],
            "factor": factor,
            "full": scan.frame.shape[:2],
            "spacing": scan.frame.spacing,
            "heights": [round(height, 1) for height in heights],
            "hu": pixels.decoded(),
            "structures": structures,
            "windows": WINDOWS,
            "first": _first(scan),
            "lesions": [
                {"mask": f"{of.organ}_{of.kind}", "title": _name(of), "from": of.box[2][0], "to": of.box[2][1]}
                for of in measurements.lesions
                if of.box is not None
            ],
        },
        volume=volume,
        bits=bits,
        windows=WINDOWS,
        kinds={KINDS[kind]: [row for row in structures if row["kind"] == kind] for kind in ("lesion", "organ")},
        finer={KINDS[kind]: [row for row in structures if row["kind"] == kind] for kind in ("vessel", "part")},
        organs=[_organ(scan, measurements, name) for name in _organ_order(measurements)],
        lesions=list(_lesions(scan, measurements)),
        unmarked=[words.title(name) for name in LESIONS if name not in measurements.annotated],
        faults=[(words.title(name), words.STATUS[why]) for name, why in measurements.faults.items()],
        groups={group: sum(question.group == group for question in of_questions) for group in GROUPS},
        cards=[_card(scan, question, answers or {}) for question in of_questions],
    )
    with atomic_write(path) as file:
        file.write(page.encode())
    return path


def _facts(scan: Scan) -> list[str]:
    """What the page says of the case; nothing that could name a person."""
    meta = scan.meta
    size = " × ".join(str(size) for size in scan.frame.shape)
    spacing = " × ".join(f"{mm:.3g}" for mm in scan.frame.spacing)
    who = [meta.sex, f"{meta.age} years" if meta.age is not None else None]
    phase = [f"{meta.contrast} phase" if meta.contrast else "phase unknown"]
    return [
        *filter(None, who),
        *phase,
        f"{size} voxels of {spacing} mm",
        words.PROVENANCE[scan.provenance],
        f"source: {scan.source}",
    ]


def _structures(regions: Mapping[str, Any], boxes: Sequence[Box]) -> Iterator[dict[str, Any]]:
    """Of each mask: its box in the display grid, the byte where its bits begin, its color."""
    offset = 0
    of_kind = dict.fromkeys(KINDS, 0)
    for name, box in zip(regions, boxes, strict=True):
        kind = STRUCTURES[name].kind
        colors = COLORS[kind]
        yield {
            "name": name,
            "title": words.title(name),
            "kind": kind,
            "color": colors[of_kind[kind] % len(colors)],
            "box": box,
            "offset": offset,
            "shown": kind == "lesion" or name in MEASURED,
        }
        of_kind[kind] += 1
        slices, rows, columns = (end - start for start, end in box)
        offset += -(-slices * rows * columns // 8)


def _first(scan: Scan) -> int:
    """The slice to open with: where most is to be seen of lesions, else of the liver, else the middle."""
    lesions = [region for name, region in scan.regions.items() if name in LESIONS and region.count]
    liver = [region for name, region in scan.regions.items() if name == "liver" and region.count]
    if not lesions and not liver:
        return scan.frame.shape[2] // 2
    return _widest(max(lesions or liver, key=lambda region: region.count))


def _widest(region: Region) -> int:
    """The slice with most voxels."""
    return region.box[2][0] + int(region.mask.sum(axis=(0, 1)).argmax())


def _jump(scan: Scan, at: int | None, box: Box | None, masks: Sequence[str]) -> dict[str, Any] | None:
    """Where a button leads: a slice, the masks to show, a box to outline; None if there is nothing to go to. Of masks
    alone it is the middle slice of the first that is there.
    """
    known = [name for name in masks if name in scan.regions and scan.regions[name].count]
    if at is None:
        boxes = [box] if box is not None else [scan.regions[name].box for name in known[:1]]
        if not boxes:
            return None
        low, high = boxes[0][2]
        at = (low + high) // 2
    return {"slice": min(max(int(at), 0), scan.frame.shape[2] - 1), "box": box, "masks": known}


def _organ_order(measurements: Measurements) -> list[str]:
    """Organs that are asked about first, the rest as structures.py has them."""
    known = [*MEASURED, *(name for name in STRUCTURES if name not in MEASURED)]
    return sorted(measurements.organs, key=known.index)


def _organ(scan: Scan, measurements: Measurements, name: str) -> dict[str, Any]:
    organ, there = measurements.organs[name], [name for name, region in scan.regions.items() if region.count]
    notes = [words.STATUS[organ.volume.status]] if organ.volume.status != "ok" else []
    if organ.faces:
        notes.append("touches the " + ", ".join(organ.faces) + " edge of the scan")
    if organ.fragments > 1:
        notes.append(f"{organ.fragments} pieces")
    return {
        "title": words.title(name),
        "volume": _or_dash(organ.volume),
        "hu": _or_dash(organ.hu),
        "hu_sd": _or_dash(organ.hu_sd),
        "note": "; ".join(notes),
        "jump": _jump(scan, _widest(scan.regions[name]), None, [name]) if name in there else None,
        "main": name in MEASURED,
    }


def _or_dash(measurement: Measurement) -> str:
    """Where the remarks give the reason."""
    return "–" if measurement.value is None else words.measured(measurement)


def _name(lesion: Lesion) -> str:
    return f"{words.title(f'{lesion.organ}_{lesion.kind}')} {lesion.rank}"


def _lesions(scan: Scan, measurements: Measurements) -> Iterator[dict[str, Any]]:
    hosts = list(HOSTS)
    for lesion in sorted(measurements.lesions, key=lambda lesion: (hosts.index(lesion.organ), lesion.rank)):
        mask = f"{lesion.organ}_{lesion.kind}"
        at = lesion.slice.value
        share = sorted(lesion.places.items(), key=lambda place: -place[1])
        touched = {vessel: angle for vessel, angle in lesion.contacts.items() if angle.value}
        yield {
            "title": _name(lesion),
            "volume": words.measured(lesion.volume),
            "axes": words.axes(lesion.long_axis, lesion.short_axis),
            "hu": words.measured(lesion.hu),
            "places": [f"{words.place(name)} {100 * part:.0f}%" for name, part in share if part >= 0.1],
            "contacts": ", ".join(f"{words.title(k).lower()} {words.measured(angle)}°" for k, angle in touched.items()),
            "jump": _jump(scan, None if at is None else round(at), lesion.box, [*HOSTS.get(lesion.organ, ()), mask]),
        }


def _card(scan: Scan, question: Question, answers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    given = [(model, of_model[question.qid]) for model, of_model in answers.items() if question.qid in of_model]
    evidence = question.evidence
    return {
        "question": question,
        "margin": words.margin(question),
        "answer": question.answer.text,
        "options": [(chr(ord("A") + i), option.text) for i, option in enumerate(question.options)],
        "given": [(model, said, *words.mark(question, said)) for model, said in given],
        "trace": [(step.tool, step.what, words.said(step.result), words.unit(step.unit)) for step in question.trace],
        "jump": _jump(scan, evidence.slice, evidence.box, evidence.masks),
        "shown": [words.title(name) for name in evidence.masks],
    }
