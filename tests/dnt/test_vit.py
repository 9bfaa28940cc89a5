import json
import math
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import RmsNorm, calculate_drop_path_rates
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models import save_for_hf
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer
from torch import nn

import dnt
from dnt.experiments.statements import STATED
from dnt.interchange.timm import as_timm
from dnt.nn.config import OF_BATCHES, VIT_SIZES, vit_parameters
from dnt.nn.vit import sincos
from tests import reference
from tests.dnt import test_gpt
from tests.dnt.test_gpt import ROWS, TO_LEARN, randomize

SHAPE = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 5, "depth": 2, "dim": 24, "heads": 2}
TIMM = {"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": 5, "depth": 2, "embed_dim": 24, "num_heads": 2}
GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
STANDARD = {"placement": "pre-ln", "norm": "layernorm", "bias": True}
OTHERS = [*test_gpt.OTHERS, *OF_BATCHES]
rows = pytest.mark.parametrize(("placement", "norm"), ROWS + [("pre-ln", n) for n in (*OTHERS, "crmsnorm", "shift")])
rows_of_slots = pytest.mark.parametrize(("placement", "norm"), ROWS + [("s4", n) for n in OTHERS])


def build(seed: int = 0, **fields) -> dnt.ViT:
    torch.manual_seed(seed)
    return dnt.ViT(dnt.ViTConfig(**SHAPE | fields))


def peer(**arguments) -> VisionTransformer:
    return randomize(VisionTransformer(**TIMM | arguments).eval())


def images_for(model: dnt.ViT, n: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, *model.config.image_shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


# --- equal to something independent ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        (GAP, {"pool": "mean"}),
        ({"qk_norm": True}, {"placement": "s2"}),
        ({"act_layer": "gelu_tanh", "mlp_ratio": 2.6}, {"activation": "gelu-tanh", "mlp_ratio": 2.6}),
        ({"norm_layer": partial(nn.LayerNorm, eps=1e-3)}, {"norm_eps": 1e-3}),
    ],
)
def test_vit_as_pre_ln_equals_timm_on_the_same_weights(theirs, ours):
    theirs = peer(**theirs)
    model = build(**STANDARD | ours).eval()
    weights = theirs.state_dict()
    views = as_timm(model)
    assert views.keys() == weights.keys(), "every weight of theirs has its place in ours"
    for name, view in views.items():
        view.copy_(weights[name])
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)


def deeply_normalized(placement: str) -> tuple[dnt.ViT, VisionTransformer]:
    """Our model, and timm's with RMSNorm in its slots for layer scale, on the same weights."""
    norm = partial(RmsNorm, eps=1e-6)
    theirs = VisionTransformer(
        **TIMM, qkv_bias=False, proj_bias=False, pre_norm=True, qk_norm=True, norm_layer=norm
    ).eval()
    names = {"input_norm": "norm_pre", "class_token.weight": "cls_token", "positions.weight": "pos_embed"}
    names |= {"patches": "patch_embed.proj", "final_norm": "norm", "blocks": "blocks", "head": "head"}
    for block in theirs.blocks:
        block.ls1, block.ls2 = nn.RMSNorm(24, eps=1e-6), nn.RMSNorm(24, eps=1e-6)
        if placement == "dnt":
            block.norm2 = nn.Identity()
    randomize(theirs)
    nn.init.zeros_(theirs.head.bias)  # ours has none
    inside = {"attn.pre": "norm1", "attn.f": "attn", "attn.mid": "ls1", "mlp.pre": "norm2", "mlp.f": "mlp"}
    inside |= {"mlp.mid": "ls2", "attn.f.out": "attn.proj", "mlp.f.up": "mlp.fc1", "mlp.f.out": "mlp.fc2"}
    ours = build(placement=placement, norm="rmsnorm").eval()
    weights = theirs.state_dict()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            first, _, rest = name.partition(".")
            if first == "blocks":
                i, rest = rest.split(".", 1)
                mine = max((key for key in inside if rest.startswith(key + ".")), key=len)
                source = f"blocks.{i}.{inside[mine]}{rest.removeprefix(mine)}"
            else:
                source = names[name] if name in names else f"{names[first]}.{rest}"
            p.copy_(weights.pop(source).view_as(p))
    assert list(weights) == ["head.bias"], "every weight of theirs has its place in ours"
    return ours, theirs


