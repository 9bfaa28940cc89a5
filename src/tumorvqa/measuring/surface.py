"""Voxels and faces at the surface of a mask, and windows of a scan around a box."""

import math

import numpy as np
from numpy.typing import NDArray

from tumorvqa.scans import Box, Frame, Region

SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
LAYERS = 32  # pairs of layers that are compared


def core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels whose six neighbours are inside too; what lies beyond the array is outside."""
    inner = mask.copy()
    for axis in range(3):
        front, back = ([slice(None)] * 3 for _ in range(2))
        front[axis], back[axis] = slice(1, None), slice(None, -1)
        inner[tuple(front)] &= mask[tuple(back)]
        inner[tuple(back)] &= mask[tuple(front)]
        front[axis], back[axis] = slice(0, 1), slice(-1, None)
        inner[tuple(front)] = inner[tuple(back)] = False
    return inner


def faces(mask: NDArray[np.bool_]) -> tuple[int, float]:
    """How many voxel faces have the mask on one side only; and the share of them, along the axis where it is largest,
    that the next layer of voxels has at the same place (near 1 for a tube along an axis, 1/2 for a ball).
    """
    count = sum(int(np.count_nonzero(np.take(mask, end, axis))) for axis in range(3) for end in (0, -1))
    again, seen = np.zeros(3), np.zeros(3)
    for normal in range(3):
        across = np.moveaxis(mask, normal, 0)
        steps = np.moveaxis(across[1:] != across[:-1], 0, normal)
        count += int(np.count_nonzero(steps))
        for axis in {0, 1, 2} - {normal}:
            layers = np.moveaxis(steps, axis, 0)
            every = max(1, len(layers) // LAYERS)
            first, second = layers[:-1:every], layers[1::every]
            again[axis] += np.count_nonzero(first & second)
            seen[axis] += (np.count_nonzero(first) + np.count_nonzero(second)) / 2
    return count, float((again / np.maximum(seen, 1)).max())


def sides(box: Box, shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The sides of the scan that a box touches, where the structure may go on unseen."""
    touched = (
        (axis, end)
        for axis, (first, last) in enumerate(box)
        for end, there in enumerate((first == 0, last == shape[axis]))
        if there
    )
    return tuple(SIDES[axis][end] for axis, end in touched)


def slices(box: Box) -> tuple[slice, slice, slice]:
    x, y, z = (slice(*ends) for ends in box)
    return x, y, z


def around(box: Box, frame: Frame, mm: float) -> Box:
    """The box with a margin of at least `mm` on every side, within the scan; sheared frames need more voxels for it."""
    apart = 1 / np.linalg.norm(np.linalg.inv(frame.affine[:3, :3]), axis=1)  # between planes of voxels
    more = [math.ceil(mm / step) for step in apart]
    x, y, z = ((max(0, a - m), min(size, b + m)) for (a, b), m, size in zip(box, more, frame.shape, strict=True))
    return x, y, z


def ball(radius: float, frame: Frame) -> NDArray[np.bool_]:
    """Voxels whose centre lies within `radius` mm of that of the middle one."""
    apart = 1 / np.linalg.norm(np.linalg.inv(frame.affine[:3, :3]), axis=1)  # between planes of voxels
    reach = [int(radius / step + 1e-6) for step in apart]
    steps = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1)
    inside: NDArray[np.bool_] = np.linalg.norm(steps @ frame.affine[:3, :3].T, axis=-1) <= radius + 1e-6
    return inside


def within(region: Region, box: Box) -> NDArray[np.bool_]:
    """The region's mask on the voxels of `box`."""
    mask = np.zeros([b - a for a, b in box], bool)
    overlap = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(region.box, box, strict=True)]
    if region.count and all(a < b for a, b in overlap):
        to = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(overlap, box, strict=True))
        of = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(overlap, region.box, strict=True))
        mask[to] = region.mask[of]
    return mask


def hull(*boxes: Box) -> Box:
    """The smallest box around all."""
    x, y, z = ((min(a for a, _ in ends), max(b for _, b in ends)) for ends in zip(*boxes, strict=True))
    return x, y, z
