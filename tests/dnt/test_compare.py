import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dnt
from dnt.cli import COMMANDS, main
from dnt.experiments.cells import run_name
from dnt.experiments.compare import grid
from dnt.report.page import by_frequency, write_report
from dnt.report.summary import Comparison
from dnt.settings import CompareSettings, TrainSettings
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw

COMPARE = ["compare", "--data", "words.txt", *TINY, "--steps", "12", "--eval-every", "6", "--out", "cmp"]


def rates(**fields) -> dict[str, list[float]]:
    cells: dict[str, list[float]] = {}
    for cell in grid(CompareSettings(**fields)):
        key = "calibrated" if cell.calibrate else f"{cell.placement}/{cell.optimizer}"
        cells.setdefault(key, []).append(cell.lr)
    return cells


def test_learning_rates_go_to_the_closest_key_and_what_is_given_beats_the_default():
    given = rates(lr=("adamw=1e-3", "msgdw=0.1,0.3", "dnt/msgdw=1"))
    others = {"pre-ln/adamw": [1e-3], "pre-ln/msgdw": [0.1, 0.3], "dnt/adamw": [1e-3], "dnt/msgdw": [1.0]}
    assert given == others | {"calibrated": [1.0]}
    assert rates(lr=("calibrated=0.1,0.3",))["calibrated"] == [0.1, 0.3]
    assert all(len(default) == 1 for default in rates().values())
    assert rates()["calibrated"] != rates()["dnt/msgdw"]


def test_a_recipe_calibrates_the_cells_it_says_something_to_and_leaves_the_rates_of_the_others():
    cells = grid(CompareSettings(calibrate=0.01, equilibrium=0.01, vary=()))
    found = {(cell.placement, cell.optimizer): (cell.calibrate, cell.equilibrium, cell.lr) for cell in cells}
    defaults = {(cell.placement, cell.optimizer): cell.lr for cell in grid(CompareSettings(vary=()))}
    assert found == {
        ("pre-ln", "adamw"): (0, 0, defaults["pre-ln", "adamw"]),
        ("pre-ln", "msgdw"): (0, 0.01, defaults["pre-ln", "msgdw"]),
        ("dnt", "adamw"): (0, 0, defaults["dnt", "adamw"]),
        ("dnt", "msgdw"): (0.01, 0.01, defaults["dnt", "msgdw"]),
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": ("msgdw",)}, "--lr got 'msgdw'; write KEY=VALUE[,VALUE...], e.g. msgdw=0.1,0.3."),
        ({"lr": ("msgdw=fast",)}, "--lr got 'msgdw=fast'; write"),
        ({"lr": ("ddnt/msgdw=1",)}, "unknown cell in --lr 'ddnt/msgdw'. Did you mean 'dnt/msgdw'?"),
        ({"weight_decay": ("sgd=1",)}, "unknown cell in --weight-decay 'sgd'. Did you mean 'msgdw'?"),
        ({"optimizers": ("adm",)}, "unknown optimizer 'adm'. Did you mean 'adamw'?"),
        ({"norm": "rmsnrm"}, "unknown norm 'rmsnrm'. Did you mean 'rmsnorm'?"),
        ({"placements": ("ddnt",)}, "unknown placement 'ddnt'. Did you mean 'dnt'?"),
        ({"heads": 3}, "heads=3 does not divide dim=128"),
        ({"optimizers": ()}, "--optimizers is empty; name at least one"),
        ({"lr": ("calibrated=0.1",), "vary": ()}, "unknown cell in --lr 'calibrated'"),
        ({"bound": -1.0}, "bound is -1.0; it must be at least 0."),
        ({"gain_rate": -1.0}, "gain_rate is -1.0; it must be at least 0."),
        ({"equilibrium": -0.01}, "equilibrium is -0.01; it must be at least 0."),
        ({"equilibrium": 0.2}, "equilibrium is 0.2; at momentum 0.9 it must be between 0 and 0.141."),
        ({"momentum": 1.0}, "momentum is 1.0; it must be at least 0 and less than 1."),
        ({"head_rate": 2.0}, "head_rate is 2.0, but the head is the token embedding"),
        ({"position_rate": 2.0, "positions": "rope"}, "position_rate is 2.0, but positions are not learned"),
        (
            {"embedding_rate": 2.0, "optimizers": ("msgdw-adamw",)},
            "msgdw-adamw has rates of its own; drop embedding_rate",
        ),
    ],
)
def test_a_grid_that_cannot_be_run_is_named(fields, message):
    with pytest.raises(ValueError) as error:
        rates(**fields)
    assert message in str(error.value)


