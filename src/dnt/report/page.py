"""A folder of runs -> one self-contained page."""
from pathlib import Path


def write_report(folder: str | Path) -> Path:
    return Path(folder)
