import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import dnt
from dnt import machine
from dnt.analysis.memory import saved_for_backward
from dnt.cli import main
from dnt.experiments.benchmark import cells_of, ways
from dnt.experiments.steps import timed_steps
from dnt.nn.flops import training_flops
from dnt.report.measured import Measured
from dnt.report.speed import PHASES, Benchmark, Combination
from dnt.settings import BenchSettings
from tests.conftest import OPTIONS, tiny_model, tiny_msgdw
from tests.dnt.test_cli import complaint

SHAPE = {"depth": 1, "dim": 32, "heads": 2, "batch_size": 4, "compile": False, "precisions": ("32",)}
TINY = ["--depth", "1", "--dim", "32", "--heads", "2", "--context", "16", "--batch-size", "4", "--no-compile"]


@pytest.fixture
def small_matrices(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", (64,))


def taken_apart(settings: BenchSettings, folder: Path) -> tuple[list[dict], dict[str, int]]:
    """Two rounds, and the bytes, of one combination, in this process."""
    [(cell, threads)] = ways(settings)
    measure, end = timed_steps(cell, folder, threads, 2)
    rounds = [measure(), measure()]
    return rounds, end()["bytes"]


def parts_of(rounds: list[dict]) -> None:
    for found in rounds:
        assert found.keys() == {"step", *PHASES} and min(found.values()) > 0
        assert sum(found[name] for name in PHASES) <= found["step"], "the phases are parts of a step"


# --- the command ----------------------------------------------------------------------------------------------------


def test_bench_shows_and_writes_every_combination(workplace, capsys):
    many = ["--optimizers", "msgdw", "adamw", "--precisions", "32", "--rounds", "3", "--steps-per-round", "2"]
    assert main(["bench", *TINY, *many, "--vocab-size", "50", "--out", "found/speed.json"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[2].startswith("[2/3] dnt + adamw"), "the order alternates"
    assert all(words in said.out for words in ("dnt + msgdw", "dnt + adamw", "tokens/s", "of matmul", "activations"))
    found = json.loads(Path("found/speed.json").read_text())
    assert [row["optimizer"] for row in found["rows"]] == ["msgdw", "adamw"]
    assert found["model"]["vocab_size"] == 50 and found["machine"]["torch"] == torch.__version__
    assert found["units"] == 4 * 16
    parameters = dnt.gpt("gpt-tiny", depth=1, dim=32, heads=2, context=16, vocab_size=50).parameters()
    size = 4 * sum(p.numel() for p in parameters)
    for row in found["rows"]:
        assert len(row["rounds"]) == 3
        parts_of(row["rounds"])
        assert row["lowest"] <= row["tokens_per_s"] <= row["highest"]
        assert row["tokens_per_s"] == pytest.approx(found["units"] / row["step"])
        assert row["share_of_matmul"] == pytest.approx(found["flops"] / row["step"] / row["matmul_flops"])
        assert row["bytes"]["weights"] == row["bytes"]["gradients"] == size
        assert row["bytes"]["peak"] > row["bytes"]["before"] > 1 << 26
    first, second = found["rows"]
    assert first["to_first"] == 1 != second["to_first"]
    assert first["matmul_flops"] == second["matmul_flops"], "one peak for one precision"
    assert not Path("runs").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--placements", "ddnt"], "unknown placement 'ddnt'. Did you mean 'dnt'?"),
        (["--optimizers", "adam"], "unknown optimizer 'adam'. Did you mean 'adamw'?"),
        (["--precisions", "bf16"], "unknown precision 'bf16'. Did you mean 'bf16-mixed'?"),
        (["--precisions", "16-mixed"], "16-mixed needs a GPU"),
        (["--precision", "32"], "--precision says nothing to a benchmark; give --precisions."),
        (["--tokenizer", "gpt2"], "--tokenizer says nothing to a benchmark; give --vocab-size."),
        (["--data", "words.txt"], "--data says nothing to a benchmark; drop it."),
        (["--steps", "5"], "--steps says nothing to a benchmark; drop it."),
        (["--nesterov", "--optimizers", "adamw"], "--nesterov says nothing to adamw; drop it"),
        (["--model", "vit-tiny", "--vocab-size", "9"], "--vocab-size says nothing to vit-tiny"),
        (["--rounds", "0"], "rounds is 0; it must be at least 1."),
        (["--threads", "0"], "threads is 0; it must be at least 1."),
        (["--accumulate", "3", "--batch-size", "4"], "batch_size is 4, no multiple of 1 processes x 3"),
        (["--suggest", "--placements", "dnt", "pre-ln"], "--suggest is for one placement and one optimizer"),
        (["--placements"], "--placements is empty"),
    ],
)
def test_bad_input_to_bench_is_one_line_with_the_fix(workplace, capfd, arguments, message):
    assert message in complaint(capfd, "bench", *arguments)


# --- what it measures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "state"), [("msgdw", 4), ("adamw", 8)])
def test_weights_gradients_and_state_are_counted_exactly(tmp_path, small_matrices, optimizer, state):
    settings = BenchSettings(**SHAPE, context=16, optimizers=(optimizer,), accumulate=2)
    rounds, held = taken_apart(settings, tmp_path)
    parts_of(rounds)
    model = dnt.gpt("gpt-tiny", depth=1, dim=32, heads=2, context=16)
    parameters = sum(p.numel() for p in model.parameters())
    counters = 4 * len(list(model.parameters())) if optimizer == "adamw" else 0  # torch counts steps, a float each
    assert held["weights"] == held["gradients"] == 4 * parameters
    assert held["state"] == state * parameters + counters


def test_images_are_read_in_the_shape_of_the_model(tmp_path, small_matrices):
    settings = BenchSettings(**SHAPE, model="vit-tiny", image_size=16, patch_size=8, augment="flip-crop")
    rounds, held = taken_apart(settings, tmp_path)
    parts_of(rounds)
    model = dnt.vit("vit-tiny", depth=1, dim=32, heads=2, image_size=16, patch_size=8)
    assert held["weights"] == 4 * sum(p.numel() for p in model.parameters())


def test_recomputing_blocks_saves_fewer_activations(tmp_path, small_matrices):
    settings = BenchSettings(**SHAPE | {"depth": 4}, context=16)
    held = [
        taken_apart(replace(settings, recompute=recompute), tmp_path / str(recompute))[1]["activations"]
        for recompute in (False, True)
    ]
    assert held[1] < held[0] / 2


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_saved_for_the_backward_pass_is_counted_once(compiled):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(10, 8)
    forward = torch.compile(layers, backend="aot_eager") if compiled else layers
    with saved_for_backward(layers.parameters()) as found:
        loss = forward(x).sum()
    assert sum(found.values()) == 4 * 10 * (8 + 16), "the input, and the ReLU's output, which two layers need"
    loss.backward()
    assert layers[0].weight.grad is not None


def test_a_profilers_trace_of_any_training_shows_the_phases(workplace):
    data, model = dnt.prepare("words.txt", context=16), tiny_model()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        dnt.fit(model, data, tiny_msgdw(model), out="run", **OPTIONS | {"steps": 2})
    counts = {event.key: event.count for event in profiler.key_averages()}
    expected = {"data": 2, "forward": 1, "backward": 1, "optimizer": 1}  # times a step
    assert {name: counts[name] for name in PHASES} == {name: 2 * n for name, n in expected.items()} | {"logging": 1}


GPTS = [{}, {"placement": "pre-ln", "activation": "swiglu", "kv_heads": 2, "tie_embeddings": False}]
VITS = [{"placement": "dnt"}, {"placement": "pre-ln", "pool": "mean", "mlp_ratio": 2.0}]


def counted(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """By torch, in matrix products alone; causal attention in full."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.loss(x, y).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("fields", GPTS)
def test_flops_of_a_gpt_are_those_torch_counts_less_the_half_of_attention_that_is_masked(fields):
    config = dnt.GPTConfig(vocab_size=40, context=16, depth=2, dim=32, heads=4, **fields)
    tokens = torch.randint(40, (3, 16))
    masked = 12 * 2 * 32 * 16**2 // 2
    assert counted(dnt.GPT(config), tokens, tokens) == 3 * (training_flops(config) + masked)


@pytest.mark.parametrize("fields", VITS)
def test_flops_of_a_vit_are_those_torch_counts(fields):
    config = dnt.ViTConfig(image_size=16, patch_size=4, channels=3, classes=7, depth=2, dim=32, heads=4, **fields)
    images, labels = torch.randn(3, 3, 16, 16), torch.randint(7, (3,))
    assert counted(dnt.ViT(config), images, labels) == 3 * training_flops(config)


# --- what it suggests -----------------------------------------------------------------------------------------------


def test_ways_to_compute_begin_with_the_default():
    found = ways(BenchSettings(suggest=True, context=16))
    precision, threads = machine.best_precision(), torch.get_num_threads()
    assert (found[0][0].precision, found[0][0].compile, found[0][1]) == (precision, machine.can_compile(), threads)
    narrow = {"bf16-weights"} if precision == "bf16-mixed" else set()
    assert {cell.precision for cell, _ in found} == {"32", precision} | narrow
    assert {cell.precision for cell, _ in ways(BenchSettings(suggest=True, optimizers=("adamw",)))} == {"32", precision}
    assert {cell.compile for cell, _ in found} >= {False}
    assert len(set(found)) == len(found)
    kept = ways(BenchSettings(suggest=True, precisions=("32",), threads=(1,), compile=False))
    assert [(cell.precision, cell.compile, count) for cell, count in kept] == [("32", False, 1)]


def test_each_combination_hears_what_says_something_to_it():
    settings = BenchSettings(optimizers=("adamw", "msgdw"), clip_equilibrium=2.0, bound=0.1, context=16)
    assert [cell.clip_equilibrium for cell in cells_of(settings)] == [0, 2]


def benchmark_of(seconds: dict[Combination, list[float]]) -> Benchmark:
    end = {"matmul_flops": 1.0, "bytes": {}}
    measured = {way: Measured([{"step": s} for s in of_way], end) for way, of_way in seconds.items()}
    return Benchmark({}, {}, {}, "tokens", 1, 1, measured)


def test_the_suggestion_is_the_fastest_round_by_round_as_flags():
    default = Combination("dnt", "msgdw", "32", True, 2)
    other = Combination("dnt", "msgdw", "bf16-mixed", False, 4)
    said = benchmark_of({default: [2.0, 4.0, 8.0], other: [1.0, 2.0, 8.1]}).suggestion
    assert "OMP_NUM_THREADS=4 dnt train --precision bf16-mixed --no-compile" in said and "2.00 times as fast" in said
    assert "Nothing was changed" in said
    assert benchmark_of({default: [1.0, 1.0], other: [1.1, 1.1]}).suggestion.startswith("The first is the fastest")
