"""How far a lesion is from an organ, and in which part of its organ it lies."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tumorvqa.measurements import Measurement
from tumorvqa.measuring import surface
from tumorvqa.scans import Box, Frame, Region

NEAR = 20.0  # mm; what is farther is not recorded
ERROR = 0.45  # of a voxel's longest side


class Shell(NamedTuple):
    """Indices (n, 3) of the voxels at a mask's surface, and millimetres without the frame's origin."""

    indices: NDArray
    mm: NDArray


def shell(mask: NDArray[np.bool_], box: Box, frame: Frame) -> Shell:
    indices = np.argwhere(mask & ~surface.core(mask)) + [start for start, _ in box]
    return Shell(indices, indices @ frame.affine[:3, :3].T)


def gap(lesion: Shell, tree: cKDTree, mask: NDArray[np.bool_], organ: Region, box: Box, frame: Frame) -> float | None:
    """Millimetres between a lesion (`mask`, on the voxels of `box`; `tree` holds its shell) and an organ.

    0 if voxels overlap or share a face. Else d (1 - 1 / 2m), with d the distance between the nearest
    voxel centres and m the steps between them along the axis of most steps: of smooth surfaces the nearest centres lie
    a quarter of a voxel inside on average. None beyond `NEAR`.
    """
    there = surface.within(organ, box)
    if not there.any():
        return None
    if (there & mask).any():
        return 0.0
    other = shell(there, box, frame)
    distance, nearest = tree.query(other.mm, distance_upper_bound=2 * NEAR)
    best = int(distance.argmin())
    if not np.isfinite(distance[best]):
        return None
    steps = np.abs(other.indices[best] - lesion.indices[nearest[best]])
    if steps.sum() == 1:
        return 0.0
    found = float(distance[best] * (1 - 1 / (2 * steps.max())))
    return found if found <= NEAR else None


def gaps(region: Region, organs: dict[str, Region], frame: Frame) -> dict[str, Measurement]:
    """Gap to each organ within 20 mm. Error: 0.45 of a voxel's longest side."""
    box = surface.around(region.box, frame, NEAR)
    mask = surface.within(region, box)
    lesion = shell(mask, box, frame)
    tree = cKDTree(lesion.mm)
    error = ERROR * max(frame.spacing)
    found = {name: gap(lesion, tree, mask, organ, box, frame) for name, organ in organs.items()}
    return {
        name: Measurement(mm, "mm", error, method="surface distance") for name, mm in found.items() if mm is not None
    }


def places(region: Region, parts: dict[str, Region], frame: Frame) -> dict[str, float]:
    """Share of the lesion's voxels in each part, of those that lie in any; if none does, each voxel counts for the part
    nearest to it, within 20 mm.
    """
    common = {name: surface.within(part, region.box) & region.mask for name, part in parts.items()}
    voxels = {name: int(np.count_nonzero(mask)) for name, mask in common.items()}
    total = sum(voxels.values())
    if total:
        return {name: count / total for name, count in voxels.items() if count}
    box = surface.around(region.box, frame, NEAR)
    shells = {name: shell(surface.within(part, box), box, frame).mm for name, part in parts.items()}
    shells = {name: points for name, points in shells.items() if len(points)}
    if not shells:
        return {}
    lesion = shell(surface.within(region, box), box, frame).mm
    distances = np.array([cKDTree(points).query(lesion)[0] for points in shells.values()]).round(6)
    nearest = distances.argmin(axis=0)[distances.min(axis=0) <= NEAR]
    return {
        name: float(np.mean(nearest == k)) for k, name in enumerate(shells) if nearest.size and (nearest == k).any()
    }
