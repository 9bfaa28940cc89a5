from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.autograd.functional import jacobian
from x_transformers.x_transformers import DynamicTanh
from x_transformers.x_transformers import ScaleNorm as TheirScaleNorm

import dnt
from dnt.nn.batch_norms import progress_of
from dnt.nn.config import LEARNED, OF_BATCHES, SCALE_FREE
from dnt.nn.init import initialize
from tests import reference

OF_TOKENS = [name for name in dnt.NORMS if name not in OF_BATCHES]
WITHOUT_BIAS = ("rmsnorm", "prmsnorm", "scalenorm", "crmsnorm")


def random_norm(name: str, dim: int, **options) -> nn.Module:
    """In float64, with random gains and biases."""
    torch.manual_seed(0)
    norm = dnt.NORMS[name](dim, **options).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


# --- formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_rmsnorm_equals_its_formula_and_closed_form_jacobian(eps):
    norm = random_norm("rmsnorm", 12, eps=eps)
    x = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(norm(x), reference.rms_norm(x, norm.weight, eps))
    torch.testing.assert_close(jacobian(norm, x), reference.rms_norm_jacobian(x, norm.weight, eps), rtol=0, atol=1e-12)


def test_layernorm_is_rmsnorm_of_the_centred_vector():
    torch.manual_seed(0)
    x = torch.randn(5, 16, dtype=torch.float64)
    layer, rms = dnt.NORMS["layernorm"](16).double(), dnt.NORMS["rmsnorm"](16).double()
    torch.testing.assert_close(layer(x), rms(x - x.mean(-1, keepdim=True)))


@pytest.mark.parametrize(("dim", "seen"), [(12, 1), (32, 2), (100, 6)])
@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_prmsnorm_divides_by_the_mean_square_of_one_in_sixteen_features(dim, seen, eps):
    norm = random_norm("prmsnorm", dim, eps=eps)
    for x in torch.randn(3, dim, dtype=torch.float64):
        torch.testing.assert_close(norm(x), reference.partial_rms_norm(x, norm.weight, eps, seen))


def test_scalenorm_equals_its_formula_and_x_transformers_and_begins_at_the_root_of_its_width():
    norm, theirs = dnt.NORMS["scalenorm"](16).double(), TheirScaleNorm(16).double()
    assert norm.weight.tolist() == [4.0]
    nn.init.constant_(norm.weight, 2.8)
    nn.init.constant_(theirs.g, 0.7)  # they store g / sqrt(d)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(norm(x), theirs(x))
    torch.testing.assert_close(norm(x)[2], reference.scale_norm(x[2], 2.8))


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_crmsnorm_is_rmsnorm_of_a_centred_vector_whose_last_feature_is_not_stored(eps):
    norm = random_norm("crmsnorm", 12, eps=eps)
    x = torch.randn(12, dtype=torch.float64)
    whole, gains = torch.cat([x, -x.sum()[None]]), torch.cat([norm.weight, torch.ones(1)])
    torch.testing.assert_close(norm(x), reference.rms_norm(whole, gains, eps)[:-1])


def test_dyt_equals_x_transformers_dynamic_tanh():
    norm, theirs = random_norm("dyt", 16, bias=True), DynamicTanh(16).double()
    assert dnt.NORMS["dyt"](16).alpha.weight.tolist() == [0.5]
    with torch.no_grad():
        theirs.pre_tanh_scale.copy_(norm.alpha.weight[0])
        theirs.gamma.copy_(norm.weight)
        theirs.beta.copy_(norm.bias)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(norm(x), theirs(x))


