"""The zoo of optimizers: formulas, mixtures by name, schedule-free runs, bounds, and what is refused."""

import math
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

import dnt
from dnt.analysis.memory import state_bytes
from dnt.cli import main
from dnt.data.tokens import TextData
from dnt.experiments.cells import cells_of
from dnt.experiments.compare import grid
from dnt.experiments.tune import starting_grid
from dnt.listing import heard_by
from dnt.loop import Loop
from dnt.optim import clipped
from dnt.optim.agc import clip_units
from dnt.optim.clipped import ClippedSGD
from dnt.optim.factory import build_optimizer
from dnt.optim.needs import begin_training, is_schedule_free, parts, takes_curvature, takes_curvature_now
from dnt.optim.spec import Part, parts_of
from dnt.optim.spectral import bound_steps
from dnt.settings import CompareSettings, TrainSettings
from tests.conftest import OPTIONS, TINY, tiny_model, tiny_msgdw

BY_NAME = "adamw@3e-3:embedding,position,head;msgdw"
every = pytest.mark.parametrize("name", dnt.OPTIMIZERS)


def built(name: str, model: nn.Module, **options) -> torch.optim.Optimizer:
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    return build_optimizer(name, model, options)


def words() -> TextData:
    return dnt.prepare("words.txt", context=16)


# --- formulas, one tensor at a time in float64: (w, gradients, decay) -> w -------------------------------------------

LR = 0.02
Gradients = list[Tensor]


def norm(t: Tensor) -> Tensor:
    return t.detach().square().sum().sqrt()


