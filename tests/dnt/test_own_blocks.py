"""The methods whose blocks are no rows of Slots: ResiDual, nGPT, SAS, SAS-P and LaPE, against slow formulas."""
# T tokens, D width, H heads, K head width

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dnt
from dnt.analysis.anatomy import parts
from dnt.analysis.diagnosis import diagnose
from dnt.interchange.huggingface import DNTForCausalLM
from dnt.nn.calibrate import matrices, relative_steps
from dnt.nn.flops import block_matrices
from dnt.nn.layers import KeyValueCache
from dnt.nn.norms import Gain
from dnt.settings import TrainSettings
from dnt.train import train
from tests import reference

SHAPE = {"vocab_size": 13, "context": 8, "depth": 3, "dim": 16, "heads": 4}
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 2, "classes": 5, "depth": 3, "dim": 16, "heads": 4}
PAPERS_NGPT = {"activation": "swiglu", "positions": "rope", "tie_embeddings": False}
GPTS = ["residual", "ngpt", "sas", "sas-p"]
VITS = [*GPTS, "lape"]
gpts, vits = pytest.mark.parametrize("name", GPTS), pytest.mark.parametrize("name", VITS)


def gpt(name: str, **fields) -> dnt.GPT:
    torch.manual_seed(0)
    return dnt.GPT(dnt.GPTConfig(**SHAPE | {"placement": name} | fields)).eval()


def vit(name: str, **fields) -> dnt.ViT:
    torch.manual_seed(0)
    return dnt.ViT(dnt.ViTConfig(**IMAGES | {"placement": name} | fields)).eval()


