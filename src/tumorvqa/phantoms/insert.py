"""Lesions put into a scan of any origin, so that real anatomy has lesions whose truth is known."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from tumorvqa.measuring.surface import slices, within
from tumorvqa.phantoms.shapes import Floats, Point
from tumorvqa.scans import EMPTY, Box, Region, Scan
from tumorvqa.structures import HOSTS, KINDS, STRUCTURES

SUPERSAMPLING = 4  # points along each side of a voxel


def room(scan: Scan, organ: str) -> tuple[Point, float]:
    """Centre (mm, RAS) and radius of the largest ball whose voxels lie in a structure and in none of its lesions.

    The radius is the distance from a voxel's centre to that of the nearest one outside, less half a voxel; the frame's
    axes are taken as perpendicular, and what lies beyond the scan is outside. ValueError if there is no such voxel.
    """
    mask = np.pad(free_of_lesions(scan, organ), 1)
    if not mask.any():
        raise ValueError(f"no room in {organ}: the scan has no voxel of it that is free of lesions.")
    depth = distance_transform_edt(mask, sampling=scan.frame.spacing)
    index = np.unravel_index(int(depth.argmax()), mask.shape)
    start = np.array([low for low, _ in region_of(scan, organ).box])
    a, b, c = to_mm(scan, np.array(index) - 1 + start)
    return (float(a), float(b), float(c)), float(depth.max()) - min(scan.frame.spacing) / 2


def insert_lesion(
    scan: Scan, organ: str, center_mm: Point, radii_mm: Point | float, hu: float, kind: str = "lesion"
) -> Scan:
    """The scan with an ellipsoid of mean `hu`, its half axes along RAS, in a structure of structures.HOSTS.

    Partial volume: with f the share of 4^3 points of a voxel that lie inside, HU grows by f (hu - mean of the organ),
    so the tissue's noise stays. Voxels of f >= 1/2 join the mask `<organ>_<kind>`. ValueError if one of those is not
    the organ's or is another lesion's, or if there are none.
    """
    host = next((host for host, names in HOSTS.items() if organ in names), None)
    if host is None or kind not in KINDS[host]:
        raise ValueError(f"no lesion {kind!r} of {organ!r}: known are {', '.join(f'{h} {KINDS[h]}' for h in KINDS)}.")
    radii = (float(radii_mm),) * 3 if isinstance(radii_mm, int | float) else radii_mm
    tissue = np.zeros(scan.frame.shape, bool)
    tissue[slices(region_of(scan, organ).box)] = free_of_lesions(scan, organ)
    box, share = coverage(scan, center_mm, radii)
    inside = share >= 0.5
    if not inside.any() or not tissue[slices(box)][inside].all():
        raise ValueError(
            f"an ellipsoid of radii {radii} mm at {center_mm} does not lie in free tissue of the "
            f"{STRUCTURES[organ].title}, or fills no voxel: room(scan, organ) tells where there is some."
        )
    values = scan.hu.copy()
    mean = float(scan.hu[tissue].mean(dtype=np.float64))
    values[slices(box)] = np.rint(values[slices(box)] + share * (hu - mean)).astype(np.int16)
    name = f"{host}_{kind}"
    before = scan.regions.get(name, EMPTY)
    mask = np.zeros(scan.frame.shape, bool)
    mask[slices(before.box)] = before.mask
    mask[slices(box)] |= inside
    return replace(scan, hu=values, regions=scan.regions | {name: Region.of(mask)})


def coverage(scan: Scan, center: Point, radii: Point) -> tuple[Box, Floats]:
    """Which share of each voxel an ellipsoid covers, in the box of voxels it reaches, cut to the scan."""
    affine = scan.frame.affine
    inverse = np.linalg.inv(affine[:3, :3])
    middle = inverse @ (np.array(center) - affine[:3, 3])
    reach = np.linalg.norm(inverse * np.array(radii), axis=1) + 1
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, scan.frame.shape).astype(int)
    if (low >= high).any():
        return EMPTY.box, np.zeros((0, 0, 0))
    fine = [
        (np.arange((b - a) * SUPERSAMPLING) + 0.5) / SUPERSAMPLING + a - 0.5 for a, b in zip(low, high, strict=True)
    ]
    i, j, k = np.meshgrid(*fine, indexing="ij", sparse=True)
    distance: Floats = np.zeros(())
    for axis in range(3):
        place = affine[axis, 0] * i + affine[axis, 1] * j + affine[axis, 2] * k + affine[axis, 3] - center[axis]
        distance = distance + (place / radii[axis]) ** 2
    n = SUPERSAMPLING
    x, y, z = (high - low).tolist()
    share = (distance <= 1).reshape(x, n, y, n, z, n).mean(axis=(1, 3, 5))
    (a, b, c), (d, e, f) = low.tolist(), high.tolist()
    return ((a, d), (b, e), (c, f)), share


def region_of(scan: Scan, organ: str) -> Region:
    return scan.regions.get(organ, EMPTY)


def free_of_lesions(scan: Scan, organ: str) -> NDArray[np.bool_]:
    """The organ's mask in its box, without any lesion."""
    region = region_of(scan, organ)
    mask = region.mask.copy()
    for name, lesion in scan.regions.items():
        if STRUCTURES[name].kind == "lesion" and lesion.count:
            mask &= ~within(lesion, region.box)
    return mask


def to_mm(scan: Scan, index: NDArray[np.int64]) -> Floats:
    place: Floats = scan.frame.affine[:3, :3] @ index + scan.frame.affine[:3, 3]
    return place
