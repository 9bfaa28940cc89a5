"""The 42 subtypes of DeepTumorVQA as rows: what each is asked about, and the program that answers it.

Names and groups are the authors'; templates and what their papers leave open are ours.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

from dnt.lookup import lookup
from tumorvqa.asking.look import (
    YES_NO,
    Class,
    Look,
    NotAsked,
    Number,
    both,
    distance,
    either,
    of_rule,
    place_of,
)
from tumorvqa.asking.quantities import ARTERIES, QUANTITIES, arteries, contact, diameter
from tumorvqa.measurements import Lesion
from tumorvqa.question import GROUPS
from tumorvqa.structures import HOSTS, MEASURED, PLACES

Arguments = dict[str, str]
Program = Callable[..., Number | Class]


@dataclass(frozen=True)
class Subtype:
    """`about`: the arguments that it can be asked about. `alike`: those whose values are alike to somebody who sees no
    image, so that answers are balanced over all of them together, and a case is asked at most `most` of them.
    """

    name: str
    group: str
    program: Program
    about: tuple[Arguments, ...] = ({},)
    alike: tuple[str, ...] = ()
    most: int = 2


def existence(look: Look, organ: str, kind: str | None = None) -> Class:
    """Yes if a lesion was kept; no only where somebody looked for every kind that is asked for."""
    return Class("yes" if look.lesions(organ, kind) else "no", YES_NO)


def by_rule(name: str) -> Callable[..., Class]:
    """The class of the quantity that a rule names."""

    def program(look: Look, **arguments: str) -> Class:
        rule = look.rule(name.format(**arguments))
        return of_rule(rule, lookup(QUANTITIES, rule.quantity, f"quantity (of the rule {rule.name})")(look))

    return program


def hu_ratio(look: Look, organ: str) -> Number:
    if look.at.meta.contrast != "plain":
        raise NotAsked("ratios of HU are asked of plain scans")
    ratio = look.hu(organ) / look.hu("spleen")
    if ratio.value <= 2 * ratio.uncertainty:
        raise NotAsked(f"the ratio is {ratio.value:.2f}")
    return ratio


def total_lesion_volume(look: Look, organ: str) -> Number:
    return look.lesion_volume(look.all_lesions(organ, some=True), f"{organ} lesions")


def burden(look: Look, organ: str) -> Number:
    look.all_lesions(organ, some=True)
    return look.burden(organ)


def count(look: Look, organ: str) -> Number:
    return Number(float(len(look.all_lesions(organ))), 0.0, "lesions")


def count_in(look: Look, organ: str, place: str) -> Number:
    found = look.all_lesions(organ, some=True)
    look.parts(organ)
    look.shown.append(place)
    inside = sum(place_of(lesion) == place for lesion in found)
    look.note("measure", f"lesions in {place}", inside)
    return Number(float(inside), 0.0, "lesions")


def largest_diameter(look: Look, organ: str) -> Number:
    return diameter(look, look.largest(organ))


def largest_slice(look: Look, organ: str) -> Number:
    return look.measured(look.largest(organ).slice, "axial slice of its longest diameter")


def largest_location(look: Look, organ: str) -> Class:
    parts, lesion = look.parts(organ), look.largest(organ)
    place = place_of(lesion)
    look.shown.append(place)
    return Class(place, parts)


def difference(look: Look, lesion: Lesion) -> Number:
    """Mean HU of a lesion less that of its organ (of the kidney in which it lies)."""
    organ = place_of(lesion) if lesion.organ == "kidney" else lesion.organ
    return look.measured(lesion.hu, "mean HU of the lesion") - look.hu(organ)


def hu_difference(look: Look, organ: str) -> Number:
    return difference(look, look.largest(organ))


def attenuation(look: Look, organ: str) -> Class:
    """iso: within a tenth of the organ's standard deviation of its mean, as RadGPT has it."""
    lesion = look.largest(organ)
    gap = difference(look, lesion)
    within = look.hu_sd(place_of(lesion) if organ == "kidney" else organ).value / 10
    value = "isoattenuating" if abs(gap.value) < within else "hypoattenuating" if gap.value < 0 else "hyperattenuating"
    return Class(value, ("hypoattenuating", "isoattenuating", "hyperattenuating"), distance(gap, (-within, within)))


def aggregate(look: Look, what: str, organs: str) -> Number:
    """The volume, or the number of lesions, of several organs together."""
    parts = [look.volume(name) if what == "volume" else count(look, name) for name in organs.split("+")]
    return reduce(Number.__add__, parts)


