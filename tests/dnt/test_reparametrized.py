"""Linear layers whose weight is computed from what is stored."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations

import dnt
from dnt.analysis.anatomy import parts
from dnt.cli import main
from dnt.loop import Loop
from dnt.nn.calibrate import matrices, relative_steps
from dnt.nn.config import WEIGHTS, gpt_parameters, vit_parameters
from dnt.nn.flops import training_flops
from dnt.nn.reparametrized import SigmaReparam, reparametrize, stored
from dnt.optim.kinds import by_kind
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw
from tests.dnt.test_cli import complaint
from tests.dnt.test_parallel import losses, run_all
from tests.dnt.test_parallel import weights as weights_of

COMPUTED = WEIGHTS[1:]
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 5, "depth": 2, "dim": 24, "heads": 2}


def tiny_vit(**fields) -> dnt.ViT:
    torch.manual_seed(0)
    return dnt.ViT(dnt.ViTConfig(**IMAGES | fields))


def layer(weights: str) -> nn.Linear:
    """One linear layer in float64."""
    torch.manual_seed(0)
    linear = nn.Linear(7, 5, dtype=torch.float64)
    reparametrize(linear, weights)
    return linear


def sigma_1(W: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(W.detach().flatten(1), 2))


# --- formulas -------------------------------------------------------------------------------------------------------


def test_weight_norm_equals_torchs_in_value_and_gradients_with_a_g_that_is_a_vector():
    ours = layer("weight-norm")
    theirs = parametrizations.weight_norm(deepcopy(layer("plain")))
    torch.testing.assert_close(ours.weight, layer("plain").weight)
    mine, peer = ours.parametrizations.weight, theirs.parametrizations.weight
    with torch.no_grad():
        for each in (mine, peer):
            torch.manual_seed(1)
            each.original0.copy_(torch.randn(5).view_as(each.original0))
            each.original1.copy_(torch.randn(5, 7))
    x = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    for each in (ours, theirs):
        each(x).square().sum().backward()
    torch.testing.assert_close(mine.original0.grad, peer.original0.grad.flatten())
    torch.testing.assert_close(mine.original1.grad, peer.original1.grad)
    assert mine.original0.shape == (5,)


def test_weight_norm_gives_row_i_the_length_g_i_and_a_gradient_orthogonal_to_it():
    linear = layer("weight-norm")
    g, V = linear.parametrizations.weight.original0, linear.parametrizations.weight.original1
    nn.init.normal_(g)
    torch.testing.assert_close(linear.weight.norm(dim=1), g.abs())
    linear(torch.randn(3, 7, dtype=torch.float64)).square().sum().backward()
    torch.testing.assert_close((V * V.grad).sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_spectral_norm_is_torchs_and_its_sigma_1_approaches_one():
    linear, plain = layer("spectral-norm"), layer("plain")
    for _ in range(100):
        W = linear.weight  # each a step of the power iteration
    assert sigma_1(W) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(W, plain.weight / sigma_1(plain.weight))


def test_sigma_reparam_begins_as_what_it_was_and_its_sigma_1_is_g():
    linear, plain = layer("sigma-reparam"), layer("plain")
    torch.testing.assert_close(linear.weight, plain.weight)
    made = linear.parametrizations.weight[0]
    assert made.g.shape == (1,) and made.g.item() == pytest.approx(sigma_1(plain.weight))
    nn.init.constant_(made.g, 0.3)
    assert sigma_1(linear.weight) == pytest.approx(0.3)
    with torch.no_grad():
        stored(linear).add_(torch.randn(5, 7))
    for _ in range(100):
        W = linear.weight
    assert sigma_1(W) == pytest.approx(0.3, abs=1e-9)
    assert not made.u.requires_grad and not made.v.requires_grad


def test_sigma_reparam_differentiates_through_sigma_1_as_torchs_singular_values_do():
    linear = layer("sigma-reparam")
    g, V = linear.parametrizations.weight[0].g, stored(linear)
    slow = V.detach().clone().requires_grad_()
    weights = torch.randn(5, 7, dtype=torch.float64)
    found = torch.autograd.grad((linear.weight * weights).sum(), (V, g))
    W = g.detach() / torch.linalg.svdvals(slow)[0] * slow
    torch.testing.assert_close(found[0], torch.autograd.grad((W * weights).sum(), slow)[0])
    torch.testing.assert_close(found[1], (W.detach() * weights).sum()[None] / g.detach())


def test_sigma_reparam_takes_one_step_of_the_power_iteration_in_training_and_none_in_evaluation():
    made = SigmaReparam(torch.randn(4, 6, dtype=torch.float64))
    V = torch.randn(4, 6, dtype=torch.float64)
    v = made.v.clone()
    u = V @ v / (V @ v).norm()
    v = V.T @ u / (V.T @ u).norm()
    W = made(V)
    torch.testing.assert_close((made.u, made.v), (u, v))
    torch.testing.assert_close(W, made.g / (u @ V @ v) * V)
    made.eval()
    made(torch.randn(4, 6, dtype=torch.float64))
    assert torch.equal(made(V), W) and torch.allclose(made.u, u)


def test_the_kernel_of_patches_is_a_matrix_of_flattened_filters():
    for in_dims in (2, 3):
        model = tiny_vit(weights="sigma-reparam", in_dims=in_dims)
        made = model.patches.parametrizations.weight[0]
        assert sigma_1(model.patches.weight) == pytest.approx(made.g.item(), rel=1e-5)
        assert made.v.shape == (3 * 4**in_dims,)


@pytest.mark.parametrize("weights", COMPUTED)
def test_the_scale_of_what_is_stored_changes_nothing(weights):
    linear = layer(weights)
    x = torch.randn(3, 7, dtype=torch.float64)
    before = linear.eval()(x)
    with torch.no_grad():
        stored(linear).mul_(3.0)
    torch.testing.assert_close(linear(x), before)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", COMPUTED)
def test_every_linear_layer_but_a_tied_head_has_one_and_only_sigma_reparam_the_kernel_of_patches(weights):
    for tied in (True, False):
        model = tiny_model(weights=weights, tie_embeddings=tied)
        linear = {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        plain = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and stored(m) is m.weight}
        assert plain == ({"head"} if tied else set()) and len(linear) == 9
        assert (model.head.weight is model.tokens.weight) == tied
    model = tiny_vit(weights=weights)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    plain = [name for name in layers if stored(model.get_submodule(name)) is model.get_submodule(name).weight]
    assert plain == ([] if weights == "sigma-reparam" else ["patches"])


@pytest.mark.parametrize("weights", ["weight-norm", "sigma-reparam"])
def test_a_model_begins_as_the_plain_one(weights):
    plain, model = tiny_model().eval(), tiny_model(weights=weights).eval()
    tokens = torch.randint(0, 256, (2, 8))
    torch.testing.assert_close(model(tokens), plain(tokens))
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(tiny_vit(weights=weights).eval()(images), tiny_vit().eval()(images))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_parameter_counts_in_closed_form(weights):
    for fields in ({}, {"bias": True, "tie_embeddings": False}, {"kv_heads": 1, "activation": "swiglu"}):
        model = tiny_model(weights=weights, **fields)
        assert gpt_parameters(model.config) == sum(p.numel() for p in model.parameters())
        assert training_flops(model.config) == training_flops(tiny_model(**fields).config)
    for fields in ({}, {"bias": True, "pool": "mean"}):
        model = tiny_vit(weights=weights, **fields)
        assert vit_parameters(model.config) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("weights", COMPUTED)
def test_what_is_stored_decays_and_what_scales_it_does_not(weights):
    model = tiny_model(weights=weights)
    decaying, never = (set(group["params"]) for group in dnt.param_groups(model, weight_decay=1.0))
    for name, parameter in model.named_parameters():
        assert (parameter in decaying) == (parameter.ndim >= 2) and (parameter in never) == (parameter.ndim < 2), name
        if "parametrizations" in name:
            assert (parameter.ndim == 2) == name.endswith(("original", "original1")), name


@pytest.mark.parametrize("weights", COMPUTED)
def test_gpt_and_vit_overfit_one_batch(weights):
    gpt, vit = tiny_model(weights=weights, vocab_size=13), tiny_vit(weights=weights)
    tokens = torch.randint(0, 13, (4, 9))
    images = torch.randn(5, 3, 8, 8), torch.arange(5)
    for model, batch in ((gpt, (tokens[:, :-1], tokens[:, 1:])), (vit, images)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(60):
            loss = model.loss(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.2


@pytest.mark.parametrize("weights", COMPUTED)
def test_autocast_keeps_what_is_stored_and_its_scale_in_float32(weights):
    model = tiny_model(weights=weights)
    tokens = torch.randint(0, 256, (2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(tokens, tokens).backward()
        layer = model.blocks[0].mlp.f.up
        assert layer.weight.dtype == torch.float32 and layer(torch.randn(2, 32)).dtype == torch.bfloat16
        W = layer.weight
    if weights == "sigma-reparam":
        assert sigma_1(W) == pytest.approx(layer.parametrizations.weight[0].g.item(), rel=1e-5)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("weights", COMPUTED)
def test_a_compiled_layer_computes_and_turns_the_same(weights):
    """By the tracer and autograd's graphs alone."""
    torch._dynamo.reset()
    ours = layer(weights)
    compiled = deepcopy(ours)
    compiled.compile(backend="aot_eager")
    for _ in range(3):
        x = torch.randn(3, 7, dtype=torch.float64)
        y, again = ours(x), compiled(x)
        torch.testing.assert_close(again, y)
        for linear, out in ((ours, y), (compiled, again)):
            linear.zero_grad()
            out.square().sum().backward()
        torch.testing.assert_close(stored(compiled).grad, stored(ours).grad)
    torch.testing.assert_close(dict(compiled.state_dict()), dict(ours.state_dict()))