def test_a_grid_holds_every_combination_once():
    settings = CompareSettings(seeds=(0, 1), lr=("msgdw=0.1,0.3",), weight_decay=("msgdw=0,1e-4",))
    names = [run_name(cell, settings) for cell in grid(settings)]
    assert len(names) == len(set(names)) == 2 * (2 * 1 + 3 * 4), (
        "seeds x (AdamW's cells + mSGDW's, one of them calibrated)"
    )
    assert "dnt-msgdw-lr0.3-wd0-seed1" in names


def test_runs_are_not_written_into_the_data_they_read(workplace, capfd):
    assert main(["compare", "--data", ".", *TINY]) == 2
    assert "would become part of the data in .; choose an --out outside" in capfd.readouterr().err
    assert main(["train", "--data", ".", *TINY, "--out", "here"]) == 2 and not Path("here").exists()


def test_a_cells_command_line_says_its_settings(monkeypatch):
    """Parsing the flags that a cell is started with gives the cell."""
    cell = TrainSettings(
        placement="s3", lr=0.1, seed=4, betas=(0.8, 0.9), bias=True, compile=False, context=32, tie_embeddings=False
    )
    seen = []

    def train(settings: TrainSettings) -> None:
        seen.append(settings)

    monkeypatch.setitem(COMMANDS, "train", train)
    assert main(["train", *cell.flags()]) == 0 and seen == [cell]


def test_the_main_job_from_the_command_line(workplace, capfd):
    assert main(COMPARE) == 0
    out = capfd.readouterr().out
    for words in (
        "pre-ln",
        "dnt",
        "adamw",
        "msgdw",
        "test loss",
        "Lowest test loss: ",
        "One seed: suggestive",
        "cmp/index",
    ):
        assert words in out
    comparison = Comparison(Path("cmp"))
    assert [cell.name for cell in comparison.cells] == [
        "pre-ln + adamw", "pre-ln + msgdw", "dnt + adamw", "dnt + msgdw", "dnt + msgdw, calibrated"
    ]  # fmt: skip
    runs = [run for cell in comparison.cells for run in cell.best.runs]
    configs = [run.config for run in runs]
    for section in ("data", "training", "machine"):
        same = {name: value for name, value in configs[0][section].items() if name != "calibrate"}
        assert all(config[section].items() >= same.items() for config in configs), f"{section} is the same for all"
    states = {
        cell.name: cell.best.average("state_bytes") / cell.best.average("parameters") for cell in comparison.cells
    }
    assert states["dnt + msgdw"] == 4 and states["dnt + adamw"] == pytest.approx(8, rel=0.01)

    # the page holds what the runs wrote, and nothing from elsewhere
    page = Path("cmp/index.html").read_text()
    for cell in comparison.cells:
        assert f"{cell.best.test:.3f}" in page and cell.name in page
    assert configs[0]["data"]["sha256"] in page and comparison.verdict.replace("&", "&amp;") in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)=", markup), "self-contained"
    assert page.count('class="plotly-graph-div"') == 7 and "Loss by token frequency" in page

    # a finished cell is not run again, and the same command writes the same page
    before = {run.path: (run.path / "log.jsonl").stat().st_mtime_ns for run in runs}
    assert main(COMPARE) == 0
    assert before == {run.path: (run.path / "log.jsonl").stat().st_mtime_ns for run in runs}
    assert "[1/5]" not in capfd.readouterr().err

    # another recipe does not mix with these cells
    assert main([*COMPARE, "--precision", "bf16-mixed"]) == 2
    assert "cmp was made with precision = '32', not 'bf16-mixed'" in capfd.readouterr().err
    assert main([*COMPARE, "--steps", "13"]) == 2
    assert "cmp was made with steps = 12, not 13; choose another --out." in capfd.readouterr().err
    text = Path("words.txt").read_text()
    Path("words.txt").write_text(text + "more")
    assert main(COMPARE) == 2 and "cmp was made with data sha256 = " in capfd.readouterr().err
    Path("words.txt").write_text(text)
    assert main(["report", "cmp"]) == 0


def test_an_interrupted_comparison_goes_on_where_it_stopped(workplace, request):
    options = [
        "compare",
        "--data",
        "words.txt",
        *TINY,
        "--steps",
        "500",
        "--placements",
        "dnt",
        "--optimizers",
        "msgdw",
    ]
    both = [*options, "--out", "cmp", "--seeds", "0", "1"]
    command = [sys.executable, "-m", "dnt", *both]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    first = Path("cmp/dnt-msgdw-lr0.1-wd0.0001-seed0")
    while len(dnt.Run(first).rows("train")) < 2:
        time.sleep(0.05)
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)  # what Ctrl-C does; the cell is in a group of its own
    _, message = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the same command continues" in message and "Traceback" not in message
    step, _ = dnt.Run(first).last_checkpoint()
    assert 0 < step < 500
    assert main(both) == 0
    assert len(Comparison(Path("cmp")).cells[0].best.runs) == 2
    request.getfixturevalue("cells_here")
    assert main([*options, "--out", "whole"]) == 0
    ends = [dnt.Run(Path(folder) / first.name).end["test"] for folder in ("cmp", "whole")]
    assert ends[0] == ends[1]