def compare_segments(look: Look, first: str, second: str) -> Class:
    found = look.all_lesions("liver", some=True)
    look.parts("liver")
    look.shown += [first, second]
    counts = Counter(place_of(lesion) for lesion in found)
    for name in (first, second):
        look.note("measure", f"lesions in {name}", counts[name])
    value = "same" if counts[first] == counts[second] else first if counts[first] > counts[second] else second
    return Class(value, (first, second, "same"))


NEAR = 5.0  # mm


def adjacent(look: Look, organ: str) -> Class:
    """The organ nearest to the largest lesion, within 5 mm; NotAsked if a second one is as near."""
    lesion = look.largest(organ)
    others = [name for name in NEIGHBORS if name not in HOSTS[organ] and name in look.at.organs]
    for name in others:
        look.usable(name, "empty", "too_small")
    gaps = sorted(
        (gap.value, gap.uncertainty, name)
        for name, gap in lesion.gaps.items()
        if gap.value is not None and gap.status == "ok" and name in others
    )
    if not gaps or gaps[0][0] > NEAR:
        raise NotAsked("no organ is near the largest lesion")
    value, uncertainty, nearest = gaps[0]
    look.shown.append(nearest)
    look.note("measure", f"gap to {nearest}", round(value, 1), "mm")
    margin = (NEAR - value) / max(uncertainty, 1e-9)
    if len(gaps) > 1:
        margin = min(margin, (gaps[1][0] - value) / max(uncertainty, 1e-9))
    return Class(nearest, tuple(others), margin)


NEIGHBORS = (*MEASURED, "colon", "gallbladder", "stomach", "duodenum", "adrenal_gland_left", "adrenal_gland_right")


def larger_kidney(look: Look) -> Class:
    """left, right, or same: within 5%."""
    return larger(look.volume("kidney_left"), look.volume("kidney_right"), 1.05, ("left", "right", "same"))


def larger(left: Number, right: Number, factor: float, names: tuple[str, str, str]) -> Class:
    """Which exceeds the other by a factor; names[2] if neither does."""
    surplus = [left - right.times(factor, left.unit), right - left.times(factor, left.unit)]
    margin = min(distance(number, (0.0,)) for number in surplus)
    return Class(names[0] if surplus[0].value > 0 else names[1] if surplus[1].value > 0 else names[2], names, margin)


def asymmetry(look: Look) -> Class:
    """The side with at least 1.5 times the lesion volume of the other."""
    found = look.all_lesions("kidney", some=True)
    look.parts("kidney")
    sides = [[x for x in found if place_of(x) == side] for side in PLACES["kidney"]]
    left, right = (
        look.lesion_volume(some, f"{side} lesions") for some, side in zip(sides, ("left", "right"), strict=True)
    )
    return larger(left, right, 1.5, ("left", "right", "neither"))


def outlier(look: Look, organ: str) -> Class:
    """Of three lesions or more: is the largest at least three times the second?"""
    found = look.all_lesions(organ)
    if len(found) < 3:
        raise NotAsked(f"{len(found)} lesions of the {organ}; an outlier is asked for among three or more")
    largest, second = (look.lesion_volume([lesion], f"lesion {lesion.rank}") for lesion in found[:2])
    surplus = largest - second.times(3, "cm^3")
    return Class("yes" if surplus.value >= 0 else "no", YES_NO, distance(surplus, (0.0,)))


def clustering(look: Look) -> Class:
    """More than half of the liver's lesions in one segment: highly; three quarters in two: somewhat; else widely."""
    found = look.all_lesions("liver")
    look.parts("liver")
    if len(found) < 2:
        raise NotAsked("clustering is asked of two or more lesions")
    counts = [number for _, number in Counter(place_of(lesion) for lesion in found).most_common(2)]
    look.note("measure", "lesions in the segment with most", counts[0])
    value = "highly clustered" if 2 * counts[0] > len(found) else "widely distributed"
    if value == "widely distributed" and 4 * sum(counts) >= 3 * len(found):
        value = "somewhat clustered"
    return Class(value, ("highly clustered", "somewhat clustered", "widely distributed"))


