"""The trials of an experiment, each run once by whoever is free. No torch here.

A trial is one run: a cell with a rate, a decay and a seed. Its folder holds its result, and what is finished there is
never run again. Optuna's storage holds who runs what: of several processes, on one machine or on many, each takes a
trial that nobody has; one whose process was killed gives no sign of life, and can be taken again, once.
"""

import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from threading import Event, Thread
from typing import Any

from dnt.experiments.cells import LOOK_AGAIN, alone, at_rate, name_of, run_cell, run_name, settled
from dnt.extras import extra
from dnt.redact import redacted
from dnt.runs import Run
from dnt.settings import TrainSettings, TuneSettings

HEARTBEAT = 5  # seconds between the signs of life of a running trial
PATIENCE = 3 * HEARTBEAT  # without one, and it was killed
ATTEMPTS = 2  # at a trial that fails

Point = tuple[float, float]  # learning rate, lr x weight decay


@dataclass(frozen=True)
class Trial:
    """A cell with its rate, decay and seed, and the folder it runs in."""

    cell: TrainSettings
    path: Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def params(self) -> dict[str, Any]:
        """For Optuna's own tables and plots."""
        step_decay = float(f"{(self.cell.lr or 0) * (self.cell.weight_decay or 0):.9g}")
        return {"lr": self.cell.lr, "lr_x_wd": step_decay, "seed": self.cell.seed}