def test_centernorm_equals_its_formula_and_its_gradient_sums_to_zero_without_a_gain():
    norm = random_norm("centernorm", 12, bias=True)
    x = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(norm(x), reference.center_norm(x, norm.weight, norm.bias))
    J = jacobian(dnt.NORMS["centernorm"](12).double(), x)
    torch.testing.assert_close(J.sum(1), torch.zeros(12, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(J.diag(), torch.ones(12, dtype=torch.float64))


# --- symmetries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_TOKENS)
def test_scale_free_norms_do_not_see_the_scale_of_a_token_and_the_others_do(name):
    norm = random_norm(name, 32, eps=0.0)
    x = torch.randn(4, 32, dtype=torch.float64)
    scaled = norm(x * torch.tensor([[1e-3], [0.5], [2.0], [1e3]]))
    assert torch.allclose(scaled, norm(x), rtol=1e-9, atol=0) == (name in SCALE_FREE)


@pytest.mark.parametrize("name", OF_TOKENS)
def test_centering_norms_do_not_see_a_shift_of_a_token_and_the_others_do(name):
    norm = random_norm(name, 32)
    x = torch.randn(4, 32, dtype=torch.float64)
    assert torch.allclose(norm(x + 3.0), norm(x), rtol=1e-9, atol=1e-9) == (name in ("layernorm", "centernorm"))


@pytest.mark.parametrize("name", OF_TOKENS)
def test_norms_of_a_token_do_not_see_the_others(name):
    norm = random_norm(name, 16)
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(norm(x)[1, 2, 3], norm(x[1, 2, 3]))


# --- every row of the table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dnt.NORMS)
def test_norms_compute_in_the_dtype_of_their_gain(name):
    torch.manual_seed(0)
    norm = dnt.NORMS[name](64)
    x = torch.randn(8, 64).bfloat16()
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)
        assert norm(x).dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", dnt.NORMS)
def test_what_a_norm_learns_is_what_the_config_counts_and_has_a_rule_of_initialization(name, bias):
    norm = dnt.NORMS[name](8, bias=bias)
    gains, biases, scalars = LEARNED[name]
    assert sum(p.numel() for p in norm.parameters()) == 8 * (gains + biases * bias) + scalars
    has_bias = any("bias" in parameter for parameter, _ in norm.named_parameters())
    assert has_bias == (name == "shift" or (bias and name not in WITHOUT_BIAS))
    shape = {"image_size": 4, "patch_size": 2, "channels": 1, "classes": 2, "depth": 1, "dim": 8, "heads": 2}
    model = dnt.ViT(dnt.ViTConfig(**shape, placement="pre-ln", norm=name, bias=bias))
    norms = {key: p.clone() for key, p in model.named_parameters() if "norm" in key or ".pre." in key}
    assert norms
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    initialize(model, model.config)
    assert all(torch.equal(norms[key], model.get_parameter(key)) for key in norms)


def test_the_config_knows_every_norm_and_which_are_of_batches():
    assert LEARNED.keys() == dnt.NORMS.keys()
    assert [name for name in dnt.NORMS if list(dnt.NORMS[name](4).buffers())] == list(OF_BATCHES)
    assert set(SCALE_FREE) <= set(OF_TOKENS)


@pytest.mark.parametrize("name", dnt.NORMS)
def test_norms_build_and_run_without_memory_and_a_copy_is_one(name):
    with torch.device("meta"):
        norm = dnt.NORMS[name](8, bias=True)
        y = norm(torch.zeros(2, 3, 8, requires_grad=True))
        y.sum().backward()
    assert y.shape == (2, 3, 8) and all(p.grad is not None and p.grad.shape == p.shape for p in norm.parameters())
    torch.manual_seed(0)
    norm, x = dnt.NORMS[name](8), torch.randn(4, 8)
    copy, before = deepcopy(norm), norm(x).clone()
    for parameter in copy.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(norm(x), before) and not torch.equal(copy(x), before)


@pytest.mark.parametrize("name", dnt.NORMS)
def test_compiled_norms_compute_the_same_and_are_compiled_once_for_a_whole_training(name):
    """By the tracer and autograd's graphs alone: kernels are the compiler's affair."""
    torch._dynamo.reset()
    norm = random_norm(name, 8, bias=True)
    compiled, traces = deepcopy(norm), CompileCounter()
    compiled.compile(backend=traces)
    for step in range(6):
        for each in (norm, compiled):
            for progress in progress_of(each):
                progress.fill_(step / 6)
        x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
        y, again = norm(x), compiled(x)
        torch.testing.assert_close(again, y)
        weights = torch.randn(4, 8, dtype=torch.float64)
        gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (y, again)]
        torch.testing.assert_close(*gradients)
        if step == 0:
            first = traces.frame_count
    assert traces.frame_count == first
    assert all(map(torch.allclose, norm.state_dict().values(), compiled.state_dict().values()))


def test_eps_keeps_what_a_zero_token_gives_finite():
    for name in OF_TOKENS:
        x = torch.zeros(2, 16, requires_grad=True)
        y = dnt.NORMS[name](16)(x)
        y.sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all(), name
