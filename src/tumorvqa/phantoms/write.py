"""A case as files, in the layout of AbdomenAtlas: a CT and a mask per structure, and of a phantom the truth."""

import gzip
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import msgspec
import nibabel
import numpy as np
from numpy.typing import NDArray

from dnt.files import write_json
from tumorvqa.measurements import Measurements
from tumorvqa.measuring.surface import slices
from tumorvqa.phantoms.phantom import Phantom
from tumorvqa.phantoms.render import render
from tumorvqa.phantoms.truth import truth
from tumorvqa.scans import Frame, Scan
from tumorvqa.structures import STRUCTURES

Turned = tuple[tuple[int, int], ...]  # for X, Y and Z the file's axis and its direction
STRAIGHT: Turned = ((0, 1), (1, 1), (2, 1))


def write(phantom: Phantom, folder: str | Path) -> Path:
    """`write_scan` of a phantom with its truth.json; the axes of the files run as `phantom.turned` says."""
    return write_scan(render(phantom), folder, phantom.patient, phantom.turned, truth(phantom))


def write_scan(
    scan: Scan, folder: str | Path, patient: str, turned: Turned = STRAIGHT, known: Measurements | None = None
) -> Path:
    """`folder`/<case>/ct.nii.gz, segmentations/<structure>.nii.gz (0 and 1), meta.json and, if `known`, truth.json
    (the analytic Measurements); whole or not at all. Returns <case>'s folder. A lesion class without a voxel is an
    empty file, since it was looked for; an organ without one has no file, since an empty one means a damaged case.
    """
    target = Path(folder) / scan.case
    building = target.with_name(f".{scan.case}.{os.getpid()}")
    (building / "segmentations").mkdir(parents=True, exist_ok=True)
    save(scan.hu, scan.frame, turned, building / "ct.nii.gz")
    for name, region in scan.regions.items():
        if not region.count and STRUCTURES[name].kind != "lesion":
            continue
        mask = np.zeros(scan.frame.shape, np.uint8)
        mask[slices(region.box)] = region.mask
        save(mask, scan.frame, turned, building / "segmentations" / f"{name}.nii.gz")
    if known is not None:
        (building / "truth.json").write_bytes(msgspec.json.format(msgspec.json.encode(known), indent=1))
    row = {"patient": patient, "source": scan.source, "provenance": scan.provenance}
    write_json(building / "meta.json", row | asdict(scan.meta))
    if target.exists():
        shutil.rmtree(target)
    building.rename(target)
    return target


def save(values: NDArray[np.int16] | NDArray[np.uint8], frame: Frame, turned: Turned, path: Path) -> None:
    """The same bytes for the same values, packed lightly: speed counts more than size."""
    image = nibabel.Nifti1Image(values, frame.affine)
    image.set_qform(frame.affine, 1)
    image.set_sform(frame.affine, 1)
    path.write_bytes(gzip.compress(image.as_reoriented(np.array(turned, float)).to_bytes(), 1, mtime=0))
