import math
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import SGDW
from torch import nn

import dnt
from dnt.machine import can_compile
from dnt.optim.equilibrium import equilibrium_decay, equilibrium_step, settling_steps
from dnt.optim.factory import build_optimizer
from dnt.optim.mixed import Mixed
from dnt.optim.msgdw import store
from dnt.optim.schedule import SCHEDULES
from tests import reference
from tests.conftest import tiny_model


def walk(make, steps: int = 6, lrs=None) -> list[torch.Tensor]:
    """The weights after a few steps of an optimizer on a fixed stream of gradients."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(5, 3, dtype=torch.float64)), nn.Parameter(torch.randn(7, dtype=torch.float64))]
    optimizer = make(weights)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lrs[step] if lrs else group["lr"]
        for w in weights:
            w.grad = torch.randn_like(w)
        optimizer.step()
    return [w.detach() for w in weights]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_msgdw_equals_torch_sgd_when_nothing_decays(momentum, nesterov):
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov}
    ours = walk(lambda w: dnt.MSGDW(w, **options))
    for a, b in zip(ours, walk(lambda w: torch.optim.SGD(w, **options)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("lrs", [None, [0.01, 0.1, 0.3, 0.2, 0.05, 0.001]])
def test_msgdw_equals_timms_sgdw(nesterov, lrs):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.03, "nesterov": nesterov}
    ours = walk(lambda w: dnt.MSGDW(w, **options), lrs=lrs)
    theirs = walk(lambda w: SGDW(w, **options), lrs=lrs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_msgdw_equals_its_equation_one_number_at_a_time():
    torch.manual_seed(0)
    start, grads = torch.randn(4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    w = nn.Parameter(start.clone())
    optimizer = dnt.MSGDW([w], lr=0.1, momentum=0.9, weight_decay=0.01)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    expected = reference.msgdw(start.tolist(), grads.tolist(), lr=0.1, momentum=0.9, decay=0.01)
    torch.testing.assert_close(w.data, torch.tensor(expected, dtype=torch.float64))


def test_decay_is_of_each_group_and_a_parameter_without_gradient_stays():
    decays, still, frozen = (nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [decays, frozen], "weight_decay": 0.5}, {"params": [still], "weight_decay": 0.0}]
    optimizer = dnt.MSGDW(groups, lr=0.1)
    decays.grad, still.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert decays.tolist() == pytest.approx([0.95, 0.95]) and still.tolist() == frozen.tolist() == [1, 1]


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_no_bounded_step_is_longer_than_its_share_of_the_matrix(momentum, nesterov):
    torch.manual_seed(0)
    bound, lr = 0.05, 0.3
    options = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
    ours, free = (
        [torch.nn.Parameter(t.clone()) for t in (torch.ones(3, 4), torch.full((4, 2), 30.0), torch.ones(5))]
        for _ in range(2)
    )
    bounded, plain = dnt.MSGDW(ours, bound=bound, **options), torch.optim.SGD(free, **options)
    reached = False
    for _ in range(5):
        before = [w.detach().clone() for w in ours]
        for a, b in zip(ours, free, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        bounded.step()
        plain.step()
        moved = [float((w.detach() - was).norm() / was.norm()) for w, was in zip(ours, before, strict=True)]
        assert moved[0] <= bound * (1 + 1e-5)
        reached |= moved[0] > 0.999 * bound
        if momentum:
            held = [optimizer.state[w[0]]["momentum_buffer"] for optimizer, w in ((bounded, ours), (plain, free))]
            torch.testing.assert_close(*held), "the momentum is not bounded"
    assert reached
    torch.testing.assert_close(ours[1:], free[1:])  # a large matrix, and a vector, are stepped freely


def test_a_bounded_matrix_of_zeros_can_leave_zero():
    w = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = dnt.MSGDW([w], lr=0.1, bound=0.01)
    w.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(w.detach(), torch.full((2, 2), -0.1))


@pytest.mark.parametrize(("momentum", "step"), [(0.0, 0.02), (0.9, 0.005)])
def test_decay_holds_the_relative_step_of_a_blind_matrix_where_it_was_asked_for(momentum, step):
    """Noise orthogonal to w that falls as 1 / ||w||: what remains of a gradient under a norm. From far too large.

    It settles in many more steps than the momentum remembers, as the formula assumes.
    """
    torch.manual_seed(0)
    lr = 0.3
    w = torch.nn.Parameter(torch.randn(2000) * 3)
    decay = equilibrium_decay(step, lr, momentum)
    optimizer = dnt.MSGDW([w], lr=lr, weight_decay=decay, momentum=momentum)
    last = []
    steps = int(settling_steps(lr, decay))
    for i in range(3 * steps):
        g = torch.randn_like(w)
        g -= w.detach() * (g @ w.detach()) / w.detach().square().sum()
        w.grad = g / w.detach().norm()
        if i > 2 * steps:
            last.append(lr * float(w.grad.norm() / w.detach().norm()))
        optimizer.step()
    assert sum(last) / len(last) == pytest.approx(step, rel=0.05)
    assert equilibrium_step(lr, decay, momentum) == pytest.approx(step)


def test_an_equilibrium_takes_the_place_of_the_decay():
    model = tiny_model()
    optimizer = build_optimizer("msgdw", model, {"lr": 0.1, "weight_decay": 7.0, "momentum": 0.9, "equilibrium": 0.01})
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.05)
    assert build_optimizer("adamw", model, {"equilibrium": 0.01}).param_groups[0]["weight_decay"] == 0.1


def test_msgdw_state_survives_a_round_trip_and_holds_four_bytes_a_parameter():
    def half(w, saved=None):
        optimizer = dnt.MSGDW(w, lr=0.1, weight_decay=0.1)
        if saved:
            optimizer.load_state_dict(saved)
        return optimizer

    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(10))
    grads = torch.randn(4, 10)
    first = half([w])
    for g in grads[:2]:
        w.grad = g.clone()
        first.step()
    copy = nn.Parameter(w.detach().clone())
    second = half([copy], deepcopy(first.state_dict()))
    for g in grads[2:]:
        for p, optimizer in ((w, first), (copy, second)):
            p.grad = g.clone()
            optimizer.step()
    assert torch.equal(w, copy)
    state = [v for s in first.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert sum(v.numel() * v.element_size() for v in state) == 4 * w.numel()


def test_step_runs_its_hooks_once_and_returns_the_closures_loss():
    w = nn.Parameter(torch.ones(1))
    torch.optim.SGD([w], lr=0.1)  # whose step is wrapped too
    optimizer = dnt.MSGDW([w], lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append(1))

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1 and calls == [1] and w.item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", dnt.OPTIMIZERS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_exactly_one_group_and_only_matrices_decay(name, tied):
    if name == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    model = dnt.gpt("gpt-tiny", bias=True, norm="layernorm", tie_embeddings=tied)
    optimizer = build_optimizer(name, model, {"weight_decay": 0.1})
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(model.parameters())
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_options_that_are_not_given_have_the_factorys_defaults():
    model = nn.Linear(2, 2)
    optimizer = build_optimizer("msgdw", model, {"lr": None, "weight_decay": 0.0, "momentum": 0.5, "betas": (0.1, 0.2)})
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 0.0, 0.5)
    assert build_optimizer("adamw", model, {"betas": (0.1, 0.2)}).param_groups[0]["betas"] == (0.1, 0.2)
    with pytest.raises(ValueError, match=r"unknown optimizer 'adam'. Did you mean 'adamw'?"):
        build_optimizer("adam", model, {})


# --- momentum in the gradient, bfloat16, one pass --------------------------------------------------------------------


def stepped(optimizer, model: dnt.GPT, steps: int = 4, parts: int = 1, at_end: bool = False) -> list[torch.Tensor]:
    """The weights after a few steps as a loop takes them, each batch in so many parts; zero_grad first or last."""
    tokens = torch.randint(256, (steps, 4, 9), generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        if not at_end:
            optimizer.zero_grad()
        for part in tokens[step].chunk(parts):
            (model.loss(part[:, :-1], part[:, 1:]) / parts).backward()
        optimizer.step()
        if at_end:
            optimizer.zero_grad()
    return [p.detach() for p in model.parameters()]


def in_grad(model: nn.Module, **options) -> dnt.MSGDW:
    return dnt.MSGDW(model.parameters(), **{"lr": 0.1, "momentum_in_grad": True} | options)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("at_end", [False, True])
def test_momentum_in_grad_equals_torch_sgd_bit_for_bit_and_holds_nothing(at_end):
    model, other = tiny_model(), tiny_model()
    optimizer = in_grad(model)
    theirs = stepped(torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9), other)
    assert same(stepped(optimizer, model, at_end=at_end), theirs)
    assert not optimizer.state


def test_momentum_in_grad_equals_the_buffer_to_rounding_in_micro_batches_with_a_bound_and_decay():
    model, other = tiny_model(), tiny_model()
    options = {"lr": 0.3, "bound": 0.02, "weight_decay": 0.1}
    ours = stepped(in_grad(model, **options), model, parts=4)
    theirs = stepped(dnt.MSGDW(other.parameters(), **options), other, parts=4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("to_grad", [False, True])
def test_the_momentum_goes_on_from_a_state_whichever_way_it_was_held(at_end, to_grad):
    model, other, whole = tiny_model(), tiny_model(), tiny_model()
    first = in_grad(model)
    stepped(first, model, at_end=at_end)
    saved = deepcopy(first.state_dict())
    assert not first.state
    other.load_state_dict(model.state_dict())
    second = in_grad(other) if to_grad else dnt.MSGDW(other.parameters(), lr=0.1)
    if at_end and not to_grad:
        with pytest.raises(ValueError, match="saved after zero_grad"):
            second.load_state_dict(saved)
        return
    second.load_state_dict(saved)
    expected = stepped(in_grad(whole), whole, 4)
    assert same(expected, other.parameters())
    assert same(stepped(first, model, at_end=at_end), stepped(second, other, at_end=at_end))


def test_a_step_is_refused_unless_the_momentum_was_scaled_once_and_left_where_it_was():
    model = tiny_model()
    optimizer = in_grad(model)
    stepped(optimizer, model, 1)
    with pytest.raises(ValueError, match="ran 0 times"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="ran 2 times"):
        optimizer.step()
    model = tiny_model()
    optimizer = in_grad(model)
    stepped(optimizer, model, 1)
    model.zero_grad()
    optimizer.zero_grad()
    model.tokens.weight.sum().backward()
    with pytest.raises(ValueError, match="a gradient was replaced"):
        optimizer.step()


def test_a_copy_that_would_forget_the_momentum_is_refused_and_later_groups_are_checked():
    model = tiny_model()
    optimizer = in_grad(model)
    deepcopy(optimizer)
    stepped(optimizer, model, 1)
    with pytest.raises(ValueError, match=r"copy state_dict\(\)"):
        deepcopy(optimizer)
    with pytest.raises(ValueError, match="nesterov needs"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "nesterov": True})


def test_what_needs_the_gradient_beside_the_momentum_is_refused():
    with pytest.raises(ValueError, match="nesterov needs the gradient"):
        in_grad(tiny_model(), nesterov=True)
    with pytest.raises(ValueError, match=r"precision, which is torch.bfloat16"):
        in_grad(tiny_model().bfloat16())
    model = tiny_model()
    optimizer, scaler = in_grad(model), torch.amp.GradScaler("cpu")
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    scaler.scale(model.loss(tokens, tokens)).backward()
    with pytest.raises(ValueError, match="does not go with a GradScaler"):
        scaler.step(optimizer)


WAYS = {
    "momentum": {},
    "none": {"momentum": 0.0},
    "nesterov": {"nesterov": True},
    "recipe": {"nesterov": True, "bound": 0.02},
    "bounded": {"bound": 0.02},
    "in grad": {"momentum_in_grad": True, "bound": 0.02},
}


@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("way", WAYS)
def test_one_compiled_pass_equals_the_steps_in_several_also_when_the_rate_changes(way):
    model, other = tiny_model(), tiny_model()
    ours, theirs = (dnt.MSGDW(dnt.param_groups(m, 0.1), lr=0.3, **WAYS[way]) for m in (model, other))
    ours.compile()
    for lr in (0.3, 0.1, 0.2):
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = lr
        for a, b in zip(stepped(ours, model, 1), stepped(theirs, other, 1), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_rounding_at_random_is_right_in_the_mean_and_leaves_what_bfloat16_holds():
    torch.manual_seed(0)
    value, target = torch.full((100_000,), 1 + 2**-10), torch.empty(100_000, dtype=torch.bfloat16)
    store(value, target)
    assert set(target.tolist()) == {1.0, 1 + 2**-7}
    assert target.double().mean() == pytest.approx(1 + 2**-10, abs=5 * 2**-7 * 0.33 / 100_000**0.5)
    exact = torch.tensor([0.0, -1.5, 3.0e38, -1e-30, torch.inf]).bfloat16()
    held = torch.empty_like(exact)
    store(exact.float(), held)
    assert torch.equal(exact, held)
    all_ones = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # the NaN of GPUs
    store(all_ones, held)
    assert held.isnan().all()


def test_many_small_steps_move_weights_in_bfloat16_as_far_as_in_float32():
    """Each step is a hundredth of the distance between two numbers: rounded to nearest, nothing would move."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = dnt.MSGDW([w], lr=1e-4, momentum=0.5)
    for _ in range(200):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert w.detach().float().mean() == pytest.approx(1 - 1e-4 * 2 * 200, rel=2e-3)
    assert optimizer.state[w]["momentum_buffer"].dtype == torch.bfloat16


