"""One lookup for every table of names, with an error that helps."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Row = TypeVar("Row")


def lookup(table: Mapping[str, Row], name: str, what: str) -> Row:
    """The row called `name`; ValueError with the nearest name and all known ones if there is none."""
    if name in table:
        return table[name]
    near = get_close_matches(str(name), table, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown {what} {name!r}. Did you mean {near!r}? Known: {', '.join(table)}.")