# --- folders, resuming, devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", COMPUTED)
def test_a_model_comes_back_from_its_state_its_folder_and_without_memory_first(weights, tmp_path):
    for model, x in (
        (tiny_model(weights=weights, tie_embeddings=False), torch.randint(0, 256, (2, 8))),
        (tiny_vit(weights=weights), torch.randn(2, 3, 8, 8)),
    ):
        model.loss(x, x if x.ndim == 2 else torch.arange(2))  # turns u and v
        expected = model.eval()(x)
        dnt.save(model, tmp_path)
        again = dnt.load(tmp_path)
        assert again.config == model.config and torch.equal(again(x), expected)
        fresh = type(model)(model.config).eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), expected)
        with torch.device("meta"):
            empty = type(model)(model.config).eval()
        empty.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(empty(x), expected)


def fit(weights: str, out: str, **options) -> dnt.GPT:
    model = tiny_model(weights=weights)
    dnt.fit(model, dnt.prepare("words.txt", context=16), tiny_msgdw(model), out=out, **OPTIONS | options)
    return model


@pytest.mark.parametrize("weights", COMPUTED)
def test_a_stopped_run_resumes_to_bit_identical_weights(weights, workplace, monkeypatch):
    whole = fit(weights, "whole", checkpoint_every=3)
    real = Loop.train_step
    with monkeypatch.context() as stopped:
        stopped.setattr(Loop, "train_step", lambda self: 1 / 0 if self.step == 5 else real(self))
        with pytest.raises(ZeroDivisionError):
            fit(weights, "half", checkpoint_every=3)
    half = fit(weights, "half", checkpoint_every=3, resume=True)
    state = whole.state_dict()
    assert all(torch.equal(state[key], value) for key, value in half.state_dict().items())
    tokens = torch.randint(0, 256, (2, 8))
    assert torch.equal(dnt.load("half")(tokens), whole.eval()(tokens))


