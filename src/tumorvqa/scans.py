"""A CT volume and its masks in memory, in RAS order: what is measured.

X right, Y anterior, Z superior (voxels); positions in millimetres are RAS.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and one past the last voxel along X, Y, Z
Contrast = Literal["plain", "arterial", "venous", "delayed"]


class CaseFault(ValueError):
    """A case that cannot be measured; the text is one line that says what is wrong, and names no patient."""


@dataclass(frozen=True)
class Frame:
    """Where voxels lie: `affine` (4, 4) maps a voxel's index to millimetres."""

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbours along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def voxel_mm3(self) -> float:
        """|det|, which a sheared frame's product of spacings is not."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True)
class Region:
    """The voxels of a structure, cut to their bounding box; an annotated structure that is not there is `EMPTY`."""

    box: Box
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], offset: tuple[int, int, int] = (0, 0, 0)) -> "Region":
        """Of a whole mask, or of a part of one that begins at `offset`."""
        box = []
        for axis in range(3):
            there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
            if not there.size:
                return EMPTY
            box.append((int(there[0]), int(there[-1]) + 1))
        (i, j), (k, m), (n, p) = box
        a, b, c = offset
        return cls(((i + a, j + a), (k + b, m + b), (n + c, p + c)), mask[i:j, k:m, n:p].copy())

    @property
    def count(self) -> int:
        return int(np.count_nonzero(self.mask))


EMPTY = Region(((0, 0), (0, 0), (0, 0)), np.zeros((0, 0, 0), bool))


@dataclass(frozen=True)
class Meta:
    """What a header or table may tell about a case without telling who it is."""

    sex: Literal["female", "male"] | None = None
    age: int | None = None  # years
    contrast: Contrast | None = None
    scanner: str | None = None


@dataclass(frozen=True)
class Scan:
    """One case. `hu` (X, Y, Z) int16; `regions` has every annotated structure by its name in structures.py; of one that
    is absent there nothing is known. `faults` names structures whose mask could not be used, with a status of
    measurements.py; `provenance` says who drew the masks.
    """

    case: str
    patient: str  # group of cases of one person, a salted hash
    source: str
    frame: Frame
    hu: NDArray[np.int16]
    regions: dict[str, Region]
    meta: Meta = Meta()
    faults: dict[str, str] = field(default_factory=dict)
    provenance: Literal["human", "ai", "phantom", "unknown"] = "unknown"