@pytest.mark.parametrize("placement", ["s4", "dnt"])
def test_deep_norms_equal_timms_blocks_with_rmsnorm_for_layer_scale(placement):
    ours, theirs = deeply_normalized(placement)
    x = torch.randn(2, 5, 24)
    for a, b in zip(ours.blocks, theirs.blocks, strict=True):
        assert type(b) is Block
        torch.testing.assert_close(a(x), b(x), rtol=1e-5, atol=1e-5)
    images = images_for(ours)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("in_dims", [2, 3])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_tokens_are_class_token_and_patches_in_order_with_their_positions(in_dims, pool, positions):
    fields = {"in_dims": in_dims, "pool": pool, "positions": positions, "bias": True, "image_size": 12}
    model = randomize(build(**fields, placement="pre-ln")).double()
    image = images_for(model, 1, torch.float64)
    read = []
    model.blocks[0].register_forward_pre_hook(lambda _, arguments: read.append(arguments[0]))
    model(image)
    grid = list(product(range(3), repeat=in_dims))
    tokens = [model.class_token.weight] if pool == "cls" else []
    for point in grid:
        patch = image[0][(slice(None), *(slice(4 * c, 4 * c + 4) for c in point))]
        tokens.append(model.patches.weight.flatten(1) @ patch.flatten() + model.patches.bias)
    where = [torch.zeros(24, dtype=torch.float64)] if pool == "cls" else []
    where += [reference.sincos(point, 24) for point in grid]
    where = model.positions.weight if positions == "learned" else torch.stack(where)
    assert model.config.tokens == len(tokens)
    torch.testing.assert_close(read[0][0], torch.stack(tokens) + where, atol=1e-6, rtol=1e-5)  # sincos is float32


def test_sincos_positions_equal_timms():
    torch.testing.assert_close(sincos(7, 2, 24, torch.device("cpu")), build_sincos2d_pos_embed([7, 7], 24))


# --- every row of the table -----------------------------------------------------------------------------------------


