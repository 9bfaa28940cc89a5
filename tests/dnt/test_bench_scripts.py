"""The scripts of bench/ that need no data, on the smallest sizes: they run, and write the rows they claim."""

import json
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import count, product
from pathlib import Path

import pytest
import torch
from scipy.stats import permutation_test, spearmanr

import dnt
from dnt.nn.norms import NORMS
from dnt.recipes import RECIPES
from dnt.report.measured import Measured

STATE = {  # bytes a parameter of gpt-tiny
    "AdamW": 8,
    "AdamW, step in backward": 8,
    "AdamW, 8 bits (bitsandbytes)": 2.05,
    "Lion": 4,
    "Muon, AdamW for embeddings": 4.21,
    "Adafactor": 0.05,
    "SGD, step in backward": 0,
    "MSGDW": 4,
    "MSGDW, momentum in gradient": 0,
}
NEED_PACKAGES = {"AdamW, 8 bits (bitsandbytes)", "Lion"}


@pytest.fixture
def bench(monkeypatch) -> None:
    """The scripts can be imported, by their processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))


@pytest.fixture
def run(bench, monkeypatch, tmp_path):
    """Runs a script's main in this process; what it wrote."""

    def run(name: str, *arguments: str, **constants) -> dict:
        script = import_module(name)
        for constant, value in constants.items():
            monkeypatch.setattr(script, constant, value)
        out = tmp_path / "found.json"
        monkeypatch.setattr(sys, "argv", [name, *arguments, "--out", str(out)])
        script.main()
        return json.loads(out.read_text())

    return run


def alternate_here(builds, rounds, environment=None) -> dict[str, Measured]:
    """alternate without processes, which would each take seconds to start; a failure reads as theirs do."""
    found = {}
    for name, build in builds.items():
        try:
            measure, end = build()
        except ValueError as error:
            raise RuntimeError(f"{name}: {error}") from None
        found[name] = Measured([measure() for _ in range(rounds)], {})
        found[name].end = end()
    return found


def test_memory_counts_the_state_and_the_gradients_that_each_optimizer_is_known_for(run):
    rows = run("memory", "--size", "gpt-tiny", "--context", "8", alternate=alternate_here)["rows"]
    missing = {row["optimizer"]: row["not_measured"] for row in rows if "not_measured" in row}
    assert set(missing) <= NEED_PACKAGES and all("pip install" in reason for reason in missing.values())
    measured = [row for row in rows if row["optimizer"] not in missing]
    state = {row["optimizer"]: pytest.approx(row["state"], abs=0.02) for row in measured}
    assert state == {name: bytes for name, bytes in STATE.items() if name not in missing}
    gradients = {row["optimizer"]: row["with_gradients"] - row["state"] for row in measured}
    assert gradients == {name: 0 if "in backward" in name else pytest.approx(4) for name in state}


def test_memory_measures_a_peak_in_a_process_of_its_own(bench):
    memory = import_module("memory")
    found = memory.measured(memory.Setting("gpt-tiny", 16, None, "32"), "AdamW", False)
    assert found["parameters"] * 16 < found["peak_bytes"] < 2**30


