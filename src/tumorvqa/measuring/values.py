"""Volume and HU of a set of voxels, each with one standard deviation of its error."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tumorvqa.measurements import Measurement, Status
from tumorvqa.measuring import surface

FEW = 10  # voxels below which HU are not given
PARTIAL = 1.3  # the deeper voxels are blurred a little too
SAMPLED = 8  # pairs of slices in which the correlation of noise is estimated


def volume(mask: NDArray[np.bool_], voxel_mm3: float, status: Status = "ok") -> Measurement:
    """n |det| in cm^3 (not a product of spacings, which is wrong where the frame is sheared).

    Error: each voxel face of the surface cuts a line of voxel centres at a place that is uniform within a voxel, so
    the count has the variance faces / 12 if faces err independently, as they do on a ball. They do not on a tube along
    an axis, of which each layer errs like the last: faces are met again in p / (1 - p) layers, if a share p is in the
    next one, 1.2 on a ball, and each above that adds 3 times the variance (fitted to balls and tubes of known volume).
    """
    count, (faces, again) = int(np.count_nonzero(mask)), surface.faces(mask)
    alike = 1 + 3 * max(0.0, again / (1 - min(again, 0.99)) - 1.2)
    error = math.sqrt(faces / 12 * alike)
    return Measurement(count * voxel_mm3 / 1000, "cm^3", error * voxel_mm3 / 1000, status, "voxel count")


class HU(NamedTuple):
    mean: Measurement
    sd: Measurement
    median: Measurement


def hounsfield(hu: NDArray[np.int16], mask: NDArray[np.bool_]) -> HU:
    """Mean, standard deviation and median of `hu` over `mask`.

    Error: that of noise, sd sqrt(c / n) (for the sd and the median: / 2 and pi / 2 under the root), where c voxels are
    as good as one independent one, and that of voxels that hold two tissues: 1.3 times the difference that leaving out
    the voxels at the surface makes; if fewer than ten lie deeper, 0.65 times the difference to the voxels around.
    """
    count = int(np.count_nonzero(mask))
    if count < FEW:
        return HU(*(Measurement(None, "HU", 0.0, "too_small", what) for what in ("mean", "sd", "median")))
    inner = surface.core(mask)
    values, deep = hu[mask], hu[inner]
    found = np.array(moments(values))
    partial = np.abs(found - moments(deep)) if deep.size >= FEW else np.full(3, abs(found[0] - outside(hu, mask)) / 2)
    noise = found[1] * math.sqrt(correlated(hu, mask, found[0], found[1]) / count)
    errors = np.hypot(noise * np.sqrt([1, 1 / 2, math.pi / 2]), PARTIAL * partial)
    rows = zip(found.tolist(), errors.tolist(), ("mean", "sd", "median"), strict=True)
    return HU(*(Measurement(value, "HU", error, "ok", method) for value, error, method in rows))


def moments(values: NDArray[np.int16]) -> tuple[float, float, float]:
    """Mean, sd, median."""
    mean = float(values.mean(dtype=np.float64))
    return mean, float(values.std(dtype=np.float64)), float(np.median(values))


def outside(hu: NDArray[np.int16], mask: NDArray[np.bool_]) -> float:
    """Mean of the voxels of the array next to the mask; its own mean if there are none."""
    ring = ~mask
    grown = np.pad(mask, 1)
    near = np.zeros_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            near |= np.roll(grown, step, axis)[1:-1, 1:-1, 1:-1]
    ring &= near
    return float(hu[ring].mean()) if ring.any() else float(hu[mask].mean())


def correlated(hu: NDArray[np.int16], mask: NDArray[np.bool_], mean: float, sd: float) -> float:
    """How many voxels are as good as one independent one: the product over the axes of sum_k rho^(k^2), as noise that a
    Gaussian has blurred is correlated, with rho the correlation of neighbours (in some slices only, for speed).
    """
    at = np.unique(np.linspace(0, max(mask.shape[2] - 2, 0), SAMPLED).astype(int))
    sums, counts = np.zeros(3), np.zeros(3)
    for pair in (slice(z, z + 2) for z in at):
        inside, values = mask[..., pair], hu[..., pair] - np.float32(mean)
        for axis in range(3):
            front, back = ([slice(None)] * 3 for _ in range(2))
            front[axis], back[axis] = slice(1, None), slice(None, -1)
            both = inside[tuple(front)] & inside[tuple(back)]
            sums[axis] += float((values[tuple(front)][both] * values[tuple(back)][both]).sum(dtype=np.float64))
            counts[axis] += np.count_nonzero(both)
    rho = np.clip(sums / np.maximum(counts, 1) / max(sd, 1e-6) ** 2, 0, 0.95)
    k = np.arange(-20, 21)
    return float(np.prod((rho[:, None] ** (k**2)).sum(axis=1)))