def randomized(model):
    """In float64, every parameter other than at the start: nothing is hidden by zeros or ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                p.mul_(1 + 0.3 * torch.randn_like(p))
            else:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model.double()


def tokens_of(model, samples: int = 2) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (samples, model.config.context))


def images_of(model, samples: int = 2) -> Tensor:
    return torch.randn(samples, *model.config.image_shape, dtype=torch.float64)


# --- slow formulas --------------------------------------------------------------------------------------------------


def normed(x_TD: Tensor, norm: nn.Module) -> Tensor:
    return torch.stack([reference.rms_norm(x, norm.weight, 1e-6) for x in x_TD])


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def in_heads(x_TD: Tensor, weight: Tensor, heads: int) -> list[list[Tensor]]:
    """[token][head] -> (K,)."""
    return [list((weight @ x).split(len(weight) // heads)) for x in x_TD]


def softmax_rows(q, k, scale: float, causal: bool) -> list[list[Tensor]]:
    """[query][head] -> probabilities of the keys that it sees."""
    shared = len(q[0]) // len(k[0])
    rows = []
    for i, queries in enumerate(q):
        seen = k[: i + 1] if causal else k
        rows.append(
            [
                torch.stack([scale * one.dot(key[h // shared]) for key in seen]).softmax(0)
                for h, one in enumerate(queries)
            ]
        )
    return rows


def weighted(rows, v) -> list[list[Tensor]]:
    shared = len(rows[0]) // len(v[0])
    return [
        [sum(p * v[j][h // shared] for j, p in enumerate(probabilities)) for h, probabilities in enumerate(of_token)]
        for of_token in rows
    ]


def usual_attention(f, x_TD: Tensor, causal: bool) -> Tensor:
    q, k, v = (in_heads(x_TD, weight, f.heads) for weight in f.qkv.weight.chunk(3))
    mixed = weighted(softmax_rows(q, k, len(q[0][0]) ** -0.5, causal), v)
    return torch.stack([f.out.weight @ torch.cat(heads) for heads in mixed])


def usual_mlp(f, x_TD: Tensor) -> Tensor:
    return torch.stack([f.out.weight @ F.gelu(f.up.weight @ x) for x in x_TD])


def residual(model, x_TD: Tensor, causal: bool) -> Tensor:
    x = d = x_TD
    for block in model.blocks:
        for f, branch in ((block.attn, usual_attention), (block.mlp, usual_mlp)):
            u = branch(f.f, x, causal) if f is block.attn else branch(f.f, x)
            x, d = normed(x + u, f.post), d + u
    return x + normed(d, model.final_norm.norm)


def turned(x: Tensor, position: int) -> Tensor:
    """Rotary positions: x_i and x_{i + K/2} as one complex number, times e^(i position 10000^(-2i/K))."""
    half = len(x) // 2
    angles = torch.tensor([position / 10_000 ** (i / half) for i in range(half)], dtype=torch.float64)
    z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag])


def ngpt(model, x_TD: Tensor, causal: bool) -> Tensor:
    config, D = model.config, model.config.dim
    K, kv_heads = D // config.heads, config.kv_heads or config.heads
    x = unit(x_TD)
    for block in model.blocks:
        f = block.attn.f
        w_q, w_k, w_v = f.qkv.weight.split([D, kv_heads * K, kv_heads * K])
        q, k, v = in_heads(x, w_q, config.heads), in_heads(x, w_k, kv_heads), in_heads(x, w_v, kv_heads)
        if config.positions == "rope":
            q, k = ([[turned(h, t) for h in heads] for t, heads in enumerate(each)] for each in (q, k))
        s = (f.q_norm[1].weight * (1 / D**-0.5)).split(K)
        q = [[s[h] * s[h] * unit(each) for h, each in enumerate(heads)] for heads in q]
        k = [[unit(each) for each in heads] for heads in k]
        mixed = weighted(softmax_rows(q, k, math.sqrt(K), causal), v)
        out = torch.stack([f.out.weight @ torch.cat(heads) for heads in mixed])
        a = (block.attn.rate.weight * (0.05 / D**-0.5)).abs()
        x = unit(x + a * (unit(out) - x))
        f = block.mlp.f
        high = [math.sqrt(D) * f.scale.weight * (f.up.weight @ token) for token in x]
        if config.activation == "swiglu":
            inner = [F.silu(v) * u for v, u in (each.chunk(2) for each in high)]
        else:
            inner = [F.gelu(each) for each in high]
        a = (block.mlp.rate.weight * (0.05 / D**-0.5)).abs()
        x = unit(x + a * (unit(torch.stack([f.out.weight @ each for each in inner])) - x))
    return x


def sas(model, x_TD: Tensor, causal: bool) -> Tensor:
    x = x_TD
    for layer, block in enumerate(model.blocks):
        parallel = model.config.placement == "sas-p"
        f, mixing = block.attn.f, block.attn.f.attention
        y = normed(x, block.norm if parallel else block.attn.pre)
        w_q, w_k = f.qkv.qk.weight.chunk(2)
        values = y
        if layer == 0:
            first = f.qkv.v
            values = first.itself.weight * y + first.gain.weight * (y @ first.matrix.weight.T)
        q, k = in_heads(y, w_q, f.heads), in_heads(y, w_k, f.heads)
        v = in_heads(values, torch.eye(len(y[0]), dtype=torch.float64), f.heads)
        rows = softmax_rows(q, k, len(q[0][0]) ** -0.5, causal)
        for i, of_token in enumerate(rows):
            for h, p in enumerate(of_token):
                itself = F.one_hot(torch.tensor(i), len(p))
                of_token[h] = (
                    mixing.itself.weight[h] * itself + mixing.softmax.weight[h] * p - mixing.uniform.weight[h] / len(p)
                )
        attended = block.attn.gain.weight * torch.stack([torch.cat(heads) for heads in weighted(rows, v)])
        if parallel:
            x = attended + block.mlp.gain.weight * usual_mlp(block.mlp.f, y)
        else:
            branch = usual_mlp(block.mlp.f, normed(attended, block.mlp.pre))
            x = block.mlp.carry.weight * attended + block.mlp.gain.weight * branch
    return normed(x, model.final_norm)


def lape(model, x_TD: Tensor, p_TD: Tensor) -> Tensor:
    x, p = x_TD, p_TD
    for block in model.blocks:
        p = normed(p, block.position_norm)
        x = x + usual_attention(block.attn.f, normed(x, block.attn.pre) + p, causal=False)
        x = x + usual_mlp(block.mlp.f, normed(x, block.mlp.pre))
    return normed(x, model.final_norm[1])


FORMULAS = {"residual": residual, "ngpt": ngpt, "sas": sas, "sas-p": sas}


@pytest.mark.parametrize(
    ("name", "fields"),
    [*((name, {}) for name in GPTS), ("ngpt", PAPERS_NGPT), ("ngpt", PAPERS_NGPT | {"kv_heads": 2})],
    ids=str,
)
def test_hidden_states_of_a_gpt_equal_the_formula_token_by_token(name, fields):
    model = randomized(gpt(name, **fields))
    tokens = tokens_of(model)
    for sample, hidden in zip(tokens, model.hidden(tokens), strict=True):
        x_TD = model.tokens.weight[sample]
        if model.config.positions == "learned":
            x_TD = x_TD + model.positions.weight
        torch.testing.assert_close(hidden, FORMULAS[name](model, x_TD, True), rtol=1e-6, atol=1e-7)  # float32 angles


@pytest.mark.parametrize(
    ("name", "fields"), [*((name, {}) for name in VITS), ("lape", {"positions": "sincos"})], ids=str
)
def test_hidden_states_of_a_vit_equal_the_formula_token_by_token(name, fields):
    model = randomized(vit(name, **fields))
    images = images_of(model)
    kernel = model.patches.weight.flatten(1)
    if model.config.positions == "learned":
        p_TD = model.positions.weight
    else:
        of_patches = [reference.sincos((i, j), 16) for i in range(2) for j in range(2)]
        p_TD = torch.stack([torch.zeros(16, dtype=torch.float64), *of_patches])  # none for the class token
    for image, hidden in zip(images, model.hidden(images), strict=True):
        cut = [image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten() for i in range(2) for j in range(2)]
        x_TD = torch.stack([model.class_token.weight, *(kernel @ pixels for pixels in cut)])
        found = lape(model, x_TD, p_TD) if name == "lape" else FORMULAS[name](model, x_TD + p_TD, False)
        torch.testing.assert_close(hidden, found, rtol=1e-6, atol=1e-7)


# --- what each promises ---------------------------------------------------------------------------------------------


def test_residuals_second_stream_is_the_plain_sum_of_embedding_and_branches():
    model = randomized(gpt("residual"))
    branches, ends = [], []
    for block in model.blocks:
        block.attn.drop.register_forward_hook(lambda _module, _args, out: branches.append(out))  # of both sublayers
    model.blocks[0].register_forward_pre_hook(lambda _module, args: ends.append(args[0]))
    model.blocks[-1].register_forward_hook(lambda _module, _args, out: ends.append(out))
    model(tokens_of(model))
    (x_0, d_0), (_, d) = (end.chunk(2, dim=-1) for end in ends)
    assert len(branches) == 2 * len(model.blocks) and torch.equal(x_0, d_0)
    torch.testing.assert_close(d, d_0 + sum(branches))


def test_the_gradient_of_a_residual_reaches_the_embedding_by_both_streams():
    model = randomized(gpt("residual"))
    x_BTD = torch.randn(2, 8, 16, dtype=torch.float64, requires_grad=True)
    doubled = model.drop(x_BTD)
    out = doubled
    for block in model.blocks:
        out = block(out)
    loss = model.final_norm(out).square().sum(-1).sin().sum()
    whole, by_stream = torch.autograd.grad(loss, [x_BTD, doubled])
    by_x, by_d = by_stream.chunk(2, dim=-1)
    assert by_x.norm() > 1e-3 and by_d.norm() > 1e-3
    torch.testing.assert_close(whole, by_x + by_d)


def test_dropout_of_the_embedding_is_the_same_in_both_streams_of_a_residual_and_spares_the_positions_of_lape():
    torch.manual_seed(0)
    x, d = gpt("residual", dropout=0.5).train().drop(torch.ones(2, 8, 16)).chunk(2, dim=-1)
    assert torch.equal(x, d) and 0.3 < (x == 0).float().mean() < 0.7
    x, p = vit("lape", dropout=0.5).train().drop(torch.ones(2, 8, 32)).chunk(2, dim=-1)
    assert torch.equal(p, torch.ones_like(p)) and 0.3 < (x == 0).float().mean() < 0.7


def lengths(model) -> dict[str, Tensor]:
    """Norms of what lies along the width of the model, of every matrix."""
    along_rows = ("tokens", "positions", "qkv", "up", "head")
    found = {}
    for name, p in model.named_parameters():
        if p.ndim >= 2 or name == "class_token.weight":
            owner = name.split(".")[-2]
            rows = p if owner in along_rows else p.flatten(1).T if p.ndim >= 2 else p[None]
            assert rows.shape[1] == model.config.dim
            found[name] = rows.norm(dim=1)
    return found


@pytest.mark.parametrize("make", [gpt, vit], ids=["gpt", "vit"])
@pytest.mark.parametrize("fields", [{}, {"activation": "swiglu"}], ids=str)
def test_every_matrix_of_an_ngpt_has_unit_norms_at_the_start_and_after_each_step(make, fields):
    model = make("ngpt", **fields)
    batch = (tokens_of(model),) * 2 if make is gpt else (images_of(model).float(), torch.tensor([0, 1]))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        for name, found in lengths(model).items():
            torch.testing.assert_close(found, torch.ones_like(found), msg=lambda m, name=name: f"{name}: {m}")
        model.loss(*batch).backward()
        optimizer.step()
        assert any((found - 1).abs().max() > 1e-3 for found in lengths(model).values())
        model.after_step()


@pytest.mark.parametrize("make", [gpt, vit], ids=["gpt", "vit"])
def test_hidden_states_of_an_ngpt_are_unit_vectors(make):
    model = randomized(make("ngpt"))
    streams = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _module, args: streams.append(args[0]))
        block.register_forward_hook(lambda _module, _args, out: streams.append(out))
    model(tokens_of(model) if make is gpt else images_of(model))
    for x_BTD in streams:
        torch.testing.assert_close(x_BTD.norm(dim=-1), torch.ones(x_BTD.shape[:2], dtype=torch.float64))


def test_learned_scales_of_an_ngpt_begin_at_the_papers_values_and_are_stored_at_its_scales():
    model = gpt("ngpt", **PAPERS_NGPT)
    block, stored = model.blocks[1], 16**-0.5
    for gain, value, scale, size in [
        (block.attn.rate, 0.05, stored, 16), (block.mlp.rate, 0.05, stored, 16),
        (block.attn.f.q_norm[1], 1.0, stored, 16), (block.mlp.f.scale, 1.0, 1.0, 128),
        (model.head.scale, 1.0, stored, 13),
    ]:  # fmt: skip
        torch.testing.assert_close(gain.value(), torch.full((size,), value))
        torch.testing.assert_close(gain.weight, torch.full((size,), scale))


def test_logits_of_an_ngpt_are_cosines_times_a_learned_number_for_each_token():
    model = randomized(gpt("ngpt", **PAPERS_NGPT))
    model.after_step()
    tokens = tokens_of(model)
    cosines = F.cosine_similarity(model.hidden(tokens)[:, :, None], model.head.weight, dim=-1)
    torch.testing.assert_close(model(tokens), cosines * model.head.scale.weight * 4)


def test_the_step_after_the_optimizers_changes_nothing_where_none_is_prescribed():
    model = gpt("pre-ln")
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.after_step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("name", ["sas", "sas-p"])
@pytest.mark.parametrize("make", [gpt, vit], ids=["gpt", "vit"])
def test_shaped_attention_begins_as_the_identity(make, name):
    model = make(name).double()
    x = torch.randn(2, 8, 16, dtype=torch.float64)
    for block in model.blocks:
        torch.testing.assert_close(block.attn.f(x), x, rtol=0, atol=1e-14)
    y = F.rms_norm(x, (16,), eps=1e-6)
    inner = y if name == "sas-p" else F.rms_norm(y, (16,), eps=1e-6)
    mlp = model.blocks[0].mlp.f
    expected = y + 0.1 * F.gelu(inner @ mlp.up.weight.T) @ mlp.out.weight.T
    torch.testing.assert_close(model.blocks[0](x), expected)


def test_simplified_attention_has_no_path_that_could_be_dropped():
    model = gpt("sas", drop_path=0.999_999).train()
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(model.blocks[-1](x), F.rms_norm(x, (16,), eps=1e-6))


@pytest.mark.parametrize("name", ["sas", "sas-p"])
def test_shared_values_are_refused_where_values_are_the_features(name):
    with pytest.raises(ValueError, match="no values but the features of each head; drop kv_heads=2"):
        gpt(name, kv_heads=2)


@pytest.mark.parametrize("name", ["ngpt", "sas"])
def test_a_left_out_feature_is_refused_where_all_are_needed(name):
    with pytest.raises(ValueError, match=f"crmsnorm leaves out a feature, which {name} needs"):
        gpt(name, norm="crmsnorm")


def test_an_ngpts_vocabulary_is_not_resized_by_transformers():
    with pytest.raises(ValueError, match="a learned number for each token"):
        DNTForCausalLM.from_dnt(gpt("ngpt")).resize_token_embeddings(20)


# --- they are models like others ------------------------------------------------------------------------------------


@gpts
def test_a_later_token_changes_no_earlier_logit(name):
    model = randomized(gpt(name))
    tokens = tokens_of(model)
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % 13
    before, after = model(tokens), model(other)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-13)
    assert (after[:, 5:] - before[:, 5:]).abs().amax(-1).min() > 1e-6


@gpts
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_cached_generation_equals_recomputing_every_token(name, positions):
    model = randomized(gpt(name, positions=positions))
    start = tokens_of(model)[:, :3]
    slow = start
    for _ in range(7):
        slow = torch.cat([slow, model(slow[:, -8:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(model.generate(start, 7, temperature=0), slow)


@gpts
def test_several_tokens_after_a_cache_and_padding_before_them_get_the_logits_of_the_whole(name):
    model = randomized(gpt(name))
    tokens = tokens_of(model)
    caches = [KeyValueCache() for _ in model.blocks]
    pieces = [model(part, caches) for part in tokens.split([3, 4, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))
    padded = model(torch.cat([tokens[:, :2], tokens[:, :6]], dim=1), real_BS=torch.arange(8).expand(2, 8) >= 2)
    torch.testing.assert_close(padded[:, 2:], model(tokens[:, :6]))


@vits
def test_saved_and_loaded_again_it_computes_the_same(name, tmp_path):
    model = randomized(vit(name)).float()
    dnt.save(model, tmp_path)
    images = images_of(model).float()
    assert torch.equal(dnt.load(tmp_path)(images), model(images))


@vits
def test_compiled_and_with_activations_computed_again_it_has_the_same_gradients(name):
    model = randomized(vit(name, depth=1))
    images, labels = images_of(model), torch.tensor([0, 1])

    def gradients(loss) -> list[Tensor]:
        return list(torch.autograd.grad(loss(images, labels), list(model.parameters())))

    expected = gradients(model.loss)
    compiled = gradients(torch.compile(model.loss, backend="aot_eager", fullgraph=True))
    model.recompute = True
    for other in (compiled, gradients(model.loss)):
        torch.testing.assert_close(other, expected)


@gpts
def test_in_bfloat16_throughout_it_comes_near_what_it_computes_in_float64(name):
    model = randomized(gpt(name))
    tokens = tokens_of(model)
    expected = model(tokens)
    found = model.bfloat16()(tokens)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 0.03 * expected.norm()


@vits
def test_on_the_meta_device_it_has_the_same_parameters(name):
    with torch.device("meta"):
        model = vit(name)
    model.after_step()
    shapes = {key: p.shape for key, p in vit(name).named_parameters()}
    assert {key: p.shape for key, p in model.named_parameters()} == shapes
    assert model(torch.zeros(3, 2, 8, 8, device="meta")).shape == (3, 5)


@vits
def test_every_entry_has_a_role_every_matrix_a_relative_step_and_every_model_a_diagnosis(name):
    model = randomized(vit(name)).float()
    assert {part.role for part in parts(model)} <= set("qkvo12") | {"embedding", "position", "head", "gain"}
    batch = (images_of(model).float(), torch.tensor([0, 1]))
    steps = relative_steps(model, [batch], lr=0.1)
    wide = {f"blocks.1.{part}" for part in ("attn.q", "attn.k", "mlp.1", "mlp.2")}
    assert wide <= set(steps) and all(0 < step < math.inf for step in steps.values())
    for table, rows in diagnose(model, [batch], lambda model, *batch: model.loss(*batch), resamples=2).items():
        two_streams = name in ("residual", "lape") and table in ("scales", "jacobians", "stream")
        assert bool(rows) != (two_streams or table == "noise"), table


@pytest.mark.parametrize("name", list(dnt.PLACEMENTS))
def test_learned_scales_never_decay(name):
    model = vit(name, depth=4)
    _, kept = dnt.param_groups(model, weight_decay=0.1)
    of_gains = {m.weight for m in model.modules() if isinstance(m, Gain)}
    assert of_gains <= set(kept["params"])


@vits
def test_matrices_of_blocks_are_counted(name):
    model = vit(name, depth=4)
    numbers = sum(p.numel() for p in model.blocks.parameters() if p.ndim >= 2)
    assert block_matrices(model.config) == numbers
    pieces = [m.weight.of(m.weight.parameter) for m in matrices(model)]
    assert sum(piece.numel() for piece in pieces) == numbers
    assert all(a.data_ptr() != b.data_ptr() for a, b in pairwise(pieces))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "schedulefree-adamw"}, "ngpt does not go with a schedule-free optimizer"),
        ({"ema": 0.9}, "ngpt does not go with ema"),
        ({"equilibrium": 0.01}, "equilibrium needs weight decay, and placement ngpt prescribes none"),
        ({"clip_equilibrium": 2.0}, "clip_equilibrium needs weight decay"),
        ({"placement": "sigma-reparam", "optimizer": "schedulefree-sgd"}, "sigma-reparam keeps statistics"),
    ],
)
def test_what_the_weights_of_a_method_do_not_go_with_is_named(options, words, workplace):
    fields = {"data": "words.txt", "placement": "ngpt", "depth": 2, "dim": 16, "heads": 2, "context": 8, "steps": 2}
    settings = TrainSettings(**fields | {"compile": False, "warmup": 1, "out": "run"} | options)
    with pytest.raises(ValueError, match=words):
        train(settings, progress=False)
