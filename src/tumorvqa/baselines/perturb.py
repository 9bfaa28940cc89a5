"""Masks as an imperfect segmenter would draw them, from the true ones."""

import zlib
from dataclasses import replace

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates

from tumorvqa.scans import EMPTY, Frame, Region, Scan
from tumorvqa.structures import STRUCTURES

SHIFT_MM = 2.0  # standard deviation of the elastic shift along each axis
KNOT_MM = 40.0  # distance between the knots of the shift
GROWTH_MM = 0.8  # standard deviation of how far a structure's surface is moved out or in
MISSED = 0.6  # probability that a very small lesion is missed,
MISSED_CM3 = 1.0  # which falls to 1/e of that at this volume


def perturb(scan: Scan, seed: int, strength: float = 1.0) -> Scan:
    """The same CT with every mask warped by one smooth random shift, its surface moved out or in, and small lesions
    missed with probability strength 0.6 exp(-volume / 1 cm^3), at most 1; `strength` scales shifts and growths.

    Random per seed, case and structure, whatever else is in the scan. Strength 0 changes no mask, and less than half a
    voxel of shift and growth together changes little. ValueError if it is
    negative.
    """
    if not strength >= 0:
        raise ValueError(f"strength {strength} of a perturbation: 0 (none), 1 (a fair segmenter) or more.")
    shift = knots(scan, generator(seed, scan, "shift"), strength)
    regions = {name: perturbed(scan, name, region, shift, seed, strength) for name, region in scan.regions.items()}
    return replace(scan, regions=regions, provenance="ai")


def generator(seed: int, scan: Scan, what: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(scan.case.encode()), zlib.crc32(what.encode())])


def knots(scan: Scan, random: np.random.Generator, strength: float) -> NDArray[np.float64]:
    """Shifts in voxels at knots about KNOT_MM apart over the scan: (3, X, Y, Z)."""
    sizes = np.array(scan.frame.shape) * scan.frame.spacing
    count = np.maximum(np.ceil(sizes / KNOT_MM).astype(int) + 1, 2)
    mm = random.standard_normal((3, *count)) * SHIFT_MM * strength
    return mm / np.array(scan.frame.spacing).reshape(3, 1, 1, 1)


def perturbed(scan: Scan, name: str, region: Region, shift: NDArray[np.float64], seed: int, strength: float) -> Region:
    """Where the signed distance to the shifted mask is less than a random growth."""
    random = generator(seed, scan, name)
    growth = random.standard_normal() * GROWTH_MM * strength
    if STRUCTURES[name].kind == "lesion" and region.count:
        region = without_missed(region, scan.frame, random, strength)
    if not region.count:
        return EMPTY
    low, high = [], []
    for (a, b), way, step, size in zip(region.box, shift, scan.frame.spacing, scan.frame.shape, strict=True):
        extra = int(np.abs(way).max() + max(growth, 0) / step) + 2
        low.append(max(a - extra, 0))
        high.append(min(b + extra, size))
    mask = np.zeros(np.subtract(high, low), bool)
    mask[tuple(slice(a - o, b - o) for (a, b), o in zip(region.box, low, strict=True))] = region.mask
    depth = signed_distance(mask, scan.frame)
    index = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij"))
    scale = (np.array(shift.shape[1:]) - 1) / (np.array(scan.frame.shape) - 1)
    at_knots = index * scale.reshape(3, 1, 1, 1)
    moved = [
        index[axis] - low[axis] + map_coordinates(shift[axis], at_knots, order=1, mode="nearest") for axis in range(3)
    ]
    warped = map_coordinates(depth, moved, order=1, mode="nearest") < growth
    x, y, z = low
    return Region.of(warped, (x, y, z))


def without_missed(region: Region, frame: Frame, random: np.random.Generator, strength: float) -> Region:
    """Less the connected components that chance misses."""
    labels, count = cc3d.connected_components(np.asfortranarray(region.mask), connectivity=26, return_N=True)
    volumes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * frame.voxel_mm3 / 1000
    kept = random.random(count) >= strength * MISSED * np.exp(-volumes / MISSED_CM3)
    (a, _), (b, _), (c, _) = region.box
    return Region.of(np.concatenate([[False], kept])[labels], (a, b, c))


def signed_distance(mask: NDArray[np.bool_], frame: Frame) -> NDArray[np.float64]:
    """mm from a voxel's centre to the nearest one on the other side, negative inside; a box's edge is no surface."""
    inside = distance_transform_edt(mask, sampling=frame.spacing) if not mask.all() else np.full(mask.shape, np.inf)
    outside = distance_transform_edt(~mask, sampling=frame.spacing)
    signed: NDArray[np.float64] = np.clip(outside - inside, -1e3, 1e3)
    return signed
