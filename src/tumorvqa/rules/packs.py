"""Rule packs: which class a number falls into, as read from TOML."""

import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from dnt.lookup import lookup

FOLDER = Path(__file__).parent
PACKS = {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


@dataclass(frozen=True)
class Rule:
    """The class of a quantity: classes[i] lies between cuts[i - 1] and cuts[i]; "" is none that is asked about.

    `quantity` is a row of asking.quantities.QUANTITIES, which says its unit. `phases`: the contrast phases in which the
    rule holds, all if there are none. `unverified`: nobody has checked the number against `source`.
    """

    name: str
    quantity: str
    cuts: tuple[float, ...]
    classes: tuple[str, ...]
    source: str
    phases: tuple[str, ...] = ()
    unverified: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.cuts) + 1 or list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(
                f"rule {self.name!r} has cuts {list(self.cuts)} and classes {list(self.classes)}; "
                "it needs rising cuts and one class more than cuts."
            )

    def place(self, value: float) -> int:
        """The index of the class of a value; one that equals a cut is in the lower class."""
        return sum(value > cut for cut in self.cuts)


@dataclass(frozen=True)
class Pack:
    """`version` changes with every byte of the file, which `content` is."""

    name: str
    version: str
    rules: dict[str, Rule]
    content: bytes

    def __getitem__(self, rule: str) -> Rule:
        return lookup(self.rules, rule, f"rule of {self.name}")


def load_pack(name: str) -> Pack:
    """A pack by name (`radgpt`, `kb-v2`) or the path of a TOML file; ValueError naming what a rule lacks."""
    path = Path(name) if name.endswith(".toml") else lookup(PACKS, name, "rule pack")
    try:
        content = path.read_bytes()
        rows = tomllib.loads(content.decode())
        version = rows.pop("version")
        rules = {key: msgspec.convert(row | {"name": key}, Rule) for key, row in rows.items()}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the rule pack {path.name} cannot be read: {error}") from None
    return Pack(path.stem, f"{version}-{sha256(content).hexdigest()[:8]}", rules, content)
