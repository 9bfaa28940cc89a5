"""Mixtures of optimizers by name: NAME[@LR][:PATTERN,...] parts, as in adamw@3e-3:embedding,head;msgdw. No torch."""

from dataclasses import dataclass

FORM = "NAME[@LR][:PATTERN,...], several separated by ';', for example 'adamw@3e-3:embedding,position,head;msgdw'"


@dataclass(frozen=True)
class Part:
    """One optimizer of a mixture: its learning rate, if it has one of its own, and what it steps, if not the rest."""

    name: str
    lr: float | None = None
    patterns: tuple[str, ...] = ()


def is_mixture(optimizer: str) -> bool:
    """Whether it is more than the name of a row."""
    return any(sign in optimizer for sign in ";:@")


def parts_of(optimizer: str) -> list[Part]:
    """The parts in their order; ValueError for what is not of the form."""
    parts = []
    for text in optimizer.split(";"):
        head, colon, patterns = text.partition(":")
        name, at, rate = head.strip().partition("@")
        try:
            lr = float(rate) if at else None
        except ValueError:
            lr = -1.0
        names = tuple(pattern.strip() for pattern in patterns.split(",")) if colon else ()
        if not name or not all(names) or not (lr is None or lr >= 0):
            raise ValueError(f"the optimizer has the part {text!r}; write {FORM}.")
        parts.append(Part(name, lr, names))
    return parts
