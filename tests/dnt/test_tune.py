"""The protocol: the same grid and number of trials for every cell, a queue that loses nothing, fresh seeds."""

import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

import dnt
from dnt.cli import main
from dnt.experiments import queue, tune
from dnt.experiments.cells import cells_of, name_of, values_to_try
from dnt.experiments.compare import grid
from dnt.files import read_json, write_json
from dnt.report.cells import Cell, Setting, labels
from dnt.report.summary import Comparison, Interval, paired
from dnt.runs import Run
from dnt.settings import VARIATIONS, AblateSettings, CompareSettings, Recipe, TuneSettings
from tests.conftest import TINY

TUNE = ["tune", "--data", "words.txt", *TINY, "--steps", "4", "--placements", "dnt", "--optimizers", "msgdw"]
TUNE += ["--points", "3", "--most-points", "3", "--decays", "1e-4", "--out", "t"]


class Losses:
    """A queue whose trials answer at once, with a given loss; it counts them."""

    def __init__(self, loss):
        self.loss, self.trials, self.winners = loss, {}, {}

    def __call__(self, settings, folder, data):
        self.settings = settings
        return self

    def name(self, cell):
        return name_of(cell, self.settings)

    def finish(self, points, seeds, winners=False):
        for cell, some in points.items():
            asked = self.winners if winners else self.trials
            asked.setdefault(self.name(cell), {}).update(dict.fromkeys((p, s) for p in some for s in seeds))
        return {cell: [self.loss(cell, *point) for point in some] for cell, some in points.items()}


@pytest.fixture
def protocol(monkeypatch, tmp_path):
    """Runs the protocol on a loss that is a function of (cell, lr, lr x wd): what was asked of the queue."""
    monkeypatch.chdir(tmp_path)

    def follow(loss, **options):
        asked = Losses(loss)
        monkeypatch.setattr(tune, "Queue", asked)
        monkeypatch.setattr(tune, "prepared", lambda settings, folder: {})
        monkeypatch.setattr("dnt.report.page.write_report", lambda folder: None)
        dnt.tune(**options)
        return asked

    return follow


def bowl(best: dict[str, float], best_decay: float = 0.0):
    """Lowest at a rate of each optimizer and a decay of all."""

    def loss(cell, lr, decay):
        return math.log10(lr / best[cell.optimizer]) ** 2 + abs(decay - best_decay)

    return loss


def test_rates_are_half_decades_on_one_lattice():
    assert [tune.rate(i) for i in range(-5, 3)] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert [tune.rate(i) for i in tune.starting_grid("adamw", 4)] == [1e-3, 3e-3, 1e-2, 3e-2]
    assert [tune.rate(i) for i in tune.starting_grid("msgdw", 4)] == [0.03, 0.1, 0.3, 1.0]


def test_no_winner_is_at_an_edge_and_every_cell_has_as_many_trials(protocol, capsys):
    asked = protocol(bowl({"adamw": 3e-3, "msgdw": 10.0}))
    assert len({len(trials) for trials in asked.trials.values()}) == 1
    for name, trials in asked.trials.items():
        rates = sorted({lr for (lr, _), _ in trials})
        assert rates[0] < (3e-3 if "adamw" in name else 10.0) < rates[-1]
    said = capsys.readouterr().err
    assert "2 of 4 winners are at an edge of 4 rates; one more rate for every cell" in said
    assert f"{len(trials)} trials of every cell" in said


def test_only_winners_run_on_the_fresh_seeds(protocol):
    asked = protocol(bowl({"adamw": 1e-2, "msgdw": 0.1}, best_decay=1e-3), seeds=(5, 6), tuning_seeds=(1, 2))
    assert {seed for trials in asked.trials.values() for _, seed in trials} == {1, 2}
    assert asked.winners["dnt-msgdw"] == dict.fromkeys([((0.1, 1e-3), 5), ((0.1, 1e-3), 6)])
    assert asked.winners["pre-ln-adamw"] == dict.fromkeys([((0.01, 1e-3), 5), ((0.01, 1e-3), 6)])


def test_decays_are_extended_while_the_largest_wins(protocol):
    asked = protocol(bowl({"adamw": 1e-2, "msgdw": 0.1}, best_decay=0.009), placements=("dnt",))
    for trials in asked.trials.values():
        assert {decay for (_, decay), _ in trials} == {0, 1e-4, 1e-3, 1e-2, 0.1}
    assert {decay for trials in asked.winners.values() for (_, decay), _ in trials} == {1e-2}


