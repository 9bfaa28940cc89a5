"""A lesion put into a case on disk."""

from dataclasses import replace
from pathlib import Path

from tumorvqa.phantoms.insert import insert_lesion, room
from tumorvqa.phantoms.write import write_scan
from tumorvqa.readers.cases import identity, read_case
from tumorvqa.readers.folders import CaseFiles


def insert_into(
    files: CaseFiles,
    out: Path,
    organ: str = "liver",
    kind: str = "tumor",
    diameter_mm: float = 24.0,
    hu: float = 5.0,
    memory_gb: float = 4.0,
) -> Path:
    """The case with a ball where the organ has most room, as a new case in the folder `out`; ValueError if it does not
    fit, or if `out` is there already. Its patient is that of the case it was made of.
    """
    if out.exists():
        raise ValueError(f"{out} is there already; name a folder that is not.")
    scan = read_case(files, memory_gb=memory_gb)
    center, radius = room(scan, organ)
    if diameter_mm > 2 * radius:
        raise ValueError(f"a ball of {diameter_mm:g} mm does not fit: the {organ} has room for {2 * radius:.0f} mm.")
    changed = insert_lesion(scan, organ, center, diameter_mm / 2, hu, kind)
    return write_scan(replace(changed, case=out.name), out.parent, identity(files))