def test_optim_step_times_every_optimizer_against_fused_adamw(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    rows = run("optim_step", "--size", "gpt-tiny", "--rounds", "2", alternate=alternate_here)["rows"]
    assert [row["optimizer"] for row in rows] == list(import_module("optim_step").WAYS)
    assert rows[0]["against_fused_adamw"] == 1
    assert all(row["seconds"] > 0 and row["GB_per_s"] > 0 for row in rows)


def test_kernel_times_times_norms_and_attention_in_both_dtypes_eager_and_compiled(run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    small = {"NORM_SHAPES": [(8, 16)], "ATTENTION_SHAPES": [(1, 2, 8, 4)], "LEAST_SECONDS": 1e-3}
    rows = run("kernel_times", "--rounds", "1", **small)["rows"]
    kernels = [("norm", name) for name in NORMS] + [("causal attention", name) for name in ("torch", "dnt")]
    every = product(("float32", "bfloat16"), kernels, ("eager", "compiled"))
    expected = {(what, dtype, f"{name}, {how}") for dtype, (what, name), how in every}
    assert {(row["what"], row["dtype"], row["kernel"]) for row in rows} >= expected
    assert all(row["seconds"] > 0 for row in rows)


def test_throughputs_peer_is_the_same_model_as_pre_ln_with_its_norms(bench):
    throughput = import_module("throughput")
    shape = throughput.SHAPES["tiny"]
    torch.manual_seed(0)
    peer = throughput.Peer(shape)
    sizes = {name: getattr(shape, name) for name in ("depth", "dim", "heads", "context", "vocab_size")}
    ours = dnt.GPT(dnt.GPTConfig(**sizes, placement="pre-ln", norm="layernorm", norm_eps=1e-5))
    names = {
        **{"norm_1": "attn.pre", "qkv": "attn.f.qkv", "proj": "attn.f.out"},
        **{"norm_2": "mlp.pre", "up": "mlp.f.up", "down": "mlp.f.out", "norm": "final_norm"},
    }
    found = {
        ".".join(names.get(part, part) for part in name.split(".")): value for name, value in peer.state_dict().items()
    }
    ours.load_state_dict(found)
    tokens, targets = (torch.randint(shape.vocab_size, (3, shape.context)) for _ in range(2))
    torch.testing.assert_close(peer(tokens, targets), ours.loss(tokens, targets))


def test_throughput_names_the_best_of_the_peers_settings(run, monkeypatch):
    monkeypatch.setattr(import_module("dnt.experiments.benchmark"), "can_compile", lambda: False)
    sizes = ("--shapes", "tiny", "--peers", "peer, 32, eager", "--rounds", "2", "--steps-per-round", "1")
    found = run("throughput", *sizes, alternate=shown(alternate_here), KEPT="peer, 32, eager")["shapes"]["tiny"]
    assert found["best_peer"] == "peer, 32, eager" and found["ours_over_best_peer"] > 0
    assert {row["what"] for row in found["rows"]} >= {"dnt + msgdw", "pre-ln + adamw", "peer, 32, eager"}


def test_scaling_fits_an_exponent_to_each_cost(run, monkeypatch):
    sizes = ("--depth", "1", "--dim", "16", "--heads", "1", "--context", "16", "--rounds", "1", "--no-compile")
    axis = ("--axes", "batch", "--factors", "1", "8", "--steps-per-round", "1")
    found = run("scaling", *sizes, *axis, alternate=shown(alternate_here))
    [axis] = found["axes"].values()
    assert [row["factor"] for row in axis["rows"]] == [1, 8]
    assert 0 < axis["exponents"]["tensors"] < 1.1


def test_diagnostics_holds_gradient_stats_against_a_training_step(run):
    sizes = ("--size", "gpt-tiny", "--context", "8", "--rounds", "2", "--only", "gradients")
    peaks = (n * n for n in count())  # this process has held more before
    here = {"alternate": alternate_here, "peak_memory_bytes": lambda device: next(peaks)}
    found = run("diagnostics", *sizes, **here)["gradients"]
    assert set(found["seconds"]) == set(found["peak_bytes"]) == {"training step", "gradient_stats"}
    step, stats = (found["peak_bytes"][name] for name in ("training step", "gradient_stats"))
    assert found["time_ratio"] > 0 and found["memory_ratio"] == stats / step != 1
    assert all(len(seconds) == 2 for seconds in found["seconds_of_all"].values())


def test_diagnostics_finds_the_largest_singular_values_of_a_block_of_each_placement(run):
    sizes = ("--size", "gpt-tiny", "--tokens", "4", "--singular-values", "3", "--only", "singular_values")
    found = run("diagnostics", *sizes)["singular_values"]
    assert [row["placement"] for row in found["rows"]] == ["dnt", "pre-ln"]
    for row in found["rows"]:
        torch.manual_seed(0)
        block = dnt.gpt("gpt-tiny", depth=1, placement=row["placement"]).blocks[0].eval().requires_grad_(False)
        x = torch.randn(1, 4, 128)
        J = torch.func.jacrev(block)(x).reshape(512, 512)
        top = torch.linalg.svdvals(J)[:3]
        assert [row["largest"], row["smallest of them"]] == pytest.approx([float(top[0]), float(top[2])], rel=1e-3)
        assert (row["inputs"], row["count"]) == (512, 3) and row["seconds"] > 0


def test_gaps_correlation_is_spearmans_and_its_p_value_that_of_scipys_permutations(bench, monkeypatch):
    gap = import_module("gap")
    monkeypatch.setattr(gap, "PERMUTATIONS", 3000)
    x = [0.1, 0.4, 0.2, 0.9, 0.5, 0.5, 0.8, 0.3]
    for y in ([1.0, 3.0, 2.0, 4.0, 3.5, 3.5, 9.0, 0.5], [2.0, 2.0, 1.0, 3.0, 1.0, 4.0, 0.0, 3.0]):
        rho, p = gap.correlation(x, y)

        def statistic(other, y=y):
            return spearmanr(other, y).statistic

        exact = permutation_test((x,), statistic, permutation_type="pairings", n_resamples=2000, rng=1)
        assert rho == pytest.approx(spearmanr(x, y).statistic)
        assert p == pytest.approx(exact.pvalue, abs=0.04)
    assert gap.correlation(x, x) == (pytest.approx(1), pytest.approx(0, abs=2e-3))


def test_gaps_correction_is_holms(bench):
    holm = import_module("gap").holm
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p_values) == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}), "4, 3, 2, 1 times; ascending"
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def shown(alternate):
    """It takes what shows the rounds, too."""
    return lambda builds, rounds, show: alternate(builds, rounds)


class InThisProcess:
    """In place of a pool of processes."""

    def __init__(self, workers: int, mp_context: object):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_the_zoo_is_tuned_row_by_row_and_what_is_finished_is_not_run_again(run, monkeypatch, tmp_path):
    zoo = import_module("zoo")
    tmp_path.joinpath("words.txt").write_text("".join(f"{i} some words\n" for i in range(500)))
    shape = {"context": 8, "depth": 1, "dim": 16, "heads": 2, "steps": 4, "warmup": 1, "eval_tokens": 64}
    small = replace(RECIPES["tiny"], data=str(tmp_path / "words.txt"), **shape)
    rows = [zoo.Row(name, replace(small, placement=name)) for name in ("pre-ln", "dnt", "ngpt")]
    rates = {"adamw": (1e-3, 1e-1), "msgdw": (0.1, 0.3, 1e38), "lion": (1e-3,)}
    constants = {
        **{"rows": lambda: rows, "RATES": rates, "MORE": ("lion",), "SEEDS": (0, 1), "SELECTED": 1},
        **{"ProcessPoolExecutor": InThisProcess, "STEP_DECAY": 1e-4},
    }
    threads = torch.get_num_threads()
    found = run("zoo", "--runs", str(tmp_path / "runs"), "--rounds", "2", **constants)
    monkeypatch.setattr(zoo, "train", None)  # would fail
    again = run("zoo", "--runs", str(tmp_path / "runs"), "--rounds", "2", **constants)
    torch.set_num_threads(threads)
    assert again["cells"] == found["cells"] and found["step_seconds"].keys() == {"pre-ln", "dnt", "ngpt"}
    cells = {(cell["row"], cell["optimizer"]): cell for cell in found["cells"]}
    best = min(cells, key=lambda key: cells[key]["tried"][f"{cells[key]['lr']:g}"])[0]
    tuned_on = {row.name for row in rows if (row.name, "lion") in cells}
    assert tuned_on == {best, "dnt"}
    assert cells["pre-ln", "msgdw"]["tried"]["1e+38"] is None, "it diverged"
    for (row, optimizer), cell in cells.items():
        tried = {rate: loss for rate, loss in cell["tried"].items() if loss is not None}
        assert min(tried, key=tried.get) == f"{cell['lr']:g}" and len(cell["tried"]) == len(rates[optimizer])
        assert cell["seeds"] == (2 if row in tuned_on else 1) and (cell["spread"] is None) == (cell["seeds"] == 1)
    assert found["about"]["budget"]["runs"] == sum(len(list(cell["tried"])) for cell in cells.values()) + len(
        [row for row, _ in cells if row in tuned_on]
    )
    markdown = zoo.table(found["cells"], found["step_seconds"], rows)
    assert markdown.count("\n") == 1 + len(cells) and "± " in markdown