def test_a_winner_that_stays_at_the_edge_is_said(protocol, capsys):
    protocol(lambda cell, lr, decay: -lr, most_points=5)
    assert "pre-ln-msgdw: the best of 5 rates is still at an edge" in capsys.readouterr().err


def test_diverged_rates_push_the_grid_down(protocol):
    asked = protocol(lambda cell, lr, decay: math.inf if lr > 1e-3 else 1 + lr, placements=("dnt",), most_points=10)
    assert min(lr for (lr, _), _ in asked.trials["dnt-msgdw"]) < 1e-3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": (0, 1000)}, "seed 1000 is both a tuning seed and a seed"),
        ({"points": 2}, "points is 2, most-points 10"),
        ({"decays": ()}, "--decays is empty"),
        ({"decays": (-1.0,)}, "lr x weight decay is at least 0"),
        ({"decays": (2.0,)}, "--decays has 2.0; lr x weight decay is at least 0 and less than 1"),
        ({"seeds": (0, 0)}, "--seeds has (0, 0); give each seed once, from 0 up"),
        ({"tuning_seeds": (-1,)}, "--tuning-seeds has (-1,); give each seed once, from 0 up"),
        ({"vary": ("norm=rms",)}, "unknown norm 'rms'"),
        ({"vary": ("clip=nan",)}, "clip is nan; give a number"),
        ({"vary": ("augment=deit",)}, "unknown field in --vary 'augment'"),
        ({"vary": ("clips=1",)}, "unknown field in --vary 'clips'. Did you mean 'clip'?"),
        ({"vary": ("data=a",)}, "unknown field in --vary 'data'"),
        ({"vary": ("clip=none",)}, "--vary got 'clip=none'; write KEY=VALUE[,VALUE...] with numbers"),
        ({"vary": ("batch_size=48",)}, "batch_size=48 does not divide the 25,600 samples of 400 steps of 64"),
        ({"storage": "nonsense://x"}, "cannot use the storage nonsense://x: "),
    ],
)
def test_what_cannot_be_tuned_is_named(fields, message, workplace):
    with pytest.raises(ValueError) as error:
        dnt.tune(TuneSettings(data="words.txt", **fields))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_variations_are_each_value_alone_at_equal_tokens():
    settings = CompareSettings(vary=("clip=0,1.0", "batch-size=16,256", "nesterov=true"), steps=400, warmup=40)
    some = list(values_to_try(settings))
    assert some[:3] == [{}, {"clip": 0.0}, {"clip": 1.0}] and some[-1] == {"nesterov": True}
    assert [(v["batch_size"], v["steps"], v["warmup"]) for v in some[3:5]] == [(16, 1600, 160), (256, 100, 10)]
    names = [name_of(cell, settings) for cell in cells_of(settings)]
    assert len(names) == len(set(names))
    assert "dnt-msgdw-nesterovTrue" in names and "dnt-adamw-nesterovTrue" not in names, "nothing to AdamW"
    assert "dnt-adamw-clip0" in names and "dnt-adamw-clip1" not in names, "the recipe's own value"
    assert "pre-ln-msgdw-batch_size16" in names


def test_fields_joined_by_plus_vary_together_where_all_say_something():
    settings = CompareSettings(vary=("calibrate=0.01", "calibrate=0.01,0.03+clip=0"), steps=400, warmup=40)
    assert list(values_to_try(settings))[1:] == [
        {"calibrate": 0.01},
        {"calibrate": 0.01, "clip": 0.0},
        {"calibrate": 0.03, "clip": 0.0},
    ]
    names = [name_of(cell, settings) for cell in cells_of(settings)]
    assert {"dnt-msgdw-calibrate0.01", "dnt-msgdw-clip0-calibrate0.03"} <= set(names)
    others = sorted(name for name in names if "pre-ln" in name or "adamw" in name)
    assert others == ["dnt-adamw", "pre-ln-adamw", "pre-ln-msgdw"], "it says something to dnt + msgdw alone"


def test_a_variation_that_has_a_name_may_go_with_others():
    settings = CompareSettings(vary=("calibrated", "calibrated+clip=0"), placements=("dnt",), optimizers=("msgdw",))
    _, calibrated, unclipped = cells_of(settings)
    assert (calibrated.calibrate, calibrated.bound, calibrated.nesterov, calibrated.gain_rate) == (0.01, 0.03, True, 10)
    assert unclipped == replace(calibrated, clip=0.0)
    both = replace(settings, optimizers=("msgdw", "msgdw-adamw"), placements=("pre-ln", "dnt"), vary=("calibrated",))
    assert len(cells_of(both)) == 5, "a mixture has rates of its own, and nothing is hidden in pre-ln"


