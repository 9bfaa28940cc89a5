"""Norms of batches: a ViT's alone."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dnt
from dnt.cli import main
from dnt.loop import Loop
from dnt.nn.batch_norms import progress_of
from dnt.nn.config import OF_BATCHES
from tests import reference
from tests.conftest import OPTIONS
from tests.dnt.test_cli import complaint

SHAPE = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 10, "depth": 2, "dim": 24, "heads": 2}


def images(n: int, *, features: int = 8, seed: int = 0) -> torch.Tensor:
    """Tokens (n, 3, features) of unequal scales."""
    torch.manual_seed(seed)
    return torch.randn(n, 3, features, dtype=torch.float64) * torch.linspace(0.5, 2, features)


def far(norm: nn.Module, share: float) -> None:
    for progress in progress_of(norm):
        progress.fill_(share)


# --- formulas -------------------------------------------------------------------------------------------------------


def test_batchnorm_equals_torchs_over_batch_and_tokens_in_training_and_evaluation():
    ours, theirs = dnt.NORMS["batchnorm"](8, eps=1e-3, bias=True).double(), nn.BatchNorm1d(8, eps=1e-3).double()
    for module in (ours, theirs):
        torch.manual_seed(1)
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    for seed in range(3):
        x = images(4, seed=seed)
        torch.testing.assert_close(ours(x).mT, theirs(x.mT))  # they take (B, D, T)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    torch.testing.assert_close(ours.eval()(x).mT, theirs.eval()(x.mT))


def test_prepbn_goes_from_layernorm_to_batchnorm_with_a_share_of_its_input():
    norm = dnt.NORMS["prepbn"](8, eps=1e-3, bias=True).double()
    layer, batch = nn.LayerNorm(8, eps=1e-3).double(), nn.BatchNorm1d(8, eps=1e-3).double()
    torch.manual_seed(1)
    for mine, theirs in ((norm, layer), (norm.batch, batch)):
        for name in ("weight", "bias"):
            theirs.get_parameter(name).data.copy_(nn.init.normal_(mine.get_parameter(name)).data)
    assert norm.eta.weight.tolist() == [1.0]
    nn.init.constant_(norm.eta.weight, 0.7)
    for share in (0.0, 0.25, 1.0):
        far(norm, share)
        x = images(4, seed=int(4 * share))
        of_batch = batch(x.mT).mT + 0.7 * x
        torch.testing.assert_close(norm(x), (1 - share) * layer(x) + share * of_batch)
    torch.testing.assert_close(norm.eval()(x), batch.eval()(x.mT).mT + 0.7 * x)


@pytest.mark.parametrize("name", ["powernorm", "unifiednorm"])
def test_before_smoothing_forward_and_gradient_are_those_of_the_batchs_root_mean_square(name):
    norm = dnt.NORMS[name](8, eps=1e-3, bias=True).double()
    torch.manual_seed(1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)

    def slow(x: torch.Tensor) -> torch.Tensor:
        if name == "powernorm":
            x = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        return norm.weight * x / (x.square().mean((0, 1)) + 1e-3).sqrt() + norm.bias

    for seed in range(3):
        x, weights = images(4, seed=seed).requires_grad_(), images(4, seed=9)
        torch.testing.assert_close(norm(x), slow(x))
        inputs = (x, norm.weight, norm.bias)
        found, expected = (torch.autograd.grad((f(x) * weights).sum(), inputs) for f in (norm, slow))
        torch.testing.assert_close(found, expected)


def smoothed(norm: nn.Module, batches: list, grads: list, shares: list) -> list:
    """z and dL/dx of each iteration."""
    found = []
    for x, g, share in zip(batches, grads, shares, strict=True):
        far(norm, share)
        x = x.clone().requires_grad_()
        z = norm(x)
        found.append((z.detach(), torch.autograd.grad(z, x, g)[0]))
    return found


def test_powernorm_divides_by_the_running_psi_and_passes_back_the_running_nu():
    norm = dnt.NORMS["powernorm"](8, eps=1e-3).double()
    norm.tokens = lambda x: x  # the root mean square of a token is torch's
    batches = [images(4, seed=seed).flatten(0, 1) for seed in range(6)]
    grads = [images(4, seed=10 + seed).flatten(0, 1) for seed in range(6)]
    shares = [0.0, 0.05, 0.1, 0.4, 0.7, 1.0]
    found = smoothed(norm, batches, grads, shares)
    slow = reference.power_norm(batches, grads, [share < 0.1 for share in shares], 1e-3)
    torch.testing.assert_close(found, slow)
    running = 1.0
    for x in batches:
        running = 0.9 * running + 0.1 * x.square().mean(0)
    torch.testing.assert_close(norm.eval()(batches[0]), batches[0] / (running + 1e-3).sqrt())


@pytest.mark.parametrize("outlier", [False, True])
def test_unifiednorm_smooths_over_windows_but_for_outliers(outlier):
    norm = dnt.NORMS["unifiednorm"](8, eps=1e-3).double()
    batches = [images(4, seed=seed).flatten(0, 1) for seed in range(9)]
    if outlier:
        batches[6] = batches[6] * 30
    grads = [images(4, seed=10 + seed).flatten(0, 1) for seed in range(9)]
    shares = [0.02 * i for i in range(5)] + [0.1, 0.4, 0.7, 1.0]
    found = smoothed(norm, batches, grads, shares)
    slow, outliers = reference.unified_norm(batches, grads, [share < 0.1 for share in shares], 1e-3)
    assert outliers == [i == 6 and outlier for i in range(9)]
    torch.testing.assert_close(found, slow)


# --- symmetries, running statistics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["batchnorm", "powernorm", "unifiednorm"])
def test_the_scale_of_a_feature_is_hidden_in_training_and_seen_in_evaluation(name):
    scales = torch.linspace(0.5, 4, 8, dtype=torch.float64)
    if name == "powernorm":
        scales = torch.full((8,), 3.0, dtype=torch.float64)  # of a token, by its own root mean square
    norm = dnt.NORMS[name](8, eps=1e-12).double()
    x = images(4)
    torch.testing.assert_close(norm(x * scales), norm(x))
    norm.eval()
    assert torch.allclose(norm(x * scales), norm(x)) == (name == "powernorm")


@pytest.mark.parametrize("name", OF_BATCHES)
def test_in_evaluation_a_token_does_not_see_the_others_and_nothing_is_counted(name):
    norm = dnt.NORMS[name](8).double()
    for seed in range(3):
        norm(images(4, seed=seed))
    far(norm, 0.5)
    kept = {key: value.clone() for key, value in norm.state_dict().items()}
    x = images(4)
    assert not torch.allclose(norm(x)[:1], norm(x[:1]))
    norm.load_state_dict(kept)
    norm.eval()
    torch.testing.assert_close(norm(x)[:1], norm(x[:1]))
    assert all(torch.equal(kept[key], value) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("name", ["batchnorm", "powernorm", "unifiednorm"])
def test_running_statistics_approach_those_of_the_batches(name):
    norm = dnt.NORMS[name](8, eps=1e-12).double()
    for seed in range(100):
        norm(images(40, seed=seed))
    of_features = norm.eval()(images(400, seed=200)).square().mean((0, 1))
    torch.testing.assert_close(of_features, torch.ones(8, dtype=torch.float64), rtol=0.1, atol=0)


# --- in models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_BATCHES)
def test_a_gpt_refuses_them_in_one_line_that_says_why(name):
    with pytest.raises(ValueError) as error:
        dnt.gpt("gpt-tiny", norm=name)
    said = str(error.value)
    assert f"norm is '{name}'" in said and "a causal model would see later ones" in said and "rmsnorm" in said
    assert "\n" not in said


@pytest.fixture
def digits(workplace):
    return dnt.prepare_images("digits", None)


def build(name: str, **fields) -> dnt.ViT:
    torch.manual_seed(0)
    return dnt.ViT(dnt.ViTConfig(**SHAPE, norm=name, **fields))


def fit(name: str, data, out: str, **options) -> dnt.ViT:
    model = build(name)
    optimizer = dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-3), lr=0.03)
    dnt.fit(model, data, optimizer, out=out, **OPTIONS | {"steps": 12, "eval_tokens": 32} | options)
    return model


@pytest.mark.parametrize("name", OF_BATCHES)
def test_a_stopped_run_resumes_to_bit_identical_weights_and_statistics(name, digits, monkeypatch):
    whole = fit(name, digits, "whole", checkpoint_every=4)
    real = Loop.train_step
    with monkeypatch.context() as stopped:
        stopped.setattr(Loop, "train_step", lambda self: 1 / 0 if self.step == 6 else real(self))
        with pytest.raises(ZeroDivisionError):
            fit(name, digits, "half", checkpoint_every=4)
    half = fit(name, digits, "half", checkpoint_every=4, resume=True)
    state = whole.state_dict()
    assert all(torch.equal(state[key], value) for key, value in half.state_dict().items())
    fresh = build(name).state_dict()
    statistics = [key for key, _ in whole.named_buffers()]
    assert statistics and not any(torch.equal(fresh[key], state[key]) for key in statistics)
    written = load_file("half/model.safetensors")
    assert written.keys() == state.keys() and all(torch.equal(state[key], written[key]) for key in written)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(dnt.load("half")(x), whole.eval()(x))


def test_prepbn_is_told_how_far_a_training_is(digits, monkeypatch):
    seen, real = [], Loop.train_step

    def step(self: Loop) -> None:
        seen.append({float(progress) for progress in progress_of(self.model)})
        real(self)

    monkeypatch.setattr(Loop, "train_step", step)
    model = fit("prepbn", digits, "run", steps=5)
    assert all(len(shares) == 1 for shares in seen)
    assert [share for shares in seen for share in shares] == pytest.approx([i / 5 for i in range(5)])
    assert {float(progress) for progress in progress_of(model)} == {1.0}


def test_an_average_of_the_weights_has_the_statistics_of_the_moment(digits):
    model = fit("batchnorm", digits, "run", ema=0.5)
    written = load_file("run/model.safetensors")
    buffers = dict(model.named_buffers())
    assert buffers and all(torch.equal(written[name], buffer) for name, buffer in buffers.items())
    assert not torch.equal(written["head.weight"], model.head.weight)


def test_a_saved_model_comes_back_with_its_statistics_and_is_built_without_memory(tmp_path):
    model = build("batchnorm")
    model(torch.rand(4, 1, 8, 8))
    dnt.save(model, tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(dnt.load(tmp_path)(x), model.eval()(x))
    with torch.device("meta"):
        empty = build("batchnorm")
    empty.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(empty.eval()(x), model(x))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--recompute"], "recompute"),
        (["--accumulate", "2"], "accumulate"),
        (["--devices", "2"], "several processes"),
        (["--devices", "2", "--strategy", "fsdp"], "several processes"),
    ],
)
def test_what_would_count_a_batch_twice_or_in_parts_is_refused_in_one_line(workplace, capfd, options, what):
    shape = ["--model", "vit-tiny", "--data", "digits", "--patch-size", "4", "--depth", "1", "--norm", "powernorm"]
    for dry in ([], ["--dry-run"]):
        said = complaint(capfd, "train", *shape, *options, *dry)
        assert f"{what} does not go with powernorm, whose statistics are those of a whole batch" in said


def test_a_dry_run_of_every_one_needs_no_numbers(workplace, capfd):
    for name in OF_BATCHES:
        assert main(["train", "--model", "vit-tiny", "--data", "digits", "--norm", name, "--dry-run"]) == 0
        assert name in capfd.readouterr().out


def test_calibration_refuses_norms_that_hide_no_scale_of_a_token():
    batch = (torch.rand(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(ValueError, match=r"nothing to calibrate: norm is 'batchnorm'; it takes plain weights and one"):
        dnt.calibrate(build("batchnorm"), [batch], lr=0.1)
