"""A small body with organs, and how it is written as a case."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from tumorvqa.scans import Frame, Meta, Region, Scan

SPACING = (3.0, 3.0, 4.0)
SHAPE = (44, 36, 24)
ELLIPSOIDS = {  # millimetres from the middle: centre, half axes
    "liver": ((30, 5, 5), (22, 24, 20)),
    "spleen": ((-42, -10, 10), (9, 14, 16)),
    "kidney_right": ((22, -30, -20), (9, 9, 16)),
    "kidney_left": ((-22, -30, -18), (9, 9, 15)),
    "pancreas": ((-5, 5, -10), (20, 8, 8)),
    "aorta": ((-3, -32, 0), (7, 7, 44)),
    "liver_tumor": ((32, 8, 8), (9, 9, 9)),
}
HU = {"liver": 60, "spleen": 50, "kidney_right": 30, "kidney_left": 30, "pancreas": 40, "aorta": 45, "liver_tumor": 20}


def ellipsoid(centre, axes, shape=SHAPE, affine=None) -> np.ndarray:
    """Voxels whose centre lies inside; millimetres as `affine` says."""
    affine = frame(shape).affine if affine is None else affine
    mm = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    return ((((mm - centre) / axes) ** 2).sum(axis=1) <= 1).reshape(shape)


def frame(shape=SHAPE, spacing=SPACING) -> Frame:
    """Origin in the middle."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return Frame(affine, tuple(shape))


def body(seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """HU int16 and masks: organs in soft tissue in fat in air, with noise."""
    masks = {name: ellipsoid(*row) for name, row in ELLIPSOIDS.items()}
    hu = np.full(SHAPE, -1000.0)
    hu[ellipsoid((0, 0, 0), (63, 51, 400))] = -100
    hu[ellipsoid((0, 0, 0), (59, 47, 400))] = 10
    for name, mask in masks.items():
        hu[mask] = HU[name]
    noise = np.random.default_rng(seed).normal(0, 8, SHAPE)
    return np.rint(hu + noise).astype(np.int16), masks


def scan(masks: dict[str, np.ndarray], hu: np.ndarray | None = None, where: Frame | None = None) -> Scan:
    where = where or frame(next(iter(masks.values())).shape)
    hu = np.zeros(where.shape, np.int16) if hu is None else hu
    regions = {name: Region.of(mask) for name, mask in masks.items()}
    return Scan("case", "0" * 12, "test", where, hu, regions, Meta())


def save(voxels: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = voxels.astype(np.uint8) if voxels.dtype == bool else voxels
    affine = frame(voxels.shape[:3]).affine if affine is None else affine
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_case(folder: Path, hu=None, masks=None, affine=None, meta: dict | None = None) -> Path:
    """An AbdomenAtlas folder; the small body unless told otherwise."""
    here, organs = body()
    save(here if hu is None else hu, folder / "ct.nii.gz", affine)
    for name, mask in (organs if masks is None else masks).items():
        save(mask, folder / "segmentations" / f"{name}.nii.gz", affine)
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder
