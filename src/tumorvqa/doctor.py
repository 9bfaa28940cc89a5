"""What is right and wrong with a case, in words; the faults are what makes `read_case` or `check` refuse it."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from tumorvqa.measuring import surface
from tumorvqa.measuring.lesions import GENERIC, pieces
from tumorvqa.readers import nifti
from tumorvqa.readers.cases import read_noting
from tumorvqa.readers.folders import CaseFiles
from tumorvqa.scans import CaseFault, Region, Scan
from tumorvqa.structures import KINDS, LESIONS, MEASURED, STRUCTURES

SHIFT = 1024  # HU between stored numbers and HU in most CT files
SOFT = (-200, 300)  # HU of fat, organs and vessels
AIR = (-1500, -200)  # HU of air and lung; what is lower is padding
HOLLOW = (
    "stomach",
    "duodenum",
    "small_bowel",
    "colon",
    "rectum",
    "esophagus",
    "lung_left",
    "lung_right",
)  # may hold gas
FAT = -80  # HU that no liver, spleen, kidney or pancreas has, but fat, lung and air do
MISPLACED = 0.1  # share of their voxels below that from which masks cannot belong to the CT (real: 0.003, shifted: 0.2)
FILL = 0.02  # of the voxels with the lowest value from which that is a fill and no air with its noise
SAMPLE = 100  # voxels along each axis that the shares of HU are taken from


@dataclass(frozen=True)
class Remark:
    level: Literal["ok", "warning", "fault"]
    text: str


def doctor(files: CaseFiles, memory_gb: float = 4.0) -> list[Remark]:
    """Remarks on frame, HU and masks; after a fault in reading there is nothing to say of what was not read."""
    remarks: list[Remark] = []
    try:
        remarks += of_header(nifti.read_header(files.ct, files.name(files.ct)))
        scan, notes = read_noting(files, memory_gb=memory_gb)
    except CaseFault as fault:
        return [*remarks, Remark("fault", str(fault))]
    remarks += [Remark("warning", note) for note in notes]
    remarks += [Remark("warning", f"{name!r} is no structure we know; it is ignored.") for name in files.unknown]
    return [*remarks, *of_hu(scan), *of_masks(scan)]


def check(scan: Scan) -> None:
    """CaseFault if the HU are none, or the masks lie outside the body."""
    for remark in itertools.chain(hu_faults(scan.hu), mask_faults(scan)):
        raise CaseFault(remark.text)


def of_header(header: nifti.Header) -> list[Remark]:
    frame_axes, size = header.affine[:3, :3], " x ".join(map(str, header.shape))
    spacing = np.linalg.norm(frame_axes, axis=0)
    steps = " x ".join(f"{mm:.3g}" for mm in spacing)
    remarks = [Remark("ok", f"{size} voxels of {steps} mm, axes to {''.join(aff2axcodes(header.affine))}.")]
    if spacing.min() < 0.2 or spacing.max() > 10:
        remarks.append(Remark("warning", "the spacing is unusual for a body CT; are the units millimetres?"))
    if spacing.max() > 3 * spacing.min():
        remarks.append(Remark("warning", "voxels are more than 3 times as long as wide; small lesions are uncertain."))
    unit = frame_axes / spacing
    if np.abs(unit.T @ unit - np.eye(3)).max() > 1e-3:
        remarks.append(Remark("warning", "the frame is sheared (gantry tilt?); volumes use its determinant."))
    elif np.abs(unit).max(axis=0).min() < 1 - 1e-3:
        remarks.append(Remark("warning", "the frame is oblique; axial slices are those of the scan."))
    if header.form == "none":
        remarks.append(Remark("warning", "neither sform nor qform is set: left and right are a guess."))
    if header.forms_apart > spacing.min() / 10:
        text = f"sform and qform disagree by up to {header.forms_apart:.3g} mm; the sform is used."
        remarks.append(Remark("warning", text))
    return remarks


def of_hu(scan: Scan) -> list[Remark]:
    """Remarks on the CT's values."""
    faults = hu_faults(scan.hu)
    if faults:
        return faults
    found = sample(scan.hu)
    remarks = [Remark("ok", f"HU from {scan.hu.min()} to {scan.hu.max()}; {share(found, *SOFT):.0%} is soft tissue.")]
    if share(found, -32768, AIR[0]) > 0.001:
        remarks.append(Remark("ok", f"values down to {scan.hu.min()} HU are padding outside the field of view."))
    if metal := int(np.count_nonzero(scan.hu > 3000)):
        remarks.append(
            Remark("warning", f"{metal} voxels above 3000 HU: metal, whose streaks change the HU around it.")
        )
    if twins := duplicates(scan.hu):
        text = f"slice {twins[0]} and the next are identical ({len(twins)} such pairs); is a slice stored twice?"
        remarks.append(Remark("warning", text))
    return remarks


def hu_faults(hu: NDArray[np.int16]) -> list[Remark]:
    """The fault of values that are no HU. A CT has soft tissue at -200..300 and something darker, air or fat; stored
    numbers lie 1024 higher, a rescale applied twice 1024 lower, and an MR has nothing below zero but noise. A constant
    that fills what was not scanned says nothing and is left out.
    """
    found = sample(hu)
    if (found > found.min()).any() and np.mean(found == found.min()) > FILL:
        found = found[found > found.min()]
    if share(found, *AIR) < 0.001 and share(found, SOFT[0] + SHIFT, SOFT[1] + SHIFT) > 0.05:
        text = f"HU are about {SHIFT} too high: the intercept -{SHIFT} was never applied. Convert the CT again."
    elif share(found, AIR[0], -30) < 0.01 and share(found, *SOFT) >= 0.01:
        text = "no air and no fat, nothing below -30 HU: an MR volume, or numbers that are no HU."
    elif share(found, *SOFT) < 0.01 and share(found, -1200 - SHIFT, -800 - SHIFT) > 0.01:
        text = f"HU are about {SHIFT} too low: the intercept -{SHIFT} was applied twice. Convert the CT again."
    elif share(found, *SOFT) < 0.01:
        text = f"no soft tissue: hardly a voxel has {SOFT[0]} to {SOFT[1]} HU. Is this a CT?"
    else:
        return []
    return [Remark("fault", text)]


