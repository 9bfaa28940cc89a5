"""What a phantom is: solids, tissues and a grid, from which both a CT and the truth about it follow."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tumorvqa.phantoms.shapes import Bools, Ellipsoid, Floats, Sector, Solid, Tube, lattice
from tumorvqa.scans import Frame, Meta
from tumorvqa.structures import PLACES, STRUCTURES

LATTICE = 32  # points across the shortest diameter of a lesion, where its truth is counted


@dataclass(frozen=True)
class Growth:
    """A lesion. What of it lies in a vessel belongs to the vessel."""

    organ: str  # a key of structures.HOSTS
    kind: str
    host: str  # the structure it lies in
    solid: Ellipsoid
    hu: float


@dataclass(frozen=True)
class Phantom:
    """One case in RAS millimetres. Organs and vessels do not meet; lesions lie in their organ, which includes them,
    except for those that reach out of the pancreas to a vessel, by which the pancreas grows.

    `hu` is the mean of each tissue (an organ's is without its lesions), `noise` their standard deviation
    (of lesions a share of it). `turned` is
    how the case is written: for X, Y and Z the file's axis and its direction.
    """

    case: str
    patient: str
    seed: int  # of the noise
    meta: Meta
    frame: Frame
    solids: dict[str, Solid]
    segments: dict[str, Sector]  # of the liver
    lesions: tuple[Growth, ...]
    annotated: tuple[str, ...]  # lesion masks that are shipped
    hu: dict[str, float]
    noise: float
    turned: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (2, 1))

    @property
    def pancreas(self) -> Tube:
        tube = self.solids["pancreas"]
        assert isinstance(tube, Tube)
        return tube

    @property
    def liver(self) -> Ellipsoid:
        solid = self.solids["liver"]
        assert isinstance(solid, Ellipsoid)
        return solid

    @property
    def vessels(self) -> dict[str, Tube]:
        return {
            name: solid
            for name, solid in self.solids.items()
            if STRUCTURES[name].kind == "vessel" and isinstance(solid, Tube)
        }

    def part(self, name: str, x: Floats, y: Floats, z: Floats) -> Bools:
        """Which positions, known to be in the liver or pancreas, lie in a part of it."""
        if name in self.segments:
            return self.segments[name].inside(x, y, z)
        return self.pancreas.span_of(x, y, z) == PLACES["pancreas"].index(name)

    @cached_property
    def pieces(self) -> list["Piece"]:
        """What truth needs of each lesion, in the order of `lesions`."""
        return [measured(self, lesion) for lesion in self.lesions]


@dataclass(frozen=True)
class Piece:
    """A lesion without vessels: mm^3, of which `grown` (by part of the pancreas) lie outside its organ's own solid;
    shares of the parts of its organ; centroid.
    """

    volume: float
    grown: dict[str, float]
    places: dict[str, float]
    centroid: tuple[float, float, float]


def measured(phantom: Phantom, lesion: Growth) -> Piece:
    """Closed forms for a lesion that lies in one part of its organ and in no vessel, else counts of a lattice that are
    scaled to the closed form of the whole.
    """
    points = lattice(lesion.solid, 2 * min(lesion.solid.radii) / LATTICE)
    x, y, z = points.T
    free = np.ones(len(points), bool)
    for vessel in phantom.vessels.values():
        free &= ~vessel.inside(x, y, z)
    volume = lesion.solid.volume * float(free.mean())
    organ = phantom.solids[lesion.host]
    out = free & ~organ.inside(x, y, z)
    grown, places = {}, {}
    for name in PLACES.get(lesion.organ, ()):
        there = np.full(len(points), name == lesion.host) if lesion.organ == "kidney" else phantom.part(name, x, y, z)
        if share := float((there & free).sum() / free.sum()):
            places[name] = share
        if lesion.organ == "pancreas" and (there & out).any():
            grown[name] = lesion.solid.volume * float((there & out).mean())
    a, b, c = lesion.solid.center if free.all() else points[free].mean(axis=0).tolist()
    return Piece(volume, grown, places, (a, b, c))


def contact(tumor: Ellipsoid, vessel: Tube) -> float:
    """Degrees of a vessel's circumference that a tumour covers where it covers most.

    2 acos((d^2 + r^2 - R^2) / (2 d r)) for a ball of radius R whose centre lies d from the axis of a straight vessel of
    radius r. 0 if they do not meet. ValueError for other solids that meet.
    """
    if bool(vessel.distance(tumor.surface(2000)).min() > 0):
        return 0.0
    if not tumor.is_sphere or len(vessel.points) > 2:
        raise ValueError("the angle of contact is known for a ball and a straight vessel only: make the tumour a ball")
    d = float(np.sqrt(vessel.squared(*(np.array([value]) for value in tumor.center)))[0])
    r, R = vessel.radius, tumor.radii[0]
    return 2 * math.degrees(math.acos(float(np.clip((d**2 + r**2 - R**2) / (2 * d * r), -1, 1))))
