import pytest
import torch
from torch.autograd.functional import jacobian

import dnt
from tests import reference


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_rmsnorm_equals_its_formula_and_closed_form_jacobian(eps):
    torch.manual_seed(0)
    norm = dnt.NORMS["rmsnorm"](12, eps=eps).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(norm(x), reference.rms_norm(x, norm.weight, eps))
    torch.testing.assert_close(jacobian(norm, x), reference.rms_norm_jacobian(x, norm.weight, eps), rtol=0, atol=1e-12)


def test_layernorm_is_rmsnorm_of_the_centred_vector():
    torch.manual_seed(0)
    x = torch.randn(5, 16, dtype=torch.float64)
    layer, rms = dnt.NORMS["layernorm"](16).double(), dnt.NORMS["rmsnorm"](16).double()
    torch.testing.assert_close(layer(x), rms(x - x.mean(-1, keepdim=True)))


@pytest.mark.parametrize("name", dnt.NORMS)
def test_norms_compute_in_the_dtype_of_their_gain(name):
    torch.manual_seed(0)
    norm = dnt.NORMS[name](64)
    x = torch.randn(8, 64).bfloat16()
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), norm(x.float()), rtol=0, atol=0)


def test_rmsnorm_has_no_bias_even_when_asked():
    assert [name for name, _ in dnt.NORMS["rmsnorm"](8, bias=True).named_parameters()] == ["weight"]
    assert [name for name, _ in dnt.NORMS["layernorm"](8, bias=True).named_parameters()] == ["weight", "bias"]
