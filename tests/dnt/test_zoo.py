"""Every row of PLACEMENTS: trains, is kept and read back, computes in bfloat16 and compiled, has the norms it says."""

import json
from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

import dnt
from dnt.experiments.statements import STATED
from dnt.nn.init import matrices
from dnt.nn.layers import Unit
from dnt.nn.ngpt import Turn
from dnt.nn.norms import Gain
from dnt.nn.placement import Prescription, placement_from

TEXT = {"vocab_size": 13, "context": 8, "depth": 4, "dim": 16, "heads": 4, "positions": "rope"}
IMAGES = {"image_size": 8, "patch_size": 4, "channels": 2, "classes": 5, "depth": 4, "dim": 16, "heads": 4}
OF_IMAGES_ALONE = ("dual-patchnorm", "lape")
IN_IMAGES_TOO = ("post-ln", "dnt", "residual", "ngpt", "sas-p", "lipsformer", "sigma-reparam")
ROWS = [(name, "vit" if name in OF_IMAGES_ALONE else "gpt") for name in dnt.PLACEMENTS]
ROWS += [(name, "vit") for name in IN_IMAGES_TOO]
rows = pytest.mark.parametrize(("placement", "kind"), ROWS)
COMPILED_ELSEWHERE = {
    *(name for name in STATED if name != "dnt"), "mix-ln", "hybridnorm",  # no code beyond that of dnt, hybridnorm-star
    "deepnorm", "sub-ln", "qknorm-layernorm", "pre-crmsnorm", "dyt",  # nor these, but a number, or a norm: test_norms
    "residual", "ngpt", "sas", "sas-p", "lape", "sigma-reparam",  # test_own_blocks, test_reparametrized
}  # fmt: skip


def build(placement: str | dnt.Placement, kind: str = "gpt", **fields) -> dnt.GPT | dnt.ViT:
    torch.manual_seed(0)
    if kind == "vit":
        return dnt.ViT(dnt.ViTConfig(placement=placement, **IMAGES | fields))
    return dnt.GPT(dnt.GPTConfig(placement=placement, **TEXT | fields))


def randomize(model: dnt.GPT | dnt.ViT) -> dnt.GPT | dnt.ViT:
    """Matrices of order 1/sqrt(fan-in), all else near where it starts; the same of all that have one name and shape."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            z = torch.randn(p.shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
            p.copy_(z / p.shape[1] ** 0.5 if p.ndim > 1 else torch.where(p == 0, 0.2 * z, p * (1 + 0.2 * z)))
        for module in model.modules():
            for _ in range(10 * isinstance(module, ParametrizationList)):
                module()  # turns the singular vectors of what is new
    return model


def batch_for(model: dnt.GPT | dnt.ViT) -> tuple[Tensor, Tensor]:
    """Four samples; the first token of each tells them apart."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, dnt.ViT):
        return torch.randn(4, *model.config.image_shape, generator=generator), torch.arange(4)
    tokens = torch.randint(4, 13, (4, 9), generator=generator)
    tokens[:, 0] = torch.arange(4)
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model: dnt.GPT | dnt.ViT, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(model.loss(*batch), list(model.parameters())))


# --- every row ------------------------------------------------------------------------------------------------------


@rows
def test_every_row_overfits_one_batch(placement, kind):
    model = build(placement, kind, depth=4 if dnt.PLACEMENTS[placement].layers else 2, init_std=0.2)
    batch = batch_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    for _ in range(200):
        loss = model.loss(*batch)
        if loss < 0.2:  # about 2.6, of images 1.6, at the start
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
    raise AssertionError(f"the loss is {loss}")


@rows
def test_weights_come_back_bit_for_bit(placement, kind, tmp_path):
    model = randomize(build(placement, kind)).eval()
    inputs, _ = batch_for(model)
    other = build(placement, kind).eval()
    assert not torch.equal(other(inputs), model(inputs))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))
    dnt.save(model, tmp_path)
    again = dnt.load(tmp_path)
    assert again.config == model.config and torch.equal(again(inputs), model(inputs))


@rows
def test_bfloat16_is_finite_and_near_float32(placement, kind):
    model = randomize(build(placement, kind)).eval()
    inputs, _ = batch = batch_for(model)
    exact = model(inputs), torch.cat([g.flatten() for g in gradients(model, batch)])
    with torch.autocast("cpu", torch.bfloat16):
        logits, loss = model(inputs), model.loss(*batch)
    near = logits, torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    of_logits, of_gradients = ((a - b).norm() / b.norm() for a, b in zip(near, exact, strict=True))
    assert of_logits < 0.05 and of_gradients < 0.2


