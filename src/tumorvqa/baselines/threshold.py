"""A segmenter without masks and without learning: thresholds, connected components and where they lie."""

from dataclasses import replace

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_erosion,
    binary_fill_holes,
    binary_opening,
    gaussian_filter,
)

from tumorvqa.measuring.surface import ball
from tumorvqa.scans import Frame, Region, Scan

BODY_HU = -300.0
TISSUE_HU = (-12.0, 260.0)  # of organs after smoothing, between fat and bone
SMOOTHING_MM = 2.0
OPENING_MM = 4.0  # what is thinner does not hold two organs together
LARGEST = 30  # components that are looked at
LEAST_CM3 = {"liver": 350.0, "spleen": 60.0, "kidney": 60.0}
LESION_HU = 18.0  # a lesion's smoothed HU differs from its organ's by as much,
LESION_DEEP_MM = 6.5  # as deep in the organ,
LESION_CM3 = 0.25  # over as large a volume

Mask = NDArray[np.bool_]


def segment(scan: Scan) -> Scan:
    """The scan with regions that its HU alone give; those it had are not looked at.

    Crude, on purpose. The liver is the largest piece of soft tissue in the right upper half of the body, the spleen the
    largest left behind, the kidneys the largest to either side of the spine below; lesions of unknown type are what is
    darker or brighter in them. It fails where organs touch without fat between them, which phantoms do not and patients
    often do, and knows nothing of other organs, of parts or of vessels. An organ that is not found is not annotated;
    lesions are those of the organs found.
    """
    frame = scan.frame
    hu = gaussian_filter(scan.hu.astype(np.float32), [SMOOTHING_MM / step for step in frame.spacing])
    body = largest(hu > BODY_HU)
    regions: dict[str, Region] = {}
    if body.any():
        organs = found(hu, body, frame)
        regions = {name: Region.of(mask) for name, mask in organs.items()}
        for host, names in (("liver", ("liver",)), ("kidney", ("kidney_left", "kidney_right"))):
            spots = [lesions(hu, organs[name], frame) for name in names if name in organs]
            if spots:
                regions[f"{host}_lesion"] = Region.of(np.logical_or.reduce(spots))
    return replace(scan, regions=regions, faults={}, provenance="ai")


def largest(mask: Mask) -> Mask:
    """The largest connected component; nothing of nothing."""
    labels = cc3d.largest_k(np.asfortranarray(mask), k=1, connectivity=6)
    return np.asarray(labels) > 0


def found(hu: NDArray[np.float32], body: Mask, frame: Frame) -> dict[str, Mask]:
    """Organs by where their centres lie: right is +X; the body's box gives the middle."""
    low, high = TISSUE_HU
    tissue = binary_opening((hu > low) & (hu < high) & body, ball(OPENING_MM, frame))
    labels, count = cc3d.largest_k(np.asfortranarray(tissue), k=LARGEST, connectivity=6, return_N=True)
    if not count:
        return {}
    stats = cc3d.statistics(labels)
    box = Region.of(body).box
    middle = np.array([(a + b - 1) / 2 for a, b in box])
    half = np.array([(b - a) / 2 for a, b in box])
    volumes = stats["voxel_counts"] * frame.voxel_mm3 / 1000
    place = (stats["centroids"] - middle) / half  # -1..1 from left to right, back to front, bottom to top
    left, right = place[:, 0] < -0.12, place[:, 0] > 0.12
    behind = place[:, 1] < -0.2
    taken: dict[str, int] = {}
    for name, kind, there in (
        ("liver", "liver", right & (place[:, 2] > -0.3)),
        ("spleen", "spleen", left & behind & (place[:, 2] > -0.1)),
        ("kidney_left", "kidney", left & behind & (place[:, 2] <= 0)),
        ("kidney_right", "kidney", right & behind & (place[:, 2] <= 0)),
    ):
        fitting = [
            k for k in range(1, count + 1) if there[k] and volumes[k] >= LEAST_CM3[kind] and k not in taken.values()
        ]
        if fitting:
            taken[name] = max(fitting, key=lambda k: volumes[k])
    return {name: filled(labels == k, frame) for name, k in taken.items()}


def filled(mask: Mask, frame: Frame) -> Mask:
    """With dark lesions inside and dents that they leave in the surface."""
    box = Region.of(mask).box
    part = tuple(slice(max(a - 6, 0), b + 6) for a, b in box)
    whole = np.zeros_like(mask)
    closed = binary_closing(np.pad(mask[part], 6), ball(9.0, frame))[6:-6, 6:-6, 6:-6] | mask[part]
    whole[part] = binary_fill_holes(closed)
    return whole


def lesions(hu: NDArray[np.float32], organ: Mask, frame: Frame) -> Mask:
    """Deep voxels that differ from the organ's median, in components that are large enough, widened by a voxel."""
    deep = binary_erosion(organ, ball(LESION_DEEP_MM, frame))
    if not deep.any():
        return np.zeros_like(organ)
    off = np.abs(hu - np.median(hu[deep])) > LESION_HU
    dust = int(LESION_CM3 * 1000 / frame.voxel_mm3) + 1
    spots = cc3d.dust(np.asfortranarray(deep & off), threshold=dust, connectivity=6)
    return binary_dilation(np.asarray(spots) > 0, iterations=1) & organ & off