def rms(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def sgd(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    m = torch.zeros_like(w)
    for g in gradients:
        m = 0.9 * m + g + decay * w
        w = w - LR * m
    return w


def signum(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    m = torch.zeros_like(w)
    for g in gradients:
        m = 0.9 * m + 0.1 * g
        w = (1 - LR * decay) * w - LR * m.sign()
    return w


def lion(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    m = torch.zeros_like(w)
    for g in gradients:
        w = (1 - LR * decay) * w - LR * (0.9 * m + 0.1 * g).sign()
        m = 0.99 * m + 0.01 * g
    return w


def lamb(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = m / (v.sqrt() + 1e-6) + decay * w
        w = w - LR / (1 - 0.9**t) * u * norm(w).clamp(max=10) / (norm(u) + 1e-6)
    return w


def lars(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    m = torch.zeros_like(w)
    for g in gradients:
        scale = 0.001 * norm(w) / (norm(g) + decay * norm(w)) if w.ndim > 1 else 1.0
        m = 0.9 * m + scale * (g + decay * w)
        w = w - LR * m
    return w


def adafactor(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    rows = columns = entries = torch.zeros(())
    for t, g in enumerate(gradients, 1):
        b = 1 - t**-0.8
        rows, columns, entries = (
            b * old + (1 - b) * new
            for old, new in (
                (rows, (g**2).mean(-1, keepdim=True)),
                (columns, (g**2).mean(0, keepdim=True)),
                (entries, g**2),
            )
        )
        u = g / (rows * columns / rows.mean() if w.ndim > 1 else entries).sqrt()
        step = min(LR, t**-0.5) * rms(w).clamp(min=1e-3) * u / rms(u).clamp(min=1)
        w = (1 - LR * decay) * w - step
    return w


def schedulefree_sgd(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    x = z = w
    for t, g in enumerate(gradients, 1):
        y = 0.9 * x + 0.1 * z
        z = z - LR * (g + decay * y)
        x = x + (z - x) / t
    return x


def schedulefree_adamw(w: Tensor, gradients: Gradients, decay: float) -> Tensor:
    x, z, v = w, w, torch.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        y, v = 0.9 * x + 0.1 * z, 0.999 * v + 0.001 * g**2
        z = z - LR * (g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * y)
        x = x + (z - x) / t
    return x


FORMULAS = {
    "sgd": sgd,
    "signum": signum,
    "lion": lion,
    "lamb": lamb,
    "lars": lars,
    "adafactor": adafactor,
    "schedulefree-sgd": schedulefree_sgd,
    "schedulefree-adamw": schedulefree_adamw,
}


def stream(steps: int = 5) -> tuple[list[Tensor], list[Gradients]]:
    """A matrix and a vector, and the gradients of each, whose sizes differ from step to step."""
    torch.manual_seed(0)
    weights = [torch.randn(5, 3).double(), torch.randn(7).double()]
    return weights, [[torch.randn_like(w) * (1 + i) for i in range(steps)] for w in weights]


def walked(make, weights: list[Tensor], gradients: list[Gradients]) -> list[Tensor]:
    """The weights after an optimizer's steps on given gradients."""
    ours = [nn.Parameter(w.clone()) for w in weights]
    optimizer = make(ours)
    begin_training(optimizer)
    for i in range(len(gradients[0])):
        for p, of_p in zip(ours, gradients, strict=True):
            p.grad = of_p[i].clone()
        optimizer.step()
    for part in parts(optimizer):
        if is_schedule_free(part):
            part.eval()
    return [p.detach() for p in ours]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_row_equals_its_formula_in_float64(name):
    weights, gradients = stream()
    decay = 0.3

    def make(own):
        groups = [{"params": own[:1], "weight_decay": decay}, {"params": own[1:], "weight_decay": 0.0}]
        return dnt.OPTIMIZERS[name](groups, lr=LR)

    expected = [FORMULAS[name](w, g, d) for w, g, d in zip(weights, gradients, (decay, 0.0), strict=True)]
    for ours, theirs in zip(walked(make, weights, gradients), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("on_momentum", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.95])
def test_clipped_sgd_equals_its_formula_in_float64(per_tensor, on_momentum, fraction):
    weights, gradients = stream()
    options = {"clip_fraction": fraction, "per_tensor": per_tensor, "on_momentum": on_momentum}
    ours = walked(lambda own: ClippedSGD(own, LR, 0.9, 0.3, **options), weights, gradients)

    def cut(tensors: list[Tensor]) -> list[Tensor]:
        """Those above the largest that is left are that large."""
        if per_tensor and len(tensors) > 1:
            return [cut([t])[0] for t in tensors]
        falling = torch.cat([t.abs().flatten() for t in tensors]).sort(descending=True).values
        most = falling[int(len(falling) * fraction)]
        return [t.sign() * t.abs().minimum(most) for t in tensors]

    ms = [torch.zeros_like(w) for w in weights]
    for now in zip(*gradients, strict=True):
        new = now if on_momentum else cut(list(now))
        ms = [0.9 * m + g for m, g in zip(ms, new, strict=True)]
        steps = cut(ms) if on_momentum else ms
        weights = [(1 - LR * 0.3) * w - LR * step for w, step in zip(weights, steps, strict=True)]
    for a, b in zip(ours, weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_clipped_sgd_that_cuts_nothing_equals_msgdw():
    weights, gradients = stream()
    options = {"lr": LR, "momentum": 0.9, "weight_decay": 0.3}
    ours = walked(lambda own: ClippedSGD(own, clip_fraction=0.0, **options), weights, gradients)
    for a, b in zip(ours, walked(lambda own: dnt.MSGDW(own, **options), weights, gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_quantile_of_many_entries_is_nearly_that_of_a_sample_of_all_columns(monkeypatch):
    torch.manual_seed(0)
    matrix = torch.randn(1000, 64) * torch.arange(1, 65)  # each column of its own size
    exact = clipped.quantile([matrix], 0.1)
    monkeypatch.setattr(clipped, "SAMPLED", 4000)
    assert clipped.quantile([matrix], 0.1) == pytest.approx(float(exact), rel=0.05)
    columns = clipped.sampled(torch.arange(64000).view(1000, 64) % 64, 16)
    assert columns.unique().tolist() == list(range(64))


@pytest.mark.filterwarnings("ignore:Using backward")
def test_sophia_h_equals_its_formula_where_the_hessian_is_known():
    """Of sum(h w^4) / 12 it is h w^2 on the diagonal, nothing beside it: u (H u) = h w^2 u^2."""
    torch.manual_seed(0)
    h = torch.rand(6).double() * 100
    w = nn.Parameter(torch.randn(6).double())
    optimizer = dnt.OPTIMIZERS["sophia-h"]([w], lr=0.1, weight_decay=0.2)
    expected, m, curvature = w.detach().clone(), torch.zeros(6).double(), torch.zeros(6).double()
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        optimizer.zero_grad()
        assert takes_curvature_now(optimizer) == (step % 10 == 0)
        (h * w**4 / 12).sum().backward(create_graph=takes_curvature_now(optimizer))
        optimizer.step()
        m = 0.965 * m + 0.035 * h * expected**3 / 3
        if step % 10 == 0:
            u = torch.randn(6, generator=generator, dtype=torch.float64)
            curvature = 0.99 * curvature + 0.01 * h * expected**2 * u**2
        expected = (1 - 0.1 * 0.2) * expected - 0.1 * (m / curvature.clamp(min=1e-12)).clamp(-0.01, 0.01)
        torch.testing.assert_close(w.detach(), expected, rtol=1e-9, atol=1e-12)


def test_muon_steps_along_an_almost_orthogonal_matrix_as_far_as_adamw():
    """0.2 sqrt(max(R, C)) orth(.) has entries of 0.2 in the mean square, whatever the shape: AdamW's, about."""
    model = tiny_model()
    before = deepcopy(model)
    optimizer = built("muon", model, lr=1.0, weight_decay=0.0)
    tokens = torch.randint(256, (4, 17))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    of_blocks = dict(model.blocks.named_parameters())
    matrices = {name: p for name, p in of_blocks.items() if p.ndim == 2}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in matrices.values()}
    for name, p in matrices.items():
        step = (dict(before.blocks.named_parameters())[name] - p).detach()
        values = torch.linalg.svdvals(step) / (0.2 * max(p.shape) ** 0.5)
        assert values.median() > 0.6 and values.max() < 1.3, name
        assert 0.1 < float(rms(step)) < 0.25


def test_adamw_in_8_bits_is_adamw_for_small_tensors_and_two_bytes_for_large():
    model, other = (nn.ParameterList([torch.linspace(-1, 1, n)]) for n in (300, 300))
    ours, theirs = built("adamw-8bit", model), build_optimizer("adamw", other, {})
    for _ in range(3):
        for parameters, optimizer in ((model, ours), (other, theirs)):
            parameters[0].grad = parameters[0].detach() ** 2
            optimizer.step()
    torch.testing.assert_close(model[0], other[0], rtol=1e-5, atol=1e-6)
    large = nn.ParameterList([torch.randn(512, 512)])
    optimizer = built("adamw-8bit", large)
    large[0].grad = torch.randn(512, 512)
    optimizer.step()
    assert state_bytes(optimizer) / 512**2 == pytest.approx(2, rel=0.03)


# --- every row ------------------------------------------------------------------------------------------------------


def trained(optimizer: torch.optim.Optimizer, model: dnt.GPT, steps: int) -> list[float]:
    """The losses of so many steps on one batch."""
    tokens = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward(create_graph=any(map(takes_curvature_now, parts(optimizer))))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.filterwarnings("ignore:Using backward")
@pytest.mark.parametrize("name", [*dnt.OPTIMIZERS, BY_NAME, "schedulefree-adamw:embedding;adamw-8bit:matrix;lion"])
def test_every_row_lowers_the_loss_of_a_batch_and_goes_on_from_its_state(name):
    model = tiny_model()
    optimizer = built(name, model)
    begin_training(optimizer)
    losses = trained(optimizer, model, 12)
    assert losses[0] > 5.4 and losses[-1] < losses[0] - 0.4
    other = tiny_model(1)
    other.load_state_dict(model.state_dict())
    second = built(name, other, lr=9.0)
    second.load_state_dict(deepcopy(optimizer.state_dict()))
    assert trained(optimizer, model, 4) == trained(second, other, 4)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def stopped_and_resumed(monkeypatch, name: str, **options) -> None:
    """The whole run writes no checkpoint before its end: to write one must change nothing either."""

    def fit(out: str, **more) -> None:
        model = tiny_model(dropout=0.2, tie_embeddings=False)
        dnt.fit(model, words(), built(name, model), out=out, **OPTIONS | {"steps": 12} | options | more)

    fit("whole")
    real = Loop.train_step
    with monkeypatch.context() as stopped:
        stopped.setattr(Loop, "train_step", lambda self: 1 / 0 if self.step == 11 else real(self))
        with pytest.raises(ZeroDivisionError):
            fit("half", checkpoint_every=5, eval_every=4)
    fit("half", checkpoint_every=5, eval_every=4, resume=True)
    whole, half = (dnt.Run(Path(name)) for name in ("whole", "half"))
    assert whole.weights.read_bytes() == half.weights.read_bytes()
    assert whole.end["test"] == half.end["test"]


@pytest.mark.parametrize(
    "name",
    [
        *("schedulefree-sgd", "schedulefree-adamw", "sophia-h", "adamw-8bit", "muon"),
        f"schedulefree-sgd:head;{BY_NAME}",
    ],
)
def test_a_stopped_run_resumes_to_bit_identical_weights(workplace, monkeypatch, name):
    stopped_and_resumed(monkeypatch, name)


def test_a_run_with_both_bounds_resumes_to_bit_identical_weights(workplace, monkeypatch):
    stopped_and_resumed(monkeypatch, "adamw", spectral_bound=0.01, agc=0.01, clip=0.0)


# --- mixtures by name -----------------------------------------------------------------------------------------------


def held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[str, float, set[str]]]:
    """Of each part: its class, its rate, and the names of its parameters."""
    names = {p: name for name, p in model.named_parameters()}
    return [
        (type(part).__name__, part.param_groups[0]["lr"], {names[p] for g in part.param_groups for p in g["params"]})
        for part in parts(optimizer)
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_a_mixture_by_name_equals_the_row_that_divides_alike(tied):
    model, other = (tiny_model(tie_embeddings=tied) for _ in range(2))
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": 0.8, "adamw_lr": 3e-3, "bound": 0.02}
    ours, row = build_optimizer(BY_NAME, model, options), build_optimizer("msgdw-adamw", other, options)
    assert trained(ours, model, 5) == trained(row, other, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert held(ours, model) == held(row, other)


def test_the_first_part_that_matches_takes_a_parameter_and_the_rest_is_the_others():
    model = tiny_model(tie_embeddings=False, norm="layernorm", bias=True)
    names = set(dict(model.named_parameters()))
    mixed = build_optimizer("lion@1e-4:blocks.0.*,head;adamw@0.01:gain;msgdw:matrix;sgd", model, {"lr": 0.5})
    found = {kind: (lr, own) for kind, lr, own in held(mixed, model)}
    of_first = {name for name in names if name.startswith("blocks.0.")}
    gains = {name for name, p in model.named_parameters() if p.ndim == 1} - of_first
    matrices = {n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2} - of_first
    assert found["Lion"] == (1e-4, of_first | {"head.weight"}) and found["AdamW"] == (0.01, gains)
    assert found["MSGDW"] == (0.5, matrices) and found["SGD"] == (0.5, {"tokens.weight", "positions.weight"})
    assert [kind for kind, _, _ in held(mixed, model)][:2] == ["MSGDW", "SGD"], "first those that --lr speaks of"


def test_a_part_with_a_rate_of_its_own_has_its_own_decay_too():
    model = tiny_model()
    mixed = build_optimizer(BY_NAME, model, {"lr": 0.5, "weight_decay": 0.07, "equilibrium": None})
    assert [group["weight_decay"] for group in mixed.param_groups] == [0.07, 0.0, 0.1]
    settled = build_optimizer(BY_NAME, model, {"lr": 0.1, "equilibrium": 0.01})
    assert [group["weight_decay"] for group in settled.param_groups] == [pytest.approx(0.05), 0.0, 0.1]
    assert [group.get("equilibrium") for group in settled.param_groups] == [0.01, 0.01, None]


def test_a_frozen_parameter_is_in_no_part_and_a_vit_divides_too():
    config = dnt.ViTConfig(image_size=8, patch_size=4, channels=1, classes=3, depth=1, dim=12, heads=2, bias=True)
    vit = dnt.ViT(config)
    vit.patches.weight.requires_grad_(False)
    first, second = held(build_optimizer("adamw@1e-3:embedding,head;msgdw", vit, {}), vit)
    assert second[2] == {"patches.bias", "class_token.weight", "head.weight", "head.bias"}
    assert first[2] | second[2] == set(dict(vit.named_parameters())) - {"patches.weight"}


def test_parts_are_read_from_the_name():
    assert parts_of("adamw@3e-3:embedding, blocks.?.* ; msgdw") == [
        Part("adamw", 3e-3, ("embedding", "blocks.?.*")),
        Part("msgdw"),
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw@fast:head;msgdw", {}, "the optimizer has the part 'adamw@fast:head'; write NAME[@LR][:PATTERN,...]"),
        ("adamw:;msgdw", {}, "the optimizer has the part 'adamw:'"),
        ("adamw;", {}, "the optimizer has the part ''"),
        ("adamw@-1;msgdw", {}, "the optimizer has the part 'adamw@-1'"),
        ("adam:head;msgdw", {}, "unknown optimizer 'adam'. Did you mean 'adamw'?"),
        ("adamw:heads;msgdw", {}, "'heads' matches no parameter of this model; write a kind it has (embedding, "),
        ("adamw:matrix", {}, "no part takes tokens.weight (14 of 22 parameters are left over)"),
        ("adamw;msgdw:head", {}, "nothing is left for the part of head: the parts before it take it all."),
        ("muon:matrix;adamw", {}, "muon divides a model by itself and cannot be part of a mixture"),
        ("sophia-h:matrix;adamw", {}, "sophia-h cannot be part of a mixture"),
        ("adamw@1:head;lion@1", {"lr": 0.1}, "lr is 0.1, but every part of the mixture has its own rate"),
        (BY_NAME, {"gain_rate": 2.0}, "has rates of its own; drop gain_rate."),
        (BY_NAME, {"momentum_in_grad": True}, "momentum_in_grad does not go with a mixture"),
        ("clipped-sgd", {"clip_fraction": 1.0}, "clip_fraction is 1.0; it must be at least 0 (none) and less than 1."),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(name, options, message):
    with pytest.raises(ValueError) as error:
        build_optimizer(name, tiny_model(), options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_kind_that_a_model_has_none_of_is_named():
    with pytest.raises(ValueError, match="'position' matches no parameter of this model"):
        build_optimizer("adamw:position;msgdw", tiny_model(positions="rope"), {})


def test_a_mixture_is_trained_compared_and_tuned_by_its_name(workplace, capfd):
    options = ["--data", "words.txt", *TINY, "--steps", "3"]
    assert main(["train", *options, "--optimizer", BY_NAME, "--lr", "0.2", "--out", "run"]) == 0
    assert dnt.Run(Path("run")).config["optimizer"]["groups"][0]["lr"] == 0.2
    assert main(["train", "--resume", "run"]) == 0
    rates = (f"{BY_NAME}=0.1,0.3", "lion=0.001")
    runs = grid(CompareSettings(optimizers=(BY_NAME, "lion"), placements=("dnt",), lr=rates))
    found = [(run.optimizer, run.lr, run.weight_decay) for run in runs if run.calibrate == 0]
    assert found == [(BY_NAME, 0.1, 1e-4), (BY_NAME, 0.3, 1e-4), ("lion", 0.001, 0.3)], "decays are the defaults"
    assert starting_grid(BY_NAME, 3) == starting_grid("msgdw", 3)
    with pytest.raises(ValueError, match="every part of 'adamw@1:head;lion@1' has a rate of its own"):
        starting_grid("adamw@1:head;lion@1", 3)
    with pytest.raises(ValueError, match="no --lr for dnt/lion; give one, for example --lr lion=1e-3"):
        grid(CompareSettings(optimizers=("lion",), placements=("dnt",)))


def test_only_an_msgdw_hears_what_is_said_to_msgdw():
    settings = CompareSettings(placements=("dnt",), optimizers=(*dnt.OPTIMIZERS, BY_NAME), vary=("equilibrium=0.01",))
    hearing = [cell.optimizer for cell in cells_of(settings) if cell.equilibrium]
    assert hearing == ["msgdw", "msgdw-adamw", BY_NAME]
    assert {"momentum", "bound", "betas", "model"} <= heard_by(BY_NAME) and "adamw_lr" not in heard_by(BY_NAME)


def test_each_row_has_its_own_betas_until_others_are_given():
    model = tiny_model()
    given = vars(TrainSettings())
    assert build_optimizer("lion", model, given).param_groups[0]["betas"] == (0.9, 0.99)
    assert build_optimizer("adamw", model, given).param_groups[0]["betas"] == (0.9, 0.95)
    assert build_optimizer("lion", model, given | {"betas": (0.5, 0.6)}).param_groups[0]["betas"] == (0.5, 0.6)


# --- schedule-free --------------------------------------------------------------------------------------------------


def test_a_schedule_free_run_is_evaluated_diagnosed_and_saved_at_its_average(workplace, capfd, monkeypatch):
    seen = []

    def diagnose(model, *_, **options):
        seen.append([p.detach().clone() for p in model.parameters()])
        return {}

    monkeypatch.setattr("dnt.loop.diagnose", diagnose)
    model, data = tiny_model(), words()
    settings = OPTIONS | {"eval_every": 4, "diagnose_every": 8, "progress": True}
    run = dnt.fit(model, data, built("schedulefree-sgd", model), out="run", **settings)
    loaded = dnt.load("run")
    for weights in (model.parameters(), seen[1]):
        assert all(torch.equal(a, b) for a, b in zip(weights, loaded.parameters(), strict=True))
    total = count = 0.0
    with torch.no_grad():
        for x, y in data.validation.beginning(1 << 19).whole(16):
            targets = int((y >= 0).sum())
            total, count = total + float(loaded.loss(x, y)) * targets, count + targets
    assert run.end["validation"] == pytest.approx(total / count, rel=1e-5)
    assert {row["lr"] for row in run.rows("train")} == {1.0}, "no cosine after the warm-up"
    steps = run.rows("diagnosis")[1]["tables"]["steps"]
    assert {row["frobenius"] < 0.5 for row in steps} == {True}, "of the weights that it is trained at"
    said = [line for line in capfd.readouterr().err.splitlines() if "words" in line]
    assert "the learning rate of what is schedule-free stays after the warm-up" in said[0]


def test_what_is_schedule_free_in_a_mixture_is_averaged_and_the_rest_follows_the_schedule(workplace, monkeypatch):
    rates, averaged = [], []
    real, context = Loop.train_step, Loop.at_free_weights

    def step(self):
        real(self)
        rates.append([group["lr"] for group in self.optimizer.param_groups])

    def at_free_weights(self):
        averaged.append(len(self.schedule_free))
        return context(self)

    monkeypatch.setattr(Loop, "train_step", step)
    monkeypatch.setattr(Loop, "at_free_weights", at_free_weights)
    model = tiny_model()
    dnt.fit(model, words(), built("schedulefree-adamw@0.01:embedding;msgdw", model), out="run", **OPTIONS)
    assert [rate[0] for rate in rates[2:]] == sorted((rate[0] for rate in rates[2:]), reverse=True)
    assert rates[-1][0] == pytest.approx(0.01) and rates[-1][-1] == 0.01 and set(averaged) == {1}


# --- bounds for any optimizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_adaptive_clipping_equals_its_formula_and_timms(share):
    torch.manual_seed(0)
    shapes = [(6, 4), (5,), (3, 2, 2, 2), (2, 3)]
    ours = [nn.Parameter(torch.randn(shape).double()) for shape in shapes]
    with torch.no_grad():
        ours[3].zero_()  # eps alone
    for p in ours:
        p.grad = torch.randn_like(p) * 0.2
    before, theirs = [p.grad.clone() for p in ours], deepcopy(ours)
    for p, copy in zip(ours, theirs, strict=True):
        copy.grad = p.grad.clone()
    clip_units(ours, share)
    adaptive_clip_grad(theirs, share, eps=1e-3)
    for p, copy, was in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(p.grad, copy.grad, rtol=1e-12, atol=0)
        for w, g, found in zip(p, was, p.grad, strict=True) if p.ndim > 1 else [(p, was, p.grad)]:
            most = share * max(float(norm(w)), 1e-3)
            torch.testing.assert_close(found, g * min(1.0, most / float(norm(g))), rtol=1e-12, atol=0)
    assert any(torch.equal(p.grad, was) for p, was in zip(ours, before, strict=True)) == (share == 0.3)


def test_in_training_all_but_the_head_is_clipped(workplace):
    model = tiny_model(tie_embeddings=False)
    before = deepcopy(model)
    options = OPTIONS | {"steps": 1, "warmup": 0, "clip": 0.0, "agc": 1e-6}
    dnt.fit(model, words(), tiny_msgdw(model, lr=1.0), out="run", **options)
    for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True):
        moved = float((p - (1 - (p.ndim > 1) * 1e-3) * q).detach().norm() / q.detach().norm())
        assert (moved > 1e-3) == (name == "head.weight"), name


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon", "lion", BY_NAME])
def test_no_step_is_spectrally_longer_than_its_share_of_the_matrix(name):
    tau = 0.01
    model = tiny_model()
    optimizer = built(name, model)
    bound_steps(optimizer, tau)
    reached = 0.0
    for _ in range(4):
        before = deepcopy(model)
        trained(optimizer, model, 1)
        for p, q in zip(model.parameters(), before.parameters(), strict=True):
            if p.ndim > 1:
                sizes = [torch.linalg.matrix_norm(t.detach().double(), 2) for t in (p - q, q)]
                reached = max(reached, float(sizes[0] / sizes[1]))
    assert 0.99 * tau < reached < 1.05 * tau


def test_a_step_under_the_spectral_bound_is_left_alone_and_zeros_can_be_left():
    model, other = tiny_model(), tiny_model()
    bounded = build_optimizer("msgdw", model, {})
    bound_steps(bounded, 10.0)
    assert trained(bounded, model, 3) == trained(build_optimizer("msgdw", other, {}), other, 3)
    zeros = nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.SGD([zeros], lr=0.1)
    bound_steps(optimizer, 0.01)
    zeros.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(zeros.detach(), torch.full((2, 2), -0.1))


def test_training_takes_the_spectral_bound(workplace):
    model = tiny_model()
    before = deepcopy(model)
    dnt.fit(model, words(), tiny_msgdw(model, lr=1.0), out="run", **OPTIONS | {"steps": 1, "spectral_bound": 1e-3})
    moved = [
        float(torch.linalg.matrix_norm((p - q).detach(), 2) / torch.linalg.matrix_norm(q.detach(), 2))
        for p, q in zip(model.parameters(), before.parameters(), strict=True)
        if p.ndim > 1
    ]
    assert max(moved) == pytest.approx(1e-3, rel=0.03)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "options", "message"),
    [
        ("muon", {"strategy": "fsdp"}, "Muon does not go with fsdp, where no process has a whole tensor; use ddp."),
        ("clipped-sgd", {"strategy": "fsdp"}, "ClippedSGD does not go with fsdp"),
        ("schedulefree-sgd", {"strategy": "fsdp"}, "SGDScheduleFree does not go with fsdp"),
        ("adamw", {"strategy": "fsdp", "agc": 0.01}, "agc does not go with fsdp"),
        ("adamw", {"strategy": "fsdp", "spectral_bound": 0.01}, "spectral_bound does not go with fsdp"),
        ("sophia-h", {"devices": 2}, "SophiaH differentiates twice, which does not go with several processes"),
        ("sophia-h", {"precision": "16-mixed"}, "which does not go with 16-mixed, whose gradients are scaled"),
        ("lion", {"precision": "bf16-weights"}, "bf16-weights does not go with Lion"),
        ("msgdw", {"precision": "bf16-weights", "spectral_bound": 0.1}, "spectral_bound does not go with bf16-weights"),
        ("schedulefree-adamw", {"ema": 0.9}, "ema does not go with AdamWScheduleFree"),
        ("schedulefree-adamw:head;msgdw", {"ema": 0.9}, "ema does not go with AdamWScheduleFree"),
        ("schedulefree-sgd", {"spectral_bound": 0.1}, "spectral_bound does not go with SGDScheduleFree"),
        ("msgdw", {"momentum_in_grad": True, "clip": 0.0, "agc": 0.1}, "agc does not go with momentum_in_grad"),
        ("msgdw", {"agc": -1.0}, "agc is -1.0; it must be at least 0."),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(workplace, optimizer, options, message):
    options = dict(options)
    model = tiny_model(tie_embeddings=False)
    held_in_grad = {"momentum_in_grad": options.pop("momentum_in_grad", False)}
    with pytest.raises(ValueError) as error:
        dnt.fit(model, words(), build_optimizer(optimizer, model, held_in_grad), out="run", **OPTIONS | options)
    assert message in str(error.value) and "\n" not in str(error.value) and not Path("run").exists()


@pytest.mark.parametrize(
    ("name", "package", "of"),
    [
        *((name, "pytorch_optimizer", "optimizers") for name in ("lion", "signum", "sophia-h", "lamb", "lars")),
        *((name, "schedulefree", "optimizers") for name in ("schedulefree-sgd", "schedulefree-adamw")),
        ("adamw-8bit", "bitsandbytes", "bench"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch, name, package, of):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError) as error:
        build_optimizer(name, tiny_model(), {})
    line = f"this needs the package {package}, which is not there: pip install 'dnt-torch[{of}]'"
    assert str(error.value) == line


@every
def test_a_dry_run_says_what_a_row_would_hold(name, capfd):
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    assert main(["train", "--optimizer", name, "--dry-run", *TINY]) == 0
    text = capfd.readouterr().out
    known = "bytes a parameter" in text
    assert f"{name}, lr " in text and known == (name != "adafactor")
    assert known != ("without the optimizer's state" in text)


def test_sophia_steps_with_micro_batches_and_recomputed_blocks_as_without(workplace):
    def losses(out: str, **options) -> list[float]:
        model = tiny_model()
        optimizer = build_optimizer("sophia-h", model, {})
        assert takes_curvature(optimizer)
        run = dnt.fit(model, words(), optimizer, out=out, **OPTIONS | {"steps": 12} | options)
        return [row["loss"] for row in run.rows("train")]

    plain = losses("plain")
    assert losses("parts", accumulate=2) == pytest.approx(plain, rel=1e-4)
    assert losses("again", recompute=True) == pytest.approx(plain, rel=1e-4) and not math.isnan(plain[-1])
