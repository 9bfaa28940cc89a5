"""What is prepared once and kept: where it lies, who may write it, with how many threads. No torch.

<cache>/<kind>/<key>/lock        held by the process that prepares
<cache>/<kind>/<key>/parts/      what an interrupted preparation goes on with, if its kind has such
<cache>/<kind>/<key>/meta.json   written last: the folder is complete
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dnt.files import exclusive, write_json

MOST_THREADS = 8


def cache_root() -> Path:
    base = os.environ.get("DNT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dnt"
    return Path(base)


def prepare_once(
    folder: Path, name: str, write: Callable[[], dict[str, Any]], unchanged: Callable[[], bool], show: bool
) -> None:
    """Complete a folder of the cache if it is not: `write` fills it and returns what its meta.json says.

    One process writes, others wait. ValueError if the data of this name is not `unchanged` then.
    """
    if not (folder / "meta.json").exists():
        try:
            with exclusive(folder / "lock", f"preparing {name}" if show else ""):
                if not (folder / "meta.json").exists():
                    meta = write()
                    if not unchanged():
                        shutil.rmtree(folder / "parts", ignore_errors=True)
                        raise ValueError(f"{name!r} changed while it was read; prepare it again.")
                    write_json(folder / "meta.json", meta)
        except ConnectionError:
            raise
        except OSError as error:
            raise OSError(f"cannot prepare {name} in {folder.parent}: {error}. Make room, or set DNT_CACHE.") from error
    shutil.rmtree(folder / "parts", ignore_errors=True)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress_bar(name: str, total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A function that moves a bar on a terminal by so much of the total."""
    percent = TextColumn("{task.percentage:.0f}%")
    columns = (TextColumn("preparing {task.description}", markup=False), BarColumn(), percent, TimeRemainingColumn())
    shown = show and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(name, total=total)
        yield lambda size: bar.advance(task, size)
