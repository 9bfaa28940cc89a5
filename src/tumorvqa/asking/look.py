"""Looking at the measurements of one case, a step of the trace at a time: what programs are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tumorvqa.measurements import Lesion, Measurement, Measurements, Organ
from tumorvqa.question import Step, Value
from tumorvqa.rules.packs import Pack, Rule
from tumorvqa.structures import HOSTS, KINDS, PLACES, STRUCTURES


class NotAsked(Exception):
    """Why a question has no answer in this case, or none that is certain enough to be asked for."""


@dataclass(frozen=True)
class Number:
    """A value with one standard deviation of its error; arithmetic takes errors as independent."""

    value: float
    uncertainty: float
    unit: str

    def __add__(self, other: "Number") -> "Number":
        return Number(self.value + other.value, math.hypot(self.uncertainty, other.uncertainty), self.unit)

    def __sub__(self, other: "Number") -> "Number":
        return Number(self.value - other.value, math.hypot(self.uncertainty, other.uncertainty), self.unit)

    def __truediv__(self, other: "Number") -> "Number":
        """NotAsked if the denominator is not clearly above 0."""
        if other.value <= 2 * other.uncertainty:
            raise NotAsked(f"a denominator is {other.value:.1f} {other.unit}")
        ratio = self.value / other.value
        return Number(ratio, math.hypot(self.uncertainty, ratio * other.uncertainty) / other.value, "ratio")

    def times(self, factor: float, unit: str) -> "Number":
        return Number(factor * self.value, abs(factor) * self.uncertainty, unit)


@dataclass(frozen=True)
class Class:
    """One of `domain`, and how many uncertainties its inputs are from another one (None: nothing measured)."""

    value: str
    domain: tuple[str, ...]
    margin: float | None = None


def of_rule(rule: Rule, number: Number) -> Class:
    value = rule.classes[rule.place(number.value)]
    if not value:
        raise NotAsked(f"{rule.name} says nothing of {number.value:.1f} {number.unit}")
    return Class(value, tuple(name for name in rule.classes if name), distance(number, rule.cuts))


def distance(number: Number, cuts: Sequence[float]) -> float:
    """From the nearest cut, in uncertainties."""
    return min(abs(number.value - cut) for cut in cuts) / max(number.uncertainty, 1e-9)


def both(one: Class, other: Class) -> Class:
    """Yes if both are: a yes is as certain as the less certain, a no as the most certain no."""
    margins = {value: [m.margin or 0 for m in (one, other) if m.value == value] for value in ("yes", "no")}
    return Class("no", YES_NO, max(margins["no"])) if margins["no"] else Class("yes", YES_NO, min(margins["yes"]))


def either(one: Class, other: Class) -> Class:
    return opposite(both(opposite(one), opposite(other)))


def opposite(answer: Class) -> Class:
    return Class("yes" if answer.value == "no" else "no", answer.domain, answer.margin)


YES_NO = ("no", "yes")


@dataclass
class Look:
    """Reads measurements for one question; `steps` becomes its trace, `shown` and `lesion` its evidence."""

    at: Measurements
    pack: Pack
    steps: list[Step] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    lesion: Lesion | None = None

    def note(self, tool: str, what: str, result: Value, unit: str = "") -> None:
        step = Step(tool, what, result, unit)  # type: ignore[arg-type]  # one of three words
        if step not in self.steps:
            self.steps.append(step)

    def organ(self, name: str) -> Organ:
        if name not in self.at.organs:
            raise NotAsked(f"{name}: not annotated")
        self.shown.append(name)
        self.note("segment", STRUCTURES[name].title, "found")
        return self.at.organs[name]

    def usable(self, name: str, *statuses: str) -> None:
        """NotAsked unless the mask of a structure is one to judge distances and places by."""
        status = self.at.organs[name].volume.status if name in self.at.organs else "not annotated"
        if status not in ("ok", "truncated", *statuses):
            raise NotAsked(f"{name}: {status}")

    def parts(self, organ: str) -> tuple[str, ...]:
        """The parts of an organ, each with a mask, if an empty one."""
        for name in PLACES[organ]:
            self.usable(name, "empty", "too_small")
        return PLACES[organ]

    def measured(self, measurement: Measurement, what: str) -> Number:
        """The number, if it is one to rely on."""
        if measurement.value is None or measurement.status != "ok":
            raise NotAsked(f"{what}: {measurement.status}")
        self.note("measure", what, round(measurement.value, 2), measurement.unit)
        return Number(measurement.value, measurement.uncertainty, measurement.unit)

    def volume(self, name: str) -> Number:
        return self.measured(self.organ(name).volume, f"volume of the {STRUCTURES[name].title}")

    def hu(self, name: str) -> Number:
        return self.measured(self.organ(name).hu, f"mean HU of the {STRUCTURES[name].title} without lesions")

    def hu_sd(self, name: str) -> Number:
        return self.measured(self.organ(name).hu_sd, f"standard deviation of HU of the {STRUCTURES[name].title}")

    def annotated(self, host: str, kind: str | None = None) -> bool:
        """Whether somebody looked for lesions (of that kind) of the organ: no lesion then means none."""
        if kind is not None:
            return f"{host}_{kind}" in self.at.annotated
        typed = [f"{host}_{kind}" in self.at.annotated for kind in KINDS[host] if kind != "lesion"]
        return f"{host}_lesion" in self.at.annotated or bool(typed and all(typed))

    def lesions(self, host: str, kind: str | None = None, some: bool = False) -> list[Lesion]:
        """The lesions of an organ (of one kind), largest first; with `some` there must be one."""
        found = sorted((x for x in self.at.lesions if x.organ == host and kind in (None, x.kind)), key=lambda x: x.rank)
        if not found and not self.annotated(host, kind):
            raise NotAsked(f"lesions of the {host}: not annotated")
        if some and not found:
            raise NotAsked(f"lesions of the {host}: none")
        where = dict.fromkeys(f"{host}_{x.kind}" for x in found) or (x for x in HOSTS[host] if x in self.at.organs)
        self.shown += where
        what = STRUCTURES[f"{host}_{kind or 'lesion'}"].title
        self.note("segment", f"{what}s", len(found), "found")
        return found

    def all_lesions(self, host: str, some: bool = False) -> list[Lesion]:
        """Of every kind; only where no lesion can have been left out."""
        if not self.annotated(host):
            raise NotAsked(f"lesions of the {host}: not all annotated")
        return self.lesions(host, some=some)

    def largest(self, host: str, kind: str | None = None) -> Lesion:
        """By volume; NotAsked if another is as large within twice the error, or any is cut off by the scan."""
        found = self.lesions(host, kind, some=True) if kind else self.all_lesions(host, some=True)
        if cut := [x.volume.status for x in found if x.volume.status != "ok"]:
            raise NotAsked(f"a lesion of the {host}: {cut[0]}")
        if len(found) > 1:
            one, two = (Number(x.volume.value or 0, x.volume.uncertainty, "cm^3") for x in found[:2])
            if (one - two).value < 2 * (one - two).uncertainty:
                raise NotAsked(f"two lesions of the {host} are equally large")
        self.lesion = found[0]
        return found[0]

    def lesion_volume(self, found: Sequence[Lesion], what: str) -> Number:
        """The sum of their volumes."""
        total = Number(0.0, 0.0, "cm^3")
        for lesion in found:
            if lesion.volume.value is None or lesion.volume.status != "ok":
                raise NotAsked(f"{what}: {lesion.volume.status}")
            total += Number(lesion.volume.value, lesion.volume.uncertainty, "cm^3")
        self.note("measure", f"total volume of the {what}", round(total.value, 2), "cm^3")
        return total

    def burden(self, host: str) -> Number:
        """Share of an organ (both kidneys together) that is lesion, in percent; 0 where there is none."""
        found = self.all_lesions(host)
        organs = [self.volume(name) for name in HOSTS[host]]
        whole = organs[0] if len(organs) == 1 else organs[0] + organs[1]
        share = (self.lesion_volume(found, f"{host} lesions") / whole).times(100, "%")
        self.note("measure", f"tumor burden of the {host}", round(share.value, 2), "%")
        return share

    def rule(self, name: str) -> Rule:
        """A rule that holds in this contrast phase."""
        rule = self.pack[name]
        if rule.phases and self.at.meta.contrast not in rule.phases:
            raise NotAsked(f"{name} holds in {', '.join(rule.phases)} scans; this one is {self.at.meta.contrast}")
        cuts = ", ".join(f"{cut:g}" for cut in rule.cuts)
        self.note("knowledge", f"{self.pack.name}: {name}, {rule.quantity} at {cuts} ({rule.source})", "")
        return rule


def place_of(lesion: Lesion) -> str:
    """The part of its organ in which most of a lesion lies; NotAsked if that is less than two thirds."""
    if not lesion.places or max(lesion.places.values()) < 2 / 3:
        raise NotAsked("a lesion lies in several parts")
    return max(lesion.places, key=lambda name: lesion.places[name])