@pytest.mark.parametrize(("placement", "kind"), [row for row in ROWS if row[0] not in COMPILED_ELSEWHERE])
def test_compiled_equals_eager(placement, kind):
    model = randomize(build(placement, kind, depth=2 if dnt.PLACEMENTS[placement].layers else 1)).eval()
    inputs, _ = batch_for(model)
    outputs = []
    for run in (model.hidden, torch.compile(model.hidden, backend="aot_eager", fullgraph=True)):
        out = run(inputs)
        outputs.append((out, *torch.autograd.grad(out.sin().sum(), list(model.blocks.parameters()))))
    torch.compiler.reset()
    torch.testing.assert_close(*outputs)


@rows
def test_models_build_without_memory(placement, kind):
    with torch.device("meta"):
        model = build(placement, kind)
    assert all(p.is_meta for p in model.parameters())
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in build(placement, kind).named_parameters()
    }


OWN_NORMS = {"lape": (1, 0), "sas-p": (1, 0), "ngpt": (4, 1)}  # of each block and once a model, beside those of Slots


def norms_placed(placement: dnt.Placement, depth: int) -> int:
    """How many norms a placement says that a model has."""
    blocks = placement.of_blocks(depth)
    inside = sum(block.attn.norms + block.mlp.norms + 2 * bool(block.qk) + block.v for block in blocks)
    in_block, in_model = OWN_NORMS.get(placement.block, (0, 0))
    ends = placement.input + placement.final + 2 * placement.patch
    return inside + depth * in_block + ends + in_model


@rows
def test_every_norm_is_called_once_and_every_parameter_moves_the_loss(placement, kind):
    model = randomize(build(placement, kind))
    norms = [m for m in model.modules() if isinstance(m, (*dnt.NORMS.values(), Unit))]
    calls: Counter[nn.Module] = Counter()
    for norm in norms:
        norm.register_forward_hook(lambda module, *_: calls.update([module]))
    given = gradients(model, batch_for(model))
    twice = {m.unit for m in model.modules() if isinstance(m, Turn)}  # one of the branch, one of the sum
    assert calls == {norm: 1 + (norm in twice) for norm in norms}
    assert len(norms) == norms_placed(dnt.PLACEMENTS[placement], 4)
    for (name, _), gradient in zip(model.named_parameters(), given, strict=True):
        assert gradient.abs().max() > 0, name


@rows
def test_every_parameter_is_in_one_group_and_no_gain_decays(placement, kind):
    model = build(placement, kind, bias=True)
    decays = {p: g["weight_decay"] > 0 for g in dnt.param_groups(model, weight_decay=1.0) for p in g["params"]}
    assert sum(len(group["params"]) for group in dnt.param_groups(model)) == len(list(model.parameters()))
    assert set(decays) == set(model.parameters())
    gains = {p for m in model.modules() if isinstance(m, (*dnt.NORMS.values(), Gain)) for p in m.parameters()}
    assert not any(decays[p] for p in gains)
    assert all(does == (p.ndim > 1) for p, does in decays.items())


def test_no_two_rows_compute_the_same():
    outputs: dict[str, dict[str, Tensor]] = {"gpt": {}, "vit": {}}
    for name, kind in ROWS:
        model = randomize(build(name, kind)).eval()
        outputs[kind][name] = model(batch_for(model)[0])
    for of_kind in outputs.values():
        for (a, first), (b, second) in combinations(of_kind.items(), 2):
            assert not torch.allclose(first, second, rtol=0, atol=1e-2), f"{a} = {b}"


# --- placements by depth --------------------------------------------------------------------------------------------

PRE, POST = dnt.PLACEMENTS["pre-ln"], dnt.PLACEMENTS["post-ln"]
OWN = dnt.Placement(
    attn=dnt.Slots(mid=True, gain="1/L"),
    mlp=dnt.Slots(pre=True, skip=2.0),
    qk="cosine",
    prescribes=Prescription(norm="layernorm", rates=(("adamw", 1e-4, 1e-2),)),
    source="my own",
)