def test_one_process_and_two_agree_of_which_one_holds_a_scalar(workplace):
    dnt.prepare("words.txt", context=16)
    shared = [*TINY, "--data", "words.txt", "--batch-size", "8", "--steps", "4", "--weights", "sigma-reparam"]
    shared += ["--norm", "scalenorm"]
    ways = {"one": [], "ddp": ["--devices", "2"], "fsdp": ["--devices", "2", "--strategy", "fsdp"]}
    run_all(*([*shared, *way, "--out", name] for name, way in ways.items()))
    for name in ways:
        assert losses(name) == pytest.approx(losses("one"), abs=1e-5), name
        torch.testing.assert_close(weights_of(name), weights_of("one"), rtol=0, atol=1e-5)


# --- what addresses weights by name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", COMPUTED)
def test_parts_have_the_roles_and_sizes_of_the_plain_models(weights):
    for plain, model in (
        (tiny_model(activation="swiglu", kv_heads=1), tiny_model(activation="swiglu", kv_heads=1, weights=weights)),
        (tiny_vit(), tiny_vit(weights=weights)),
    ):
        found = [(p.role, p.layer, p.matrix().shape) for p in parts(model) if p.parameter.ndim > 1]
        assert found == [(p.role, p.layer, p.matrix().shape) for p in parts(plain) if p.parameter.ndim > 1]
        assert {p.role for p in parts(model) if p.parameter.ndim < 2} <= {"gain", "embedding"}


