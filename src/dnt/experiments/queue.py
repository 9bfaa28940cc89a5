"""Trials of an experiment, waiting in Optuna's storage for whoever is free to run them. No torch here.

Of several processes, on one machine or on many, each takes the next trial. A trial is one run: a cell with a rate, a
decay and a seed. What is finished stays finished; a trial whose process was killed gives no sign of life, and waits
again, once.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

from dnt.experiments.cells import LOOK_AGAIN, check_same, name_of, recipe, run_cell, run_name, with_precision
from dnt.extras import extra
from dnt.files import exclusive
from dnt.redact import redacted
from dnt.settings import HOW, TrainSettings, TuneSettings

HEARTBEAT = 5  # seconds between the signs of life of a running trial
PATIENCE = 3 * HEARTBEAT  # without one, and it was killed

Point = tuple[float, float]  # learning rate, lr x weight decay


class Queue:
    """The trials of some cells in a folder: tuning/ and winners/ hold their runs."""

    def __init__(self, settings: TuneSettings, cells: Sequence[TrainSettings], folder: Path, data: dict[str, Any]):
        self.optuna: Any = extra("optuna", "tune")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=self.optuna.exceptions.ExperimentalWarning)  # the heartbeat
        self.settings, self.cells, self.folder, self.data = settings, cells, folder, data
        self.found_precision()  # ValueError for a folder of other runs
        folder.mkdir(parents=True, exist_ok=True)
        with self.alone():  # the first makes the tables
            self.storage = self.opened(settings.storage or f"sqlite:///{folder.resolve()}/trials.db")
        what = {name: v for name, v in recipe(settings).items() if name not in (*HOW, "precision")}
        self.digest = sha256(json.dumps([what, data["sha256"]]).encode()).hexdigest()[:8]

    def opened(self, url: str) -> Any:
        try:
            patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
            return self.optuna.storages.RDBStorage(
                url, engine_kwargs=patient, heartbeat_interval=HEARTBEAT, grace_period=PATIENCE
            )
        except Exception as error:  # of SQLAlchemy, of the database's driver, of Optuna
            said = str(error).splitlines()[0]
            raise ValueError(f"cannot open the storage {redacted(url)}: {said}") from None

    def alone(self) -> AbstractContextManager[None]:
        """One process at a time, of those that share the folder."""
        return exclusive(self.folder / "queue.lock")

    def name(self, cell: TrainSettings) -> str:
        return name_of(cell, self.settings)

    def finish(
        self, points: Mapping[TrainSettings, list[Point]], seeds: Sequence[int], winners: bool = False
    ) -> dict[TrainSettings, list[float]]:
        """Validation loss of every point, mean over seeds, once all have been run, here or elsewhere."""
        phase = "winners" if winners else "tuning"
        wanted = {
            cell: [{"lr": lr, "lr_x_wd": decay, "seed": seed} for lr, decay in of_cell for seed in seeds]
            for cell, of_cell in points.items()
        }
        waited = False
        while True:
            with self.alone():  # or two would queue the same
                found = {cell: self.queued(cell, phase, trials) for cell, trials in wanted.items()}
            done = sum(isinstance(value, float) for values in found.values() for value in values)
            free = [cell for cell in found if "WAITING" in found[cell]]
            if free:
                cell = min(free, key=lambda cell: sum(isinstance(value, float) for value in found[cell]))
                label = f"[{done + 1}/{sum(map(len, wanted.values()))} {phase}]"
                self.study(cell, phase).optimize(self.objective(cell, phase, label), n_trials=1)
            elif done < sum(map(len, wanted.values())):
                if not waited:
                    print("waiting for trials that another process runs", file=sys.stderr, flush=True)
                waited = True
                time.sleep(LOOK_AGAIN)
            else:
                n = len(seeds)
                return {
                    cell: [mean(values[i : i + n]) for i in range(0, len(values), n)] for cell, values in found.items()
                }

    def study(self, cell: TrainSettings, phase: str) -> Any:
        name = f"{self.folder.name}: {self.name(cell)}, {phase} {self.digest}"
        sampler = self.optuna.samplers.RandomSampler()  # never asked: every trial that waits is fixed
        return self.optuna.create_study(
            storage=self.storage, sampler=sampler, study_name=name, load_if_exists=True, direction="minimize"
        )

    def queued(self, cell: TrainSettings, phase: str, wanted: list[dict[str, float]]) -> list[Any]:
        """For each wanted trial its loss, or its state, WAITING or RUNNING; what is new is put into the queue."""
        study = self.study(cell, phase)
        self.optuna.storages.fail_stale_trials(study)
        trials = [(t.user_attrs.get("run"), t) for t in study.get_trials(deepcopy=False)]
        found: list[Any] = []
        for params in wanted:
            mine = [trial for fixed, trial in trials if fixed == params]
            states = [trial.state.name for trial in mine]
            if "COMPLETE" in states:
                found.append(float(mine[states.index("COMPLETE")].value))
                continue
            alive = next((state for state in states if state in ("RUNNING", "WAITING")), None)
            if not alive:
                failures = sum(t.state.name == "FAIL" and not t.user_attrs.get("stopped") for t in mine)
                path = self.path(cell, phase, params)
                if failures > 1 and path.exists():
                    raise ValueError(f"{path} failed twice; remove the folder to try it again.")
                study.enqueue_trial(params, user_attrs={"run": params})
            found.append(alive or "WAITING")
        return found

    def objective(self, cell: TrainSettings, phase: str, label: str) -> Any:
        def run(trial: Any) -> float:
            params = trial.user_attrs.get("run")
            if params is None:
                raise self.optuna.TrialPruned("another process took the last trial that waited")
            trial.suggest_float("lr", 1e-12, 1e12, log=True)  # for Optuna's own tables and plots
            trial.suggest_float("lr_x_wd", 0, 1)
            trial.suggest_int("seed", 0, 2**31 - 1)
            try:
                done = run_cell(*self.run_of(cell, phase, params), label)
            except KeyboardInterrupt:
                trial.set_user_attr("stopped", True)
                raise
            assert done.end
            trial.set_user_attr("folder", str(done.path))
            return float(done.end.get("validation", math.inf))  # infinite if it diverged

        return run

    def run_of(self, cell: TrainSettings, phase: str, params: dict[str, Any]) -> tuple[Path, TrainSettings]:
        """Folder and settings of a trial."""
        lr, decay, seed = params["lr"], params["lr_x_wd"], int(params["seed"])
        cell = replace(cell, lr=lr, weight_decay=decay / lr, seed=seed)
        return self.folder / phase / run_name(cell, self.settings), with_precision(cell, self.found_precision())

    def path(self, cell: TrainSettings, phase: str, params: dict[str, Any]) -> Path:
        return self.run_of(cell, phase, params)[0]

    def found_precision(self) -> str | None:
        """Of the runs that are there."""
        found = [check_same(self.folder / p, self.settings, self.cells, self.data) for p in ("tuning", "winners")]
        return next(filter(None, found), None)
