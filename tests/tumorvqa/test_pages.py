"""Pages of a case and of a set: self-contained, escaped, and driven in a browser where there is one."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ
from tumorvqa.pages import pixels
from tumorvqa.pages.case import show_case
from tumorvqa.question import Answer, Evidence, Option, Question, Step
from tumorvqa.scans import EMPTY, Frame, Meta, Region, Scan

SHAPE = (120, 90, 50)
SPACING = np.array([3.0, 3.2, 4.0])
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">&amp;"
ELLIPSOIDS = {  # center and half axes in mm from the lower right posterior corner, HU
    "liver": ((240, 150, 120), (80, 65, 60), 105),
    "spleen": ((85, 110, 125), (30, 45, 40), 110),
    "kidney_right": ((235, 75, 75), (26, 28, 45), 160),
    "kidney_left": ((120, 75, 80), (26, 28, 45), 160),
    "pancreas": ((165, 150, 95), (55, 15, 14), 90),
    "aorta": ((172, 95, 100), (11, 11, 110), 190),
    "liver_tumor": ((265, 160, 130), (16, 14, 13), 55),
    "liver_cyst": ((215, 180, 105), (8, 8, 9), 5),
    "kidney_cyst": ((120, 60, 60), (10, 10, 10), 8),
}


def scan(case: str = "phantom-0007") -> Scan:
    """Ellipsoids in a body, noise that is smooth; the pancreas cyst was looked for and is not there."""
    at = np.stack(np.meshgrid(*(np.arange(n) * mm for n, mm in zip(SHAPE, SPACING, strict=True)), indexing="ij"), -1)

    def inside(center: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
        return (((at - center) / axes) ** 2).sum(-1) < 1

    hu = np.where(inside((180, 130, 100), (165, 115, 400)), -95.0, -1000.0)
    hu[inside((180, 130, 100), (150, 100, 400))] = 45
    hu[inside((178, 45, 100), (18, 18, 400))] = 330
    masks = {}
    for name, (center, axes, value) in ELLIPSOIDS.items():
        masks[name] = inside(center, axes)
        hu[masks[name]] = value
    noise = np.random.default_rng(0).normal(0, 25, SHAPE)
    hu += (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
    frame = Frame(np.diag([*SPACING, 1.0]) + np.array([[0, 0, 0, v] for v in (-180, -140, -620, 0)]), SHAPE)
    regions = {name: Region.of(mask) for name, mask in masks.items()} | {"pancreas_cyst": EMPTY}
    meta = Meta("female", 63, "venous")
    return Scan(case, "f3a9c1", "phantom", frame, hu.astype(np.int16), regions, meta, {}, "phantom")


def measured(of: Scan) -> Measurements:
    """By counting, as far as a page needs it."""

    def volume(name: str) -> float:
        return of.regions[name].count * of.frame.voxel_mm3 / 1000

    def hu(name: str) -> Measurement:
        return Measurement(ELLIPSOIDS[name][2], "HU", 0.4)

    organs = {}
    for name in ("spleen", "liver", "pancreas", "kidney_left", "kidney_right", "aorta"):
        cut = name == "aorta"
        size = Measurement(None, "cm^3", status="truncated") if cut else Measurement(volume(name), "cm^3", 4.2)
        sd = Measurement(17.0, "HU", 0.3)
        faces = ("superior", "inferior") if cut else ()
        organs[name] = Organ(name, size, hu(name), sd, hu(name), faces, 2 if name == "spleen" else 1)
    lesions = []
    for rank, (host, kind) in enumerate((("liver", "tumor"), ("liver", "cyst"), ("kidney", "cyst")), start=1):
        name = f"{host}_{kind}"
        box = of.regions[name].box
        places = {"liver_segment_7": 0.8, "liver_segment_8": 0.2} if host == "liver" else {"kidney_left": 1.0}
        lesions.append(
            Lesion(
                host,
                kind,
                rank if host == "liver" else 1,
                Measurement(volume(name), "cm^3", 0.3),
                Measurement(2.0 * ELLIPSOIDS[name][1][0], "mm", 1.2),
                Measurement(2.0 * ELLIPSOIDS[name][1][1], "mm", 1.2),
                Measurement((box[2][0] + box[2][1]) // 2, "slice"),
                hu(name),
                (0.0, 0.0, 0.0),
                places,
                {},
                {"aorta": Measurement(0.0, "degrees")},
                box,
            )
        )
    annotated = ("liver_tumor", "liver_cyst", "kidney_cyst", "pancreas_cyst")
    spacing = tuple(SPACING.tolist())
    return Measurements(
        of.case, of.patient, of.source, "masks", SHAPE, spacing, of.meta, organs, tuple(lesions), annotated,
        {"stomach": "frame_mismatch"}, "phantom",
    )  # fmt: skip


def question(of: Scan, number: int, subtype: str, group: str, text: str, options: tuple, truth: int, unit: str = "",
             masks: tuple[str, ...] = (), margin: float | None = None) -> Question:  # fmt: skip
    values = [option.split(" ")[0].replace(",", "") if isinstance(option, str) else option for option in options]
    kind = "numeric" if isinstance(options[0], int | float) else "binary" if len(options) == 2 else "categorical"
    chosen = options[truth]
    region = of.regions.get(masks[-1]) if masks else None
    box = region.box if region and region.count else None
    at = (box[2][0] + box[2][1]) // 2 if box else None
    steps = tuple(Step("segment", name.replace("_", " "), "found") for name in masks)
    steps += (Step("measure", text.rstrip("?"), chosen, unit),)
    return Question(
        f"{of.case}-{number:03d}", of.case, of.patient, subtype, group, kind, {"organ": masks[0] if masks else ""},
        text, tuple(Option(str(o), o if kind == "numeric" else v) for o, v in zip(options, values, strict=True)),
        Answer(chosen, str(chosen), truth), unit, steps, Evidence(at, box, masks), margin, None, "kb-v2", "test",
    )  # fmt: skip


def questions(of: Scan) -> list[Question]:
    rec, mea, vis, med = "Recognition", "Measurement", "Visual Reasoning", "Medical Reasoning"
    rows = [
        ("liver lesion existence", rec, "Is there a lesion in the liver?", ("Yes", "No"), 0, "", ("liver", "liver_tumor")),
        ("kidney cyst existence", rec, "Does either kidney have a cyst?", ("No", "Yes"), 1, "", ("kidney_left", "kidney_cyst")),
        ("pancreatic lesion existence", rec, "Is a pancreatic lesion present?", ("Yes", "No"), 1, "", ("pancreas",)),
        ("PDAC existence", rec, "Can a PDAC be seen?", ("Yes", "No"), 1, "", ("pancreas",)),
        ("splenomegaly detection", rec, "Is the spleen enlarged?", ("No", "Yes"), 0, "", ("spleen",), 11.2),
        ("organ volume", mea, "What is the volume of the liver?", (1306.9, 1012.5, 1630.1, 880.4), 0, "cm^3", ("liver",), 22.0),
        ("organ volume", mea, "What is the volume of the spleen?", (226.1, 180.0, 290.3, 340.8), 0, "cm^3", ("spleen",), 13.0),
        ("organ HU", mea, "What is the mean attenuation of the pancreas?", (60.0, 90.0, 120.0, 75.0), 1, "HU", ("pancreas",), 30.0),
        ("lesion volume", mea, "What is the total volume of all liver lesions?", (9.1, 14.6, 21.0, 30.2), 1, "cm^3", ("liver", "liver_tumor"), 6.0),
        ("tumor burden percentage", mea, "What share of the liver is lesion?", (1.1, 2.4, 0.5, 4.9), 0, "%", ("liver", "liver_tumor"), 3.1),
        ("lesion counting", vis, "How many lesions does the liver have?", (1, 3, 2, 5), 2, "", ("liver", "liver_tumor")),
        ("largest lesion diameter", vis, "How long is the largest liver lesion?", (32.0, 22.5, 41.7, 55.0), 0, "mm", ("liver", "liver_tumor"), 8.0),
        ("largest lesion slice", vis, "In which slice is the largest liver lesion longest?", (12, 32, 22, 41), 1, "slice", ("liver", "liver_tumor"), 2.0),
        ("largest lesion location", vis, "Where does the largest liver lesion lie?", ("segment 7", "segment 4", "segment 2", "segment 8"), 0, "", ("liver", "liver_tumor")),
        ("kidney volume comparison", vis, "Which kidney is larger?", ("left", "right", "about the same"), 2, "", ("kidney_left", "kidney_right"), 2.2),
        ("adjacent organ", vis, "Which organ lies nearest to the largest kidney lesion?", ("spleen", "liver", "pancreas", "aorta"), 0, "", ("kidney_left", "kidney_cyst"), 1.4),
        ("liver lesion clustering", vis, "How are the liver lesions spread?", ("highly clustered", "somewhat clustered", "widely spread"), 0, "", ("liver", "liver_tumor")),
        ("splenomegaly grading", med, "How enlarged is the spleen?", ("normal", "mild", "moderate", "severe"), 0, "", ("spleen",), 11.2),
        ("lesion type classification", med, "What is the largest kidney lesion?", ("tumor", "cyst"), 1, "", ("kidney_left", "kidney_cyst"), 5.5),
        ("pancreatic cyst resectability", med, "Should the pancreatic cyst be resected?", ("Yes", "No"), 1, "", ("pancreas_cyst",)),
    ]  # fmt: skip
    return [question(of, i, *row) for i, row in enumerate(rows)]