def test_a_variation_with_a_name_has_it_in_the_table_whatever_the_recipe_says_already():
    def config(**fields):
        group = {"lr": 0.3, "weight_decay": 0.0, "momentum": 0.9, "nesterov": fields.pop("nesterov", False)}
        group |= {"bound": fields.pop("bound", 0.0)}
        rates = [group | {name: fields.pop(name)} for name in ("embedding_rate", "gain_rate") if name in fields]
        optimizer = {"class": "MSGDW", "groups": [group, *rates]}
        training = {"steps": 4, "warmup": 1, "batch_size": 8, "clip": 1.0} | fields
        return {"model": {"placement": "dnt", "dim": 32}, "training": training, "optimizer": optimizer}

    calibrated = config(**VARIATIONS["calibrated"])
    unclipped = config(**VARIATIONS["calibrated"], clip=0.0)
    plain = {name: getattr(Recipe, name) for name in VARIATIONS["calibrated"]}
    assert labels([config(), calibrated, unclipped], plain) == ["", "calibrated", "calibrated, clip 0"]
    assert labels([config(nesterov=True), calibrated], plain | {"nesterov": True}) == ["", "calibrated"]
    older = config()
    for name in ("bound",):
        del older["optimizer"]["groups"][0][name]
    assert labels([older, older, calibrated], {}) == ["", "", "calibrated"], "a run from before these options"


def test_with_an_equilibrium_every_decay_is_the_one_it_asks_for():
    settings = CompareSettings(
        vary=("equilibrium=0.01",),
        placements=("dnt",),
        lr=("adamw=0.01", "msgdw=0.1,0.2"),
        weight_decay=("msgdw=0,1e-4",),
    )
    runs = grid(settings)
    assert len(runs) == 1 + 4 + 2
    decays = {run.lr: run.weight_decay for run in runs if run.equilibrium}
    assert decays == {lr: pytest.approx(0.1**2 / (2 * lr)) for lr in (0.1, 0.2)}
    everywhere = grid(replace(settings, vary=(), equilibrium=0.01))
    assert [run.weight_decay for run in everywhere if run.optimizer == "adamw"] == [0.1], "AdamW has its own"


def test_a_study_from_the_command_line_and_its_page(workplace, cells_here, capfd):
    assert main([*TUNE, "--seeds", "0", "1"]) == 0
    out, err = capfd.readouterr()
    assert "3 trials of every cell; now the winners on seeds 0, 1" in err and "trials" in out
    tuning, winners = (sorted(Path("t", name).glob("*/config.json")) for name in ("tuning", "winners"))
    assert len(tuning) == 3 and len(winners) == 2
    (cell,) = Comparison(Path("t")).cells
    assert cell.winner and len(cell.settings) == 3 and cell.best.lr == cell.tuning_best.lr
    assert cell.best.runs[0].path.parent.name == "winners", "the table is of fresh seeds"
    page = Path("t/index.html").read_text()
    assert "run again on" in page and "Loss against learning rate" in page and f"{cell.best.test:.3f}" in page

    before = {path: path.stat().st_mtime_ns for path in Path("t").glob("*/*/log.jsonl")}
    assert main([*TUNE, "--seeds", "0", "1", "2"]) == 0, "one more seed"
    after = {path: path.stat().st_mtime_ns for path in Path("t").glob("*/*/log.jsonl")}
    assert len(after) == len(before) + 1 and before.items() <= after.items(), "nothing finished runs again"
    assert main([*TUNE, "--clip", "2"]) == 2
    assert "t was made with clip = 1.0, not 2.0; choose another --out" in capfd.readouterr().err
    assert main([*TUNE, "--clip", "2", "--vary", "clip=1"]) == 2, "a variation does not let another recipe in"
    assert main([*TUNE, "--tuning-seeds", "1001"]) == 2
    assert "t was made with tuning_seeds = [1000], not [1001]" in capfd.readouterr().err
    assert main(["compare", *TUNE[1:-8], "--lr", "msgdw=0.1", "--out", "t"]) == 2, "compare is no part of a study"


