"""Solids in millimetres (RAS): what lies inside, how far away the rest is, how large they are."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SURFACE_POINTS = 1500  # of an ellipsoid, for gaps
AXIS_STEP = 0.5  # mm between the points of a tube's axis, for gaps
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes `radii`, of which the first two are turned about Z by `turn` radians."""

    center: Point
    radii: Point
    turn: float = 0.0

    def local(self, x: Floats, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Coordinates along the axes of the ellipsoid, in mm from its centre."""
        (a, b, c), cos, sin = self.center, math.cos(self.turn), math.sin(self.turn)
        return (x - a) * cos + (y - b) * sin, (y - b) * cos - (x - a) * sin, z - c

    def inside(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Of positions that broadcast against each other."""
        u, v, w = self.local(x, y, z)
        a, b, c = self.radii
        inside: Bools = (u / a) ** 2 + (v / b) ** 2 + (w / c) ** 2 <= 1
        return inside

    @property
    def volume(self) -> float:
        """4/3 pi a b c, mm^3."""
        return 4 / 3 * math.pi * math.prod(self.radii)

    @property
    def is_sphere(self) -> bool:
        return min(self.radii) == max(self.radii)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        (a, b, c), cos, sin = self.radii, math.cos(self.turn), math.sin(self.turn)
        reach = np.array([math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos), c])
        return np.array(self.center) - reach, np.array(self.center) + reach

    @cached_property
    def samples(self) -> tuple[Floats, float]:
        """Points and a radius: balls that make up the surface towards anything outside."""
        if self.is_sphere:
            return np.array([self.center]), self.radii[0]
        return self.surface(SURFACE_POINTS), 0.0

    def surface(self, count: int) -> Floats:
        """Points on the surface, evenly spread before the sphere is stretched: (count, 3)."""
        return self.at(sphere(count))

    def at(self, unit: Floats) -> Floats:
        """Where the points (n, 3) of the unit ball come to lie."""
        u, v, w = (unit * np.array(self.radii)).T
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.stack([u * cos - v * sin, u * sin + v * cos, w], axis=1) + np.array(self.center)

    def distance(self, points: Floats) -> Floats:
        """From points (n, 3) to the solid, 0 inside; Newton for the foot x_i = a_i^2 p_i / (a_i^2 + t)."""
        p = np.stack(self.local(*points.T), axis=1)
        squares = np.square(self.radii)
        outside = (p**2 / squares).sum(axis=1) > 1
        distance = np.zeros(len(points))
        if not outside.any():
            return distance
        p = p[outside]
        t = np.zeros(len(p))  # from the left of the root of a falling convex function: no overshoot
        for _ in range(100):
            terms = squares * p**2 / (squares + t[:, None]) ** 2
            step = (terms.sum(axis=1) - 1) / (2 * terms / (squares + t[:, None])).sum(axis=1)
            t += step
            if (step <= 1e-9 * (1 + t)).all():
                break
        distance[outside] = np.linalg.norm(p * (t[:, None] / (squares + t[:, None])), axis=1)
        return distance

    def moved(self, center: Point) -> "Ellipsoid":
        return Ellipsoid(center, self.radii, self.turn)

    def support(self, normal: Floats) -> Floats:
        """The farthest point along a unit vector, in mm from the centre."""
        u = np.stack(self.local(*(normal + np.array(self.center))))
        foot = np.square(self.radii) * u / np.linalg.norm(np.array(self.radii) * u)
        return self.at((foot / np.array(self.radii))[None])[0] - np.array(self.center)

    @property
    def axial_axes(self) -> tuple[float, float]:
        """Longest and shortest diameter of the largest axial section, which goes through the centre."""
        a, b, _ = self.radii
        return 2 * max(a, b), 2 * min(a, b)


