"""Phantoms whose answers are drawn before their anatomy, so that the classes of every subtype come up in turn.

Each variable has a deck of its own: its classes in a random order, again and again in new orders. Decks know nothing of
each other, so no variable tells of another; a deck that only some cases draw from (HU classes that hold without
contrast medium, say) still gives those its classes evenly. Values lie well off the thresholds of both rule packs.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from tumorvqa.phantoms.anatomy import EVEN, Plan, Wanted, build
from tumorvqa.phantoms.phantom import Phantom
from tumorvqa.scans import Contrast, Meta
from tumorvqa.structures import KINDS, PLACES

Row = TypeVar("Row")
Range = tuple[float, float]

AGAIN = 16  # of so many cases the last is another scan of the patient before
ATTENUATIONS = ("hypo", "iso", "hyper")
CONTRASTS: tuple[Contrast, ...] = ("plain", "arterial", "plain", "venous", "plain", "venous", "plain", "delayed")
SCANNERS = ("Alder One", "Birch 64", "Cedar CT", "Dogwood X")

# Volumes in cm^3 with the ranges between thresholds: both packs say no, they differ, both say yes
SPLEEN = ((100, 190), (190, 285), (210, 285), (345, 470), (540, 750), (850, 980))
LIVER = ((500, 1050), (1050, 1680), (700, 1680), (700, 1680), (1950, 2800), (3130, 3450), (3130, 3450), (3130, 3450))
PANCREAS = ((27, 45), (45, 70), (45, 76), (35, 76), (88, 95), (111, 125), (115, 140), (125, 140))
KIDNEY = {"small": (92, 190), "large": (276, 328), "between": (222, 246)}
KIDNEYS = (  # left, right, what the comparison says
    ("small", "small", "same"),
    ("large", "large", "same"),
    ("small", "small", "left"),
    ("large", "small", "left"),
    ("large", "between", "left"),
    ("large", "large", "left"),
    ("large", "large", "same"),
    ("small", "small", "same"),
    ("small", "small", "right"),
    ("small", "large", "right"),
    ("between", "large", "right"),
    ("large", "large", "right"),
)
SAME, APART = 0.01, 1.12  # ratio of the kidneys' volumes less 1, and ratio
CAUDATE = ((0.15, 0.35), (0.25, 0.5), (0.8, 0.95), (0.85, 1.05), (0.8, 1.05))

# HU of organs (sd of noise 14 to 18) and of what is always there
ENHANCED: dict[str, dict[str, Range]] = {
    "arterial": {"liver": (60, 80), "spleen": (105, 140), "pancreas": (88, 120), "kidney": (140, 185)},
    "venous": {"liver": (92, 120), "spleen": (108, 135), "pancreas": (82, 110), "kidney": (160, 205)},
    "delayed": {"liver": (78, 95), "spleen": (82, 100), "pancreas": (62, 85), "kidney": (118, 160)},
}
SPLEEN_PLAIN = ((43.0, 49.0), (57.0, 63.0))
KIDNEY_PLAIN = (24.0, 46.0)
GRADES = ("G0", "G1", "G2", "G3")
PANCREAS_TO_SPLEEN = ((0.25, 0.58), (0.84, 1.1))
VESSELS = {"plain": (40.0, 40.0), "arterial": (300.0, 110.0), "venous": (150.0, 165.0), "delayed": (112.0, 115.0)}
VEINS = ("inferior_vena_cava", "portal_vein")
ARTERIES = ("aorta", "superior_mesenteric_artery", "celiac_artery", "common_hepatic_artery")
OTHERS = {
    "colon": (15, 35),
    "gallbladder": (4, 12),
    "stomach": (15, 35),
    "duodenum": (25, 40),
    "adrenal_gland_left": (25, 35),
    "adrenal_gland_right": (25, 35),
    "common_bile_duct": (5, 12),
}

# Number of liver lesions and how they cluster: lesions of each segment, that of the largest somewhere among them
LIVER_LESIONS: tuple[tuple[int, ...], ...] = (
    *[()] * 12,
    *[(1,)] * 3,
    (1, 1),
    (2,),
    (1, 1),
    (3,),  # highly: more than half in one segment
    (3, 1),
    (4, 1),
    (4, 1, 1),
    (2, 2),  # somewhat: three quarters in two
    (2, 2),
    (2, 2, 1),
    (3, 2, 1),
    (1, 1, 1),  # widely
    (1, 1, 1),
    (2, 1, 1, 1),
    (2, 2, 1, 1),
)
NEIGHBOURS = {  # of the largest liver lesion, by the end of its segment's name
    "1": ("duodenum", "kidney_right", "adrenal_gland_right"),
    "2": ("stomach",),
    "3": ("stomach", "gallbladder"),
    "4": ("gallbladder", "stomach"),
    "5": ("colon", "gallbladder", "duodenum"),
    "6": ("kidney_right", "colon", "duodenum"),
    "7": ("kidney_right", "gallbladder", "kidney_right"),
    "8": ("gallbladder", None),
    "left": ("adrenal_gland_left", "colon", None),
    "right": ("adrenal_gland_right", "colon", None),
}

# Number of kidney lesions and the side with far more of them, and the kinds of lesions: of one, of several
KIDNEY_LESIONS = (
    *[(0, "")] * 8,
    *[(1, "left"), (1, "right"), (2, "none"), (2, "right"), (3, "left"), (3, "none")],
    *[(4, "right"), (4, "none"), (5, "left"), (5, "right"), (6, "none"), (6, "left")],
)
KIDNEY_KINDS = (
    (("tumor",), ("cyst",), ("tumor",), ("cyst",), ("lesion",)),
    (("tumor",), ("cyst",), *[("tumor", "cyst")] * 4, ("lesion",), ("tumor", "cyst", "lesion")),
)
CYST_HU = ((-6, 14), (25, 31), (82, 105))  # simple, indeterminate (below 34.8, which says tumour), hyperattenuating
TUMOR_HU = (42, 68)  # without contrast medium
OFF = 6  # HU between a lesion and its organ where they differ

PANCREAS_LESIONS = (0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 6)
PANCREAS_KINDS = (
    (("pdac",), ("pnet",), ("cyst",), ("pdac",), ("pnet",), ("cyst",), ("lesion",)),
    (
        *[("pdac",), ("pnet",), ("cyst",), ("pdac", "pnet"), ("cyst", "lesion")],
        *[("pdac", "cyst"), ("pnet", "cyst")] * 3,
    ),
)
STAGES = {  # stage and contact: none, an angle the rules call borderline, or one that makes it T4
    "pdac": (
        ("T4", 270),
        ("T4", 270),
        ("T4", 260),
        ("T1", 0),
        ("T2", 0),
        ("T3", 0),
        ("T3", 0),
        ("T1", 90),
        ("T2", 90),
        ("T2", 80),
    ),
    "pnet": (*[("T1", 0)] * 3, ("T2", 0), *[("T3", 0)] * 3, ("T4", 265)),
}
LONG_MM = {"T1": (11.5, 17.5), "T2": (23, 36), "T3": (45.5, 49), "T4": (22, 27)}
PSEUDOCYST_HU = ((-4, 7), (22, 45))
RESECTED_CYST_MM = ((11, 22), (36, 42))  # not above 3 cm and 3 cm^3, above 3 cm
COLON_LESIONS = (0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6)
BURDENS = (  # organs by burden; the pancreas, which is small, often leads unasked
    ("liver", "kidney", "pancreas"),
    ("liver", "pancreas", "kidney"),
    ("kidney", "liver", "pancreas"),
    ("kidney", "pancreas", "liver"),
    ("pancreas", "liver", "kidney"),
)
SEVERAL = 3  # lesions, of which one may be an outlier
OUTLIER_SHARE = 0.27  # of the largest's radius


def draw_all(count: int, seed: int) -> list[Phantom]:
    return [build(plan) for plan in plans(count, seed)]


def draw(index: int, seed: int) -> Phantom:
    """The phantom that `draw_all` has at this place."""
    return build(plans(index + 1, seed)[index])


def plans(count: int, seed: int) -> list[Plan]:
    """The answers of the first cases, in order; a longer list begins with the shorter one."""
    decks, rows = Decks(seed), list[Plan]()
    for index in range(count):
        random = np.random.default_rng([seed, index, 3])
        again = rows[-1] if index % AGAIN == AGAIN - 1 else None
        rows.append(planned(index, seed, decks, random, again))
    return rows


def case_name(index: int) -> str:
    return f"phantom_{index:05d}"


class Decks:
    """Rows of tables in turn, shuffled anew each time round; a deck for each name."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dealt: dict[str, int] = {}

    def __call__(self, name: str, rows: Sequence[Row]) -> Row:
        count = self.dealt[name] = self.dealt.get(name, -1) + 1
        order = np.random.default_rng([self.seed, zlib.crc32(name.encode()), count // len(rows)]).permutation(len(rows))
        return rows[int(order[count % len(rows)])]


def planned(index: int, seed: int, decks: Decks, random: np.random.Generator, again: Plan | None) -> Plan:
    """One case; if `again` is given, the same body with another contrast, scanner and noise."""
    contrasts: Sequence[Contrast] = CONTRASTS
    if again:
        contrasts = ("venous",) if again.meta.contrast == "plain" else ("plain",)
    contrast = decks(f"contrast {len(contrasts)}", contrasts)
    hu = tissues(contrast, decks, random)
    if again:
        meta = replace(again.meta, contrast=contrast, scanner=str(random.choice(SCANNERS)))
        plan = replace(again, case=case_name(index), scan=index + 1000003 * seed, meta=meta, hu=hu)
        return replace(plan, lesions=coloured(again.lesions, hu, contrast, decks, random))
    truncated = decks("truncated", (False,) * 11 + (True,))
    lesions = {
        "liver": liver_lesions(decks, random, truncated),
        "kidney": kidney_lesions(decks, random),
        "pancreas": pancreas_lesions(decks, random),
        "colon": colon_lesions(decks, random),
    }
    annotated = []
    for organ, kinds in KINDS.items():
        if decks(f"{organ} annotated", (True,) * 15 + (False,)):
            present = {row.kind for row in lesions[organ]}
            annotated += [f"{organ}_{kind}" for kind in kinds if kind in present or random.random() < 0.92]
        else:
            lesions[organ] = ()
    order = decks("burden", BURDENS)
    if lesions["liver"] and order[0] == "liver" and (lesions["kidney"] or lesions["pancreas"]):
        lesions["liver"] = tuple(replace(row, near=None) for row in lesions["liver"])  # room to be large
        lesions["kidney"] = tuple(replace(row, share=max(row.share, EVEN)) for row in lesions["kidney"])
    return Plan(
        case_name(index),
        f"phantom-{seed}-{index}",
        index + 1000003 * seed,
        index + 1000003 * seed,
        Meta(decks("sex", ("female", "male")), int(random.integers(24, 90)), contrast, decks("scanner", SCANNERS)),
        volumes(decks, random),
        hu,
        float(random.uniform(*decks("caudate", CAUDATE))),
        coloured(lesions, hu, contrast, decks, random),
        order,
        tuple(annotated),
        truncated,
    )


def volumes(decks: Decks, random: np.random.Generator) -> dict[str, float]:
    left, right, larger = decks("kidneys", KIDNEYS)
    one, other = random.uniform(*KIDNEY[left]), random.uniform(*KIDNEY[right])
    if larger == "same":
        other = one * random.uniform(1 - SAME, 1 + SAME)
    elif left == right:
        low, high = KIDNEY[left]
        small = random.uniform(low, high / APART / 1.02)
        large = random.uniform(small * APART, high)
        one, other = (large, small) if larger == "left" else (small, large)
    spleen = decks("spleen", (0, 1, 2, 3, 4, 5))
    return {
        "liver": float(random.uniform(*decks("liver", LIVER))),
        "spleen": float(random.uniform(*SPLEEN[spleen])),
        "pancreas": float(random.uniform(*decks("pancreas", PANCREAS))),
        "kidney_left": float(one),
        "kidney_right": float(other),
    }


def tissues(contrast: Contrast, decks: Decks, random: np.random.Generator) -> dict[str, float]:
    """Mean HU of every organ and vessel. Without contrast medium the liver's steatosis and the pancreas's are drawn."""

    def value(ends: Range) -> float:
        return round(float(random.uniform(*ends)), 1)

    hu = {name: value(ends) for name, ends in OTHERS.items()}
    if contrast == "plain":
        hu["spleen"] = value(decks("spleen HU", SPLEEN_PLAIN))
        hu["liver"] = fatty(decks("grade", GRADES), hu["spleen"], random)
        hu["pancreas"] = round(hu["spleen"] * value(decks("pancreas HU", PANCREAS_TO_SPLEEN)), 1)
        kidney = value(KIDNEY_PLAIN)
    else:
        hu |= {organ: value(ENHANCED[contrast][organ]) for organ in ("liver", "spleen", "pancreas")}
        kidney = value(ENHANCED[contrast]["kidney"])
    artery, vein = VESSELS[contrast]
    hu |= dict.fromkeys(VEINS, vein) | dict.fromkeys(ARTERIES, artery)
    return hu | {"kidney_left": kidney, "kidney_right": kidney}


def fatty(grade: str, spleen: float, random: np.random.Generator) -> float:
    """HU of a liver of a grade of steatosis: the worse of what its HU and its ratio to the spleen say, with the ratio
    off 1, which is where fatty liver begins.
    """
    low, high = {
        "G0": (max(60.0, 1.07 * spleen), 74.0),
        "G1": (53.0, 56.0),
        "G2": (max(41.5, 0.55 * spleen), min(48.0, 0.94 * spleen)),
        "G3": (12.0, 36.0),
    }[grade]
    return round(float(random.uniform(min(low, high), high)), 1)


def coloured(
    lesions: dict[str, tuple[Wanted, ...]],
    hu: dict[str, float],
    contrast: Contrast,
    decks: Decks,
    random: np.random.Generator,
) -> dict[str, tuple[Wanted, ...]]:
    """Lesions with their HU. Where rules give HU a meaning it is drawn from their classes, all of a kind in the same
    one; else darker, as bright as or brighter than the organ: the largest in turn, the others by chance.
    """
    return {organ: colours(organ, rows, hu, contrast, decks, random) for organ, rows in lesions.items()}


def colours(
    organ: str,
    rows: tuple[Wanted, ...],
    hu: dict[str, float],
    contrast: Contrast,
    decks: Decks,
    random: np.random.Generator,
) -> tuple[Wanted, ...]:
    host, plain = hu.get(organ, hu["kidney_left"]), contrast == "plain"
    ranges: dict[str, Range] = {}
    kinds = {row.kind for row in rows}
    if organ == "kidney" and "cyst" in kinds:
        ranges["cyst"] = decks(f"cyst HU {plain}", CYST_HU)
    if organ == "pancreas" and "cyst" in kinds:
        ranges["cyst"] = decks(f"pseudocyst HU {plain}", PSEUDOCYST_HU)
    if organ == "kidney" and plain:
        ranges["tumor"] = TUMOR_HU
        if "lesion" in kinds:
            ranges["lesion"] = decks("untyped kidney HU", (TUMOR_HU, CYST_HU[0]))
    result = []
    for rank, row in enumerate(rows):
        look = decks(f"{organ} attenuation", ATTENUATIONS) if rank == 0 else str(random.choice(("hypo", "hyper")))
        free = {"hypo": (host - 50, host - 15), "iso": (host, host), "hyper": (host + 15, host + 50)}[look]
        low, high = ranges.get(row.kind, free)
        tries = random.uniform(low, high, 50)
        clear = tries[np.abs(tries - host) >= OFF]
        value = host if look == "iso" and low <= host <= high else clear[0] if clear.size else high
        result.append(replace(row, hu=round(float(value), 1)))
    return tuple(result)


def liver_lesions(decks: Decks, random: np.random.Generator, truncated: bool) -> tuple[Wanted, ...]:
    groups = decks("liver lesions", LIVER_LESIONS)
    if not groups:
        return ()
    largest = decks("liver location", PLACES["liver"])
    rest = [name for name in PLACES["liver"] if name != largest]
    random.shuffle(rest)
    sizes = list(groups)
    random.shuffle(sizes)
    places = [largest] * (sizes[0] - 1)
    for name, size in zip(rest, sizes[1:], strict=False):
        places += [name] * size
    random.shuffle(places)
    near = None if truncated else decks(f"near {largest[-1]}", NEIGHBOURS[largest[-1]])
    shares = falling(decks, "liver", sum(groups), random)
    kinds = [str(random.choice(KINDS["liver"])) for _ in shares]
    return tuple(
        Wanted(kind, place, 0.0, share, near=near if rank == 0 else None)
        for rank, (kind, place, share) in enumerate(zip(kinds, [largest, *places], shares, strict=True))
    )


def falling(decks: Decks, organ: str, count: int, random: np.random.Generator) -> list[float]:
    """Radii relative to the largest: well below it, or, of an outlier, a quarter of it."""
    if count >= SEVERAL and decks(f"{organ} outlier", (True, False)):
        return [1.0] + [OUTLIER_SHARE] * (count - 1)
    return [1.0, *sorted(random.uniform(0.55, 0.86, count - 1).tolist(), reverse=True)]


def kidney_lesions(decks: Decks, random: np.random.Generator) -> tuple[Wanted, ...]:
    count, more = decks("kidney lesions", KIDNEY_LESIONS)
    if not count:
        return ()
    kinds = list(decks(f"kidney kinds {count > 1}", KIDNEY_KINDS[count > 1]))[:count]
    kinds += [str(random.choice(kinds)) for _ in range(count - len(kinds))]
    random.shuffle(kinds)
    if more == "none":
        first = decks("kidney location", ("left", "right"))
        many = count // 2  # of lesions on the other side, together 6/7 of the volume
        shares = [1.0] + [0.5] * (count - many - 1)
        other = (sum(share**3 for share in shares) * 0.86 / many) ** (1 / 3)
        sides = [first] * len(shares) + [opposite(first)] * many
        shares += [other] * many
    else:
        shares = falling(decks, "kidney", count, random)
        sides = [more] + [opposite(more) if share < 0.6 and random.random() < 0.5 else more for share in shares[1:]]
        if min(shares) > OUTLIER_SHARE and count > 2 and opposite(more) not in sides:
            sides[-1], shares[-1] = opposite(more), 0.55
    near = decks(f"near {sides[0]}", NEIGHBOURS[sides[0]])
    rows = [
        Wanted(kind, f"kidney_{side}", 0.0, share, near=near if rank == 0 else None)
        for rank, (kind, side, share) in enumerate(zip(kinds, sides, shares, strict=True))
    ]
    return tuple(sorted(rows, key=lambda row: -row.share))


def opposite(side: str) -> str:
    return {"left": "right", "right": "left"}[side]


def pancreas_lesions(decks: Decks, random: np.random.Generator) -> tuple[Wanted, ...]:
    """One lesion of each kind with a length that its rule asks for, in a part of its own; the rest small."""
    count = decks("pancreas lesions", PANCREAS_LESIONS)
    if not count:
        return ()
    kinds = decks(f"pancreas kinds {count > 1}", PANCREAS_KINDS[count > 1])[:count]
    first = decks("pancreas location", PLACES["pancreas"])
    places = [first, *(name for name in PLACES["pancreas"] if name != first)]
    rows = list[Wanted]()
    for kind in kinds:
        vessel, degrees = None, 0
        if kind in STAGES:
            stage, degrees = decks(f"stage {kind}", STAGES[kind])
            long_mm = random.uniform(*LONG_MM[stage])
            if degrees:
                vessel = (
                    decks("vessel", ("superior_mesenteric_artery", "celiac_artery"))
                    if degrees > 180
                    else ("superior_mesenteric_artery")
                )
                long_mm = min(long_mm, 27.0)
            if vessel in {row.vessel for row in rows}:
                vessel, degrees = None, 0
        elif kind == "cyst":
            long_mm = random.uniform(*decks("pancreas cyst", RESECTED_CYST_MM))
        else:
            long_mm = random.uniform(12, 30)
        rows.append(Wanted(kind, "", 0.0, 1.0, float(long_mm), vessel, float(degrees)))
    rows.sort(key=lambda row: -row.long_mm)
    rows = [replace(row, place=place) for row, place in zip(rows, places, strict=False)]
    small = [
        Wanted(str(random.choice(kinds)), str(random.choice(places)), 0.0, 1.0, float(random.uniform(9, 10)))
        for _ in range(count - len(rows))
    ]
    return (*rows, *small)


def colon_lesions(decks: Decks, random: np.random.Generator) -> tuple[Wanted, ...]:
    count = decks("colon lesions", COLON_LESIONS)
    sizes = sorted(random.uniform(10, 24, count).tolist(), reverse=True)
    return tuple(Wanted("lesion", "colon", 0.0, 1.0, size) for size in sizes)