@rows
def test_every_row_overfits_one_batch_of_images(placement, norm):
    model = build(placement=placement, norm=norm, init_std=0.2, **TO_LEARN.get(norm, {}))
    images, labels = images_for(model, 8), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = model.loss(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # 1.6 or more at the start


@rows_of_slots
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_norm_that_is_built_is_called_and_moves_the_scores(placement, norm, pool):
    model = build(placement=placement, norm=norm, pool=pool).double()
    norms = {name: m for name, m in model.named_modules() if isinstance(m, tuple(dnt.NORMS.values()))}
    p = dnt.PLACEMENTS[placement]
    slots = [s for sub in (p.attn, p.mlp) for s in (sub.pre, sub.mid, sub.post)]
    assert len(norms) == 2 * (sum(slots) + 2 * p.qk) + p.input + p.final
    model.loss(images_for(model, dtype=torch.float64), torch.tensor([1, 2])).backward()
    for name, module in norms.items():
        assert module.weight.grad.abs().max() > 0, name


@rows_of_slots
@pytest.mark.parametrize(
    "fields",
    [{}, {"bias": True}, {"pool": "mean"}, {"positions": "sincos"}, {"in_dims": 3}, {"mlp_ratio": 2.5, "kv_heads": 1}],
)
def test_parameter_count_in_closed_form(placement, norm, fields):
    model = build(placement=placement, norm=norm, **fields)
    assert vit_parameters(model.config) == sum(p.numel() for p in model.parameters())


# --- symmetries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", STATED)
def test_permuting_patches_and_positions_together_leaves_mean_pooled_scores(placement):
    model = randomize(build(placement=placement, pool="mean")).double()
    images = images_for(model, dtype=torch.float64)
    before = model(images)
    order = torch.tensor([2, 0, 3, 1])
    patches = F.unfold(images, 4, stride=4)[:, :, order]
    permuted = F.fold(patches, 8, 4, stride=4)
    assert not torch.allclose(model(permuted), before)
    with torch.no_grad():
        model.positions.weight.copy_(model.positions.weight[order])
    torch.testing.assert_close(model(permuted), before)


def test_the_class_token_and_every_patch_see_every_patch():
    model = randomize(build()).double()
    images = images_for(model, 1, torch.float64).requires_grad_()
    for token in model.hidden(images)[0]:
        (grad,) = torch.autograd.grad(token.square().sum(), images, retain_graph=True)
        assert F.unfold(grad, 4, stride=4).abs().amax(1).min() > 0


# --- loss and training ----------------------------------------------------------------------------------------------


def test_one_hot_labels_equal_class_ids_and_soft_ones_are_their_mean():
    model = build()
    images, ids = images_for(model), torch.tensor([1, 4])
    hard, soft = model.loss(images, ids), model.loss(images, F.one_hot(ids, 5).float())
    torch.testing.assert_close(soft, hard)
    mixed = model.loss(images, (F.one_hot(ids, 5) + F.one_hot(ids.flip(0), 5)) / 2)
    torch.testing.assert_close(mixed, (hard + model.loss(images, ids.flip(0))) / 2)


def test_loss_ignores_labels_of_minus_one():
    model = build()
    images = images_for(model)
    torch.testing.assert_close(model.loss(images, torch.tensor([3, -1])), model.loss(images[:1], torch.tensor([3])))


def test_drop_path_drops_whole_branches_of_a_sample_more_often_the_deeper():
    model = randomize(build(depth=5, drop_path=0.5))
    rates = [block.attn.drop[1].p for block in model.blocks]
    assert rates == pytest.approx(calculate_drop_path_rates(0.5, 5))
    x = torch.randn(64, 5, 24)
    sublayer = model.blocks[-1].attn
    branch = sublayer.eval()(x) - x
    dropped = (sublayer.train()(x) - x) / (2 * branch)
    kept = dropped.mean((1, 2)).round()
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(dropped, kept[:, None, None].expand_as(dropped), atol=1e-3, rtol=1e-3)


def test_recomputing_the_blocks_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = build()
        model.recompute = recompute
        model.loss(images_for(model), torch.tensor([1, 2])).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_bf16_autocast_keeps_the_residual_stream_in_float32():
    model = build()
    read = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(images_for(model), torch.tensor([1, 2]))
    assert {*read, loss.dtype} == {torch.float32}


def test_gains_biases_and_the_class_token_never_decay():
    model = build(bias=True)
    decaying, never = dnt.param_groups(model, weight_decay=1.0)
    assert any(p is model.class_token.weight for p in never["params"])
    assert any(p is model.positions.weight for p in decaying["params"])
    assert any(p is model.patches.weight for p in decaying["params"])


def test_matrices_kernel_class_token_and_positions_are_drawn_with_init_std():
    model = build(placement="pre-ln", bias=True, dim=192, heads=2, image_size=32, classes=50)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert p.eq(0).all(), name
        elif name == "class_token.weight" or p.ndim > 1:
            expected = 0.02 / math.sqrt(4) if name.endswith("out.weight") else 0.02
            assert p.std().item() == pytest.approx(expected, rel=3 / math.sqrt(p.numel())), name
        else:
            assert p.eq(1).all(), name


# --- sizes, folders and errors --------------------------------------------------------------------------------------

NAMED = {
    "vit-tiny": "vit_tiny_patch16_224", "vit-small": "vit_small_patch16_224", "vit-base": "vit_base_patch16_224",
    "vit-large": "vit_large_patch16_224", "vit-huge": "vit_huge_patch14_224",
}  # fmt: skip


@pytest.mark.parametrize("size", VIT_SIZES)
def test_named_sizes_have_the_layout_of_timms(size):
    with torch.device("meta"):
        ours, theirs = dnt.vit(size, **STANDARD), timm.create_model(NAMED[size], num_classes=1000)
    assert {k: v.shape for k, v in as_timm(ours).items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("size", "millions"), [("vit-large", 304.33), ("vit-huge", 632.05)])
def test_named_sizes_as_standard_vit_have_its_parameter_counts(size, millions):
    with torch.device("meta"):
        model = dnt.vit(size, **STANDARD)
    count = sum(p.numel() for p in model.parameters())
    assert count == vit_parameters(model.config) and round(count / 1e6, 2) == millions


@pytest.mark.parametrize("size", VIT_SIZES)
def test_sizes_fix_only_their_shape(size):
    assert VIT_SIZES[size] == dnt.ViTConfig(**{name: getattr(VIT_SIZES[size], name) for name in SHAPE})


@pytest.mark.parametrize(
    "fields", [{}, {"pool": "mean", "positions": "sincos", "in_dims": 3}, {"placement": dnt.PLACEMENTS["s4"]}]
)
def test_a_model_comes_back_from_its_folder(fields, tmp_path):
    model = randomize(build(**fields)).eval()
    dnt.save(model, tmp_path)
    again = dnt.load(tmp_path)
    assert again.config == model.config and not again.training
    assert torch.equal(again(images_for(model)), model(images_for(model)))


def test_what_needs_a_gpt_says_so(tmp_path):
    dnt.save(build(), tmp_path)
    with pytest.raises(ValueError, match="holds a ViT, which writes no text"):
        dnt.sample(tmp_path)
    for source in (tmp_path, build()):
        with pytest.raises(ValueError, match=r"got a ViT; DNTForCausalLM wraps a dnt\.GPT"):
            dnt.DNTForCausalLM.from_dnt(source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, "patch_size=3 does not divide image_size=8. Nearest that does: patch_size=2."),
        ({"heads": 5}, "heads=5 does not divide dim=24. Nearest that does: heads=4."),
        ({"placement": "ddnt"}, "unknown placement 'ddnt'. Did you mean 'dnt'?"),
        ({"norm": "rms"}, "unknown norm 'rms'. Did you mean 'rmsnorm'?"),
        ({"pool": "clss"}, "unknown pool 'clss'. Did you mean 'cls'?"),
        ({"positions": "sin-cos"}, "unknown positions 'sin-cos'. Did you mean 'sincos'?"),
        ({"in_dims": 1}, "in_dims is 1; it must be 2 (images) or 3 (volumes)."),
        ({"dim": 16, "in_dims": 3, "positions": "sincos"}, "dim=16 must be a multiple of 6."),
        ({"classes": 0}, "classes is 0; it must be at least 1."),
        ({"patch_size": 0}, "patch_size is 0; it must be at least 1."),
        ({"drop_path": 1.0}, "drop_path is 1.0; it must be in [0, 1)."),
    ],
)
def test_bad_configurations_name_what_was_received_and_the_fix(fields, message):
    with pytest.raises(ValueError) as error:
        build(**fields)
    assert message in str(error.value)


