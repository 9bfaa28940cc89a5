"""Quantities that rules name, each read from a case."""

from collections.abc import Callable
from functools import reduce

from tumorvqa.asking.look import Look, Number
from tumorvqa.measurements import Lesion
from tumorvqa.structures import STRUCTURES

ARTERIES = ("superior_mesenteric_artery", "celiac_artery", "common_hepatic_artery")
RIGHT_LOBE = tuple(f"liver_segment_{k}" for k in range(5, 9))


def caudate_to_right_lobe(look: Look) -> Number:
    return look.volume("liver_segment_1") / reduce(Number.__add__, map(look.volume, RIGHT_LOBE))


def diameter(look: Look, lesion: Lesion) -> Number:
    return look.measured(lesion.long_axis, "longest axial diameter of the lesion").times(0.1, "cm")


def contact(look: Look, lesion: Lesion, vessel: str) -> Number:
    """Degrees of a vessel's circumference; 0 of one that is there and not near."""
    look.usable(vessel, "too_small")
    look.shown.append(vessel)
    if vessel not in lesion.contacts:
        return Number(0.0, 0.0, "degrees")
    return look.measured(lesion.contacts[vessel], f"contact of the lesion with the {STRUCTURES[vessel].title}")


def arteries(look: Look) -> list[str]:
    """Those that stage and resectability look at: the common hepatic one where it has a mask."""
    return [name for name in ARTERIES if name in look.at.organs or name in ARTERIES[:2]]


QUANTITIES: dict[str, Callable[[Look], Number]] = {
    "liver volume": lambda look: look.volume("liver"),
    "spleen volume": lambda look: look.volume("spleen"),
    "pancreas volume": lambda look: look.volume("pancreas"),
    "left kidney volume": lambda look: look.volume("kidney_left"),
    "right kidney volume": lambda look: look.volume("kidney_right"),
    "liver HU": lambda look: look.hu("liver"),
    "liver to spleen HU ratio": lambda look: look.hu("liver") / look.hu("spleen"),
    "pancreas to spleen HU ratio": lambda look: look.hu("pancreas") / look.hu("spleen"),
    "caudate to right lobe volume ratio": caudate_to_right_lobe,
    "largest kidney lesion HU": lambda look: look.measured(look.largest("kidney").hu, "mean HU of the lesion"),
    "largest pancreatic cyst HU": lambda look: look.measured(
        look.largest("pancreas", "cyst").hu, "mean HU of the cyst"
    ),
    "largest pancreatic cyst volume": lambda look: look.measured(
        look.largest("pancreas", "cyst").volume, "volume of the cyst"
    ),
    "largest pancreatic cyst diameter": lambda look: diameter(look, look.largest("pancreas", "cyst")),
    "largest PDAC diameter": lambda look: diameter(look, look.largest("pancreas", "pdac")),
}
ANGLES = ("largest PDAC artery contact", "largest PDAC vessel contact")  # quantities of several vessels
