"""The scale of what a branch cannot see is its learning rate (reference: section 9 of the project's notes)."""

import copy
from pathlib import Path

import pytest
import torch

import dnt
from dnt.cli import main
from dnt.loop import Loop
from dnt.nn.calibrate import matrices, relative_steps
from dnt.optim.factory import build_optimizer
from dnt.optim.kinds import by_kind
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw

PARTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.1", "mlp.2")


def model(**fields):
    """In float64, with biases that are not zero if there are any, and branches far above their eps."""
    torch.manual_seed(0)
    made = tiny_model(**fields | {"norm_eps": 1e-20}).double()
    for name, p in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.02)
    return made


def batches(n=2):
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(made_of, (4, 16), generator=generator) for _ in range(2)) for made_of in (27,) * n]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["relu", "swiglu"])
@pytest.mark.parametrize("placement", ["dnt", "s2", "s4", "mid-only", "qk-only", "peri-ln"])
def test_what_the_model_computes_does_not_change(placement, activation, bias):
    before = model(placement=placement, activation=activation, bias=bias)
    after = copy.deepcopy(before)
    scales = dnt.calibrate(after, batches(), lr=0.3, rho=0.01)
    assert all(abs(scale - 1) > 1e-3 for scale in scales.values())
    ((x, _), *_) = batches()
    torch.testing.assert_close(after(x), before(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ["gelu", "gelu-tanh"])
def test_under_gelu_the_scale_of_w1_turns_its_branch_by_at_most_45_degrees(activation):
    """From linear (small W_1) to ReLU (large): x / 2 and x / 2 + |x| / 2, whose parts are orthogonal and as large."""
    mlp = model(activation=activation, dim=64, heads=2).blocks[0].mlp.f
    x = torch.randn(512, 64, dtype=torch.float64)
    with torch.no_grad():
        mlp.out.weight.copy_(torch.randn_like(mlp.out.weight))
        mlp.up.weight.mul_(1e-3 / mlp.up.weight.std())
        smallest = mlp(x)
        for scale, least in ((1e1, 0.99), (1e2, 0.75), (1e6, 0.69)):
            mlp.up.weight.mul_(scale)
            assert least < float(torch.cosine_similarity(mlp(x).flatten(), smallest.flatten(), dim=0)) < 1.0
            mlp.up.weight.div_(scale)


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_all_blind_matrices_start_with_the_same_relative_step(activation):
    calibrated = model(activation=activation)
    dnt.calibrate(calibrated, batches(), lr=0.3, rho=0.02)
    found = relative_steps(calibrated, batches(), lr=0.3)
    blind = [matrix.name for matrix in matrices(calibrated) if matrix.blind]
    assert len(blind) == 12
    assert [found[name] for name in blind] == pytest.approx([0.02] * 12, rel=1e-8)


def test_a_relative_step_is_what_a_step_of_sgd_moves():
    one = model()
    (batch,) = batches(1)
    before = {name: p.detach().clone() for name, p in one.named_parameters()}
    found = relative_steps(one, [batch], lr=0.1)
    one.loss(*batch).backward()
    torch.optim.SGD(one.parameters(), lr=0.1).step()
    for name, p in one.named_parameters():
        if name in found:
            moved = float((p.detach() - before[name]).norm() / before[name].norm())
            assert found[name] == pytest.approx(moved, rel=1e-9), name
    q = slice(0, one.config.dim)
    weight = one.blocks[0].attn.f.qkv.weight.detach()
    was = before["blocks.0.attn.f.qkv.weight"]
    assert found["blocks.0.attn.q"] == pytest.approx(float((weight - was)[q].norm() / was[q].norm()), rel=1e-9)


def test_what_is_blind_follows_from_the_placement():
    def blind(**fields):
        names = [m.name.removeprefix("blocks.0.") for m in matrices(tiny_model(**fields)) if m.blind]
        return [name for name in names if not name.startswith("blocks")]

    assert blind(placement="pre-ln") == [] and blind(placement="qk-only") == ["attn.q", "attn.k"]
    assert blind(placement="mid-only") == ["attn.v", "attn.o", "mlp.1", "mlp.2"]
    assert blind(placement="dnt", kv_heads=1) == [*PARTS] == blind(placement="dnt", activation="swiglu")
    own = dnt.Placement(attn=dnt.Slots(pre=True), mlp=dnt.Slots(mid=True))
    assert blind(placement=own) == ["mlp.1", "mlp.2"]


def test_each_gradient_of_a_blind_matrix_is_orthogonal_to_it_and_falls_as_its_scale_rises():
    one = model(activation="relu")
    (batch,) = batches(1)
    parts = [m for m in matrices(one) if m.blind]

    def gradients():
        found = dict(zip(one.parameters(), torch.autograd.grad(one.loss(*batch), list(one.parameters())), strict=True))
        return [part.weight.of(found[part.weight.parameter]) for part in parts]

    before = gradients()
    for part, gradient in zip(parts, before, strict=True):
        weight = part.weight.of(part.weight.parameter.detach())
        assert abs(float((gradient * weight).sum())) < 1e-10 * float(gradient.norm() * weight.norm()), part.name
    with torch.no_grad():
        for part in parts:
            part.weight.of(part.weight.parameter).mul_(3.0)
    for part, gradient, then in zip(parts, gradients(), before, strict=True):
        torch.testing.assert_close(gradient, then / 3, rtol=1e-9, atol=1e-14, msg=part.name)


def test_only_some():
    one = model()
    scales = dnt.calibrate(one, batches(), lr=0.3, only=["attn.q", "mlp.2"])
    assert set(scales) == {f"blocks.{i}.{part}" for i in range(2) for part in ("attn.q", "mlp.2")}


@pytest.mark.parametrize(
    ("fields", "given", "message"),
    [
        ({"placement": "pre-ln"}, {}, "nothing to calibrate: QKNorm and MidNorm hide no matrix"),
        ({}, {"rho": 0.0}, "rho 0.0; both must be greater than 0"),
        ({}, {"batches": []}, "no batch to measure gradients on"),
        ({}, {"only": ["attn.x"]}, "no hidden matrix has a name that ends in attn.x"),
    ],
)
def test_what_cannot_be_calibrated_is_named(fields, given, message):
    with pytest.raises(ValueError, match=message):
        dnt.calibrate(model(**fields), **{"batches": batches(), "lr": 0.1} | given)


def test_a_matrix_of_zeros_has_no_scale():
    one = model()
    torch.nn.init.zeros_(one.blocks[1].mlp.f.out.weight)
    with pytest.raises(
        ValueError, match=r"blocks.1.mlp.1 has norm .* and a gradient of norm 0.0; it has no scale to set"
    ):
        dnt.calibrate(one, batches(), lr=0.1)


def test_fit_calibrates_what_msgdw_steps_to_the_same_weights_each_time(workplace):
    def run(out, **options):
        torch.manual_seed(0)
        one = tiny_model()
        return dnt.fit(one, dnt.prepare("words.txt", context=16), tiny_msgdw(one), out=out, **OPTIONS | options)

    plain, calibrated = run("plain"), run("calibrated", calibrate=0.01)
    (row,) = calibrated.rows("calibration")
    assert len(row["scales"]) == 12 and not plain.rows("calibration")
    start = calibrated.rows("relative_steps")[0]["steps"]
    assert all(0.003 < start[name] < 0.03 for name in row["scales"]), "on another batch than it was measured on"
    assert [r["step"] for r in calibrated.rows("relative_steps")] == [0, 8]
    again = run("calibrated2", calibrate=0.01)
    assert calibrated.weights.read_bytes() == again.weights.read_bytes()
    assert calibrated.weights.read_bytes() != plain.weights.read_bytes()


def test_a_calibrated_run_that_was_stopped_resumes_to_the_same_weights(workplace, monkeypatch):
    recipe = {"lr": 0.3, "bound": 0.03, "nesterov": True, "embedding_rate": 3.0, "gain_rate": 10.0}

    def run(out, **options):
        one = tiny_model()
        optimizer = build_optimizer("msgdw", one, recipe)
        data = dnt.prepare("words.txt", context=16)
        return dnt.fit(
            one, data, optimizer, out=out, calibrate=0.01, ema=0.9, **OPTIONS | {"checkpoint_every": 3} | options
        )

    whole = run("whole")
    real = Loop.train_step

    def stopped(self):
        if self.step == 4:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Loop, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.setattr(Loop, "train_step", real)
    monkeypatch.setattr("dnt.loop.scales_for", None)  # it goes on from the checkpoint
    resumed = run("stopped", resume=True)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.rows("calibration") == whole.rows("calibration")
    assert resumed.rows("relative_steps") == whole.rows("relative_steps")


def test_what_is_calibrated_is_what_an_sgd_steps(workplace):
    data = dnt.prepare("words.txt", context=16)
    for i, name in enumerate(("msgdw-adamw", "sgd")):
        one = tiny_model()
        sgd = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
        optimizer = sgd if name == "sgd" else build_optimizer(name, one, {})
        run = dnt.fit(one, data, optimizer, out=f"{i}", calibrate=0.01, **OPTIONS)
        assert len(run.rows("calibration")[0]["scales"]) == 12
        kinds = by_kind(run.rows("relative_steps")[0]["steps"])
        assert ("tokens" in kinds) == (name == "sgd"), "AdamW does not step by the size of a gradient"


@pytest.mark.parametrize(("placement", "optimizer"), [("pre-ln", "msgdw"), ("dnt", "adamw")])
def test_to_calibrate_nothing_is_refused_before_anything_is_written(workplace, placement, optimizer):
    one = tiny_model(placement=placement)
    with pytest.raises(ValueError, match="nothing to calibrate: QKNorm and MidNorm hide no matrix that an SGD steps"):
        dnt.fit(one, dnt.prepare("words.txt", context=16), build_optimizer(optimizer, one, {}), out="r", calibrate=0.01)
    assert not Path("r").exists()


def test_a_vit_is_calibrated_too(workplace):
    images = dnt.prepare_images("digits")
    torch.manual_seed(0)
    vit = dnt.ViT(
        dnt.ViTConfig(image_size=8, patch_size=4, channels=1, classes=10, depth=2, dim=32, heads=2, norm_eps=1e-20)
    )
    before = copy.deepcopy(vit)
    batch = images.train.batch(0, 0, 32)
    scales = dnt.calibrate(vit, [batch], lr=0.1, only=["q", "k", "v", "o", "mlp.2"])
    assert len(scales) == 10
    torch.testing.assert_close(vit(batch[0]), before(batch[0]), rtol=1e-4, atol=1e-5)
    run = dnt.fit(vit, images, tiny_msgdw(vit), out="vit", calibrate=0.02, **OPTIONS)
    found = by_kind(run.rows("relative_steps")[0]["steps"])
    assert {"patches", "class_token", "positions", "head", "gains"} < set(found)
    assert all(0.005 < found[part] < 0.08 for part in PARTS)


def test_each_matrix_has_its_own_rate_and_what_is_frozen_stays(workplace):
    one = model()
    rates = {name: 0.3 if "blocks.0" in name else 0.03 for name, _ in one.named_parameters()}
    one.blocks[1].mlp.f.out.weight.requires_grad_(False)
    kept = one.blocks[1].mlp.f.out.weight.clone()
    scales = dnt.calibrate(one, batches(), lr=rates, rho=0.01)
    assert len(scales) == 11 and torch.equal(one.blocks[1].mlp.f.out.weight, kept)
    found = relative_steps(one, batches(), rates)
    assert "blocks.1.mlp.2" not in found
    assert all(0.003 < found[name] < 0.03 for name in scales)
    frozen = tiny_model()
    frozen.tokens.weight.requires_grad_(False)
    run = dnt.fit(frozen, dnt.prepare("words.txt", context=16), tiny_msgdw(frozen), out="frozen", **OPTIONS)
    assert "tokens.weight" not in run.rows("relative_steps")[0]["steps"]


def test_the_norms_eps_shows_in_what_the_model_computes_by_less_than_a_hundredth():
    torch.manual_seed(0)
    one = dnt.gpt("gpt-tiny", vocab_size=27, context=16, activation="relu")
    before = copy.deepcopy(one)
    dnt.calibrate(one, batches(), lr=0.3)
    ((x, _), *_) = batches()
    with torch.no_grad():
        moved = (one(x) - before(x)).norm() / before(x).norm()
    assert 0 < moved < 0.01


def test_a_gradient_is_clipped_at_its_equilibrium(workplace):
    """To (1 - mu) sqrt(2 wd / lr) ||w||, as the length of a step without momentum shows."""
    data = dnt.prepare("words.txt", context=16)
    options = OPTIONS | {"schedule": "constant", "warmup": 0, "clip": 0, "steps": 1}

    def after_a_step(out, **more):
        one = tiny_model()
        before = copy.deepcopy(one)
        optimizer = dnt.MSGDW([{"params": one.parameters(), "weight_decay": 0.3}], lr=0.1, momentum=0.9)
        (row,) = dnt.fit(one, data, optimizer, out=out, **options | more).rows("train")
        pairs = zip(before.parameters(), one.parameters(), strict=True)
        moved = [((1 - 0.03) * p - q).flatten() / 0.1 for p, q in pairs]
        return row, float(torch.cat(moved).detach().norm()), 0.1 * (2 * 0.3 / 0.1) ** 0.5 * norm_of(before)

    row, moved, bound = after_a_step("free")
    assert moved == pytest.approx(row["grad_norm"], rel=1e-3) and row["clipped"] == 0
    share = 0.5 * row["grad_norm"] / bound
    row, moved, bound = after_a_step("clipped", clip_equilibrium=share)
    assert moved == pytest.approx(share * bound, rel=1e-3) and row["clipped"] == 1


def norm_of(one):
    return float(torch.cat([p.detach().flatten() for p in one.parameters() if p.ndim >= 2]).norm())


def test_without_a_decay_there_is_no_equilibrium_to_clip_at(workplace):
    one = tiny_model()
    data = dnt.prepare("words.txt", context=16)
    run = dnt.fit(one, data, dnt.MSGDW(one.parameters(), lr=0.1), out="r", clip=0, clip_equilibrium=1e-6, **OPTIONS)
    assert run.end["clipped_share"] == 0


def test_training_says_how_far_each_kind_of_parameter_is_moved(workplace, capsys):
    assert main(["train", *TINY, "--data", "words.txt", "--steps", "2", "--calibrate", "0.01", "--out", "run"]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("relative step")]
    found = dict(part.rsplit(" ", 1) for part in line.partition(": ")[2].split(", "))
    assert list(found) == [*PARTS, "tokens", "positions", "gains"]
    assert all(float(found[part]) == pytest.approx(0.01, rel=0.5) for part in PARTS)
