"""How much of a vessel's circumference a lesion touches."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tumorvqa.measurements import Measurement
from tumorvqa.measuring import surface
from tumorvqa.scans import Frame, Region

VESSELS = (
    "aorta",
    "inferior_vena_cava",
    "portal_vein",
    "superior_mesenteric_artery",
    "celiac_artery",
    "common_hepatic_artery",
)
RAYS = 360
ENDS = 0.4  # voxels that either end of a contact is uncertain by


def contact(lesion: Region, vessel: Region, frame: Frame) -> Measurement:
    """Degrees of the vessel's circumference that the lesion covers, as seen from the vessel's centre in an axial slice;
    the largest of all slices.

    In a slice, rays leave the centroid of the vessel's part that is next to the lesion. Where the vessel's share
    (voxels, interpolated linearly) falls to 1/2, the ray ends; it is covered if there the lesion has more of the rest
    than all else. Error: either end of the contact by 0.4 voxel on the ring.
    """
    box = surface.around(surface.hull(lesion.box, lesion.box), frame, 0.0)
    box = tuple((max(0, a - 1), min(n, b + 1)) for (a, b), n in zip(box, frame.shape, strict=True))  # type: ignore[assignment]
    near = surface.within(vessel, box)
    mine = surface.within(lesion, box)
    if not (near & ndimage.binary_dilation(mine, np.ones((3, 3, 3)))).any():
        return Measurement(0.0, "degrees", 0.0, method="not adjacent")
    low, high = max(vessel.box[2][0], lesion.box[2][0]), min(vessel.box[2][1], lesion.box[2][1])
    both = surface.hull(vessel.box, lesion.box)
    x, y = ((max(0, a - 3), min(n, b + 3)) for (a, b), n in zip(both[:2], frame.shape[:2], strict=True))
    best, error = 0.0, 0.0
    for z in range(low, high):
        v = surface.within(vessel, (x, y, (z, z + 1)))[..., 0]
        here = surface.within(lesion, (x, y, (z, z + 1)))[..., 0] & ~v
        degrees, wrong = in_slice(v, here, frame.affine[:3, :2])
        if degrees > best:
            best, error = degrees, wrong
    return Measurement(best, "degrees", error or 90.0, method="ring in axial slices")


def in_slice(vessel: NDArray[np.bool_], lesion: NDArray[np.bool_], plane: NDArray) -> tuple[float, float]:
    """Degrees covered and their error."""
    parts, count = ndimage.label(vessel, np.ones((3, 3)))
    touching = np.unique(parts[ndimage.binary_dilation(lesion, np.ones((3, 3)))])
    found = [(0.0, 0.0)]
    for k in touching[touching > 0]:
        part = parts == k
        centre = np.argwhere(part).mean(axis=0)
        area = np.count_nonzero(part) * np.linalg.norm(np.cross(plane[:, 0], plane[:, 1]))
        radius = np.sqrt(area / np.pi)
        step = np.sqrt(np.linalg.norm(np.cross(plane[:, 0], plane[:, 1])))
        angles = np.arange(RAYS) * (2 * np.pi / RAYS)
        # A ray's direction in millimetres within the slice, as steps of indices
        u = plane[:, 0] / np.linalg.norm(plane[:, 0])
        w = np.cross(np.cross(plane[:, 0], plane[:, 1]), u)
        w /= np.linalg.norm(w)
        ways = np.linalg.pinv(plane) @ (u[:, None] * np.cos(angles) + w[:, None] * np.sin(angles))
        radii = np.arange(0, 4 * radius + 2 * step, step / 8)
        at = centre[:, None, None] + ways[:, :, None] * radii
        share = ndimage.map_coordinates(part.astype(np.float32), at, order=1, mode="constant")
        edge = (share < 0.5).argmax(axis=1)
        rim = at[:, np.arange(RAYS), edge]
        covered = ndimage.map_coordinates(lesion.astype(np.float32), rim, order=1, mode="constant")
        rest = 1 - share[np.arange(RAYS), edge]
        degrees = 360 * float(np.mean(covered > rest / 2))
        found.append((degrees, float(np.degrees(ENDS * step / radius * np.sqrt(2)))))
    return max(found)
