import errno
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dnt
from dnt import loop
from dnt.cli import main
from dnt.loop import Loop
from dnt.optim.factory import build_optimizer
from dnt.optim.schedule import cosine
from dnt.runs import digest
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw
from tests.dnt.test_parallel import finish, needs_compiler, start


def complaint(stderr: str) -> str:
    """The last of what a command printed, behind the lines that announce the run; no traceback."""
    announced, *steps, line = stderr.strip().splitlines()
    assert all(words.startswith("relative step") for words in steps) and len(steps) < 2
    assert announced.startswith("words.txt (") and line.startswith("dnt: ")
    return line


def weights(run: Path | str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "model.safetensors")


def same_weights(a: Path | str, b: Path | str) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def words(**fields):
    return dnt.prepare("words.txt", context=16, **fields)


# --- what a run computes --------------------------------------------------------------------------------------------


def test_fit_equals_a_loop_written_out(workplace):
    model, data = tiny_model(), words()
    run = dnt.fit(model, data, tiny_msgdw(model), clip=0.5, seed=3, out="run", **OPTIONS)

    slow = tiny_model()
    optimizer = tiny_msgdw(slow)
    losses, norms = [], []
    for step in range(8):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * cosine(step, 8, 2, 0.1)
        loss = slow.loss(*data.train.batch(3, step, 4))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(slow.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())
    for a, b in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    [row] = run.rows("train")
    assert row["loss"] == pytest.approx(sum(losses) / 8) and row["grad_norm"] == pytest.approx(max(norms))
    assert row["clipped"] == sum(norm > 0.5 for norm in norms) and row["count"] == 8
    end = run.end
    tokens = torch.from_numpy(data.test.tokens.astype("int64"))
    by_hand = [
        slow.loss(tokens[i : i + 16][None, : len(tokens) - 1 - i], tokens[i + 1 : i + 17][None]).item()
        * len(tokens[i + 1 : i + 17])
        for i in range(0, len(tokens) - 1, 16)
    ]
    assert end["test"] == pytest.approx(sum(by_hand) / (len(tokens) - 1), rel=1e-5)
    assert end["state_bytes"] == 4 * end["parameters"] == 4 * sum(p.numel() for p in model.parameters())
    assert end["clipped_share"] == row["clipped"] / 8 and end["peak_memory_bytes"] > 2**26


def test_the_test_loss_by_decile_adds_up_to_the_test_loss(workplace):
    model, data = tiny_model(), words()
    run = dnt.fit(model, data, tiny_msgdw(model), out="run", **OPTIONS)
    assert [row["event"] for row in run.log[-2:]] == ["deciles", "end"]
    parts = run.rows("deciles")[-1]["deciles"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert sum(part["share"] * part["loss"] for part in parts) == pytest.approx(run.end["test"], abs=1e-6)
    targets, deciles = data.test.tokens[1:].astype("int64"), data.deciles()
    tokens = torch.from_numpy(data.test.tokens.astype("int64"))
    losses = torch.cat([
        model.losses(tokens[i : i + 16][None, : len(targets) - i], tokens[i + 1 : i + 17][None])[0]
        for i in range(0, len(targets), 16)
    ])  # fmt: skip
    for part in parts:
        here = torch.from_numpy(deciles[targets] == part["decile"])
        assert part["loss"] == pytest.approx(losses[here].mean().item(), rel=1e-5)
        assert part["share"] == pytest.approx(here.float().mean().item())
        assert part["symbols"] == (deciles == part["decile"]).sum()


def test_adamw_state_is_eight_bytes_a_parameter(workplace):
    model = tiny_model()
    run = dnt.fit(model, words(), torch.optim.AdamW(model.parameters()), out="run", **OPTIONS)
    assert run.end["state_bytes"] / run.end["parameters"] == pytest.approx(8, rel=0.01)


def test_no_clipping_leaves_the_gradient_alone_and_says_so(workplace):
    model, slow, data = tiny_model(), tiny_model(), words()
    run = dnt.fit(model, data, tiny_msgdw(model), clip=0.0, out="run", schedule="constant", **OPTIONS | {"warmup": 0})
    optimizer = tiny_msgdw(slow)
    for step in range(8):
        optimizer.zero_grad()
        slow.loss(*data.train.batch(0, step, 4)).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), slow.parameters(), strict=True))
    assert run.end["clipped_share"] == 0


