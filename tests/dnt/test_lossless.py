"""Pre-LN = Pre-RMSNorm = Pre-CRMSNorm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dnt
from tests.dnt import test_gpt, test_vit
from tests.dnt.test_gpt import randomize

GPT2 = {"bias": True, "activation": "gelu-tanh", "norm_eps": 1e-5}
TEXT = [
    {}, {"tie_embeddings": False}, {"positions": "rope", "kv_heads": 2, "activation": "swiglu", "head_bias": True},
    GPT2, GPT2 | {"tie_embeddings": False, "head_bias": True}, GPT2 | {"norm_eps": 0.1, "positions": "rope"},
]  # fmt: skip
IMAGES = [{}, {"pool": "mean"}, {"bias": True}, {"bias": True, "in_dims": 3, "pool": "mean", "norm_eps": 0.1}]
MODELS = [(test_gpt.build, fields) for fields in TEXT] + [(test_vit.build, fields) for fields in IMAGES]
models = pytest.mark.parametrize(("build", "fields"), MODELS)
norms = pytest.mark.parametrize("norm", ["rmsnorm", "crmsnorm"])


def pre_ln(build, **fields) -> dnt.GPT | dnt.ViT:
    return randomize(build(**{"placement": "pre-ln", "norm": "layernorm"} | fields)).double().eval()


def inputs_for(model: dnt.GPT | dnt.ViT) -> torch.Tensor:
    if isinstance(model, dnt.GPT):
        return torch.randint(0, model.config.vocab_size, (3, model.config.context))
    return test_vit.images_for(model, 3, torch.float64)


def norms_of(model: torch.nn.Module) -> set[str]:
    return {name for m in model.modules() for name, kind in dnt.NORMS.items() if type(m) is kind}


@models
@norms
def test_a_converted_model_equals_the_pre_ln_one(build, fields, norm):
    model = pre_ln(build, **fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = dnt.convert_norm(model, norm)
    x = inputs_for(model)
    assert norms_of(model) == {"layernorm"} and norms_of(other) == {norm}
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), heads=st.sampled_from([1, 2, 4]), depth=st.integers(1, 3), spread=st.floats(0.1, 3))
@norms
def test_random_models_of_any_scale_are_equal(norm, seed, heads, depth, spread):
    model = pre_ln(test_gpt.build, heads=heads, depth=depth, bias=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread / p.shape[-1] ** 0.5)
    x = inputs_for(model)
    expected = model(x).detach()
    bound = 1e-12 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(dnt.convert_norm(model, norm)(x), expected, rtol=0, atol=bound)


@models
@norms
def test_a_converted_model_comes_back_from_its_folder(build, fields, norm, tmp_path):
    other = dnt.convert_norm(pre_ln(build, **fields), norm).float()
    dnt.save(other, tmp_path)
    again = dnt.load(tmp_path)
    x = inputs_for(other).to(torch.float32) if isinstance(other, dnt.ViT) else inputs_for(other)
    assert again.config == other.config and torch.equal(again(x), other(x))


@models
def test_the_stream_of_the_converted_model_has_no_mean_and_that_of_crmsnorm_one_feature_less(build, fields):
    model = pre_ln(build, **fields)
    x, read = inputs_for(model), {}
    for norm in ("rmsnorm", "crmsnorm"):
        other = dnt.convert_norm(model, norm)
        other.final_norm.register_forward_pre_hook(lambda _, given, norm=norm: read.update({norm: given[0]}))
        other(x)
    whole, stored = read["rmsnorm"], read["crmsnorm"]
    torch.testing.assert_close(whole.mean(-1), torch.zeros(whole.shape[:-1], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(stored, whole[..., :-1], rtol=0, atol=1e-12)


def test_a_fresh_gpt_stays_tied_with_rmsnorm_and_gets_no_bias():
    fresh = test_gpt.build(placement="pre-ln", norm="layernorm", bias=True)
    config = dnt.convert_norm(fresh, "rmsnorm").config
    assert config.tie_embeddings and not config.head_bias
    assert not dnt.convert_norm(fresh, "crmsnorm").config.tie_embeddings
    trained = dnt.convert_norm(randomize(fresh), "rmsnorm").config
    assert trained.head_bias and not trained.tie_embeddings


def test_type_and_mode_stay():
    model = test_gpt.build(placement="pre-ln", norm="layernorm").bfloat16().train()
    other = dnt.convert_norm(model, "rmsnorm")
    assert other.training and {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert not dnt.convert_norm(model.eval(), "rmsnorm").training


@pytest.mark.parametrize(
    ("build", "fields", "norm", "message"),
    [
        (test_gpt.build, {}, "rms", "unknown norm to convert to 'rms'. Did you mean 'rmsnorm'?"),
        (test_gpt.build, {"norm": "rmsnorm"}, "crmsnorm", "has placement pre-ln and norm rmsnorm; only pre-ln with"),
        (test_gpt.build, {"placement": "s2"}, "rmsnorm", "has placement s2 and norm layernorm"),
        (test_gpt.build, {"placement": "post-ln:1,pre-ln"}, "rmsnorm", "has placement post-ln:1,pre-ln"),
        (test_vit.build, {"positions": "sincos"}, "rmsnorm", "positions='sincos' have a mean over the features"),
    ],
)
def test_what_cannot_be_converted_is_named(build, fields, norm, message):
    with pytest.raises(ValueError) as error:
        dnt.convert_norm(pre_ln(build, **fields), norm)
    assert message in str(error.value)
