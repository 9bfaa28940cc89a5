"""One process and several, as child processes: gloo, float32."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import dnt
from dnt import train
from dnt.cli import main
from dnt.loop import Loop
from dnt.machine import can_compile
from dnt.settings import FitSettings
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw
from tests.dnt.test_cli import complaint

needs_compiler = pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")

# Train like `dnt train`, but process RANK sends itself SIGNAL when it has done STEP steps
SIGNALLED = """
import os, signal
from dnt.cli import entry
from dnt.loop import Loop

real = Loop.train_step

def train_step(self):
    real(self)
    if self.step == {step} and self.fabric.global_rank == {rank}:
        os.kill(os.getpid(), signal.{name})

Loop.train_step = train_step
entry()
"""
SETTING = [
    *TINY,
    "--data",
    "words.txt",
    "--batch-size",
    "8",
    "--steps",
    "20",
    "--checkpoint-every",
    "7",
    "--clip",
    "0.5",
]


@pytest.fixture
def prepared(workplace) -> None:
    """The tokens are there: no run waits for another that prepares them."""
    dnt.prepare("words.txt", context=16)


def start(*arguments: str, rank: int = 0, name: str = "SIGKILL", step: int = 0) -> subprocess.Popen[str]:
    program = ["-m", "dnt"]
    if step:
        program = [f"{name}-at-{step}.py"]
        Path(*program).write_text(SIGNALLED.format(rank=rank, name=name, step=step))
    command = [sys.executable, *program, "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str], status: int = 0) -> list[str]:
    """The lines of its standard error but those that announce the run."""
    _, error = child.communicate(timeout=120)
    assert child.returncode == status, error
    usual = ("relative step", "a diagnosis takes", "cpp_extension.py")  # the second of torch on CUDA without a GPU
    return [line for line in error.splitlines()[1:] if not any(words in line for words in usual)]


def run_all(*many: list[str]) -> None:
    """Runs of one process here, the others beside it."""
    here = [arguments for arguments in many if {"--devices", "--strategy", "--resume"}.isdisjoint(arguments)]
    children = [start(*arguments) for arguments in many if arguments not in here]
    for arguments in here:
        assert main(["train", *arguments]) == 0
    for child in children:
        assert finish(child) == []


def losses(out: str) -> list[float]:
    run = dnt.Run(Path(out))
    assert run.end["event"] == "end"
    return [*(row["loss"] for row in run.rows("train")), run.end["validation"], run.end["test"]]


def by_decile(out: str) -> list[list[float]]:
    [row] = dnt.Run(Path(out)).rows("deciles")
    return [list(part.values()) for part in row["deciles"]]


def weights(out: str) -> torch.Tensor:
    return torch.cat([t.flatten() for t in load_file(Path(out) / "model.safetensors").values()])


def test_one_process_and_two_agree_on_what_scales_and_bounds_a_step(prepared):
    shared = [*SETTING, "--optimizer", "msgdw", "--lr", "0.3", "--clip", "0", "--calibrate", "0.01", "--bound", "0.02"]
    shared += ["--gain-rate", "10", "--position-rate", "0.5", "--equilibrium", "0.01", "--clip-equilibrium", "1"]
    ways = {"one": [], "ddp": ["--devices", "2"], "fsdp": ["--devices", "2", "--strategy", "fsdp"]}
    run_all(*([*shared, *way, "--out", name] for name, way in ways.items()))
    of_one = dnt.Run(Path("one"))
    assert of_one.end["clipped_share"] > 0
    for name in ways:
        run = dnt.Run(Path(name))
        assert run.rows("calibration") == of_one.rows("calibration")
        assert losses(name) == pytest.approx(losses("one"), rel=1e-4), name
        assert torch.allclose(weights(name), weights("one"), atol=1e-4), name


@pytest.mark.parametrize("optimizer", ["msgdw", "msgdw-adamw"])
def test_one_process_and_two_agree(prepared, optimizer):
    shared = [*SETTING, "--optimizer", optimizer, "--lr", "0.03"]
    two = ["--devices", "2"]
    ways = {"one": [], "ddp": two, "fsdp": [*two, "--strategy", "fsdp"]}
    if optimizer == "msgdw":
        ways |= {
            "micro": ["--accumulate", "4", "--recompute"], "alone": ["--strategy", "fsdp"],
            "both": [*two, "--strategy", "fsdp", "--accumulate", "2", "--recompute"],
        }  # fmt: skip
    run_all(*([*shared, *way, "--out", name] for name, way in ways.items()))
    for name in ways:
        assert losses(name) == pytest.approx(losses("one"), abs=1e-5), name
        torch.testing.assert_close(weights(name), weights("one"), rtol=0, atol=1e-5)
        torch.testing.assert_close(by_decile(name), by_decile("one"), rtol=0, atol=1e-5)
        histogram = dnt.Run(Path(name)).rows("gradients")[-1]
        assert sum(histogram["counts"]) + histogram["zeros"] == dnt.Run(Path(name)).end["parameters"], name
    ends = [dnt.Run(Path(name)).end for name in ways]
    assert len({(end["parameters"], end["state_bytes"]) for end in ends}) == 1, "counted once, over all processes"


def test_momentum_in_the_gradient_is_that_of_a_buffer_on_two_processes_and_goes_on_exactly(prepared):
    shared = [*SETTING, "--clip", "0", "--lr", "0.03", "--dropout", "0.2"]
    standing = [*shared, "--bound", "0", "--momentum-in-grad"]
    ways = {"one": [], "ddp": ["--devices", "2"], "fsdp": ["--devices", "2", "--strategy", "fsdp"]}
    for name, way in ways.items():
        run_all([*shared, *way, "--out", name], [*standing, *way, "--out", f"{name}-in-grad"])
        assert dnt.Run(Path(f"{name}-in-grad")).end["state_bytes"] == 0
    assert torch.equal(weights("one-in-grad"), weights("one"))
    assert torch.equal(weights("fsdp-in-grad"), weights("fsdp"))
    torch.testing.assert_close(weights("ddp-in-grad"), weights("ddp"), rtol=0, atol=1e-6)
    finish(start(*standing, *ways["fsdp"], "--out", "stopped", rank=1, name="SIGTERM", step=9), 130)
    run_all(["--resume", "stopped"])
    assert torch.equal(weights("stopped"), weights("fsdp-in-grad")), "the momentum is in the checkpoint"


def test_of_two_processes_one_diagnoses_and_both_learn_what_they_do_without(prepared):
    two = [*SETTING, "--devices", "2", "--dropout", "0.2", "--steps", "6"]
    run_all([*two, "--diagnose-every", "3", "--out", "with"], [*two, "--out", "without"])
    assert torch.equal(weights("with"), weights("without"))
    rows = dnt.Run(Path("with")).rows("diagnosis")
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert all(row["tables"]["steps"] for row in rows[1:])


@pytest.mark.parametrize(("strategy", "killed"), [("ddp", 1), ("fsdp", 0)])
def test_when_a_process_is_killed_the_other_ends_with_one_line_and_resuming_is_exact(prepared, strategy, killed):
    shared = [*SETTING, "--dropout", "0.2", "--devices", "2", "--strategy", strategy]
    child, whole = start(*shared, "--out", "killed", rank=killed, step=10), start(*shared, "--out", "whole")
    assert finish(whole) == []
    [line] = finish(child, status=1 if killed else -9)
    who = "process 1 was killed by SIGKILL." if killed else "process 0 is gone."
    assert line == f"dnt: {who} The last good checkpoint is of step 7, killed/checkpoint/step-000000007. " + (
        "Go on: dnt train --resume killed"
    )
    run_all(["--resume", "killed"])
    assert torch.equal(weights("killed"), weights("whole")), "dropout too: each process has its random state back"
    assert losses("killed") == losses("whole")


def test_two_devices_then_one_then_two_resume(prepared):
    long = [*SETTING, "--optimizer", "msgdw-adamw", "--lr", "0.1", "--adamw-lr", "0.01", "--steps", "30", "--seed", "3"]
    stop = start(*long, "--devices", "2", "--strategy", "fsdp", "--out", "moved", rank=1, name="SIGTERM", step=4)
    run_all([*long, "--out", "whole"])
    [line] = finish(stop, status=130)
    assert line == "dnt: stopped after step 4; continue: dnt train --resume moved", "all stop after the same step"
    [line] = finish(start("--resume", "moved", "--devices", "1", name="SIGINT", step=17), 130)
    assert line.startswith("dnt: stopped after step ")
    assert finish(start("--resume", "moved", "--devices", "2", "--strategy", "ddp")) == []
    assert losses("moved")[-2:] == pytest.approx(losses("whole")[-2:], abs=1e-5)
    torch.testing.assert_close(weights("moved"), weights("whole"), rtol=0, atol=1e-5)


def test_torchrun_starts_the_processes_too(prepared):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "dnt", "train"]
    subprocess.run([*torchrun, *SETTING, "--devices", "2", "--out", "two"], check=True, capture_output=True)
    run_all([*SETTING, "--out", "one"])
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "16-mixed"], "16-mixed needs a GPU; on a CPU use --precision bf16-mixed or 32."),
        (["--devices", "3"], "batch_size is 4, no multiple of 3 processes x 1 micro-batches; use 6, for example."),
        (["--accumulate", "8"], "batch_size is 4, no multiple of 1 processes x 8 micro-batches; use 8, for example."),
        (["--strategy", "fdsp"], "unknown strategy 'fdsp'. Did you mean 'fsdp'?"),
        (["--devices", "0"], "devices is 0; it must be at least 1."),
        (["--momentum-in-grad"], "clip is 1.0, but with momentum_in_grad there is no gradient to clip"),
        (["--momentum-in-grad", "--clip", "0", "--nesterov"], "nesterov needs the gradient beside the momentum"),
        (["--momentum-in-grad", "--clip", "0", "--precision", "bf16-weights"], "in bfloat16 small ones are lost"),
        (["--precision", "bf16-weights", "--optimizer", "adamw"], "bf16-weights does not go with AdamW"),
        (["--precision", "bf16-weights", "--strategy", "fsdp"], "bf16-weights does not go with fsdp"),
        (["--precision", "bf16-weights", "--ema", "0.9"], "bf16-weights does not go with ema"),
        (["--precision", "bf16-weights", "--devices", "2"], "bf16-weights does not go with several processes"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do some of it")
def test_what_cannot_be_combined_is_named(workplace, capfd, arguments, message):
    assert message in complaint(capfd, "train", "--data", "words.txt", *TINY, "--out", "bad", *arguments)
    assert not Path("bad").exists()


def test_what_cannot_be_combined_on_gpus_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="16-mixed does not go with fsdp"):
        train.check_combination(FitSettings(devices=4, strategy="fsdp"), "16-mixed")
    with pytest.raises(ValueError, match="devices is 8, but this machine has 4 GPUs; use --devices 4 or less"):
        train.check_machine(FitSettings(devices=8), "32")
    train.check_machine(FitSettings(devices=4), "16-mixed")


def test_what_no_launcher_started_is_named(monkeypatch):
    with pytest.raises(ValueError, match="nodes is 2: start it on each machine with torchrun or srun"):
        train.check_machine(FitSettings(devices=2, nodes=2), "32")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="the launcher started 4 processes, but devices x nodes is 1 x 1"):
        train.check_machine(FitSettings(), "32")
    train.check_machine(FitSettings(devices=2, nodes=2), "32")


def test_a_run_that_diverges_on_two_processes_says_so_once(prepared):
    lines = finish(start(*SETTING, "--devices", "2", "--lr", "1e30", "--clip", "0", "--out", "bad"), status=1)
    warning, line = lines
    assert warning.startswith("lr is 1e+30, outside of ")
    assert line.startswith("dnt: step ") and "Likely causes: too high a learning rate" in line
    assert dnt.Run(Path("bad")).end["event"] == "diverged"


def test_a_damaged_checkpoint_is_one_line_for_two_processes_too(prepared):
    [line] = finish(start(*SETTING, "--devices", "2", "--out", "run", name="SIGTERM", step=4), 130)
    assert line.startswith("dnt: stopped after step 4")
    _, folder = dnt.Run(Path("run")).last_checkpoint()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    [line] = finish(start("--resume", "run"), status=2)
    assert "is damaged; delete run/checkpoint/step-000000004 to start run again from step 0" in line


@needs_compiler
def test_blocks_compiled_one_by_one_compute_the_same_on_two_processes(prepared):
    compiled = [*SETTING, "--compile", "--dropout", "0"]
    run_all([*SETTING, "--out", "one"], [*compiled, "--devices", "2", "--strategy", "fsdp", "--out", "fsdp"])
    run_all([*compiled, "--devices", "2", "--out", "ddp"])
    for name in ("ddp", "fsdp"):
        assert losses(name) == pytest.approx(losses("one"), abs=1e-5), name


def test_a_step_that_overflows_in_16_mixed_is_skipped_but_not_for_ever():
    loop = SimpleNamespace(step=10, diverge=lambda step, what: pytest.fail(f"{step}: {what}"))
    inf, nan = float("inf"), float("nan")
    assert Loop.without_skipped(loop, [inf, 2.0, nan] + 7 * [1.0]) == [0.0, 2.0, 0.0] + 7 * [1.0]
    with pytest.raises(pytest.fail.Exception, match="10: the gradient overflowed in 10 steps on end"):
        Loop.without_skipped(loop, 10 * [inf])


def test_an_evaluation_reads_the_tokens_it_is_told_to(workplace):
    data = dnt.prepare("words.txt", context=16)
    for most, expected in ((100, 100), (0, len(data.test.tokens) - 1)):
        model = tiny_model()
        run = dnt.fit(model, data, tiny_msgdw(model), out=f"run{most}", eval_tokens=most, **OPTIONS)
        tokens = torch.from_numpy(data.test.tokens.astype("int64"))[: expected + 1]
        parts = [(tokens[i : i + 16], tokens[i + 1 : i + 17]) for i in range(0, expected, 16)]
        total = sum(model.loss(x[None, : len(y)], y[None]).item() * len(y) for x, y in parts)
        assert run.end["test"] == pytest.approx(total / expected, rel=1e-5)


def test_a_failure_among_several_keeps_its_status_if_the_end_of_the_process_would_abort(tmp_path):
    program = f"""
import atexit, os, torch
from dnt.parallel import leave
leave(3)  # alone it returns
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
atexit.register(os.abort)
leave(2)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 2