def test_bf16_mixed_multiplies_in_bfloat16_and_keeps_float32_weights(workplace):
    model = tiny_model()
    dtypes = set()
    model.blocks[0].mlp.f.up.register_forward_hook(lambda _m, _i, out: dtypes.add((model.training, out.dtype)))
    dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS | {"precision": "bf16-mixed"})
    assert (True, torch.bfloat16) in dtypes and (True, torch.float32) not in dtypes
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_gradient_histogram_counts_every_entry_of_the_held_batch(workplace):
    model, data = tiny_model(), words()
    start = tiny_model()
    run = dnt.fit(model, data, tiny_msgdw(model), out="run", **OPTIONS)
    first, last = run.rows("gradients")
    assert (first["step"], last["step"]) == (0, 8)
    start.loss(*next(data.validation.whole(4))).backward()
    entries = torch.cat([p.grad.flatten() for p in start.parameters()]).abs()
    assert first["zeros"] == int((entries == 0).sum())
    nonzero = entries[entries > 0].double()
    expected = torch.histogram(nonzero.log10(), torch.tensor(first["edges"], dtype=torch.float64).log10()).hist
    assert sum(first["counts"]) == len(nonzero)
    assert (torch.tensor(first["counts"]) - expected).abs().sum() <= 2  # entries on an edge


def test_training_learns_the_words(workplace):
    model = tiny_model()
    run = dnt.fit(model, words(), tiny_msgdw(model, lr=0.3), out="run", **OPTIONS | {"steps": 150, "batch_size": 16})
    assert run.end["test"] < 1.5  # log(256) = 5.5 at the start


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_run_stopped_by_a_signal_resumes_to_bit_identical_weights(workplace):
    options = [*TINY, "--data", "words.txt", "--dropout", "0.2", "--checkpoint-every", "10000", "--steps", "60"]
    [line] = finish(start(*options, "--out", "stopped", name="SIGINT", step=25), 130)
    assert line == "dnt: stopped after step 25; continue: dnt train --resume stopped"
    assert main(["train", "--resume", "stopped"]) == main(["train", *options, "--out", "whole"]) == 0
    assert same_weights("stopped", "whole")
    steps = [row["step"] for row in dnt.Run(Path("stopped")).rows("train")]
    assert steps == sorted(set(steps)) and steps[-1] == 60


def test_a_stopped_mixture_resumes_to_bit_identical_weights(workplace, monkeypatch):
    def fit(out: str, **options) -> None:
        model = tiny_model(dropout=0.2)
        dnt.fit(model, words(), build_optimizer("msgdw-adamw", model, {}), out=out, **OPTIONS | options)

    fit("whole", checkpoint_every=3)
    real = Loop.train_step
    with monkeypatch.context() as stopped:
        stopped.setattr(Loop, "train_step", lambda self: 1 / 0 if self.step == 5 else real(self))
        with pytest.raises(ZeroDivisionError):
            fit("half", checkpoint_every=3)
    fit("half", checkpoint_every=3, resume=True)
    assert same_weights("half", "whole")
    assert dnt.Run(Path("half")).config["optimizer"]["class"] == "MSGDW-AdamW"


# Train, and in each go on after the last, in processes that kill themselves at the given moments; their exit statuses
KILLED = """
import os, signal, sys
import dnt.files, dnt.train
from dnt.cli import main

def die(name):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)

for name in ("fsync", "replace"):  # before each, a file is half written; between them, whole but not yet in place
    def wrapped(*arguments, real=getattr(os, name), name=name):
        die(name)
        return real(*arguments)
    setattr(dnt.files.os, name, wrapped)

for moment in map(int, sys.argv[1].split(",")):
    arguments, calls = ["--resume", "killed"] if os.path.exists("killed/config.json") else sys.argv[2:], 0
    child = os.fork()
    if not child:
        os._exit(main(["train", *arguments]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("status", status, flush=True)
    if status == 0:
        break
"""


