"""The run folder: its only reader and writer. No torch.

    config.json         what was asked for and what was found: settings, model, data, optimizer, machine
    log.jsonl           one JSON object a line; "event" is train, evaluation, gradients, end or diverged
    model.safetensors   the weights at the last checkpoint: what load and sample read
    tokenizer.json      how to turn text into the model's tokens and back
    checkpoint/         private resume state, step-NNNNNNNNN.pt; only --resume opens it
    tensorboard/        the same curves, live

Files are written under a temporary name, synced, and renamed: a reader finds the old or the new one, never a part.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".unfinished"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends without an error, and nothing otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; ValueError naming it if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not {what}: it has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {what} is damaged there.") from None


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json", "a run folder")

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def log(self) -> list[dict[str, Any]]:
        """All complete rows; a last line that a kill cut short is left out."""
        try:
            lines = (self.path / "log.jsonl").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.path / 'log.jsonl'} is damaged ({error}); remove the broken line.") from None

    def rows(self, event: str) -> list[dict[str, Any]]:
        return [row for row in self.log if row["event"] == event]

    @property
    def end(self) -> dict[str, Any] | None:
        """The final row: "end" with the results, or "diverged"; None while unfinished."""
        last = self.log[-1:]
        return last[0] if last and last[0]["event"] in ("end", "diverged") else None

    def start(self, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
        """Begin a new run here; ValueError if there is one already."""
        if (self.path / "config.json").exists():
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume {self.path}, or choose another --out."
            )
        write_json(self.path / "tokenizer.json", tokenizer)
        write_json(self.path / "config.json", config)

    def append(self, rows: list[dict[str, Any]]) -> None:
        with (self.path / "log.jsonl").open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def rewind_log(self, step: int) -> None:
        """Drop what was logged after `step` steps: a resumed run writes it again."""
        kept = [row for row in self.log if row["step"] <= step and row["event"] not in ("end", "diverged")]
        with atomic_write(self.path / "log.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """Step and path of the newest complete checkpoint."""
        found = sorted((self.path / "checkpoint").glob("step-*.pt"))
        return (int(found[-1].stem.removeprefix("step-")), found[-1]) if found else None

    def write_checkpoint(self, step: int, write: Callable[[BinaryIO], None]) -> None:
        """Write the resume state after `step` steps, then remove older ones."""
        path = self.path / "checkpoint" / f"step-{step:09d}.pt"
        with atomic_write(path) as file:
            write(file)
        for older in path.parent.glob("step-*.pt"):
            if older != path:
                older.unlink()