def started(*options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dnt", *TUNE, "--seeds", "0", "--steps", "60", "--checkpoint-every", "1", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def finished() -> dict[Path, bytes]:
    return {log: log.read_bytes() for log in Path("t").glob("*/*/log.jsonl") if Run(log.parent).end}


def states() -> list[str]:
    names = optuna.get_all_study_names("sqlite:///t/trials.db")
    studies = [optuna.load_study(study_name=name, storage="sqlite:///t/trials.db") for name in names]
    return [trial.state.name for study in studies for trial in study.get_trials(deepcopy=False)]


def test_a_study_that_is_killed_goes_on_without_losing_a_finished_trial(workplace, monkeypatch):
    """kill -9 of the study and of the run it trains; the killed trial is queued again once and resumes its run."""
    monkeypatch.setattr(queue, "PATIENCE", 1)
    monkeypatch.setattr(queue, "HEARTBEAT", 1)
    monkeypatch.setattr(optuna.logging, "set_verbosity", lambda level: None)
    study = started()
    while not finished() or not any(Path("t").glob("*/*/checkpoint/step-*")) or not running_one():
        assert study.poll() is None, "ended before it was killed"
        time.sleep(0.02)
    (child,) = children_of(study.pid)
    os.kill(study.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    study.wait()
    before = finished()
    assert before and "RUNNING" in states()
    options = [*TUNE, "--seeds", "0", "--steps", "60", "--checkpoint-every", "1"]
    assert main(options) == 0
    assert before.items() <= finished().items(), "finished trials are as they were"
    assert len(finished()) == 3 + 1
    assert sorted(states()) == ["COMPLETE"] * 4 + ["FAIL"]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running_one() -> bool:
    """Whether a second run has begun to save."""
    return any(not Run(path.parent).end for path in Path("t").glob("*/*/checkpoint"))


def test_two_processes_share_a_study(workplace):
    first, second = started("--steps", "4"), started("--steps", "4")
    assert first.wait(300) == second.wait(300) == 0
    assert states() == ["COMPLETE"] * 4 and len(finished()) == 4


def test_a_trial_that_failed_twice_is_left_to_its_user(workplace, monkeypatch):
    for lr, wd in (("0.03", "0.00333333"), ("0.1", "0.001"), ("0.3", "0.000333333")):
        Path(f"t/tuning/dnt-msgdw-lr{lr}-wd{wd}-seed1000").mkdir(parents=True)
    monkeypatch.setattr(queue, "run_cell", lambda *_: (_ for _ in ()).throw(ValueError("failed with exit status 1")))
    settings = TuneSettings(data="words.txt", placements=("dnt",), optimizers=("msgdw",), out="t")
    said = []
    for _ in range(7):  # each of three trials twice, and then no more
        with pytest.raises(ValueError) as error:
            dnt.tune(settings, context=16, depth=2, dim=32, heads=2, points=3)
        said.append(str(error.value))
    assert said[:6] == ["failed with exit status 1"] * 6
    assert (
        said[6]
        == "t/tuning/dnt-msgdw-lr0.03-wd0.00333333-seed1000 failed twice; remove the folder to try it once more."
    )


def test_an_interval_is_students_over_paired_seeds():
    """Against scipy's own paired test: the p value is 0.05 where the interval touches 0."""
    from scipy.stats import ttest_rel

    class Known:
        def __init__(self, losses):
            self.losses = losses

        def test_by_seed(self):
            return dict(enumerate(self.losses))

    a, b = [1.0, 1.2, 0.9, 1.1], [0.8, 1.1, 0.9, 0.7]
    found = paired(Known(a), Known(b))
    test = ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert found.mean - found.half == pytest.approx(interval.low) and found.mean + found.half == pytest.approx(
        interval.high
    )
    assert found.excludes_zero == (test.pvalue < 0.05)
    assert found.relative == pytest.approx(sum(a) / sum(b) - 1)
    one = paired(Known([1.0]), Known([2.0]))
    assert (one.mean, one.relative, one.excludes_zero, str(one)) == (-1.0, -0.5, False, "-1.000")
    assert str(Interval(0.5, 0.25, 1.0)) == "+0.500 ± 0.250"


def test_the_run_folders_hold_the_results_and_the_storage_only_who_runs_what(workplace, cells_here):
    assert main([*TUNE, "--seeds", "0"]) == 0
    lost = next(Path("t/winners").glob("dnt*"))
    shutil.rmtree(lost)
    (name,) = optuna.get_all_study_names("sqlite:///t/trials.db")
    optuna.load_study(study_name=name, storage="sqlite:///t/trials.db").ask()  # killed before its first sign of life
    assert main([*TUNE, "--seeds", "0"]) == 0 and Run(lost).end
    assert sorted(states()) == ["COMPLETE"] * 5 + ["RUNNING"]


def test_a_suspended_process_keeps_its_result(workplace, cells_here, monkeypatch):
    """Another took it for killed, and its trial for failed."""
    real = queue.run_cell

    def slept(path, cell, label):
        study = optuna.load_study(study_name=None, storage="sqlite:///t/trials.db")
        study.tell(study.trials[-1].number, state=optuna.trial.TrialState.FAIL)
        return real(path, cell, label)

    monkeypatch.setattr(queue, "run_cell", slept)
    assert main([*TUNE, "--seeds", "0"]) == 0
    assert states() == ["FAIL"] * 4 and len(finished()) == 4


def test_a_new_winner_takes_the_place_of_an_older_one(workplace, cells_here):
    assert main([*TUNE, "--seeds", "0"]) == 0
    assert main([*TUNE, "--seeds", "0", "--decays", "1e-4", "0.05"]) == 0
    (cell,) = Comparison(Path("t")).cells
    assert cell.winner and cell.winner.lr == cell.tuning_best.lr
    assert cell.winner.weight_decay == cell.tuning_best.weight_decay
    made_up = Path("t/winners") / f"{cell.best.runs[0].path.name}-older"
    shutil.copytree(cell.best.runs[0].path, made_up)
    config = read_json(made_up / "config.json", "")
    config["optimizer"]["groups"][0]["lr"] *= 7  # of no trial
    write_json(made_up / "config.json", config)
    (cell,) = Comparison(Path("t")).cells
    assert cell.winner and cell.winner.lr == cell.tuning_best.lr, "one that tuning does not know is not it"


def test_a_study_is_finished_when_every_winner_has_run_on_all_seeds(workplace, cells_here):
    unfinished = "The study is not finished: not every winner has run on all fresh seeds."
    assert main([*TUNE, "--seeds", "0", "1"]) == 0
    assert unfinished not in Comparison(Path("t")).verdict
    (winners,) = {path.name.rpartition("-seed")[0] for path in Path("t/winners").iterdir()}
    other = next(path for path in Path("t/tuning").iterdir() if not path.name.startswith(winners))
    better = (other / "log.jsonl").read_text()
    rows = [json.loads(line) for line in better.splitlines()]
    rows[-1]["validation"] = 0.1
    (other / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert unfinished in Comparison(Path("t")).verdict, "a better setting was found since"
    (other / "log.jsonl").write_text(better)
    shutil.rmtree(f"t/winners/{winners}-seed1")
    assert unfinished in Comparison(Path("t")).verdict
    shutil.rmtree("t/winners")
    assert unfinished in Comparison(Path("t")).verdict
    Path("t/experiment.json").unlink()
    assert main(TUNE) == 2, "nobody knows what recipe its runs have"


def test_a_run_that_another_process_still_trains_is_waited_for(workplace, cells_here, monkeypatch):
    """As when a study was killed, and not the run that it had started."""
    assert main([*TUNE, "--seeds", "0"]) == 0
    orphan = next(Path("t/winners").iterdir())
    log = (orphan / "log.jsonl").read_text()
    (orphan / "log.jsonl").write_text("")

    def finish(seconds):
        held.close()
        (orphan / "log.jsonl").write_text(log)

    with (orphan / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(queue.time, "sleep", finish)
        assert main([*TUNE, "--seeds", "0"]) == 0
    assert states() == ["COMPLETE"] * 4, "and is no attempt of this process"


def test_a_study_that_was_deleted_is_one_line(workplace, cells_here, monkeypatch, capfd):
    real = queue.run_cell

    def run_cell(*given):
        (name,) = optuna.get_all_study_names("sqlite:///t/trials.db")
        optuna.delete_study(study_name=name, storage="sqlite:///t/trials.db")
        return real(*given)

    monkeypatch.setattr(queue, "run_cell", run_cell)
    assert main([*TUNE, "--seeds", "0"]) == 2
    err = capfd.readouterr().err
    assert "cannot use the storage sqlite:///" in err and "Finished runs are kept." in err and "Traceback" not in err


def test_a_variation_is_what_differs_from_the_recipe_of_the_folder(workplace, cells_here):
    """However many runs have the recipe's own value."""
    options = [
        "compare",
        "--data",
        "words.txt",
        *TINY,
        "--placements",
        "dnt",
        "--optimizers",
        "msgdw",
        "--lr",
        "msgdw=0.1",
    ]
    varied = ["clip=0", "batch_size=2", "warmup=1", "depth=1"]
    assert main([*options, "--steps", "4", "--out", "c", "--vary", *varied]) == 0
    found = {cell.name for cell in Comparison(Path("c")).cells}
    assert found == {"dnt + msgdw", *(f"dnt + msgdw, {what.replace('=', ' ')}" for what in varied)}


def test_steps_that_follow_from_a_batch_size_are_no_variation_of_their_own():
    """Also where a warm-up was rounded, and where it is all there is."""

    def config(batch_size, steps, warmup):
        training = {"batch_size": batch_size, "steps": steps, "warmup": warmup}
        return {"model": {}, "training": training, "optimizer": {"groups": [{}]}}

    usual = config(64, 200, 20)
    others = [config(50, 256, 26), config(512, 25, 2), config(16, 800, 160), config(64, 200, 10)]
    assert labels([usual, usual, *others], {}) == [
        *("", "", "batch_size 50", "batch_size 512", "batch_size 16, warmup 160", "warmup 10")
    ]


def test_no_interval_no_claim():
    def setting(*losses):
        runs = tuple(SimpleNamespace(config={"training": {"seed": i}}) for i in range(len(losses)))
        return Setting(0.1, 0.0, runs, tuple({"event": "end", "test": x, "validation": x} for x in losses))

    def said(ours, theirs):
        comparison = Comparison(Path("nowhere"))
        cells = (Cell("dnt", "msgdw", "", (setting(*ours),)), Cell("pre-ln", "adamw", "", (setting(*theirs),)))
        comparison.__dict__["cells"] = cells
        return comparison.verdict

    assert "is neither shown nor refuted here (-10.0%, -0.100 nats)" in said([0.9], [1.0])
    assert "One seed: suggestive" in said([0.9], [1.0])
    assert "holds here (-9.5%, -0.100 ± 0.000 nats)" in said([0.9, 1.0], [1.0, 1.1])
    assert "does not hold here" in said([1.1, 1.2], [1.0, 1.1])
    close = said([0.9, 1.3], [1.0, 1.1])
    assert "No difference to it is shown for dnt + msgdw" in close and "is neither shown nor refuted" in close


def test_an_ablation_has_one_init_and_dnts_own_as_a_row_of_its_own(protocol, monkeypatch):
    asked = Losses(bowl({"msgdw": 0.1}))
    monkeypatch.setattr(tune, "Queue", asked)
    monkeypatch.setattr(tune, "prepared", lambda settings, folder: {})
    monkeypatch.setattr("dnt.report.page.write_report", lambda folder: None)
    dnt.ablate()
    placements = AblateSettings().placements
    assert list(asked.winners) == [*(f"{name}-msgdw" for name in placements), "dnt-msgdw-initdnt"]
    assert {"pre-ln", "s2", "s3", "s4", "dnt"} < set(placements)


def test_the_placements_left_out_differ_from_dnt_in_one_norm():
    whole = dnt.PLACEMENTS["dnt"]
    assert dnt.PLACEMENTS["dnt-no-input"].input != whole.input and dnt.PLACEMENTS["dnt-no-qk"].qk != whole.qk
    no_pre, no_mid = dnt.PLACEMENTS["dnt-no-pre"], dnt.PLACEMENTS["dnt-no-mid"]
    assert not (no_pre.attn.pre or no_pre.mlp.pre) and no_pre.mlp == whole.mlp and no_pre.attn.mid
    assert not (no_mid.attn.mid or no_mid.mlp.mid) and no_mid.attn.pre and (no_mid.qk, no_mid.input) == (True, True)


def test_an_ablation_from_the_command_line_shows_gradients_beside_scores(workplace, cells_here, capfd):
    options = ["ablate", "--data", "words.txt", *TINY, "--steps", "2", "--placements", "s4", "dnt", "--seeds", "0"]
    assert main([*options, "--points", "3", "--most-points", "3", "--decays", "1e-4", "--out", "a"]) == 0
    out = capfd.readouterr().out
    assert "99.9% /" in out and "init dnt" in out
    assert "norm² in the top 1%" in Path("a/index.html").read_text()