def greatest_burden(look: Look) -> Class:
    """The organ of liver, kidneys, pancreas with the greatest share of lesion."""
    burdens = {host: look.burden(host) for host in ("liver", "kidney", "pancreas")}
    first, second = sorted(burdens, key=lambda host: -burdens[host].value)[:2]
    if burdens[first].value == 0:
        raise NotAsked("no lesion")
    return Class(first, tuple(burdens), distance(burdens[first] - burdens[second], (0.0,)))


def steatosis(look: Look) -> Class:
    """The worse of the grades by HU and by ratio to the spleen."""
    grades = [by_rule(f"liver.steatosis.{of}")(look) for of in ("hu", "ratio")]
    return Class(max(grade.value for grade in grades), tuple(reversed(grades[0].domain)), least_margin(grades))


def least_margin(found: list[Class]) -> float:
    return min(one.margin for one in found if one.margin is not None)


def portal_hypertension(look: Look) -> Class:
    return both(by_rule("spleen.enlarged")(look), by_rule("portal_hypertension.caudate")(look))


def lesion_type(look: Look) -> Class:
    """What the mask says the largest kidney lesion is; by HU where it does not say."""
    lesion = look.largest("kidney")
    if lesion.kind in ("tumor", "cyst"):
        look.note("knowledge", "class of the mask", lesion.kind)
        return Class(lesion.kind, ("cyst", "tumor"))
    return by_rule("kidney_lesion.type")(look)


def renal_mass(look: Look) -> Class:
    if look.largest("kidney").kind == "tumor":
        raise NotAsked("the largest kidney lesion is a tumor by its mask")
    return by_rule("kidney_lesion.character")(look)


def cyst_resectability(look: Look) -> Class:
    large = [by_rule(f"pancreatic_cyst.large_{of}")(look) for of in ("volume", "diameter")]
    return either(*large)


def stage(look: Look) -> Class:
    """T4 if an artery is involved, else by diameter."""
    size, rule, lesion = by_rule("pdac.stage")(look), look.rule("pdac.artery"), look.largest("pancreas", "pdac")
    invaded = reduce(either, [of_rule(rule, contact(look, lesion, name)) for name in arteries(look)])
    domain = (*size.domain, "T4")
    if invaded.value == "yes":
        return Class("T4", domain, invaded.margin)
    return Class(size.value, domain, least_margin([size, invaded]))


def resectability(look: Look) -> Class:
    """NCCN, as RadGPT applies it; NotAsked where it has no label."""
    rule = look.rule("pdac.vessels")
    lesion = look.largest("pancreas", "pdac")
    look.parts("pancreas")
    touched = {name: contact(look, lesion, name) for name in (*arteries(look), "portal_vein", "inferior_vena_cava")}
    sma, celiac, portal, cava = (touched[name].value for name in (*ARTERIES[:2], "portal_vein", "inferior_vena_cava"))
    most = rule.cuts[0]
    domain = ("resectable", "borderline resectable", "unresectable")
    margin = min(distance(number, (0.0, most) if number.uncertainty else (most,)) for number in touched.values())
    if not any(number.value for name, number in touched.items() if name != "inferior_vena_cava"):
        return Class(domain[0], domain, margin)
    in_head = place_of(lesion) == "pancreas_head"
    if sma > most or (in_head and (celiac > 0 or cava > 0)) or (not in_head and celiac > most):
        return Class(domain[2], domain, margin)
    if portal == 0 and celiac == 0:
        return Class(domain[1], domain, margin)
    raise NotAsked("the rule has no label for these contacts")


def pdac_or_pnet(look: Look) -> Class:
    kind = look.largest("pancreas").kind
    if kind not in ("pdac", "pnet"):
        raise NotAsked(f"the largest pancreatic lesion is a {kind} by its mask")
    look.note("knowledge", "class of the mask", kind.upper())
    return Class(kind.upper(), ("PDAC", "PNET"))


def each(name: str, values: tuple[str, ...]) -> tuple[Arguments, ...]:
    return tuple({name: value} for value in values)


SOLID = ("liver", "kidney", "pancreas")
VOLUMES = ("liver+spleen", "kidney_left+kidney_right", "liver+pancreas", "spleen+pancreas", "liver+spleen+pancreas")
COUNTS = ("liver+kidney", "liver+pancreas", "kidney+pancreas", "liver+kidney+pancreas")
SUMS = tuple(
    {"what": what, "organs": organs} for what, of in (("volume", VOLUMES), ("lesions", COUNTS)) for organs in of
)
COUNTED = tuple({"organ": organ, "place": place} for organ in SOLID for place in PLACES[organ])
PAIRS = tuple({"first": a, "second": b} for a, b in combinations(PLACES["liver"], 2))
RECOGNITION, MEASUREMENT, VISUAL, MEDICAL = GROUPS