def test_images_of_another_shape_are_named():
    with pytest.raises(ValueError, match=r"got images of shape \(2, 1, 8, 8\); this model reads \(B, 3, 8, 8\)\."):
        build()(torch.zeros(2, 1, 8, 8))


# --- timm's files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, GAP, {"qk_norm": True}])
def test_timm_weights_load_and_save_bit_for_bit(arguments, tmp_path):
    theirs = peer(**arguments)
    model = dnt.load_timm(theirs, dropout=0.1)
    assert model.config.dropout == 0.1 and not model.training
    images = images_for(model)
    torch.testing.assert_close(model(images), theirs(images), rtol=1e-5, atol=1e-5)
    dnt.save_timm(model, tmp_path / "a.safetensors")
    assert torch.equal(dnt.load_timm(tmp_path / "a.safetensors", heads=2)(images), model(images))
    again = timm.create_model(
        "vit_tiny_patch16_224", **TIMM | arguments, checkpoint_path=str(tmp_path / "a.safetensors")
    )
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(map(torch.equal, again.state_dict().values(), theirs.state_dict().values()))


def test_a_folder_that_timm_saved_loads(tmp_path):
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", **TIMM, act_layer="gelu_tanh").eval())
    save_for_hf(theirs, tmp_path, safe_serialization=True)
    model = dnt.load_timm(tmp_path)
    assert model.config == dnt.ViTConfig(**SHAPE, **STANDARD, activation="gelu-tanh")
    torch.testing.assert_close(model(images_for(model)), theirs(images_for(model)), rtol=1e-5, atol=1e-5)