# --- mixtures -------------------------------------------------------------------------------------------------------


def trained(optimizer, model: dnt.GPT, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """The weights after a few steps on fixed tokens, at a learning rate that falls."""
    tokens = torch.randint(256, (steps, 2, 9), generator=torch.Generator().manual_seed(seed))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.zero_grad()
        model.loss(tokens[step, :, :-1], tokens[step, :, 1:]).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


class Both:
    """Two optimizers stepped by hand."""

    def __init__(self, *two):
        self.two = two

    @property
    def param_groups(self):
        return [group for one in self.two for group in one.param_groups]

    def zero_grad(self):
        for one in self.two:
            one.zero_grad()

    def step(self):
        for one in self.two:
            one.step()


@pytest.mark.parametrize("optimizer", ["msgdw", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_each_kind_of_parameter_has_its_own_rate(tied, optimizer):
    model = tiny_model(tie_embeddings=tied, bias=True)
    rates = {"embedding": 3.0, "position": 0.5, "gain": 10.0} | ({} if tied else {"head": 0.0})
    options = {"lr": 0.2, "weight_decay": 0.01} | {f"{kind}_rate": rate for kind, rate in rates.items()}
    groups = build_optimizer(optimizer, model, options).param_groups
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(model.parameters())
    names = {p: name for name, p in model.named_parameters()}
    found = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    ends = {"tokens.weight": 3.0, "positions.weight": 0.5, "head.weight": 0.0}
    for name, (lr, decay) in found.items():
        vector = name.endswith(("bias", "norm.weight", "pre.weight", "mid.weight"))
        expected = 10.0 if vector else ends.get(name, 1.0)
        assert lr == pytest.approx(0.2 * expected) and decay == (0 if vector else 0.01), name
    assert names[groups[0]["params"][0]].startswith("blocks."), "the first group says lr"


def test_positions_are_embeddings_unless_they_have_a_rate():
    model = tiny_model()
    for own, expected in ((None, 3.0), (1.0, 1.0), (0.0, 0.0), (3.0, 3.0)):
        groups = dnt.param_groups(model, 0.1, 1.0, embedding_rate=3.0, position_rate=own)
        [rate] = [group["lr"] for group in groups if any(p is model.positions.weight for p in group["params"])]
        assert rate == expected
    with pytest.raises(ValueError, match="embedding_rate: a rate is a multiple of lr; give lr"):
        dnt.param_groups(model, embedding_rate=3.0)


def test_a_bounded_nesterov_step_allocates_no_second_model():
    """Nothing larger than a few numbers a tensor, once the momentum is there."""
    w = [nn.Parameter(torch.randn(64, 64)) for _ in range(8)]
    optimizer = dnt.MSGDW(w, lr=0.1, nesterov=True, bound=0.01)
    for p in w:
        p.grad = torch.randn_like(p)
    optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    most = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert most < 64 * 64 * 4


def test_a_vit_has_rates_too():
    vit = dnt.ViT(dnt.ViTConfig(image_size=8, patch_size=4, channels=1, classes=3, depth=1, dim=12, heads=2))
    groups = build_optimizer("msgdw", vit, {"lr": 1.0, "embedding_rate": 2.0, "head_rate": 3.0}).param_groups
    rate = {p: group["lr"] for group in groups for p in group["params"]}
    inputs = {*vit.patches.parameters(), vit.class_token.weight, vit.positions.weight}
    assert {p for p in rate if rate[p] == 2.0} == inputs, "positions too, unless they have their own"
    assert {p for p in rate if rate[p] == 3.0} == {*vit.head.parameters()}


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        ("msgdw", {}, {"gain_rate": -1.0}, "gain_rate is -1.0; it must be at least 0."),
        ("msgdw", {}, {"head_rate": 2.0}, "head_rate is 2.0, but this model has no head parameters"),
        ("adamw", {"positions": "rope"}, {"position_rate": 2.0}, "this model has no position parameters"),
        ("msgdw-adamw", {}, {"gain_rate": 2.0, "head_rate": 2.0}, "drop head_rate, gain_rate."),
    ],
)
def test_rates_that_say_nothing_are_refused(name, fields, options, message):
    with pytest.raises(ValueError) as error:
        build_optimizer(name, tiny_model(**fields), options)
    assert message in str(error.value)


@pytest.mark.parametrize("tied", [True, False])
def test_msgdw_adamw_equals_the_two_optimizers_stepped_by_hand(tied):
    model, slow = (tiny_model(tie_embeddings=tied) for _ in range(2))
    options = {"lr": 0.3, "weight_decay": 0.01, "momentum": 0.8, "adamw_lr": 0.02, "betas": (0.8, 0.9)}
    mixed = trained(build_optimizer("msgdw-adamw", model, options), model, 5)
    own = [slow.tokens.weight, slow.positions.weight, *([] if tied else [slow.head.weight])]
    others = [p for p in slow.parameters() if all(p is not one for one in own)]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    by_hand = Both(
        dnt.MSGDW(groups, lr=0.3, momentum=0.8), torch.optim.AdamW(own, lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    )
    assert all(torch.equal(a, b) for a, b in zip(mixed, trained(by_hand, slow, 5), strict=True))


def adamws(model) -> set[nn.Parameter]:
    """What the AdamW of msgdw-adamw holds, once it is sure that it holds every other parameter nowhere or once."""
    optimizer = build_optimizer("msgdw-adamw", model, {})
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(model.parameters())
    return {p for group in optimizer.param_groups if "betas" in group for p in group["params"]}


def test_the_adamw_of_msgdw_adamw_holds_embeddings_class_token_and_head_alone():
    gpt = tiny_model(tie_embeddings=False)
    assert adamws(gpt) == {gpt.tokens.weight, gpt.positions.weight, gpt.head.weight}
    tied = tiny_model(positions="rope")
    assert adamws(tied) == {tied.tokens.weight} == {tied.head.weight}
    for in_dims in (2, 3):
        config = dnt.ViTConfig(image_size=8, patch_size=4, channels=1, classes=3, depth=1, dim=12, heads=2)
        vit = dnt.ViT(replace(config, in_dims=in_dims, bias=True))
        own = {*vit.patches.parameters(), vit.class_token.weight, vit.positions.weight, *vit.head.parameters()}
        assert adamws(vit) == own
        bare = dnt.ViT(replace(config, in_dims=in_dims, pool="mean", positions="sincos"))
        assert adamws(bare) == {bare.patches.weight, bare.head.weight}


def test_the_state_of_a_mixture_survives_a_round_trip():
    model = tiny_model()
    first = build_optimizer("msgdw-adamw", model, {})
    trained(first, model, 2)
    copy = deepcopy(model)
    second = build_optimizer("msgdw-adamw", copy, {"lr": 9.0, "adamw_lr": 9.0})
    second.load_state_dict(deepcopy(first.state_dict()))
    ways = trained(first, model, 3, seed=1), trained(second, copy, 3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(*ways, strict=True))
    assert all(part.state is second.state for part in second.parts)


def test_a_mixture_calls_a_closure_once_and_refuses_a_parameter_in_two_parts():
    a, b = (nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = Mixed(dnt.MSGDW([a], lr=0.1), torch.optim.SGD([b], lr=0.2))
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = (a + b).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2 and calls == [1]
    assert (a.item(), b.item()) == pytest.approx((0.9, 0.8))
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        Mixed(dnt.MSGDW([a], lr=0.1), torch.optim.SGD([b, a], lr=0.1))


# --- schedules ------------------------------------------------------------------------------------------------------

schedules = pytest.mark.parametrize("name", SCHEDULES)


@schedules
def test_warm_up_is_linear_and_reaches_one(name):
    factors = [SCHEDULES[name](step, 100, 10, 0.1) for step in range(11)]
    assert factors == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0])


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.1), ("wsd", 0.1), ("constant", 1.0)])
def test_last_step_is_at_the_floor(name, last):
    assert SCHEDULES[name](99, 100, 10, 0.1) == pytest.approx(last)


def test_cosine_is_half_way_down_half_way_through():
    assert SCHEDULES["cosine"](55, 102, 10, 0.1) == pytest.approx((1 + 0.1) / 2, abs=0.01)
    ours = [SCHEDULES["cosine"](step, 91, 0, 0.0) for step in range(91)]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    for factor in ours:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        torchs.step()


def test_wsd_is_stable_then_falls_linearly_over_the_last_fifth():
    factors = [SCHEDULES["wsd"](step, 100, 10, 0.1) for step in range(100)]
    assert factors[10:80] == [1.0] * 70
    falls = {round(a - b, 9) for a, b in pairwise(factors[80:])}
    assert falls == {round(0.9 / 20, 9)}


@schedules
@given(steps=st.integers(1, 500), warmup=st.integers(0, 600), floor=st.floats(0, 1))
def test_factors_stay_between_zero_and_one(name, steps, warmup, floor):
    factors = [SCHEDULES[name](step, steps, warmup, floor) for step in range(steps)]
    assert all(0 <= f <= 1 + 1e-12 and math.isfinite(f) for f in factors)
    assert all(f > 0 or floor == 0 for f in factors)