def posts(model: dnt.GPT | dnt.ViT) -> str:
    """Of each block, whether its norms stand after (o) or before (e) the branches."""
    assert all(b.placement.attn == b.attn.slots and b.placement.mlp == b.mlp.slots for b in model.blocks)
    for block in model.blocks:
        after = [not isinstance(sub.post, nn.Identity) for sub in (block.attn, block.mlp)]
        before = [not isinstance(sub.pre, nn.Identity) for sub in (block.attn, block.mlp)]
        assert after == [not each for each in before] and len(set(after)) == 1
    return "".join("e" if isinstance(block.attn.post, nn.Identity) else "o" for block in model.blocks)


@pytest.mark.parametrize(
    ("placement", "depth", "expected"),
    [
        ("mix-ln", 4, "oeee"), ("mix-ln", 7, "oeeeeee"), ("mix-ln", 8, "ooeeeeee"),
        ("post-ln:4,pre-ln", 6, "ooooee"), ("post-ln:50%,pre-ln", 5, "ooeee"), ("pre-ln:3,post-ln:1", 4, "eeeo"),
        ("post-ln:1,pre-ln:1,post-ln", 4, "oeoo"), ("post-ln:58%,pre-ln", 50, "o" * 29 + "e" * 21),
        (replace(PRE, layers=((POST, 2), (PRE, 0))), 4, "ooee"), ("post-ln:2,pre-ln:50%", 4, "ooee"),
    ],
)  # fmt: skip
def test_layers_give_each_block_its_placement(placement, depth, expected):
    assert posts(build(placement, depth=depth)) == expected


def test_what_stands_before_the_blocks_is_the_firsts_and_what_stands_after_the_lasts():
    model = build("dnt:2,post-ln")
    assert not isinstance(model.input_norm, nn.Identity) and isinstance(model.final_norm, nn.Identity)
    assert isinstance(build("dual-patchnorm:2,pre-ln", "vit").patch_norm, nn.RMSNorm)
    assert isinstance(build("post-ln:2,dnt").input_norm, nn.Identity)


def test_a_model_in_layers_equals_its_blocks_one_after_another():
    model, pre, post = (randomize(build(name)).eval() for name in ("post-ln:1,pre-ln", "pre-ln", "post-ln"))
    tokens, _ = batch_for(model)
    x = post.blocks[0](model.tokens(tokens))
    expected = pre.final_norm(pre.blocks[3](pre.blocks[2](pre.blocks[1](x))))
    for module in (model.tokens, *model.blocks, model.final_norm):
        tokens = module(tokens)
    torch.testing.assert_close(tokens, expected)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ("post-ln:5,pre-ln", "the placement names 5 blocks, the model has 4; leave out the last number."),
        ("post-ln:2,pre-ln:1", "the placement names 3 blocks, the model has 4; leave out the last number."),
        ("post-ln:50%", "the placement names 2 blocks, the model has 4; leave out the last number."),
        ("post-ln:25%,pre-ln:50%", "the placement names 3 blocks, the model has 4"),
        ("post-ln:1,preln", "unknown placement (in 'post-ln:1,preln') 'preln'. Did you mean 'pre-ln'?"),
        ("post-ln:x,pre-ln", "placement got 'post-ln:x,pre-ln'; write NAME:BLOCKS or NAME:SHARE%"),
        ("post-ln:0,pre-ln", "write NAME:BLOCKS or NAME:SHARE%, e.g. post-ln:4,pre-ln."),
        ("post-ln:101%,pre-ln", "write NAME:BLOCKS or NAME:SHARE%"),
        ("post-ln,pre-ln", "in layers all parts but the last need a number of blocks, as in post-ln:4,pre-ln."),
        ("mix-ln:2,pre-ln", "a part of a placement in layers is itself in layers; write its own parts out."),
        (
            "pre-ln:2,ngpt",
            "these placements do not go into one model, as they differ in more than the norms of a block:",
        ),
        ("dyt:2,pre-ln", "more than the norms of a block: nothing prescribed; norm dyt."),
    ],
)
def test_what_cannot_be_placed_in_layers_is_named(placement, message):
    with pytest.raises(ValueError) as error:
        build(placement)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_layers_of_ones_own_are_checked_as_those_by_name():
    with pytest.raises(ValueError, match="these placements do not go into one model"):
        replace(PRE, layers=((dnt.PLACEMENTS["dyt"], 1), (PRE, 0)))
    with pytest.raises(ValueError, match="the placement names 5 blocks, the model has 4"):
        build(replace(PRE, layers=((POST, 5), (PRE, 0))))


