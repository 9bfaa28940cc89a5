"""A case's files become a `Scan` in RAS order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tumorvqa.measuring import surface
from tumorvqa.readers import frames, nifti, patients, totalsegmentator
from tumorvqa.readers.folders import CaseFiles, ours
from tumorvqa.scans import EMPTY, Box, CaseFault, Region, Scan
from tumorvqa.structures import MEASURED, STRUCTURES

Provenance = Literal["human", "ai", "phantom", "unknown"]
SOURCES = {"abdomenatlas": "AbdomenAtlas", "totalsegmentator": "TotalSegmentator"}


def read_case(files: CaseFiles, salt: str = "", memory_gb: float = 4.0) -> Scan:
    """The case in memory; CaseFault, one line, if it cannot be measured. `salt` keeps the patient's hash from being
    guessed; `memory_gb` is refused by what the headers say, before any voxel is read.
    """
    return read_noting(files, salt, memory_gb)[0]


def read_noting(files: CaseFiles, salt: str = "", memory_gb: float = 4.0) -> tuple[Scan, list[str]]:
    """`read_case`, and what was odd but could be read."""
    if files.fault is not None:
        raise CaseFault(files.fault)
    row = files.row | meta_row(files)
    headers = {path: nifti.read_header(path, files.name(path)) for path in image_paths(files)}
    fits(list(headers.values()), memory_gb)
    ct = headers[files.ct]
    hu, frame = frames.to_ras(nifti.read_hu(ct), ct.affine)
    notes: list[str] = []
    faults: dict[str, str] = {}
    found: dict[str, list[Region]] = {}
    for path, names in files.maps:
        labels, how = frames.onto(nifti.read_labels(headers[path]), headers[path].affine, frame)
        if labels is None:
            raise CaseFault(f"{files.name(path)} is in another frame than the CT: {how}.")
        notes += [f"{files.name(path)} was resampled onto the CT's voxels."] * (how == "resampled")
        for name, region in labelled(labels, names, files.name(path)):
            found.setdefault(name, []).append(region)
        del labels
    for name, paths in files.masks.items():
        found[name] = []  # a file of its own says more than a map, where the last label wins
        for path in paths:
            mask, binary = nifti.read_mask(headers[path])
            notes += [f"{files.name(path)} is not binary; what exceeds 0.5 is inside."] * (not binary)
            placed, how = frames.onto(mask.view(np.uint8), headers[path].affine, frame)
            if placed is None:
                faults[name] = "frame_mismatch"
                notes.append(f"{files.name(path)} is in another frame than the CT: {how}.")
                break
            notes += [f"{files.name(path)} was resampled onto the CT's voxels."] * (how == "resampled")
            box = ndimage.find_objects(placed, 1)[0]
            if box is None and name in MEASURED and files.layout == "abdomenatlas":
                title = STRUCTURES[name].title
                raise CaseFault(f"{files.name(path)} has no voxel: delete the file if the {title} was not annotated.")
            found[name].append(cut(placed.view(bool), box))
    regions = {name: union(parts) for name, parts in found.items() if name not in faults}
    scan = Scan(
        case=files.id,
        patient=patients.patient_group(called(files.id, row), salt),
        source=row.get("source", SOURCES[files.layout]),
        frame=frame,
        hu=hu,
        regions=regions,
        meta=patients.meta(row),
        faults=faults,
        provenance=provenance(files, row),
    )
    return scan, notes


def identity(files: CaseFiles) -> str:
    """What the patient's hash is made of: a case derived from this one needs it in its own meta.json to have the same
    hash. It may say who it is, so it is for input data only, never for outputs.
    """
    return called(files.id, files.row | meta_row(files))


def called(case: str, row: dict[str, str]) -> str:
    return row.get("patient") or case


def provenance(files: CaseFiles, row: dict[str, str]) -> Provenance:
    """What the table says; else AI if any mask is TotalSegmentator's or is marked `_`; else nothing says."""
    if row.get("provenance") in ("human", "ai", "phantom"):
        return cast(Provenance, row["provenance"])
    return "ai" if files.layout == "totalsegmentator" or files.by_ai else "unknown"


def image_paths(files: CaseFiles) -> list[Path]:
    return [path for path in files.paths if path != files.meta and path not in files.names]


def meta_row(files: CaseFiles) -> dict[str, str]:
    if files.meta is None:
        return {}
    try:
        return ours(json.loads(files.meta.read_text("utf-8")))
    except (ValueError, AttributeError, OSError):
        raise CaseFault(f"{files.name(files.meta)} is damaged; a JSON object is expected.") from None


def fits(headers: list[nifti.Header], memory_gb: float) -> None:
    """Refuses what the headers claim beyond the cap: the CT in int16, and the largest file as it is stored and cut."""
    for header in headers:
        needed = 2 * headers[0].voxels + header.raw_bytes + 2 * header.voxels
        if needed > memory_gb * 1e9:
            size = " x ".join(map(str, header.shape))
            much = f"which need {needed / 1e9:.3g} GB; the cap is {memory_gb:g} GB"
            raise CaseFault(f"{header.name} says it has {size} voxels, {much}.")


def labelled(labels: NDArray, names: dict[int, str], file: str) -> Iterator[tuple[str, Region]]:
    """Structure and region of each label that we measure; CaseFault if a label has no name."""
    boxes = ndimage.find_objects(labels, max(int(labels.max()), *names, 1))
    nameless = [k for k, box in enumerate(boxes, start=1) if box is not None and k not in names]
    if nameless:
        more = f" and {len(nameless) - 10} more" if len(nameless) > 10 else ""
        raise CaseFault(
            f"{file} has labels without a name: {', '.join(map(str, nameless[:10]))}{more}. Name them in labels.json."
        )
    for label, spelled in names.items():
        if name := totalsegmentator.structure(spelled.removeprefix("_")):
            box = boxes[label - 1]
            yield name, EMPTY if box is None else Region(bounds(box), labels[box] == label)


def cut(mask: NDArray[np.bool_], box: tuple[slice, ...] | None) -> Region:
    return EMPTY if box is None else Region(bounds(box), mask[box].copy())


def bounds(box: tuple[slice, ...]) -> Box:
    x, y, z = ((int(part.start), int(part.stop)) for part in box)
    return x, y, z


def union(regions: list[Region]) -> Region:
    """All voxels of any; the same region where it is alone."""
    there = [region for region in regions if region.count]
    if len(there) < 2:
        return there[0] if there else EMPTY
    box = surface.hull(*(region.box for region in there))
    return Region(box, np.logical_or.reduce([surface.within(region, box) for region in there]))
