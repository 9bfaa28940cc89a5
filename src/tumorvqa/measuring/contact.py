"""How much of a vessel's circumference a lesion touches."""

import math
from collections.abc import Callable
from functools import partial

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
LENGTH = 20.0  # mm of a vessel on either side of the lesion that tell which way it runs
LOCAL = 6  # voxels beyond the vessel's rim from which the lesion's outline is taken
SHIFT = 0.8  # of the outline's scatter by which outline and rim may be off
GRAZE = 0.5  # of the half angle at which a plane is a voxel deep in the vessel: what none or all may hide
UNSEEN = 90.0  # degrees of doubt where one lies in the other and no outline tells
FEW = 30  # points of the outline below which all of it is taken
FLAT = np.ones((3, 3))
TOUCHING = np.ones((3, 3, 3))


def contact(lesion: Region, vessel: Region, frame: Frame) -> Measurement:
    """Degrees of the vessel's circumference that the lesion covers: the largest of all slices across the vessel (axial
    ones, unless it runs more along another axis of the voxels). Exactly 0 if more than a voxel lies between them.

    Lesion and vessel meet at an angle, and the wedge between them, or the lesion's rim, is thinner than a voxel over
    much of the circumference, so counting voxels at the rim is biased by tens of degrees. Instead the lesion's outline
    near the vessel is continued by the sphere that fits it best, and the vessel's rim in a slice is the ellipse with
    the area and moments of its voxels, whose parameter is the angle around the axis also where a slice cuts it
    obliquely. Assumed: near the vessel the lesion is about as smooth as a sphere. Error: how the angle changes if the
    outline moves by 0.8 of its scatter about the sphere.

    Over spheres (radius 6 to 20 mm) on vessels (3 to 12 mm) in voxels of 0.8 to 5 mm: bias +4 degrees, +13 above 240,
    where the lesion's rim is thin.
    """
    if not adjacent(lesion, vessel):
        return Measurement(0.0, "degrees", 0.0, method="not adjacent")
    box = surface.around(lesion.box, frame, LENGTH)
    v = surface.within(vessel, box)
    mine = surface.within(lesion, box) & ~v
    if not mine.any():  # which of the two masks is right cannot be known
        return Measurement(360.0, "degrees", UNSEEN, method="inside the vessel")
    across = direction(v, frame)
    order = [axis for axis in range(3) if axis != across] + [across]
    axes = frame.affine[:3, :3][:, order]
    v, mine = v.transpose(order), mine.transpose(order)
    points = outline(mine, ~v & ~mine) @ axes.T
    found = [
        covered(part, points, k, axes)
        for k in range(v.shape[2])
        for part in touched(v[..., k], ndimage.binary_dilation(mine[..., k], FLAT, iterations=2))
    ]
    degrees, error = max(found, default=(0.0, 0.0))
    return Measurement(degrees, "degrees", error, method="ring across the vessel")


def adjacent(one: Region, two: Region) -> bool:
    """Whether at most a voxel lies between them."""
    x, y, z = ((a - 2, b + 2) for a, b in one.box)
    there = surface.within(two, (x, y, z))
    if not there.any():
        return False
    return bool((there & ndimage.binary_dilation(np.pad(one.mask, 2), TOUCHING, iterations=2)).any())


def direction(vessel: NDArray[np.bool_], frame: Frame) -> int:
    """The voxels' axis along which the vessel runs most; Z if it is as thick as long."""
    mm = np.argwhere(vessel) @ frame.affine[:3, :3].T
    spread, ways = np.linalg.eigh(np.cov(mm.T) + 1e-9 * np.eye(3)) if len(mm) > 1 else (np.ones(3), np.eye(3))
    if spread[2] < 1.5 * spread[1]:
        return 2
    units = frame.affine[:3, :3] / np.linalg.norm(frame.affine[:3, :3], axis=0)
    return int(np.abs(units.T @ ways[:, 2]).round(6).argmax())