def test_a_run_killed_at_any_moment_resumes_to_bit_identical_weights(workplace):
    """kill -9 at each stage of the writes of config, weights and checkpoints."""
    options = [*TINY, "--data", "words.txt", "--dropout", "0.2", "--checkpoint-every", "4", "--steps", "12"]
    command = [sys.executable, "-c", KILLED, "3,5,6,8,7,3", *options, "--out", "killed"]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    statuses = [int(line.split()[1]) for line in printed.splitlines() if line.startswith("status ")]
    assert set(statuses) <= {0, -signal.SIGKILL} and statuses.count(-signal.SIGKILL) >= 4
    assert main(["train", "--resume", "killed"]) == main(["train", *options, "--out", "whole"]) == 0
    assert same_weights("killed", "whole")
    ends = [dnt.Run(Path(name)).end for name in ("killed", "whole")]
    assert ends[0]["test"] == ends[1]["test"] and ends[0]["validation"] == ends[1]["validation"]
    assert not list(Path("killed/checkpoint").glob("*.unfinished")), "what a kill left is swept"


def test_a_run_killed_between_checkpoints_resumes_to_bit_identical_weights(workplace):
    options = [*TINY, "--data", "words.txt", "--dropout", "0.2", "--checkpoint-every", "7", "--steps", "30"]
    finish(start(*options, "--out", "killed", step=17), -signal.SIGKILL)
    assert dnt.Run(Path("killed")).last_checkpoint()[0] == 14
    assert main(["train", "--resume", "killed"]) == main(["train", *options, "--out", "whole"]) == 0
    assert same_weights("killed", "whole")


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def adamw(model: dnt.GPT) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.mark.parametrize(
    ("make", "compiled"), [(tiny_msgdw, False), (adamw, False), pytest.param(tiny_msgdw, True, marks=needs_compiler)]
)
def test_fit_resumes_in_python_too(workplace, two_threads, make, compiled):
    """With several threads too: an order of summation that varies between processes would show."""
    options = OPTIONS | {"checkpoint_every": 3, "compile": compiled}

    def attempt(out: str, resume: bool) -> dnt.Run:
        model = tiny_model(dropout=0.1)
        return dnt.fit(model, words(), make(model), out=out, resume=resume, **options)

    attempt("whole", False)
    from dnt.loop import Loop

    real = Loop.train_step
    try:
        Loop.train_step = lambda self: (_ for _ in ()).throw(RuntimeError) if self.step == 5 else real(self)
        with pytest.raises(RuntimeError):
            attempt("half", False)
    finally:
        Loop.train_step = real
    assert dnt.Run(Path("half")).last_checkpoint()[0] == 3
    attempt("half", True)
    assert same_weights("half", "whole")
    before = Path("half/log.jsonl").read_text()
    attempt("half", True)
    assert Path("half/log.jsonl").read_text() == before, "a finished run is left as it is"


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("breaks_at", [4, 6, 7, 8, 11])
def test_a_non_finite_loss_names_the_step_the_last_good_checkpoint_and_causes(workplace, breaks_at):
    """Also when the update before a checkpoint (every 4 steps), or the very last one, breaks the weights."""

    class Breaks(dnt.MSGDW):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            if self.steps == breaks_at:
                self.param_groups[0]["params"][0].data.fill_(math.nan)
            return super().step(closure)

    model = tiny_model()
    broken = Breaks(dnt.param_groups(model), lr=0.1)
    with pytest.raises(FloatingPointError) as error:
        dnt.fit(model, words(), broken, out="run", checkpoint_every=4, **OPTIONS | {"steps": 11})
    message, run = str(error.value), dnt.Run(Path("run"))
    at_once = breaks_at in (4, 8, 11)  # by the check before a checkpoint; else by the loss of the next step
    good = 4 * ((breaks_at - 1) // 4)
    assert message.startswith(f"step {breaks_at}: the weights" if at_once else f"step {breaks_at + 1}: the loss is nan")
    assert (f"last good checkpoint is of step {good}" if good else "no checkpoint yet") in message
    assert "learning rate" in message and "\n" not in message
    assert run.end["event"] == "diverged" and (run.last_checkpoint() or [0])[0] == good
    assert not good or all(t.isfinite().all() for t in weights("run").values())


def again(out: str) -> dnt.Run:
    model = tiny_model()
    return dnt.fit(model, words(), tiny_msgdw(model), out=out, resume=True, **OPTIONS)


def test_an_optimizer_of_another_model_is_refused(workplace):
    with pytest.raises(ValueError, match="the optimizer holds parameters that are not this model's"):
        dnt.fit(tiny_model(), words(), tiny_msgdw(tiny_model()), out="run", **OPTIONS)


def test_a_damaged_checkpoint_is_one_line_and_is_not_lost(workplace):
    model = tiny_model()
    run = dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)
    _, folder = run.last_checkpoint()
    [path] = folder.iterdir()
    Path("run/log.jsonl").write_text("")  # as if killed before the end
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:1000], bytes(flipped), b""):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"rank-0-of-1-\w+\.pt is damaged; delete .*step-000000008 to start run again"
        ):
            again("run")
        assert path.exists()