def sample(hu: NDArray[np.int16]) -> NDArray[np.int16]:
    """Voxels evenly spread."""
    steps = tuple(slice(None, None, max(1, size // SAMPLE)) for size in hu.shape)
    return hu[steps].ravel()


def share(values: NDArray[np.int16], low: int, high: int) -> float:
    return float(np.mean((values >= low) & (values < high)))


def duplicates(hu: NDArray[np.int16]) -> list[int]:
    """Slices that the next one repeats; constant ones, which are padding, do not count."""
    planes = range(hu.shape[2] - 1)
    alike = (k for k in planes if (hu[::8, ::8, k] == hu[::8, ::8, k + 1]).all())
    return [k for k in alike if (hu[..., k] == hu[..., k + 1]).all() and np.ptp(hu[..., k])]


def of_masks(scan: Scan) -> list[Remark]:
    """Remarks on what is annotated, and on masks that look wrong."""
    there = {name: region for name, region in scan.regions.items() if region.count}
    if not scan.regions:
        return [Remark("warning", "no masks: nothing can be measured.")]
    remarks = [*mask_faults(scan), Remark("ok", f"annotated and there: {titles(list(there))}.")]
    if absent := [name for name in scan.regions if name not in there]:
        remarks.append(Remark("ok", f"annotated, but without a voxel: {titles(absent)}."))
    if lesions := [name for name in LESIONS if name not in scan.regions]:
        remarks.append(Remark("ok", f"not annotated, so not known: {titles(lesions)}."))
    for name, region in there.items():
        remarks += [Remark("warning", f"{STRUCTURES[name].title}: {text}") for text in oddities(scan, name, region)]
    organs = [name for name in there if STRUCTURES[name].kind == "organ"]
    for one, two in itertools.combinations(organs, 2):
        common = shared_voxels(there[one], there[two])
        if common > 0.01 * min(there[one].count, there[two].count):
            text = f"{STRUCTURES[one].title} and {STRUCTURES[two].title} share {common} voxels."
            remarks.append(Remark("warning", text))
    for host, kinds in KINDS.items():
        typed = [name for name in (f"{host}_{kind}" for kind in kinds if kind != GENERIC) if name in there]
        for one, two in itertools.combinations(typed, 2):
            if common := shared_voxels(there[one], there[two]):
                text = f"{STRUCTURES[one].title} and {STRUCTURES[two].title} share {common} voxels"
                remarks.append(Remark("warning", f"{text}, which count as {STRUCTURES[one].title}."))
    return [*remarks, *swapped(there)]


def mask_faults(scan: Scan) -> list[Remark]:
    """The fault of organs that lie in fat or air, as masks do that belong to another frame."""
    names = organs_of(scan)
    total = sum(scan.regions[name].count for name in names)
    outside = sum(int(np.count_nonzero(values(scan, scan.regions[name]) < FAT)) for name in names)
    if outside <= MISPLACED * total:
        return []
    text = f"{outside / total:.0%} of the voxels of {titles(names)} are fat or air: masks of another frame or case?"
    return [Remark("fault", text)]


def organs_of(scan: Scan) -> list[str]:
    return [name for name in MEASURED if name in scan.regions and scan.regions[name].count]


def oddities(scan: Scan, name: str, region: Region) -> list[str]:
    found = []
    if sides := surface.sides(region.box, scan.frame.shape):
        found.append(f"touches the {', '.join(sides)} end of the scan; its volume is what can be seen.")
    if STRUCTURES[name].kind != "lesion":
        parts = sorted((part.count for part in pieces(region)), reverse=True)
        if len(parts) > 1 and parts[1] > 0.01 * parts[0]:
            found.append(f"{len(parts)} pieces; the second has {parts[1]} voxels.")
    if name not in HOLLOW and (outside := float(np.mean(values(scan, region) < SOFT[0]))) > 0.1:
        found.append(f"{outside:.0%} of it lies in air.")
    return found


def values(scan: Scan, region: Region) -> NDArray[np.int16]:
    return scan.hu[surface.slices(region.box)][region.mask]


def shared_voxels(one: Region, two: Region) -> int:
    return int(np.count_nonzero(surface.within(two, one.box) & one.mask))


def swapped(there: dict[str, Region]) -> list[Remark]:
    """Sides that are the wrong way round: X runs to the right, where the liver and each right organ lie."""
    pairs = [(name, name.replace("right", "left")) for name in there if name.endswith("_right")]
    found = []
    for right, left in [*pairs, ("liver", "spleen")]:
        if right in there and left in there and middle(there[right]) < middle(there[left]):
            text = f"{STRUCTURES[right].title} lies to the left of the {STRUCTURES[left].title}: mirrored, or swapped?"
            found.append(Remark("warning", text))
    return found


def middle(region: Region) -> float:
    return region.box[0][0] + float(np.flatnonzero(region.mask.any(axis=(1, 2))).mean())


def titles(names: list[str]) -> str:
    return ", ".join(STRUCTURES[name].title for name in names)
