"""From the answers that a phantom shall have to its anatomy: organs of given volumes, lesions where they are wanted.

Every organ has a place of its own that holds the largest volume drawn (draw.py), so that organs of any sizes fit beside
each other and no size tells of another. Positions are mm, RAS, from the middle of the body.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.spatial.transform import Rotation

from tumorvqa.phantoms.phantom import Growth, Phantom
from tumorvqa.phantoms.render import BODY, SKIN
from tumorvqa.phantoms.shapes import Ellipsoid, Floats, Point, Sector, Solid, Tube, gap, sphere
from tumorvqa.scans import Frame, Meta
from tumorvqa.structures import HOSTS, PLACES, STRUCTURES

EXTENT = ((-190.0, 190.0), (-150.0, 150.0), (-155.0, 150.0))
WALL = 0.8  # mm of its organ around a lesion
APART = 8.0  # mm between lesions, more than two voxels
NEAR_RADIUS = 20.0  # mm, the most of a lesion that lies near another organ
NEAR = 2.1  # mm from the wall of a lesion's organ to the organ that lies against it
CLEAR = 7.0  # mm from that lesion to every other organ
FREE = 2.0  # mm between organs
SMALLEST = 4.5  # mm, radius of a lesion
THIN = 4.1  # mm, half of the least short axis,
SLIM = 0.24  # and its least share of the long axis, whose ends would be lost between voxels if they were thinner
LEAD = 1.25  # by which the first is thicker, so that it is the largest
SMALL_MM = 10.0  # long axis of a lesion of the pancreas that may lie in any part
SHRINK = 0.9  # of lesions for which there is no room
WINS = 1.8  # ratio by which the greatest burden leads
EVEN = 0.6  # share of the largest lesion's radius
TRIES = 40

# Largest half axes; smaller organs have the same proportions within SPREAD
CAPS = {
    "liver": (91.0, 99.0, 96.0),
    "spleen": (47.0, 70.0, 72.0),
    "kidney_left": (41.0, 39.0, 51.0),
    "kidney_right": (41.0, 39.0, 51.0),
}
SPREAD = 0.15
TILT = 0.35  # radians between the planes of the liver's segments and those of the body
PANCREAS = ((56.0, 0.0), (2.0, 14.0), (-52.0, 4.0), (-104.0, -14.0))  # X and Y; at one height
COLON = (
    (140.0, -15.0, -128.0),
    (140.0, -10.0, -84.0),
    (105.0, 92.0, -126.0),
    (-105.0, 92.0, -126.0),
    (-140.0, -10.0, -84.0),
    (-140.0, -15.0, -128.0),
)
DUODENUM = ((92.0, 22.0, -66.0), (96.0, 2.0, -92.0), (70.0, -8.0, -118.0), (10.0, -12.0, -124.0))
TUBES = {  # the rest, with radii
    "common_bile_duct": (((46.0, 36.0, -52.0), (44.0, 36.0, -74.0)), 3.5),
    "aorta": (((-10.0, -58.0, -1000.0), (-10.0, -58.0, 1000.0)), 10.5),
    "inferior_vena_cava": (((18.0, -56.0, -1000.0), (18.0, -56.0, 1000.0)), 10.5),
    "portal_vein": (((24.0, -26.0, -46.0), (24.0, -26.0, -24.0)), 6.0),
    "superior_mesenteric_artery": (((-4.0, -36.0, -108.0), (-4.0, -36.0, -46.0)), 4.5),
    "celiac_artery": (((-32.0, -36.0, -62.0), (-32.0, -36.0, -22.0)), 4.5),
    "common_hepatic_artery": (((-6.0, -32.0, -26.0), (10.0, -32.0, -26.0)), 2.5),
}
VESSEL_REACH = 28.0  # mm up and down from a tumour that it touches
TURNS = {"colon": {"liver": 1, "kidney_right": 1, "kidney_left": -2}, "duodenum": {}}  # the joint that moves; else 0


@dataclass(frozen=True)
class Wanted:
    """A lesion to be. `share`: radius relative to the largest of its organ. In the pancreas `long_mm` says how long it
    is, and `vessel` is touched over `degrees` of its circumference. `near` shall be the only organ within 5 mm.
    """

    kind: str
    place: str  # liver_segment_k, kidney_left or _right, pancreas_head, _body or _tail, colon
    hu: float
    share: float = 1.0
    long_mm: float = 0.0
    vessel: str | None = None
    degrees: float = 0.0
    near: str | None = None


@dataclass(frozen=True)
class Plan:
    """The answers a phantom is to have; lesions come largest first. `burden`: the organs by their lesions' share of
    their volume, as far as their sizes allow it. `caudate`: volume of segment 1 over that of 5 to 8.
    """

    case: str
    patient: str
    anatomy: int  # seed; the same for every scan of a patient
    scan: int  # seed of the grid and the noise
    meta: Meta
    volumes: dict[str, float]  # cm^3: liver, spleen, pancreas, kidney_left, kidney_right
    hu: dict[str, float]
    caudate: float = 0.3
    lesions: dict[str, tuple[Wanted, ...]] = field(default_factory=dict)
    burden: tuple[str, ...] = ("liver", "kidney", "pancreas")
    annotated: tuple[str, ...] = ()
    truncated: bool = False


class Crowded(Exception):
    """No room for a lesion; the argument is its organ."""


@dataclass
class Draft:
    """What is settled so far."""

    plan: Plan
    random: np.random.Generator
    solids: dict[str, Solid]
    segments: dict[str, Sector]
    top: float  # mm, the upper end of the scan
    lesions: list[Growth] = field(default_factory=list)

    def apart(self, center: Floats, radius: float) -> bool:
        """From every lesion so far, by balls around both."""
        return all(
            math.dist(center, other.solid.center) >= radius + max(other.solid.radii) + APART for other in self.lesions
        )

    def add(self, organ: str, wanted: Wanted, host: str, solid: Ellipsoid) -> None:
        self.lesions.append(Growth(organ, wanted.kind, host, solid, wanted.hu))


def build(plan: Plan) -> Phantom:
    """The phantom of a plan. If an organ is too small for its lesions none is an outlier, or the last of them goes."""
    for attempt in range(TRIES):
        try:
            draft = drafted(plan, np.random.default_rng([plan.anatomy, attempt]))
            break
        except Crowded as crowded:
            organ = str(crowded)
            if attempt % 3 == 2:
                plan = replace(plan, lesions=plan.lesions | {organ: eased(plan.lesions[organ])})
    else:
        raise ValueError(f"no room for the lesions of {plan.case}: ask for fewer or smaller ones, or larger organs.")
    random = np.random.default_rng([plan.scan, 2])
    order, signs = random.permutation(3).tolist(), random.choice([-1, 1], 3).tolist()
    return Phantom(
        plan.case,
        plan.patient,
        plan.scan,
        plan.meta,
        frame(random, draft.top),
        draft.solids,
        draft.segments,
        tuple(draft.lesions),
        plan.annotated,
        plan.hu,
        float(random.uniform(14, 18)),
        tuple(zip(order, signs, strict=True)),
    )


def eased(lesions: tuple[Wanted, ...]) -> tuple[Wanted, ...]:
    """The same with less contrast of sizes, which lets the largest be smaller; if there is none, one less."""
    if any(row.share < EVEN for row in lesions):
        return tuple(replace(row, share=max(row.share, EVEN)) for row in lesions)
    return lesions[:-1]


def frame(random: np.random.Generator, top: float) -> Frame:
    """RAS, with voxels of about 2.5 x 2.5 x 3 mm."""
    step = random.uniform(2.4, 2.65), random.uniform(2.4, 2.65), random.uniform(2.9, 3.3)
    ends = (*EXTENT[:2], (EXTENT[2][0], top))
    shape = tuple(int((high - low) / size) for (low, high), size in zip(ends, step, strict=True))
    affine = np.diag([*step, 1.0])
    affine[:3, 3] = [low + size / 2 for (low, _), size in zip(ends, step, strict=True)]
    return Frame(affine, shape)  # type: ignore[arg-type]


def drafted(plan: Plan, random: np.random.Generator) -> Draft:
    """Organs first, then lesions: those of the pancreas, whose sizes are wanted ones, then the others to follow them in
    burden.
    """
    solids = organs(plan.volumes, random)
    liver = solids["liver"]
    assert isinstance(liver, Ellipsoid)
    top = EXTENT[2][1]
    if plan.truncated:
        top = min(solids[name].bounds[1][2] for name in ("liver", "spleen")) - 14
    draft = Draft(plan, random, solids, segments(liver, plan.caudate, random), top)
    for wanted in plan.lesions.get("pancreas", ()):
        place_in_pancreas(draft, wanted)
    grow(draft)
    for wanted in plan.lesions.get("colon", ()):
        place_in_colon(draft, wanted)
    return draft


def organs(volumes: dict[str, float], random: np.random.Generator) -> dict[str, Solid]:
    """All organs and vessels at home."""
    a, b, c = {}, {}, {}
    for name, caps in CAPS.items():
        a[name], b[name], c[name] = half_axes(volumes[name], caps, random)
    height = random.uniform(-76, -68)
    line = tuple((x, y, height) for x, y in PANCREAS)
    stomach = random.uniform((38, 28, 36), (50, 36, 50)).tolist()
    bladder = random.uniform((14, 14, 18), (19, 19, 24)).tolist()
    glands = random.uniform((5, 10, 10), (6.5, 13, 13), (2, 3)).tolist()
    return {
        "liver": ellipsoid((170 - a["liver"], 30, -43 + c["liver"]), "liver", a, b, c),
        "spleen": ellipsoid((-172 + a["spleen"], -48, 2 + c["spleen"]), "spleen", a, b, c),
        "pancreas": Tube(line, radius_for(volumes["pancreas"] * 1000, line)),
        "kidney_left": ellipsoid((-75, -80, -99), "kidney_left", a, b, c),
        "kidney_right": ellipsoid((75, -80, -99), "kidney_right", a, b, c),
        "colon": Tube(COLON, random.uniform(16, 19)),
        "gallbladder": Ellipsoid((70, 62, -78), tuple(bladder)),
        "stomach": Ellipsoid((-75, 75, 60), tuple(stomach)),
        "duodenum": Tube(DUODENUM, random.uniform(8, 9.5)),
        "adrenal_gland_left": Ellipsoid((-45, -62, -20), tuple(glands[0])),
        "adrenal_gland_right": Ellipsoid((42, -62, -28), tuple(glands[1])),
        **{name: Tube(points, radius) for name, (points, radius) in TUBES.items()},
    }


def ellipsoid(center: Point, name: str, a: dict[str, float], b: dict[str, float], c: dict[str, float]) -> Ellipsoid:
    return Ellipsoid(center, (a[name], b[name], c[name]))


def half_axes(volume: float, caps: Point, random: np.random.Generator) -> list[float]:
    """mm, of an ellipsoid of `volume` cm^3; the nearer to the largest, the less its proportions vary."""
    size = (volume * 1000 / (4 / 3 * math.pi * math.prod(caps))) ** (1 / 3)
    shape = np.exp(random.uniform(-1, 1, 3) * min(SPREAD, 0.6 * max(-math.log(size), 0)))
    axes: list[float] = (size * np.array(caps) * shape / shape.prod() ** (1 / 3)).tolist()
    return axes


def radius_for(volume: float, line: tuple[Point, ...]) -> float:
    """mm, of the tube along a line that has `volume` mm^3: it grows with the radius, so halve."""
    low, high = 1.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if Tube(line, middle).volume < volume else (low, middle)
    return (low + high) / 2


def segments(liver: Ellipsoid, caudate: float, random: np.random.Generator) -> dict[str, Sector]:
    """Couinaud's eight by planes: one to the right of 4, one in front of 1, then halves.

    Quantiles of points in the unit ball give the planes for the shares that are wanted.
    """
    right = random.uniform(0.36, 0.4) if caudate > 0.6 else random.uniform(0.46, 0.54)
    points = random.uniform(-1, 1, (60000, 3))
    points = points[(points**2).sum(axis=1) <= 1]
    cantlie = quantile(points, 0, 1 - right)
    lobe, rest = points[points[:, 0] >= cantlie], points[points[:, 0] < cantlie]
    behind = quantile(rest, 1, caudate * right / (1 - right))
    front = rest[rest[:, 1] >= behind]
    falx = quantile(front, 0, random.uniform(0.6, 0.68))
    left_height = quantile(front[front[:, 0] < falx], 2, random.uniform(0.45, 0.55))
    depth = quantile(lobe, 1, random.uniform(0.45, 0.55))
    ahead, aback = lobe[lobe[:, 1] >= depth], lobe[lobe[:, 1] < depth]
    ahead_height, aback_height = (quantile(half, 2, random.uniform(0.45, 0.55)) for half in (ahead, aback))
    inf = math.inf
    blocks = (
        ((-inf, -inf, -inf), (cantlie, behind, inf)),
        ((-inf, behind, left_height), (falx, inf, inf)),
        ((-inf, behind, -inf), (falx, inf, left_height)),
        ((falx, behind, -inf), (cantlie, inf, inf)),
        ((cantlie, depth, -inf), (inf, inf, ahead_height)),
        ((cantlie, -inf, -inf), (inf, depth, aback_height)),
        ((cantlie, -inf, aback_height), (inf, depth, inf)),
        ((cantlie, depth, ahead_height), (inf, inf, inf)),
    )
    rows = Rotation.from_rotvec(TILT * sphere(200)[random.integers(200)]).as_matrix()
    turn = as_point(rows[0]), as_point(rows[1]), as_point(rows[2])
    return {name: Sector(liver, turn, low, high) for name, (low, high) in zip(PLACES["liver"], blocks, strict=True)}


def quantile(points: Floats, axis: int, share: float) -> float:
    return float(np.quantile(points[:, axis], share))


def grow(draft: Draft) -> None:
    """Lesions of the liver and kidneys, as large as their place in the order of burdens wants them."""
    plan, random = draft.plan, draft.random
    least, most, unit = {}, {}, {}
    for organ in ("liver", "kidney"):
        if wanted := plan.lesions.get(organ, ()):
            smallest = (
                min(
                    draft.solids[name].bounds[1][i] - draft.solids[name].bounds[0][i]  # of the half axes
                    for name in HOSTS[organ]
                    for i in range(3)
                )
                / 2
            )
            low = SMALLEST / min(row.share for row in wanted)
            high = max(min(0.55 * smallest, 36.0) if organ == "liver" else min(0.62 * smallest, 19.0), low)
            host = sum(draft.solids[name].volume for name in HOSTS[organ])
            unit[organ] = 4 / 3 * math.pi * sum(row.share**3 for row in wanted) / host
            least[organ], most[organ] = unit[organ] * low**3, unit[organ] * high**3
    taken = sum(lesion.solid.volume for lesion in draft.lesions) / draft.solids["pancreas"].volume
    present = [organ for organ in plan.burden if plan.lesions.get(organ)]
    reached: dict[str, float] = {"pancreas": taken}
    for organ in present:
        if organ == "pancreas":
            continue
        low, high = least[organ], most[organ]
        if organ == present[0]:
            low = min(max([low, *(WINS * reached.get(other, least.get(other, 0.0)) for other in present[1:])]), high)
            low = math.sqrt(low * high)
        else:
            high = max(min(high, reached[present[0]] / WINS), low)
        size = (math.exp(random.uniform(math.log(low), math.log(high))) / unit[organ]) ** (1 / 3)
        size = placed_all(draft, organ, size, SMALLEST / min(row.share for row in plan.lesions[organ]))
        reached[organ] = unit[organ] * size**3


def placed_all(draft: Draft, organ: str, size: float, floor: float) -> float:
    """Places all lesions of the liver or kidneys, the largest with a radius of `size` or less, which is returned;
    smaller rather than away from the organ it shall lie near, unless that cannot be.
    """
    wanted = draft.plan.lesions[organ]
    away = tuple(replace(row, near=None) for row in wanted)
    ways = ((away, size),) if away == wanted else ((wanted, min(size, NEAR_RADIUS)), (away, size))
    for rows, start in ways:
        radius = max(start, floor)
        while True:
            if place_all(draft, organ, rows, radius):
                return radius
            if radius <= floor:
                break
            radius = max(radius * SHRINK, floor)
    raise Crowded(organ)


def place_all(draft: Draft, organ: str, wanted: tuple[Wanted, ...], size: float) -> bool:
    """All lesions, the largest with radius `size`; or none of them."""
    before, solids = list(draft.lesions), dict(draft.solids)
    flat = (1.0, 1.0) if wanted[0].near else tuple(draft.random.uniform(0.86, 1, 2).tolist())
    for row in wanted:
        host = organ if organ == "liver" else row.place
        radius = size * row.share
        center = beside(draft, row, host, radius) if row.near else free_center(draft, row, host, radius)
        if center is None:
            draft.lesions, draft.solids = before, solids
            return False
        radii = (radius, radius * flat[0], radius * flat[1])
        turn = 0.0 if flat == (1.0, 1.0) else float(draft.random.uniform(0, math.pi))
        draft.add(organ, row, host, Ellipsoid(center, radii, turn))
    return True


def free_center(draft: Draft, wanted: Wanted, host: str, radius: float) -> Point | None:
    """A centre for a ball within an ellipsoid, in its segment and apart from other lesions; the ball around x in the
    unit ball reaches no farther than (1 - |x|) times the smallest half axis.
    """
    solid = draft.solids[host]
    assert isinstance(solid, Ellipsoid)
    unit = draft.random.uniform(-1, 1, (4000, 3))
    room = (1 - np.linalg.norm(unit, axis=1)) * min(solid.radii)
    points = solid.at(unit[room >= radius + WALL])
    points = points[points[:, 2] + radius <= draft.top - APART]
    if host == "liver":
        points = points[draft.segments[wanted.place].room(points) >= radius]
    for point in points:
        if draft.apart(point, radius):
            return as_point(point)
    return None


def beside(draft: Draft, wanted: Wanted, host: str, radius: float) -> Point | None:
    """A centre for a ball just under the surface of its organ, at a point to which the neighbour is moved from outside,
    so that the gap between them is WALL + NEAR; the neighbour moves no farther than it must. None if nothing fits.
    """
    solid, name = draft.solids[host], wanted.near
    assert isinstance(solid, Ellipsoid) and name is not None
    if any(lesion.host == name for lesion in draft.lesions):  # it cannot leave its lesions behind
        return None
    unit = draft.random.standard_normal((1000, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    feet = solid.at(unit)
    normals: Floats = unit / np.array(solid.radii)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    centers = feet - normals * (radius + WALL)
    within = solid.inside(*np.moveaxis(centers[:, None] + sphere(80) * (radius + 0.3), 2, 0)).all(axis=1)
    within &= centers[:, 2] + radius <= draft.top - APART
    if host == "liver":
        within &= draft.segments[wanted.place].room(centers) >= radius
    ways = []
    for center, foot, normal in zip(centers[within], feet[within], normals[within], strict=True):
        moved = against(draft.solids[name], host, name, foot, normal)
        if in_body(moved):
            ways.append((travelled(draft.solids[name], moved), as_point(center), moved))
    for _, center, moved in sorted(ways, key=lambda way: way[0])[:TRIES]:
        lesion = Ellipsoid(center, (radius,) * 3)
        if not draft.apart(np.array(center), radius) or not free(draft, name, moved):
            continue
        others = [
            other
            for other, item in draft.solids.items()
            if STRUCTURES[other].kind == "organ" and other not in (*HOSTS[wanted_organ(host)], name)
        ]
        if all(gap(lesion, draft.solids[other]) >= CLEAR for other in others) and gap(lesion, moved) >= 0.9 * NEAR:
            draft.solids[name] = moved
            return center
    return None


def wanted_organ(host: str) -> str:
    return next(organ for organ, hosts in HOSTS.items() if host in hosts)


def against(solid: Solid, host: str, name: str, foot: Floats, normal: Floats) -> Solid:
    """A neighbour moved to NEAR from the foot of a normal: a whole ellipsoid, one joint of a tube."""
    if isinstance(solid, Ellipsoid):
        return solid.moved(as_point(foot + normal * NEAR + solid.support(normal)))
    points = list(solid.points)
    points[TURNS[name].get(host, 0)] = as_point(foot + normal * (NEAR + solid.radius))
    return Tube(tuple(points), solid.radius)


def travelled(before: Solid, after: Solid) -> float:
    """mm that a solid was moved."""
    if isinstance(before, Ellipsoid):
        assert isinstance(after, Ellipsoid)
        return math.dist(before.center, after.center)
    assert isinstance(after, Tube)
    return max(math.dist(a, b) for a, b in zip(before.points, after.points, strict=True))


def in_body(solid: Solid) -> bool:
    """Whether a solid lies within the fat under the skin, and above the lower end of the scan."""
    points, radius = solid.samples
    low, high = points.min(axis=0) - radius, points.max(axis=0) + radius
    if low[2] < EXTENT[2][0] + 4 or high[2] > EXTENT[2][1] - 4:
        return False
    x, y, _ = (np.abs(points) + radius).T
    return bool(((x / BODY[0]) ** 3 + (y / BODY[1]) ** 3 <= SKIN**3).all())


def free(draft: Draft, name: str, solid: Solid) -> bool:
    """Whether a solid could stand in for `name` without meeting anything else."""
    low, high = solid.bounds
    for other, item in draft.solids.items():
        a, b = item.bounds
        if other == name or (a > high + FREE).any() or (b < low - FREE).any():
            continue
        if (gap(item, solid) if isinstance(item, Tube) else gap(solid, item)) < FREE:
            return False
    return True


def place_in_pancreas(draft: Draft, wanted: Wanted) -> None:
    """Along the tube in its part, small ones in another if that is full; a ball that reaches a vessel, which is moved
    to where the angle is right.
    """
    others = PLACES["pancreas"] if wanted.long_mm <= SMALL_MM else ()
    if not any(in_part(draft, replace(wanted, place=place)) for place in (wanted.place, *others)):
        raise Crowded("pancreas")


def in_part(draft: Draft, wanted: Wanted) -> bool:
    """Whether a place was found; lesions are thin unless theirs shall be the greatest burden."""
    wins = next((organ for organ in draft.plan.burden if draft.plan.lesions.get(organ)), "") == "pancreas"
    tube = draft.solids["pancreas"]
    assert isinstance(tube, Tube)
    span = PLACES["pancreas"].index(wanted.place)
    start, way, length = tube.spans[span]
    half = wanted.long_mm / 2
    across = np.array([way[1], -way[0], 0.0])
    across *= -np.sign(across[1])  # backwards, where the vessels are
    for _ in range(3 * TRIES):
        along = draft.random.uniform(0, length)
        on_axis = start + along * way
        if wanted.vessel:
            if touching(draft, wanted, on_axis, across):
                return True
            continue
        thick = min(half, tube.radius - WALL, 14.0)
        if not wins:
            thick = min(thick, max(THIN, SLIM * half) * (1 if draft.lesions else LEAD))
        thick = max(min(THIN, thick), min(SLIM * half, thick), thick * draft.random.uniform(0.85, 1))
        aside = draft.random.uniform(-1, 1) * (tube.radius - WALL - thick)
        solid = Ellipsoid(
            as_point(on_axis + aside * across), (half, thick, thick), math.atan2(float(way[1]), float(way[0]))
        )
        surface = solid.surface(200)
        within = bool(np.sqrt(tube.squared(*surface.T)).max() <= tube.radius - WALL / 2)
        if within and (tube.span_of(*surface.T) == span).all() and apart_by_surface(draft, solid):
            draft.add("pancreas", wanted, "pancreas", solid)
            return True
    return False


def apart_by_surface(draft: Draft, solid: Ellipsoid) -> bool:
    """Long lesions side by side are apart though balls around them meet."""
    others = [other.solid for other in draft.lesions if other.organ == "pancreas"]
    return all(
        math.dist(solid.center, other.center) >= max(solid.radii) + max(other.radii) + APART
        or gap(solid, other) >= APART
        for other in others
    )


def touching(draft: Draft, wanted: Wanted, on_axis: Floats, across: Floats) -> bool:
    """A ball of radius R at d from the vessel's axis, d = r cos(a/2) + sqrt(R^2 - r^2 sin^2(a/2)) for an angle a, where
    the vessel runs just behind the pancreas. False if something is in the way.
    """
    tube, old = draft.solids["pancreas"], draft.solids[str(wanted.vessel)]
    assert isinstance(tube, Tube) and isinstance(old, Tube)
    r, R, half = old.radius, wanted.long_mm / 2, math.radians(wanted.degrees) / 2
    d = r * math.cos(half) + math.sqrt(R**2 - (r * math.sin(half)) ** 2)
    away = tube.radius + r + NEAR
    x, y, z = (on_axis + away * across).tolist()
    vessel = Tube(((x, y, z - VESSEL_REACH), (x, y, z + VESSEL_REACH)), r)
    center = on_axis + (away - d) * across
    ball = Ellipsoid(as_point(center), (R, R, R))
    if abs(away - d) > tube.radius or not free(draft, str(wanted.vessel), vessel):
        return False
    if not (tube.span_of(*ball.surface(200).T) == PLACES["pancreas"].index(wanted.place)).all():
        return False
    others = [solid for name, solid in draft.solids.items() if name not in ("pancreas", wanted.vessel)]
    if any(gap(ball, solid) < CLEAR for solid in others) or not apart_by_surface(draft, ball):
        return False
    if any(gap(other.solid, vessel) < CLEAR for other in draft.lesions):
        return False
    draft.solids[str(wanted.vessel)] = vessel
    draft.add("pancreas", wanted, "pancreas", ball)
    return True


def place_in_colon(draft: Draft, wanted: Wanted) -> None:
    tube = draft.solids["colon"]
    assert isinstance(tube, Tube)
    radius = wanted.long_mm / 2
    for _ in range(6 * TRIES):
        start, way, length = tube.spans[draft.random.integers(len(tube.spans))]
        center = start + way * draft.random.uniform(0, length) + draft.random.uniform(-6, 6, 3)
        room = tube.radius - float(np.sqrt(tube.squared(*center[:, None]))[0])
        if room >= radius + WALL and draft.apart(center, radius):
            draft.add("colon", wanted, "colon", Ellipsoid(as_point(center), (radius,) * 3))
            return
    raise Crowded("colon")


def as_point(values: Floats) -> Point:
    x, y, z = (float(value) for value in values)
    return x, y, z