def outline(inside: NDArray[np.bool_], outside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Indices (2, n, 3) of the middles of the faces between two sets of voxels, and of their voxels inside."""
    found = []
    for axis in range(3):
        a, b = (np.moveaxis(mask, axis, 0) for mask in (inside, outside))
        for first, second, step in ((a[:-1], b[1:], 0), (b[:-1], a[1:], 1)):
            faces = np.argwhere(first & second)
            pairs = faces + np.array([[[0.5, 0, 0]], [[step, 0, 0]]])
            found.append(np.insert(pairs[..., 1:], axis, pairs[..., 0], axis=2))
    return np.concatenate(found, axis=1)


def touched(vessel: NDArray[np.bool_], near: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The vessel's parts in a slice (8-connected) that have voxels near the lesion."""
    parts = ndimage.label(vessel, FLAT)[0]
    return [parts == part for part in np.unique(parts[near & vessel])]


def covered(part: NDArray[np.bool_], points: NDArray[np.float64], k: int, axes: NDArray) -> tuple[float, float]:
    """Degrees of the rim of a vessel's part in slice `k` within the sphere of the lesion's outline, and the error."""
    pixel = float(np.linalg.norm(np.cross(axes[:, 0], axes[:, 1])))
    indices = np.argwhere(part)
    centre = axes @ [*indices.mean(axis=0), k]
    rim = centre + ring(indices, pixel, axes)
    reach = float(np.linalg.norm(rim - centre, axis=1).max()) + LOCAL * math.sqrt(pixel)
    local = points[:, np.linalg.norm(points[0] - centre, axis=1) < reach]
    if local.shape[1] < FEW:
        local = points
    if not local.size:
        return 360.0, UNSEEN
    depth = sphere(*local)
    scatter = SHIFT * float(np.sqrt(np.mean(depth(local[0]) ** 2)))
    inside = depth(rim)
    degrees, more, less = (360 * float(np.mean(inside > level)) for level in (0, -scatter, scatter))
    graze = GRAZE * math.degrees((math.pi / len(indices)) ** 0.25) if degrees in (0, 360) else 0.0
    return degrees, max(more - degrees, degrees - less, graze)


def ring(indices: NDArray, pixel: float, axes: NDArray) -> NDArray[np.float64]:
    """Points (rays, 3), in millimetres about the centre, of the ellipse with the area and the moments of pixels."""
    angles = (np.arange(RAYS) + 0.5) * (2 * np.pi / RAYS)
    circle = np.array([np.cos(angles), np.sin(angles)])
    area = len(indices) * pixel
    u = axes[:, 0] / np.linalg.norm(axes[:, 0])
    w = np.cross(np.cross(axes[:, 0], axes[:, 1]), u)
    plane = np.column_stack([u, w / np.linalg.norm(w)])
    steps = plane.T @ axes[:, :2]
    spread = steps @ (np.cov(indices.T, bias=True) + np.eye(2) / 12) @ steps.T
    sizes, ways = np.linalg.eigh(spread)
    shape = ways @ np.diag(np.sqrt(sizes / np.sqrt(sizes.prod()))) @ ways.T
    return (plane @ (math.sqrt(area / np.pi) * shape @ circle)).T


def sphere(points: NDArray[np.float64], inside: NDArray[np.float64]) -> Callable[[NDArray], NDArray]:
    """Depth below the sphere that fits points best (Taubin, IEEE PAMI 13:1115, 1991), which may as well be a plane, or
    hollow: f = a |x|^2 + b.x + c over the length of its gradient, with the sign that `inside` (n, 3) has on average.
    """
    middle = points.mean(axis=0)
    scale = max(float(np.sqrt(((points - middle) ** 2).sum(axis=1).mean())), 1e-6)
    x = (points - middle) / scale
    square = (x**2).sum(axis=1)
    root = 2 * math.sqrt(max(square.mean(), 1e-12))
    first, *b = np.linalg.svd(np.column_stack([(square - square.mean()) / root, x]), full_matrices=False)[2][-1]
    a = first / root

    def depth(at: NDArray, sign: float = 1.0) -> NDArray[np.float64]:
        y = (at - middle) / scale
        value = a * ((y**2).sum(axis=1) - square.mean()) + y @ np.array(b)
        return sign * scale * value / np.maximum(np.linalg.norm(2 * a * y + b, axis=1), 1e-6)

    return partial(depth, sign=float(np.sign((depth(inside) - depth(points)).mean())) or 1.0)