# --- the table, from run folders written by hand --------------------------------------------------------------------


def hand_written(folder: Path, placement: str, optimizer: str, lr: float, seed: int, validation: float, test: float):
    run = dnt.Run(folder / f"{placement}-{optimizer}-{lr}-{seed}")
    group = {"lr": lr, "weight_decay": 0.1, "momentum": 0.9}
    config = {
        "model": {"placement": placement},
        "data": {"name": "x", "sha256": "0"},
        "optimizer": {"class": {"adamw": "AdamW", "msgdw": "MSGDW"}[optimizer], "groups": [group]},
        "training": {"steps": 4, "batch_size": 2, "warmup": 1, "precision": "32", "seed": seed},
        "settings": None,
        "machine": {},
    }
    run.start(config, {})
    if test < 100:
        row = {"event": "end", "step": 5, "validation": validation, "test": test, "clipped_share": 0.5}
        row |= {
            "state_bytes": 80,
            "parameters": 10,
            "peak_memory_bytes": 2**30,
            "tokens_per_s": 5e3,
            "train_seconds": 60,
        }
    else:
        row = {"event": "diverged", "step": 3, "what": "the loss is nan"}
    run.append([row])


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, shift in ((0, -0.01), (1, 0.01)):
        for lr, loss in ((0.001, 2.1), (0.003, 2.0), (0.01, 2.3)):
            hand_written(tmp_path, "pre-ln", "adamw", lr, seed, loss + shift, loss + 0.1 + shift)
        for lr, loss in ((0.1, 2.2), (0.3, 2.5), (1.0, 999)):
            hand_written(tmp_path, "dnt", "msgdw", lr, seed, loss + shift, loss - 0.1 + shift)
    return tmp_path


def test_the_best_setting_is_by_validation_and_the_table_reports_its_test_loss(folder):
    adamw, msgdw = Comparison(folder).cells
    assert (adamw.best.lr, msgdw.best.lr) == (0.003, 0.1)
    assert (adamw.at_edge, msgdw.at_edge) == (False, True)
    assert adamw.best.test == pytest.approx(2.1) and adamw.best.test_spread == pytest.approx(0.0141, abs=1e-4)
    rows = Comparison(folder).rows()
    assert rows[0] == [
        "pre-ln", "adamw", "0.003", "0.1", "2.100 ± 0.014", "", "2.000", "2", "50%", "8.0", "1,024 MiB", "5,000", "60 s"
    ]  # fmt: skip
    assert rows[1][2] == "0.1 (edge)"


def test_the_verdict_states_the_gap_whoever_wins(folder, tmp_path):
    verdict = Comparison(folder).verdict
    assert verdict.startswith("Lowest test loss: ") and verdict.endswith(
        " Means of 2 seeds; intervals are paired, 95%."
    )
    assert "2.100 nats a token" in verdict and "+0.0%" in verdict and "as good as pre-ln + adamw, " in verdict
    only = tmp_path / "only"
    hand_written(only, "pre-ln", "adamw", 0.1, 0, 3.0, 3.0)
    hand_written(only, "dnt", "msgdw", 0.1, 0, 2.0, 2.0)
    hand_written(only, "dnt", "adamw", 0.1, 0, 999, 999)
    assert Comparison(only).verdict == (
        "Lowest test loss: dnt + msgdw, 2.000 nats a token; pre-ln + adamw +50.0%; dnt + adamw diverged. "
        "The claim, dnt + msgdw as good as pre-ln + adamw, is neither shown nor refuted here (-33.3%, -1.000 nats). "
        "One seed: suggestive, not evidence."
    )


def test_a_diverged_cell_is_in_the_table_and_the_page(folder):
    hand_written(folder, "s2", "msgdw", 3.0, 0, 999, 999)
    row = next(row for row in Comparison(folder).rows() if row[0] == "s2")
    assert "diverged" in row and "inf" in row[4]
    assert "diverged" in write_report(folder).read_text()