ROWS = (
    Subtype("liver lesion existence", RECOGNITION, lambda look: existence(look, "liver")),
    Subtype("kidney lesion existence", RECOGNITION, lambda look: existence(look, "kidney")),
    Subtype("pancreatic lesion existence", RECOGNITION, lambda look: existence(look, "pancreas")),
    Subtype("colon lesion existence", RECOGNITION, lambda look: existence(look, "colon")),
    Subtype("kidney tumor existence", RECOGNITION, lambda look: existence(look, "kidney", "tumor")),
    Subtype("kidney cyst existence", RECOGNITION, lambda look: existence(look, "kidney", "cyst")),
    Subtype("PDAC existence", RECOGNITION, lambda look: existence(look, "pancreas", "pdac")),
    Subtype("PNET existence", RECOGNITION, lambda look: existence(look, "pancreas", "pnet")),
    Subtype("splenomegaly detection", RECOGNITION, by_rule("spleen.enlarged")),
    Subtype(
        "organ volume measurement",
        MEASUREMENT,
        lambda look, organ: look.volume(organ),
        each("organ", MEASURED),
    ),
    Subtype(
        "organ HU measurement",
        MEASUREMENT,
        lambda look, organ: look.hu(organ),
        each("organ", MEASURED),
    ),
    Subtype(
        "lesion volume measurement",
        MEASUREMENT,
        total_lesion_volume,
        each("organ", tuple(HOSTS)),
    ),
    Subtype("organ HU ratio", MEASUREMENT, hu_ratio, each("organ", ("liver", "pancreas"))),
    Subtype("tumor burden percentage", MEASUREMENT, burden, each("organ", SOLID)),
    Subtype("lesion counting", VISUAL, count, each("organ", tuple(HOSTS))),
    Subtype("lesion count by location", VISUAL, count_in, COUNTED, ("place",)),
    Subtype("largest lesion diameter", VISUAL, largest_diameter, each("organ", tuple(HOSTS))),
    Subtype("largest lesion slice", VISUAL, largest_slice, each("organ", tuple(HOSTS))),
    Subtype("largest lesion location", VISUAL, largest_location, each("organ", SOLID)),
    Subtype("largest lesion attenuation", VISUAL, attenuation, each("organ", SOLID)),
    Subtype("tumor organ HU difference", VISUAL, hu_difference, each("organ", SOLID)),
    Subtype("organ aggregation", VISUAL, aggregate, SUMS),
    Subtype("inter-segment comparison", VISUAL, compare_segments, PAIRS, alike=("first", "second")),
    Subtype("adjacent organ", VISUAL, adjacent, each("organ", SOLID)),
    Subtype("kidney volume comparison", VISUAL, larger_kidney),
    Subtype("bilateral kidney asymmetry", VISUAL, asymmetry),
    Subtype("lesion outlier", VISUAL, outlier, each("organ", SOLID)),
    Subtype("liver lesion clustering", VISUAL, clustering),
    Subtype("multi-organ lesion burden comparison", VISUAL, greatest_burden),
    Subtype("organ enlargement", VISUAL, by_rule("{organ}.enlarged"), each("organ", MEASURED)),
    Subtype("fatty liver", MEDICAL, by_rule("liver.fatty")),
    Subtype("hepatic steatosis grading", MEDICAL, steatosis),
    Subtype("pancreatic steatosis", MEDICAL, by_rule("pancreas.fatty")),
    Subtype("splenomegaly grading", MEDICAL, by_rule("spleen.grade")),
    Subtype("portal hypertension assessment", MEDICAL, portal_hypertension),
    Subtype("lesion type classification", MEDICAL, lesion_type),
    Subtype("renal mass characterization", MEDICAL, renal_mass),
    Subtype("pseudocyst determination", MEDICAL, by_rule("pancreatic_cyst.pseudocyst")),
    Subtype("pancreatic cyst resectability", MEDICAL, cyst_resectability),
    Subtype("pancreatic tumor staging", MEDICAL, stage),
    Subtype("pancreatic lesion resectability", MEDICAL, resectability),
    Subtype("PDAC vs PNET classification", MEDICAL, pdac_or_pnet),
)
SUBTYPES = {row.name: row for row in ROWS}