@pytest.mark.parametrize("row", dnt.PLACEMENTS)
def test_every_placement_comes_back_from_json(row):
    placement = dnt.PLACEMENTS[row]
    assert placement_from(json.loads(json.dumps(asdict(placement)))) == placement


@pytest.mark.parametrize("placement", [OWN, replace(PRE, layers=((POST, 0.25), (PRE, 0)))])
def test_a_placement_of_ones_own_comes_back_from_a_folder(placement, tmp_path):
    model = randomize(build(placement)).eval()
    dnt.save(model, tmp_path)
    again = dnt.load(tmp_path)
    tokens, _ = batch_for(model)
    assert again.config.placement == placement and torch.equal(again(tokens), model(tokens))


def test_a_placement_of_the_first_release_is_read():
    said = {"attn": {"pre": True, "mid": True, "post": False, "skip": 1.0}, "mlp": {"pre": False, "mid": True}}
    old = said | {"input": True, "qk": True, "final": True, "source": "S5 of 2507.17501, the default"}
    assert placement_from(old) == replace(dnt.PLACEMENTS["dnt"], prescribes=Prescription())


def refused(make, *words: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_what_a_row_cannot_be_built_with_is_named():
    def gpt(**fields) -> dnt.GPT:
        return dnt.gpt("gpt-tiny", depth=4, dim=16, heads=4, **fields)

    refused(lambda: gpt(placement="fixup", weights="weight-norm"), "matrices of zeros", "plain")
    refused(lambda: gpt(placement="sas", weights="sigma-reparam"), "matrices of zeros")
    refused(lambda: gpt(weights="spectral-norm", init_std=0.0), "matrices of zeros")
    refused(lambda: gpt(placement="reordered", norm="crmsnorm"), "crmsnorm is of the residual stream")
    refused(lambda: gpt(placement="sigma-reparam", weights="spectral-norm"), "prescribes weights='sigma-reparam'")
    refused(lambda: gpt(placement="deepnorm", init="gpt2"), "prescribes init='deepnorm'", "init='gpt2'")
    refused(lambda: gpt(placement="dyt", norm="layernorm"), "prescribes norm='dyt'")
    refused(lambda: gpt(placement="ngpt", weights="weight-norm"), "normalizes the weights itself")
    refused(lambda: gpt(placement="post-ln:4,pre-ln"), "a part of the placement gets none")
    refused(lambda: dnt.gpt("gpt-tiny", depth=3, placement="mix-ln"), "a part of the placement gets none")
    own = replace(PRE, attn=dnt.Slots(pre=True, gain=1.0, multiplier=1.0))
    refused(lambda: gpt(placement=own), "of its own", "gain and a multiplier")
    odd = replace(PRE, prescribes=Prescription(weights="spectral"))
    refused(lambda: gpt(placement=odd), "unknown weights 'spectral'")
    plain = gpt(placement="pre-ln", norm="layernorm", weights="weight-norm")
    refused(lambda: dnt.convert_norm(plain, "rmsnorm"), "weights is 'weight-norm'")
    assert gpt(placement="post-ln:2, pre-ln").config.norm_name == "rmsnorm", "a space is no part of a name"


def test_a_head_that_each_pass_changes_is_computed_once(monkeypatch):
    """Computed again in the backward pass, as chunks of logits are, it would be another one."""
    fields = {"weights": "sigma-reparam", "tie_embeddings": False}
    gradients = []
    for most in (1 << 20, 13 * 5):
        monkeypatch.setattr(dnt.nn.gpt, "MOST_LOGITS", most)
        model = build("pre-ln", "gpt", **fields).double()
        with torch.no_grad():
            model.head.parametrizations["weight"].original.mul_(torch.rand(13, 1))  # its vectors lag behind
        tokens = torch.randint(0, 13, (4, 8), generator=torch.Generator().manual_seed(0))
        gradients.append(torch.autograd.grad(model.loss(tokens, tokens), list(model.parameters()), allow_unused=True))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_lipsformer_begins_with_matrices_of_norm_one_the_gate_too(activation):
    model = build("lipsformer", "gpt", activation=activation)
    for block in model.blocks:
        found = [torch.linalg.matrix_norm(matrix, 2) for matrix in matrices(block).values()]
        assert len(found) == (7 if activation == "swiglu" else 6)
        torch.testing.assert_close(torch.stack(found), torch.ones(len(found)))