def test_the_loss_by_token_frequency_is_the_mean_over_the_seeds_of_the_best_setting(folder):
    assert "Loss by token frequency" not in write_report(folder).read_text(), "runs without it are left out"
    for seed, loss in ((0, 1.0), (1, 2.0)):
        run = dnt.Run(folder / f"pre-ln-adamw-0.003-{seed}")
        [end] = run.log
        parts = [{"decile": i, "symbols": 9**i, "share": 0.5, "loss": loss + i} for i in (1, 2)]
        (run.path / "log.jsonl").write_text("")
        run.append([{"event": "deciles", "step": 5, "deciles": parts}, end])
    cells = Comparison(folder).cells
    [line] = by_frequency(cells).data
    assert (line.name, line.x, line.y) == ("pre-ln + adamw", (0.25, 0.75), (2.5, 3.5))
    assert "Loss by token frequency" in write_report(folder).read_text()


def test_names_in_a_page_are_escaped(tmp_path):
    hand_written(tmp_path, "dnt", "msgdw", 0.1, 0, 2.0, 2.0)
    path = next(tmp_path.glob("*/config.json"))
    config = json.loads(path.read_text())
    config["data"]["name"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(config))
    assert "<script>alert(1)" not in write_report(tmp_path).read_text()


def test_runs_that_differ_in_more_than_a_cell_never_share_a_table(folder):
    path = next(folder.glob("dnt-*/config.json"))
    path.write_text(path.read_text().replace('"precision": "32"', '"precision": "bf16-mixed"'))
    with pytest.raises(ValueError, match=r"cannot stand in one table: training: precision is '.*' and '.*'"):
        write_report(folder)


def test_runs_on_other_devices_share_a_table(folder):
    """A comparison may go on with another number of processes: they compute the same."""
    path = next(folder.glob("dnt-*/config.json"))
    config = json.loads(path.read_text())
    config["training"] |= {"devices": 2, "strategy": "fsdp", "accumulate": 4}
    path.write_text(json.dumps(config))
    assert write_report(folder).exists()


def test_runs_of_fit_are_reported_too(workplace):
    for placement in ("pre-ln", dnt.Placement(attn=dnt.Slots(mid=True), mlp=dnt.Slots(mid=True))):
        model = tiny_model(placement=placement)
        data = dnt.prepare("words.txt", context=16)
        dnt.fit(model, data, tiny_msgdw(model), out=f"runs/{placement == 'pre-ln'}", **OPTIONS)
    write_report("runs")
    assert [row[:3] for row in Comparison(Path("runs")).rows()] == [
        ["pre-ln", "msgdw", "0.1"],
        ["x = embed; x + N(attn(x)); x + N(mlp(x)); head(N(x))", "msgdw", "0.1"],
    ]


def test_a_run_that_differs_in_an_option_is_a_cell_of_its_own(folder):
    path = next(folder.glob("dnt-*/config.json"))
    path.write_text(path.read_text().replace('"momentum": 0.9', '"momentum": 0.5'))
    comparison = Comparison(folder)
    assert [cell.name for cell in comparison.cells] == ["pre-ln + adamw", "dnt + msgdw", "dnt + msgdw, momentum 0.5"]
    assert comparison.columns()[2] == "variation" and comparison.rows()[2][2] == "momentum 0.5"
    assert "momentum 0.5" in write_report(folder).read_text()


def test_a_mixture_is_a_cell_whose_second_rate_is_an_option(workplace, capfd):
    options = ["compare", "--data", "words.txt", *TINY, "--steps", "2", "--placements", "dnt", "--adamw-lr", "0.01"]
    assert main([*options, "--optimizers", "msgdw-adamw", "--lr", "msgdw-adamw=0.3", "--out", "mix"]) == 0
    assert [row[:4] for row in Comparison(Path("mix")).rows()] == [["dnt", "msgdw-adamw", "0.3", "0.0001"]]
    assert "<dt>adamw_lr</dt>" in Path("mix/index.html").read_text()
    other = [*TINY, "--steps", "2", "--optimizer", "msgdw-adamw", "--lr", "0.3", "--adamw-lr", "0.02", "--seed", "1"]
    assert main(["train", "--data", "words.txt", *other, "--out", "mix/other"]) == 0
    first, other = Comparison(Path("mix")).cells
    assert "adamw_lr" in first.variation + other.variation


def test_the_same_setting_and_seed_twice_is_named(folder):
    twice = folder / "copy"
    shutil.copytree(next(folder.glob("dnt-*-0.1-0")), twice)
    with pytest.raises(ValueError, match="are the same setting and seed; remove one"):
        Comparison(folder).verdict  # noqa: B018


def test_a_setting_with_fewer_seeds_cannot_win(folder):
    hand_written(folder, "dnt", "msgdw", 0.03, 7, 1.0, 1.0)
    assert Comparison(folder).cells[1].best.lr == 0.1


def test_a_folder_without_finished_runs_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        write_report(tmp_path)
