"""The run folder: its only reader and writer. No torch.

    config.json         what was asked for and what was found: settings, model, data, optimizer, machine
    log.jsonl           one JSON object a line; "event" is train, evaluation, gradients, calibration,
                        relative_steps, diagnosis, undiagnosed, deciles, end or diverged
    model.safetensors   the weights at the last checkpoint: what load and sample read
    tokenizer.json      of text: how to turn it into the model's tokens and back
    checkpoint/         private resume state (dnt.checkpoints), a folder step-STEP; only --resume opens it
    tensorboard/        the same curves, live
    .lock               held by the process that writes here

Config, weights, tokenizer and checkpoints are written under a temporary name, synced, and renamed: a reader finds the
old or the new one. Of several processes the first writes, but for its part of a checkpoint.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnt.files import UNFINISHED, atomic_write, read_json, write_json

EXPERIMENT = "experiment.json"  # beside the run folders of compare, tune or ablate: what they share


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        config = read_json(self.path / "config.json", "a run folder")
        if not isinstance(config, dict) or "model" not in config:
            raise ValueError(f"{self.path / 'config.json'} is damaged: it describes no model.")
        return config

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
            rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"{self.path / 'log.jsonl'} is damaged ({error}); remove the broken line.") from None
        if not all(isinstance(row, dict) and {"event", "step"} <= row.keys() for row in rows):
            raise ValueError(f"{self.path / 'log.jsonl'} is damaged: a line is no event; remove it.")
        return rows

    def rows(self, event: str) -> list[dict[str, Any]]:
        return [row for row in self.log if row["event"] == event]

    @property
    def end(self) -> dict[str, Any] | None:
        """The final row: "end" with the results, or "diverged"; None while unfinished."""
        last = self.log[-1:]
        return last[0] if last and last[0]["event"] in ("end", "diverged") else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The right to write here; ValueError if another process has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is training into {self.path}; wait for it or stop it.") from None
            yield

    @property
    def busy(self) -> bool:
        """Whether a process writes here."""
        try:
            with (self.path / ".lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def check_free(self) -> None:
        if (self.path / "config.json").exists():
            raise ValueError(
                f"{self.path} already holds a run; continue it with --resume {self.path}, or choose another --out."
            )

    def start(self, config: dict[str, Any], tokenizer: dict[str, Any] | None) -> None:
        """Begin a new run here; ValueError if there is one already."""
        self.check_free()
        if tokenizer:
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
        """Step and folder of the newest complete checkpoint."""
        folders = (self.path / "checkpoint").glob("step-*")
        found = sorted(path for path in folders if path.is_dir() and path.suffix != UNFINISHED)
        return (int(found[-1].name.removeprefix("step-")), found[-1]) if found else None

    @property
    def last_good(self) -> str:
        """What is safe, in words."""
        found = self.last_checkpoint()
        return f"The last good checkpoint is of step {found[0]}, {found[1]}" if found else "There is no checkpoint yet"

    def begin_checkpoint(self, step: int) -> None:
        """Make the empty folder that `unfinished_checkpoint` names."""
        shutil.rmtree(self.unfinished_checkpoint(step), ignore_errors=True)
        self.unfinished_checkpoint(step).mkdir(parents=True)

    def unfinished_checkpoint(self, step: int) -> Path:
        """Where the processes write their parts."""
        return self.path / "checkpoint" / f"step-{step:09d}{UNFINISHED}"

    def end_checkpoint(self, step: int) -> None:
        """The parts are there: make them the newest checkpoint, and remove the older ones."""
        unfinished = self.unfinished_checkpoint(step)
        whole = unfinished.with_suffix("")
        os.replace(unfinished, whole)
        for other in whole.parent.iterdir():
            if other != whole:
                shutil.rmtree(other) if other.is_dir() else other.unlink()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