def test_a_file_alone_is_read_and_written_without_timm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.models", None)
    model = randomize(build(**STANDARD))
    dnt.save_timm(model, path := tmp_path / "model.safetensors")
    assert all(map(torch.equal, dnt.load_timm(path, heads=2).parameters(), model.parameters()))
    with pytest.raises(ValueError, match=r"which is not there: pip install 'dnt-torch\[timm\]'"):
        dnt.load_timm(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_values": 1e-5}, "has layer scale, which dnt.ViT has not; keep this model in timm."),
        ({"reg_tokens": 1}, "has register tokens"),
        ({"pre_norm": True}, "has pre_norm"),
        ({"global_pool": "avg"}, "has fc_norm, a norm after the pooling"),
        ({"global_pool": "avg", "fc_norm": False}, "has global_pool='avg' with a class token"),
        ({"global_pool": "max", "fc_norm": False, "class_token": False}, "has global_pool='max' without a class token"),
        ({"global_pool": "map"}, "has attention pooling"),
        ({"dynamic_img_size": True}, "has a dynamic image size"),
        ({"no_embed_class": True}, "and 4 positions"),
        ({"pos_embed": "none"}, "has no tensor pos_embed"),
        ({"img_size": (8, 16)}, "and 9 positions"),
        ({"img_size": 10}, "has an image that its patches do not cover"),
        ({"qkv_bias": False}, "has no tensor blocks.0.attn.qkv.bias"),
        ({"proj_bias": False}, "lacks the tensors blocks.0.attn.proj.bias"),
        ({"scale_attn_norm": True}, "has a norm after attention"),
        ({"act_layer": "quick_gelu"}, "has the activation QuickGELU()"),
        ({"norm_layer": RmsNorm}, "has norms other than LayerNorm of one eps"),
        ({"block_fn": ParallelScalingBlock}, "has blocks of its own"),
        ({"num_classes": 0}, "has no head"),
    ],
)
def test_what_vit_has_not_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError) as error:
        dnt.load_timm(VisionTransformer(**TIMM | arguments))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_other_timm_models_and_fixed_fields_are_refused():
    with pytest.raises(ValueError, match="VisionTransformerDistilled is no plain timm VisionTransformer"):
        dnt.load_timm(VisionTransformerDistilled(**TIMM))
    with pytest.raises(ValueError, match="heads is fixed by the weights in VisionTransformer; only dropout"):
        dnt.load_timm(peer(), heads=4)


def test_no_pickle_is_opened_and_damaged_folders_are_named(tmp_path):
    weights = peer().state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is no \.safetensors file; others can run code and are not opened"):
        dnt.load_timm(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"there is no .*model\.safetensors; pickles beside it are not opened"):
        dnt.load_timm(tmp_path)
    dnt.save_timm(dnt.load_timm(peer()), path := tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not say how many heads it has; give it: dnt\.load_timm\(.*heads="):
        dnt.load_timm(path)
    for described, message in [
        ({"architecture": "vit_tinny"}, "timm has no architecture 'vit_tinny'"),
        ({"architecture": "vit_tiny_patch16_224", "model_args": {"pretrained": True}}, "not one that timm wrote"),
        ({"architecture": "vit_tiny_patch16_224"}, "lacks the tensors"),
        ({"num_classes": 3}, "not one that timm wrote"),
        ({"architecture": "resnet18"}, "ResNet is no plain timm VisionTransformer"),
    ]:
        Path(tmp_path / "config.json").write_text(json.dumps(described))
        with pytest.raises(ValueError, match=message):
            dnt.load_timm(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "dnt"}, "placement is 'dnt', which timm's VisionTransformer has not (it has 'pre-ln' or 's2')"),
        ({"norm": "rmsnorm"}, "norm is 'rmsnorm'"),
        ({"bias": False}, "bias is False"),
        ({"positions": "sincos"}, "positions is 'sincos'"),
        ({"in_dims": 3}, "in_dims is 3"),
        ({"kv_heads": 1}, "kv_heads is 1"),
        ({"activation": "swiglu"}, "activation is 'swiglu'"),
    ],
)
def test_what_timm_has_not_is_not_written(fields, message, tmp_path):
    with pytest.raises(ValueError) as error:
        dnt.save_timm(build(**STANDARD | fields), tmp_path / "a.safetensors")
    assert message in str(error.value) and not list(tmp_path.iterdir())


def test_the_file_must_be_named_so_that_timm_knows_it(tmp_path):
    with pytest.raises(ValueError, match=r"does not end in \.safetensors"):
        dnt.save_timm(build(**STANDARD), tmp_path / "a.pth")
