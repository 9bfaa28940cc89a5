"""Which way a volume lies, and whether a mask lies on the CT's voxels."""

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from tumorvqa.scans import Frame

AGREE = 0.1  # voxels that corners of a CT and of its mask may lie apart


def to_ras(voxels: NDArray, affine: NDArray[np.float64]) -> tuple[NDArray, Frame]:
    """Axes flipped and swapped, never resampled, so that X runs to the right, Y to the front, Z up; and their frame."""
    orientation = io_orientation(affine)
    shape = np.array(voxels.shape)
    x, y, z = shape[np.argsort(orientation[:, 0])].tolist()
    return apply_orientation(voxels, orientation), Frame(affine @ inv_ornt_aff(orientation, shape), (x, y, z))


def onto(voxels: NDArray, affine: NDArray[np.float64], frame: Frame) -> tuple[NDArray | None, str]:
    """`voxels` on the grid of `frame`, and how they came there: "" (they were, up to the order of axes), "resampled"
    (nearest voxel) where they cover it wholly, or None and the reason.

    Same origin and spacing but another size is no cover: one of the two was cut without moving its origin, and which
    slices belong together cannot be known.
    """
    orientation = io_orientation(np.linalg.inv(frame.affine) @ affine)
    to_frame = np.linalg.inv(frame.affine) @ affine @ inv_ornt_aff(orientation, voxels.shape)
    voxels = apply_orientation(voxels, orientation)
    size = " x ".join(map(str, voxels.shape))
    away = apart(to_frame, voxels.shape)
    if away < AGREE and voxels.shape == frame.shape:
        return voxels, ""
    if away < AGREE:
        return None, f"{size} voxels where the CT has {' x '.join(map(str, frame.shape))}, with the same origin"
    to_mask = np.linalg.inv(to_frame)
    ends = to_mask @ corners(frame.shape)
    if (ends[:3] < -0.5).any() or (ends[:3] > np.array(voxels.shape)[:, None] - 0.5).any():
        return None, f"its {size} voxels do not cover the CT; corners lie up to {away:.3g} voxels apart"
    args = (np.ascontiguousarray(voxels), to_mask[:3, :3], to_mask[:3, 3], frame.shape)
    return ndimage.affine_transform(*args, order=0, mode="nearest"), "resampled"


def apart(to_frame: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Largest distance, in voxels, of a corner from where the same voxel of the other grid lies."""
    return float(np.abs((to_frame - np.eye(4)) @ corners(shape))[:3].max())


def corners(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """(4, 8) homogeneous indices of the corner voxels."""
    return np.array([[i, j, k, 1.0] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1) for k in (0, shape[2] - 1)]).T