class Queue:
    """The trials of an experiment's folder: tuning/ and winners/ hold their runs."""

    def __init__(self, settings: TuneSettings, folder: Path, data: dict[str, Any]):
        self.optuna: Any = extra("optuna", "tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=self.optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")  # is given here, not by Optuna's own loop
        found = settled(folder, settings, data)
        self.settings, self.folder, self.precision = settings, folder, found["held"]["precision"]
        self.url = settings.storage or f"sqlite:///{folder.resolve()}/trials.db"
        patient = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {"pool_pre_ping": True}
        with alone(folder), self.reached(ValueError):  # the first makes the tables
            self.storage = self.optuna.storages.RDBStorage(
                self.url, engine_kwargs=patient, heartbeat_interval=HEARTBEAT, grace_period=PATIENCE
            )
            self.study = self.optuna.create_study(storage=self.storage, study_name=found["id"], load_if_exists=True)
            self.study_number = self.storage.get_study_id_from_name(found["id"])

    @contextmanager
    def reached(self, *others: type[Exception]) -> Iterator[None]:
        """The storage's errors in one line: those of Optuna, of SQLAlchemy, and what they let through."""
        from sqlalchemy.exc import SQLAlchemyError

        through = (ImportError, RuntimeError, KeyError, *others)  # no driver, another schema, a study that was deleted
        try:
            yield
        except (self.optuna.exceptions.OptunaError, SQLAlchemyError, *through) as error:
            cause = error.__cause__ or error  # Optuna's own words are of a commit that failed
            said = next(iter(str(cause).splitlines()), "") or type(cause).__name__
            message = f"cannot use the storage {self.url}: {said.rstrip('. ')}. Finished runs are kept."
            raise ValueError(redacted(message)) from None

    def name(self, cell: TrainSettings) -> str:
        return name_of(cell, self.settings)

    def trial(self, cell: TrainSettings, phase: str, point: Point, seed: int) -> Trial:
        lr, decay = point
        cell = replace(at_rate(cell, lr, decay / lr, seed), precision=self.precision)
        return Trial(cell, self.folder / phase / run_name(cell, self.settings))

    def finish(
        self, points: Mapping[TrainSettings, list[Point]], seeds: Sequence[int], winners: bool = False
    ) -> dict[TrainSettings, list[float]]:
        """Validation loss of every point, mean over seeds, once all have been run, here or elsewhere."""
        phase = "winners" if winners else "tuning"
        wanted = {
            cell: [self.trial(cell, phase, point, seed) for point in of_cell for seed in seeds]
            for cell, of_cell in points.items()
        }
        in_turn = list(
            dict.fromkeys(trial for one_of_each in zip(*wanted.values(), strict=True) for trial in one_of_each)
        )
        losses: dict[Trial, float] = {}
        waited = False
        while True:
            losses |= {t: loss for t in in_turn if t not in losses and (loss := result(t)) is not None}
            left = [trial for trial in in_turn if trial not in losses]
            if not left:
                break
            if not self.run_one(left, f"[{len(losses) + 1}/{len(in_turn)} {phase}]"):
                if not waited:
                    print("waiting for trials that another process runs", file=sys.stderr, flush=True)
                waited = True
                time.sleep(LOOK_AGAIN)
        n = len(seeds)
        return {
            cell: [mean(losses[trial] for trial in trials[i : i + n]) for i in range(0, len(trials), n)]
            for cell, trials in wanted.items()
        }

    def run_one(self, trials: list[Trial], label: str) -> bool:
        """Whether there was one that nobody runs; it has been run. ValueError if only hopeless ones are left."""
        with alone(self.folder), self.reached():  # or two would take the same
            self.optuna.storages.fail_stale_trials(self.study)
            attempts = self.study.get_trials(deepcopy=False)
            running = [t for t in trials if "RUNNING" in states(attempts, t) or Run(t.path).busy]
            idle = {
                trial: states(attempts, trial).count("FAIL")
                for trial in trials
                if trial not in running and result(trial) is None
            }
            free = [trial for trial, failures in idle.items() if failures < ATTEMPTS or not trial.path.exists()]
            if free:
                trial = min(free, key=lambda trial: idle[trial])
                attempt, identity = self.taken(trial)
        if not free:
            if idle and not running:
                raise ValueError(f"{next(iter(idle)).path} failed twice; remove the folder to try it once more.")
            return False
        try:
            with self.alive(identity):
                run_cell(trial.path, trial.cell, label)
        except BaseException as error:
            with suppress(Exception):  # a storage that is away too must not hide it
                if isinstance(error, KeyboardInterrupt):
                    attempt.set_user_attr("stopped", True)
                self.study.tell(attempt, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
            raise
        with self.reached():
            self.study.tell(attempt, result(trial), skip_if_finished=True)  # finished if it was thought to be killed
        return True

    def taken(self, trial: Trial) -> tuple[Any, int]:
        """A new attempt at a trial, and its number in the storage."""
        fixed = self.optuna.samplers.RandomSampler()  # never asked
        self.study.sampler = self.optuna.samplers.PartialFixedSampler(trial.params, fixed)
        of = self.optuna.distributions
        space = {"lr": of.FloatDistribution(1e-12, 1e12, log=True), "lr_x_wd": of.FloatDistribution(0, 1)}
        attempt = self.study.ask(space | {"seed": of.IntDistribution(0, 2**31 - 1)})
        identity = self.storage.get_trial_id_from_study_id_trial_number(self.study_number, attempt.number)
        self.storage.record_heartbeat(identity)  # before its name: what has a name can be seen to be dead
        attempt.set_user_attr("run", trial.name)
        return attempt, identity

    @contextmanager
    def alive(self, identity: int) -> Iterator[None]:
        """A sign of life every few seconds."""
        done = Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT):
                with suppress(Exception):  # a storage that is away for a moment costs a sign of life, not the run
                    self.storage.record_heartbeat(identity)

        thread = Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(HEARTBEAT)  # no longer, should the storage hang


def states(attempts: list[Any], trial: Trial) -> list[str]:
    """Of the attempts at a trial, but those that a user stopped."""
    of_trial = (attempt for attempt in attempts if attempt.user_attrs.get("run") == trial.name)
    return [attempt.state.name for attempt in of_trial if not attempt.user_attrs.get("stopped")]


def result(trial: Trial) -> float | None:
    """Its validation loss, infinite if it diverged; None if it is not finished."""
    end = Run(trial.path).end
    return None if end is None else float(end.get("validation", math.inf))