def test_a_checkpoint_is_never_unpickled_beyond_tensors(workplace):
    model = tiny_model()
    run = dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)

    class Evil:
        def __reduce__(self):
            return (os.system, ("touch executed",))

    [path] = run.last_checkpoint()[1].iterdir()
    path.unlink()
    torch.save({"model": Evil()}, path)
    path.rename(path.with_name(f"rank-0-of-1-{digest(path)}.pt"))
    Path("run/log.jsonl").write_text("")
    with pytest.raises(ValueError, match="is damaged"):
        dnt.fit(model, words(), tiny_msgdw(model), out="run", resume=True, **OPTIONS)
    assert not Path("executed").exists()


def test_data_that_goes_away_is_not_blamed_on_the_run_folder(workplace, monkeypatch):
    model, data = tiny_model(), words()

    def gone(*args):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/elsewhere/1.png")

    monkeypatch.setattr(type(data.train), "batch", gone)
    with pytest.raises(OSError, match=r"No such file .*1.png.* When it is there again: dnt train") as found:
        dnt.fit(model, data, tiny_msgdw(model), out="run", **OPTIONS)
    assert "cannot write" not in str(found.value)


@pytest.mark.parametrize("limit", [100_000, 200_000])  # bytes: the weights take 133 thousand, a checkpoint 270
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(workplace, limit):
    """RLIMIT_FSIZE stands in for a full disk: the write of a larger file fails in its middle."""
    options = [*TINY, "--data", "words.txt", "--checkpoint-every", "2", "--steps", "6"]
    code = (
        "import resource, signal, sys\nfrom dnt.loop import Loop\nfrom dnt.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nreal = Loop.train_step\n"
        "def step(self):\n"
        f"    if self.step == 3: resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "    real(self)\n"
        "Loop.train_step = step\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "train", *options, "--out", "full"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 2
    line = complaint(child.stderr)
    assert "cannot write into full" in line and "last good checkpoint is of step 2" in line
    assert not [path for path in Path("full").rglob("*.unfinished") if path.is_file()]
    assert main(["train", "--resume", "full"]) == main(["train", *options, "--out", "whole"]) == 0
    assert same_weights("full", "whole")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "run"}, "already holds a run; continue it with --resume run"),
        ({"steps": 9, "out": "run", "resume": True}, "steps was 8 and is now 9"),
        ({"seed": 1, "out": "run", "resume": True}, "seed was 0 and is now 1"),
        ({"out": "other", "resume": True}, "other is not a run folder"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'?"),
        ({"precision": "16"}, "unknown precision '16'. Did you mean"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_trained_or_resumed_is_named(workplace, change, message):
    model = tiny_model()
    dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)
    with pytest.raises(ValueError) as error:
        dnt.fit(model, words(), tiny_msgdw(model), **OPTIONS | change)
    assert message in str(error.value)


def test_a_model_that_does_not_match_the_data_is_named(workplace):
    short = tiny_model(context=8)
    other = tiny_model(vocab_size=10)
    with pytest.raises(ValueError, match="a vocabulary of 10, the data 256 symbols; build the model with"):
        dnt.fit(other, words(), tiny_msgdw(other), out="run", **OPTIONS)
    with pytest.raises(ValueError, match="the model's context is 8, the data was prepared for 16"):
        dnt.fit(short, words(), tiny_msgdw(short), out="run", **OPTIONS)
    assert not Path("run").exists()


def test_data_that_changed_since_is_refused(workplace):
    model = tiny_model()
    dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)
    Path("words.txt").write_text("other words " * 1000)
    with pytest.raises(ValueError, match="cannot resume run: in its data, sha256 was"):
        again("run")


