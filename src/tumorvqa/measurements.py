"""What is known of a case in numbers. Plain data without arrays, JSON in and out; all that questions rest on."""

from dataclasses import dataclass
from typing import Literal

from tumorvqa.scans import Box, Meta

Status = Literal["ok", "truncated", "empty", "not_annotated", "too_small", "frame_mismatch"]
Unit = Literal["cm^3", "HU", "mm", "degrees", "slice"]


@dataclass(frozen=True)
class Measurement:
    """A value with its unit and one standard deviation of its error; None with the reason in `status`, never zero."""

    value: float | None
    unit: Unit
    uncertainty: float = 0.0
    status: Status = "ok"
    method: str = ""


@dataclass(frozen=True)
class Organ:
    """`hu` is the mean over the organ without its lesions, `hu_sd` and `hu_median` alike; `faces` are the sides of the
    scan that the mask touches ("left", "right", "anterior", "posterior", "inferior", "superior").
    """

    name: str
    volume: Measurement  # lesions included
    hu: Measurement
    hu_sd: Measurement
    hu_median: Measurement
    faces: tuple[str, ...] = ()
    fragments: int = 1
    box: Box | None = None


@dataclass(frozen=True)
class Lesion:
    """A connected component of a lesion mask. `rank` 1 is the largest (by volume) of all lesions of its organ."""

    organ: str  # a key of structures.HOSTS
    kind: str  # of structures.KINDS[organ]; "lesion" if its type is not known
    rank: int
    volume: Measurement  # cm^3
    long_axis: Measurement  # mm, in an axial slice
    short_axis: Measurement  # mm, perpendicular to the long axis in that slice
    slice: Measurement  # of the long axis; 0 is the lowest of the scan
    hu: Measurement  # mean
    centroid: tuple[float, float, float]  # mm, RAS
    places: dict[str, float]  # structures.PLACES[organ] -> share of its voxels that lie in any of them
    gaps: dict[str, Measurement]  # organ that is not its host -> mm between the surfaces, 0 if they touch
    contacts: dict[str, Measurement]  # vessel -> degrees of its circumference that the lesion touches
    box: Box | None = None


@dataclass(frozen=True)
class Measurements:
    """One case. `annotated`: the lesion masks (names of structures.py) that someone drew; of others nothing is known,
    which is not the same as none. `method` is "masks" or "analytic".
    """

    case: str
    patient: str
    source: str
    method: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]  # mm
    meta: Meta
    organs: dict[str, Organ]  # also vessels and parts
    lesions: tuple[Lesion, ...]
    annotated: tuple[str, ...]
    faults: dict[str, str]  # structure -> why its mask was not used
    provenance: str = "unknown"