@dataclass(frozen=True)
class Tube:
    """All points within `radius` of a bent line: cylinders with balls at joints and ends.

    Closed forms hold if no span is shorter than the joints at its ends take up (radius tan(bend / 2) each) and spans
    meet only at their common joint.
    """

    points: tuple[Point, ...]
    radius: float

    @cached_property
    def spans(self) -> list[tuple[Floats, Floats, float]]:
        """Start, unit vector and length of every straight piece."""
        rows = []
        for start, end in zip(self.points[:-1], self.points[1:], strict=True):
            way = np.subtract(end, start)
            length = float(np.linalg.norm(way))
            rows.append((np.array(start), way / length, length))
        return rows

    @property
    def length(self) -> float:
        return sum(length for _, _, length in self.spans)

    def inside(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Of positions that broadcast against each other."""
        return self.squared(x, y, z) <= self.radius**2

    def squared(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Squared distance from the axis."""
        nearest = np.array(np.inf)
        for (a, b, c), (i, j, k), length in self.spans:
            along = np.clip((x - a) * i + (y - b) * j + (z - c) * k, 0, length)
            nearest = np.minimum(
                nearest, (x - a - along * i) ** 2 + (y - b - along * j) ** 2 + (z - c - along * k) ** 2
            )
        return nearest

    def distance(self, points: Floats) -> Floats:
        """From points (n, 3) to the solid, 0 inside."""
        return np.maximum(np.sqrt(self.squared(*points.T)) - self.radius, 0)

    @property
    def bounds(self) -> tuple[Floats, Floats]:
        return np.min(self.points, axis=0) - self.radius, np.max(self.points, axis=0) + self.radius

    @cached_property
    def samples(self) -> tuple[Floats, float]:
        return np.concatenate([start + np.outer(steps(length), way) for start, way, length in self.spans]), self.radius

    def bend(self, joint: int) -> float:
        """Radians between the spans that meet at an inner joint (1 is the first)."""
        return math.acos(float(np.clip(self.spans[joint - 1][1] @ self.spans[joint][1], -1, 1)))

    def span_volume(self, span: int) -> float:
        """mm^3 of the piece between the planes that halve its joints.

        pi r^2 L, half a ball at an end, and at a joint of bend t half of the ball's wedge outside, 2/3 t r^3, less
        what the two cylinders share inside, 4/3 tan(t/2) r^3.
        """
        r, last = self.radius, len(self.spans) - 1
        ends = (span == 0) + (span == last)
        bends = [self.bend(joint) for joint in (span, span + 1) if 0 < joint <= last]
        joints = sum((t - 2 * math.tan(t / 2)) / 3 for t in bends)
        return math.pi * r**2 * self.spans[span][2] + (ends * 2 / 3 * math.pi + joints) * r**3

    @property
    def volume(self) -> float:
        return sum(self.span_volume(span) for span in range(len(self.spans)))

    def span_of(self, x: Floats, y: Floats, z: Floats) -> NDArray[np.int64]:
        """Which piece a position near the tube belongs to: how many planes that halve joints it lies beyond."""
        passed = np.zeros(np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(z)), np.int64)
        for joint in range(1, len(self.spans)):
            a, b, c = self.points[joint]
            i, j, k = self.spans[joint - 1][1] + self.spans[joint][1]
            passed += (x - a) * i + (y - b) * j + (z - c) * k >= 0
        return passed


Solid = Ellipsoid | Tube


@dataclass(frozen=True)
class Sector:
    """The part of an ellipsoid that planes cut out: where low <= T u < high, with u the position in the unit ball that
    the ellipsoid is stretched from and T (`turn`, rows) a rotation, so that no plane runs along a row of voxels.
    """

    solid: Ellipsoid
    turn: tuple[Point, Point, Point]
    low: Point
    high: Point

    def inside(self, x: Floats, y: Floats, z: Floats) -> Bools:
        """Of positions in the ellipsoid that broadcast against each other."""
        within = np.array(True)
        unit = [value / radius for value, radius in zip(self.solid.local(x, y, z), self.solid.radii, strict=True)]
        for (i, j, k), low, high in zip(self.turn, self.low, self.high, strict=True):
            along = i * unit[0] + j * unit[1] + k * unit[2]
            within = within & (along >= low) & (along < high)
        return within

    def room(self, points: Floats) -> Floats:
        """mm from points (n, 3) of an ellipsoid that is not turned to the nearest plane; negative beyond it."""
        solid = self.solid
        normals = np.array(self.turn) / np.array(solid.radii)
        steep = np.linalg.norm(normals, axis=1)
        along = (points - np.array(solid.center)) @ normals.T
        room: Floats = (np.minimum(along - self.low, np.array(self.high) - along) / steep).min(axis=1)
        return room

    @property
    def volume(self) -> float:
        """mm^3, by Gauss-Legendre quadrature over two axes of the unit ball."""
        (i, j, k), (m, n, p) = self.low, self.high
        x, weight_x = between(np.array(max(i, -1.0)), np.array(min(m, 1.0)))
        chord = np.sqrt(1 - x**2)
        y, weight_y = between(np.maximum(j, -chord), np.minimum(n, chord))
        half = np.sqrt(np.maximum(1 - x[..., None] ** 2 - y**2, 0))
        depth = np.maximum(np.minimum(p, half) - np.maximum(k, -half), 0)
        return float((weight_x * (weight_y * depth).sum(axis=-1)).sum()) * math.prod(self.solid.radii)


def between(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Nodes and weights of Gauss-Legendre quadrature from low to high, along a new last axis; none if high < low."""
    half = np.maximum(high - low, 0)[..., None] / 2
    return low[..., None] + half * (NODES + 1), half * WEIGHTS


def steps(length: float) -> Floats:
    return np.linspace(0, length, max(2, math.ceil(length / AXIS_STEP) + 1))


def sphere(count: int) -> Floats:
    """Points of a Fibonacci spiral on the unit sphere: (count, 3)."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    angle = math.pi * (1 + math.sqrt(5)) * k
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=1)


def gap(a: Solid, b: Solid) -> float:
    """mm between two surfaces, from samples of the first (the smaller one is the better first); <= 0 if they meet."""
    points, radius = a.samples
    return float(b.distance(points).min()) - radius


def lattice(solid: Solid, step: float) -> Floats:
    """The points of a cubic lattice that lie in a solid: (n, 3)."""
    low, high = solid.bounds
    x, y, z = np.meshgrid(
        *(np.arange(a + step / 2, b, step) for a, b in zip(low, high, strict=True)), indexing="ij", sparse=True
    )
    inside = solid.inside(x, y, z)
    return np.argwhere(inside) * step + low + step / 2