def test_only_one_process_trains_into_a_folder(workplace):
    model = tiny_model()
    with dnt.Run(Path("run")).locked(), pytest.raises(ValueError, match="another process is training into run"):
        dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)


def test_without_a_compiler_training_is_eager_with_a_warning(workplace, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = tiny_model()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler \(g\+\+\): training runs eagerly"):
        run = dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS | {"compile": True})
    assert run.end["event"] == "end"


@needs_compiler
def test_compiled_training_computes_what_eager_training_does(workplace):
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model = tiny_model()
        run = dnt.fit(model, words(), tiny_msgdw(model), out=f"run{compiled}", **OPTIONS | {"compile": compiled})
        losses.append(run.end["test"])
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0) == compiled
        assert (model.forward.__func__ is dnt.GPT.forward) and type(model) is dnt.GPT, "the model itself is left alone"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_padded_vocabulary_trains_and_never_samples_its_padding(workplace):
    model = tiny_model(vocab_size=257 + 63)
    dnt.fit(model, words(), tiny_msgdw(model), out="run", **OPTIONS)
    assert dnt.sample("run", prompt="ka", tokens=200, temperature=50.0).startswith("ka")


def test_matrices_in_bfloat16_train_resume_exactly_and_come_back_in_float32(workplace):
    data = dnt.prepare("words.txt", context=16)
    options = OPTIONS | {"steps": 12, "checkpoint_every": 6, "precision": "bf16-weights"}

    def trained(out: str, stop: int | None = None, **more):
        model = tiny_model()
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                real = Loop.train_step

                def train_step(loop):
                    real(loop)
                    if loop.step == stop:
                        os.kill(os.getpid(), signal.SIGTERM)

                patch.setattr(Loop, "train_step", train_step)
            dnt.fit(model, data, tiny_msgdw(model), out=out, **options | more)
        return model

    whole = trained("whole")
    assert {p.dtype for p in whole.parameters()} == {torch.float32}, "afterwards"
    with pytest.raises(KeyboardInterrupt):
        trained("stopped", stop=8)
    resumed = trained("stopped", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    for name, p in dnt.load("whole").named_parameters():
        held = dict(whole.named_parameters())[name]
        assert torch.equal(p, held), name
        if name.startswith("blocks.") and p.ndim >= 2:
            assert torch.equal(p, p.bfloat16().float()), "it was no finer in training"
    narrow = sum(p.numel() for p in whole.blocks.parameters() if p.ndim >= 2)
    parameters = sum(p.numel() for p in whole.parameters())
    assert dnt.Run(Path("whole")).end["state_bytes"] == 4 * parameters - 2 * narrow


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what frees memory elsewhere is not known")
def test_kept_memory_is_taken_again_without_a_page_fault():
    program = """
import resource, sys, torch
from contextlib import nullcontext
from dnt.machine import kept_memory
with kept_memory(torch.device("cpu")) if sys.argv[1] == "kept" else nullcontext():
    for _ in range(8):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    usual = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    kept, freed = (
        int(subprocess.run([sys.executable, "-c", program, way], capture_output=True, env=usual, check=True).stdout)
        for way in ("kept", "freed")
    )
    assert kept < freed / 3, "the system may take back a few of its own accord"


# --- diagnoses ------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(loop, "IN_TRAINING", loop.IN_TRAINING | {"exact": 64, "resamples": 2})


WAYS = {  # what shares .grad, the weights' dtype, or a second set of weights with a diagnosis
    "plain": {},
    "momentum in grad": {"in_grad": True, "clip": 0.0},
    "bf16-weights": {"precision": "bf16-weights"},
    "ema": {"ema": 0.9},
    "recompute": {"recompute": True, "accumulate": 2},
}


def trained(out: str, in_grad: bool = False, resume: bool = False, **options) -> dnt.Run:
    model = tiny_model(dropout=0.2)
    optimizer = dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-3), lr=0.1, momentum_in_grad=in_grad)
    return dnt.fit(model, words(), optimizer, out=out, resume=resume, **OPTIONS | {"eval_every": 4} | options)


@pytest.mark.parametrize("way", WAYS)
def test_diagnoses_change_nothing_of_what_is_learned(workplace, quick, way):
    with_them = trained("with", diagnose_every=3, **WAYS[way])
    without = trained("without", **WAYS[way])
    assert same_weights("with", "without")
    assert with_them.end["test"] == without.end["test"]
    rows = with_them.rows("diagnosis")
    assert [row["step"] for row in rows] == [0, 3, 6] and not without.rows("diagnosis")
    for row in rows:
        assert row["seconds"] > 0 and row["tables"]["gradients"] and row["tables"]["jacobians"]
        assert bool(row["tables"]["steps"]) == (row["step"] > 0)
        assert not any("singular_values" in each for each in row["tables"]["weights"])
    last = {row["name"]: row for row in rows[-1]["tables"]["steps"]}
    assert 0 < last["blocks.1.mlp.f.out.weight"]["frobenius"] < 1


def test_a_diagnosis_is_of_the_weights_and_the_held_batch_of_its_step(workplace, quick):
    run = trained("run", diagnose_every=8, eval_tokens=64)
    model = dnt.load("run")
    batch = next(words().validation.beginning(64).whole(4))
    stats = dnt.analysis.gradient_stats(model, [batch], lambda model, x, y: model.loss(x, y))
    tables = run.rows("diagnosis")[-1]["tables"]
    of_all = next(row for row in tables["gradients"] if row["level"] == "all")
    assert of_all["rms"] == pytest.approx(stats.total.rms, rel=1e-4)
    norms = {row["name"]: row["norm"] for row in tables["weights"]}
    assert norms["tokens.weight"] == pytest.approx(model.tokens.weight.norm().item(), rel=1e-5)


def test_a_run_that_is_resumed_logs_each_diagnosis_once_and_says_their_cost_once(workplace, quick, capfd):
    options = [*TINY, "--data", "words.txt", "--dropout", "0.2", "--checkpoint-every", "4", "--steps", "6"]
    options += ["--diagnose-every", "3", "--eval-every", "6"]
    real = Loop.train_step
    with pytest.MonkeyPatch.context() as stopped:
        stopped.setattr(Loop, "train_step", lambda self: 1 / 0 if self.step == 5 else real(self))
        with pytest.raises(ZeroDivisionError):
            main(["train", *options, "--out", "half"])
    assert "a diagnosis takes" in (said := capfd.readouterr().err) and "; 3 of them, about" in said
    assert main(["train", "--resume", "half"]) == 0
    assert "a diagnosis takes" not in capfd.readouterr().err
    assert main(["train", *options, "--out", "whole"]) == 0
    assert same_weights("half", "whole")
    halves, wholes = (dnt.Run(Path(out)).rows("diagnosis") for out in ("half", "whole"))
    assert [row["step"] for row in halves] == [0, 3, 6]
    assert [str(row["tables"]) for row in halves] == [str(row["tables"]) for row in wholes]


def test_a_diagnosis_that_fails_is_said_and_logged_and_the_training_goes_on(workplace, monkeypatch, capfd):
    def fail(*_, **__):
        raise ValueError("got entries that are not finite")

    monkeypatch.setattr(loop, "diagnose", fail)
    run = trained("run", diagnose_every=4)
    assert run.end["event"] == "end" and not run.rows("diagnosis")
    assert [(row["step"], row["what"]) for row in run.rows("undiagnosed")][:2] == [
        (0, "got entries that are not finite"),
        (4, "got entries that are not finite"),
    ]
    said = capfd.readouterr().err
    assert "step 4 could not be diagnosed: got entries that are not finite" in said and "a diagnosis takes" not in said


def test_weights_that_a_step_broke_are_not_diagnosed(workplace, quick):
    class Breaks(dnt.MSGDW):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.fill_(math.inf)
            return super().step(closure)

    model = tiny_model()
    with pytest.raises(FloatingPointError, match="step 1: the weights are no longer finite"):
        dnt.fit(model, words(), Breaks(dnt.param_groups(model), lr=0.1), out="run", diagnose_every=1, **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diagnose_every": 2, "strategy": "fsdp"}, "diagnose_every does not go with fsdp, where no process has the"),
        ({"diagnose_every": -1}, "diagnose_every is -1; it must be at least 0"),
    ],
)
def test_diagnoses_that_cannot_be_are_refused(workplace, options, message):
    with pytest.raises(ValueError, match=message):
        trained("run", **options)
    assert not Path("run").exists()
