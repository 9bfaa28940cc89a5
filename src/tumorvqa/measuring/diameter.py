"""RECIST axes of a lesion: the longest diameter of any axial slice, and the extent perpendicular to it there."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tumorvqa.scans import Frame, Region

# Fitted to ellipsoids of known axes (half axes of 4 to 22 mm, turned at random, voxels of 0.8 to 5 mm), so that 95 % of
# the errors are within two of these
IN_PLANE = 0.33  # voxels that the ends of an axis are off
BETWEEN = 0.8  # of long / n^2, what is lost because the widest slice lies between two of n
SPREAD = 0.6  # of half the range of slices that are as long, how far off the slice is


class Axes(NamedTuple):
    """Millimetres with one standard deviation each; `slice` counts from the bottom of the scan."""

    long: float
    long_error: float
    short: float
    short_error: float
    slice: int
    slice_error: float


def axes(region: Region, frame: Frame) -> Axes:
    """Long axis = max over axial slices of max |p - q| over voxel centres p, q of the lesion in a slice, plus half a
    voxel as seen along p - q (centres lie inside the outline, by a quarter of a voxel at either end on average). Of
    equal slices the lowest. Short axis: the extent perpendicular to p - q in that slice, plus half a voxel likewise.

    Millimetres come from columns of the affine, so sheared and oblique slices are right. Error: in the plane about
    0.3 voxel; and the widest slice may lie between two that were taken, which loses up to long / n^2 over n slices.
    The slice is uncertain by half the range of slices that are as long within twice that error.
    """
    plane = frame.affine[:3, :2]
    found = [axis_of(region.mask[:, :, k], plane) for k in range(region.mask.shape[2])]
    lengths = np.array([length for length, _, _ in found]).round(6)
    best = int(lengths.argmax())
    long, p, q = found[best]
    taken = len(lengths)
    step = float(np.linalg.norm(plane, axis=0).max())
    error = float(np.hypot(IN_PLANE * step * (1 + step / long), BETWEEN * long / taken**2))
    alike = np.flatnonzero(lengths >= lengths[best] - 2 * error)
    short = across(region.mask[:, :, best], plane, q - p)
    spread = float(alike[-1] - alike[0]) / 2
    return Axes(long, error, short, error, region.box[2][0] + best, max(0.5, SPREAD * spread))


def axis_of(mask: NDArray[np.bool_], plane: NDArray[np.float64]) -> tuple[float, NDArray, NDArray]:
    """Length in millimetres of the longest axis of a slice, and the indices of its ends; 0 of an empty slice.

    Only the first and last voxel of each row can be an end, since a segment's farther end is always one of them.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return 0.0, np.zeros(2), np.zeros(2)
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([rows, first], 1), np.stack([rows, last], 1)])
    steps = ends[:, None] - ends[None]
    metric = plane.T @ plane
    squares = (np.einsum("pqi,ij->pqj", steps, metric) * steps).sum(axis=2).round(6)
    p, q = np.unravel_index(squares.argmax(), squares.shape)
    return float(np.sqrt(squares[p, q])) + half_voxel(plane, ends[q] - ends[p]), ends[p], ends[q]


def half_voxel(plane: NDArray[np.float64], step: NDArray) -> float:
    """Half a voxel's width as seen along a step of indices; of no step, half its mean side."""
    along = plane @ step
    length = np.linalg.norm(along)
    if not length:
        return float(np.linalg.norm(plane, axis=0).mean() / 2)
    return float(np.abs(along @ plane).sum() / length / 2)


def across(mask: NDArray[np.bool_], plane: NDArray[np.float64], step: NDArray) -> float:
    """Extent perpendicular to `step` (indices) within the slice."""
    inside = np.argwhere(mask)
    along = plane @ (step if step.any() else np.array([1, 0]))
    normal = np.cross(plane[:, 0], plane[:, 1])
    side = np.cross(normal, along)
    side /= np.linalg.norm(side)
    at = inside @ (plane.T @ side)
    return float(at.max() - at.min() + np.abs(side @ plane).sum() / 2)