@pytest.mark.parametrize("weights", COMPUTED)
def test_relative_steps_are_of_what_is_stored_and_calibration_says_that_it_cannot(weights):
    model = tiny_model(weights=weights)
    assert {m.weight.parameter for m in matrices(model)} == {
        stored(m) for m in model.blocks.modules() if isinstance(m, nn.Linear)
    }
    tokens = torch.randint(0, 256, (2, 8))
    steps = relative_steps(model, [(tokens, tokens)], lr=0.1)
    stored(model.blocks[1].mlp.f.out).data.mul_(10)  # the gradient shrinks by as much
    larger = relative_steps(model, [(tokens, tokens)], lr=0.1)
    assert larger["blocks.1.mlp.2"] == pytest.approx(steps["blocks.1.mlp.2"] / 100, rel=1e-3)
    assert set(by_kind(steps)) == {
        *("tokens", "positions", "gains"),
        *("attn.q", "attn.k", "attn.v", "attn.o", "mlp.1", "mlp.2"),
    }
    with pytest.raises(ValueError) as error:
        dnt.calibrate(model, [(tokens, tokens)], lr=0.1)
    assert f"nothing to calibrate: weights is '{weights}'; it takes plain weights" in str(error.value)


@pytest.mark.parametrize("weights", COMPUTED)
def test_folders_of_transformers_hold_it_and_those_of_others_say_that_they_do_not(weights, tmp_path):
    model = tiny_model(weights=weights)
    tokens = torch.randint(0, 256, (2, 8))
    model.loss(tokens, tokens)
    expected = model.eval()(tokens)
    dnt.DNTForCausalLM.from_dnt(model).save_pretrained(tmp_path / "theirs")
    again = dnt.DNTForCausalLM.from_pretrained(tmp_path / "theirs")
    loaded = dnt.load(tmp_path / "theirs")
    state = model.state_dict()
    for other in (again.gpt, loaded):
        assert all(torch.equal(state[name], tensor) for name, tensor in other.state_dict().items())
        torch.testing.assert_close(other(tokens), expected)
    gpt2 = tiny_model(weights=weights, placement="pre-ln", norm="layernorm", bias=True)
    with pytest.raises(ValueError, match=f"weights is '{weights}'"):
        dnt.save_gpt2(gpt2, tmp_path / "gpt2")
    vit = tiny_vit(weights=weights, placement="pre-ln", norm="layernorm", bias=True)
    with pytest.raises(ValueError, match=f"weights is '{weights}', which timm's VisionTransformer has not"):
        dnt.save_timm(vit, tmp_path / "a.safetensors")


def test_the_command_line_trains_them_and_names_what_does_not_go_together(workplace, capfd):
    options = ["train", *TINY, "--data", "words.txt", "--steps", "2"]
    assert main([*options, "--weights", "sigma-reparam", "--diagnose-every", "2", "--out", "run"]) == 0
    assert dnt.Run(Path("run")).config["model"]["weights"] == "sigma-reparam"
    assert not dnt.Run(Path("run")).rows("undiagnosed") and dnt.Run(Path("run")).rows("diagnosis")
    assert main([*options, "--weights", "weight-norm", "--recompute", "--out", "other"]) == 0
    for extra, message in (
        (["--weights", "sigma"], "unknown weights 'sigma'. Did you mean"),
        (["--weights", "sigma-reparam", "--recompute"], "recompute does not go with sigma-reparam, whose singular"),
        (["--weights", "spectral-norm", "--recompute"], "recompute does not go with spectral-norm, whose singular"),
        (["--weights", "weight-norm", "--precision", "bf16-weights"], "bf16-weights does not go with weight-norm"),
    ):
        assert message in complaint(capfd, *options, *extra)
