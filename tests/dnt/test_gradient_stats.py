"""Statistics of gradients agree with numpy on all entries at once, and noise with gradients that are kept whole."""

import math
import weakref
from dataclasses import fields

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dnt
from dnt.analysis import Entries, gradient_noise, gradient_stats, gradients, parts

VOCABULARY, CONTEXT = 50, 8


def gpt(**fields) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "context": CONTEXT, "depth": 2, "dim": 16, "heads": 4}
    return dnt.GPT(dnt.GPTConfig(**sizes, **fields)).double()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).double().eval()


def loss_of(model: nn.Module, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = getattr(output := model(tokens), "logits", output)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batches(count: int, used: int = VOCABULARY, batch: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [tuple(torch.randint(used, (2, batch, CONTEXT))) for _ in range(count)]


def by_part(model: nn.Module, data) -> dict[str, np.ndarray]:
    """The gradient of the mean loss by backward(), whole."""
    model.zero_grad()
    (sum(loss_of(model, *batch) for batch in data) / len(data)).backward()
    found = {part.name: part.of(part.parameter.grad).double().flatten().numpy() for part in parts(model)}
    model.zero_grad()
    return found


def agree(found: Entries, entries: np.ndarray) -> None:
    """With numpy, all at once."""
    sizes = np.sort(np.abs(entries[entries != 0]))[::-1]
    assert (found.count, found.zeros) == (entries.size, entries.size - sizes.size)
    assert found.rms == pytest.approx(np.sqrt(np.mean(sizes**2)), rel=1e-9)
    assert found.largest == pytest.approx(sizes[0], rel=1e-9)
    assert found.kurtosis == pytest.approx(np.mean(sizes**4) / np.mean(sizes**2) ** 2, rel=1e-9)
    median = sizes[::-1][(sizes.size - 1) // 2]
    assert found.median == pytest.approx(median, rel=5e-3)
    assert found.max_to_median == pytest.approx(sizes[0] / median, rel=5e-3)
    whole, rest = divmod(0.01 * sizes.size, 1)
    top = np.sum(sizes[: int(whole)] ** 2) + rest * sizes[int(whole)] ** 2
    assert found.top_share == pytest.approx(top / np.sum(sizes**2), rel=1e-2)
    edges = np.log10(gradients.EDGES)
    assert found.histogram == tuple(np.histogram(np.log10(sizes).clip(edges[0], edges[-1]), edges)[0])


@pytest.mark.parametrize("model", [gpt(placement="pre-ln"), gpt(bias=True, kv_heads=2, tie_embeddings=False), gpt2()])
@pytest.mark.parametrize("count", [1, 3])
def test_every_statistic_is_that_of_numpy_on_all_entries_at_once(model, count, monkeypatch):
    monkeypatch.setattr(gradients, "CHUNK", 100)
    data = batches(count)
    stats, expected = gradient_stats(model, iter(data), loss_of), by_part(model, data)
    assert list(stats.parts) == list(expected)
    for name, entries in expected.items():
        if entries.any():  # GPT-2's keys have a bias, which the softmax does not see
            agree(stats.parts[name], entries)
    for role, found in stats.roles.items():
        agree(found, np.concatenate([expected[part.name] for part in parts(model) if part.role == role]))
    agree(stats.total, np.concatenate(list(expected.values())))
    assert stats.loss == pytest.approx(np.mean([loss_of(model, *batch).item() for batch in data]))
    layers = {name: (found.role, found.layer) for name, found in stats.parts.items()}
    assert layers == {part.name: (part.role, part.layer) for part in parts(model)}


def test_parts_sum_to_their_roles_and_to_the_whole():
    stats = gradient_stats(gpt(bias=True), batches(1, used=9), loss_of)
    for role, whole in [*stats.roles.items(), (None, stats.total)]:
        inside = [found for found in stats.parts.values() if role in (None, found.role)]
        assert whole.count == sum(found.count for found in inside)
        assert whole.zeros == sum(found.zeros for found in inside)
        assert whole.largest == max(found.largest for found in inside)
        assert whole.histogram == tuple(map(sum, zip(*(found.histogram for found in inside), strict=True)))
        norm = sum(found.rms**2 * (found.count - found.zeros) for found in inside)
        assert whole.rms**2 * (whole.count - whole.zeros) == pytest.approx(norm)
        assert sum(whole.histogram) == whole.count - whole.zeros
        assert (whole.role, whole.layer) == (role, None)


def test_rows_of_an_embedding_that_no_token_uses_are_counted_as_zeros_and_change_nothing_else():
    used, data = 20, batches(2, used=20)
    small = nn.Sequential(nn.Embedding(used, 16), nn.Linear(16, VOCABULARY)).double()
    large = nn.Sequential(nn.Embedding(used + 1000, 16), small[1]).double()
    large[0].weight.data[:used] = small[0].weight.data
    one, other = (gradient_stats(model, data, loss_of) for model in (small, large))
    for found, expected in ((other.total, one.total), (other.parts["0.weight"], one.parts["0.weight"])):
        assert (found.count, found.zeros) == (expected.count + 16_000, expected.zeros + 16_000)
        for field in fields(Entries):
            if field.name not in ("count", "zeros"):
                assert getattr(found, field.name) == getattr(expected, field.name), field.name


def test_what_the_loss_does_not_depend_on_has_a_gradient_of_zeros():
    model = gpt()
    model.unused = nn.Linear(3, 2, bias=False)
    found = gradient_stats(model, batches(2), loss_of).parts["unused.weight"]
    assert (found.count, found.zeros, found.rms, found.largest, found.median) == (6, 6, 0, 0, 0)
    assert all(math.isnan(x) for x in (found.max_to_median, found.kurtosis, found.top_share))
    assert not any(found.histogram)


def test_gradients_that_stand_are_neither_read_nor_written():
    model = gpt()
    first, *others = model.parameters()
    first.grad = torch.full_like(first, 7.0)
    others[0].requires_grad = False
    stats = gradient_stats(model, batches(2), loss_of)
    gradient_noise(model, batches(8), loss_of)
    assert (first.grad == 7).all() and all(p.grad is None for p in others)
    assert stats.total.count == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("scale", [1e-9, 0.3, 7e4])
def test_the_shape_of_a_distribution_does_not_see_the_scale_of_the_loss(scale):
    model, data = gpt(), batches(2)
    one = gradient_stats(model, data, loss_of)
    other = gradient_stats(model, data, lambda *given: scale * loss_of(*given))
    for name, found in other.parts.items():
        assert found.rms == pytest.approx(scale * one.parts[name].rms)
        assert found.kurtosis == pytest.approx(one.parts[name].kurtosis)
        assert found.max_to_median == pytest.approx(one.parts[name].max_to_median, rel=1e-2)
        assert found.top_share == pytest.approx(one.parts[name].top_share, rel=1e-2)


def test_a_normal_law_has_kurtosis_3_and_the_top_share_of_its_density():
    torch.manual_seed(0)
    found = gradients.sums_of(torch.randn(1_000_000)).entries()
    z = 2.5758293035489004  # exceeded by 1% in absolute value; the share is 2 (z phi(z) + Q(z))
    share = 2 * (z * math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) + 0.005)
    assert found.kurtosis == pytest.approx(3, abs=0.03) and found.top_share == pytest.approx(share, rel=0.01)
    assert found.rms / found.median == pytest.approx(1 / 0.6744897501960817, rel=0.01)


def test_an_entry_that_is_not_finite_shows_and_stops_nothing():
    for bad in (math.nan, math.inf):
        found = gradients.sums_of(torch.tensor([1.0, 0.0, bad])).entries()
        assert (found.count, found.zeros) == (3, 1)
        assert not any(map(math.isfinite, (found.rms, found.largest, found.median, found.kurtosis, found.top_share)))


def test_no_tensor_larger_than_a_chunk_is_made(monkeypatch):
    monkeypatch.setattr(gradients, "CHUNK", 1 << 17)
    made: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            found = function(*args, **kwargs or {})
            storages = [x.untyped_storage() for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
            made.extend(storage.nbytes() for storage in storages if storage.data_ptr() not in given)
            return found

    gradient = torch.randn(16, 1 << 17)
    with Sizes():
        gradients.sums_of(gradient)
    assert max(made) <= 8 * (1 << 17) < gradient.nbytes / 4


@pytest.mark.parametrize("measure, held", [(gradient_stats, 1), (gradient_noise, 0)])
def test_at_most_one_gradient_is_held_while_the_next_is_computed(measure, held, monkeypatch):
    alive, most = [], []
    grad = torch.autograd.grad

    def noted(*args, **kwargs):
        found = grad(*args, **kwargs)
        alive.extend(map(weakref.ref, found))
        return found

    def counting_loss(model, *batch):
        most.append(sum(reference() is not None for reference in alive))
        return loss_of(model, *batch)

    monkeypatch.setattr(torch.autograd, "grad", noted)
    model = gpt()
    measure(model, batches(8), counting_loss)
    parameters = len(list(model.parameters()))
    assert max(most) <= held * parameters + 1  # the last one may still have a name


def test_noise_is_each_gradient_minus_their_mean_at_coordinates_that_are_not_always_zero():
    model, data = gpt(), batches(9, used=30, batch=1)
    whole = [by_part(model, [batch]) for batch in data]
    noise = gradient_noise(model, iter(data), loss_of, coordinates=40, seed=3)
    for name, found in noise.items():
        values = np.stack([gradient[name] for gradient in whole])
        ever = values[:, values.any(0)]
        expected = ever - ever.mean(0)
        assert found.dtype == torch.float64 and found.shape == (9, min(40, ever.shape[1]))
        assert np.abs(found.mean(0).numpy()).max() < 1e-12 * np.abs(values).max()
        differences = np.abs(expected[:, None, :] - found.numpy()[:, :, None]).max(0)  # of every pair of columns
        matched = differences.argmin(1)
        assert differences.min(1).max() < 1e-12 and len(set(matched)) == found.shape[1]


def test_noise_takes_every_coordinate_that_is_not_always_zero_equally_often():
    """Those that are zero in most batches too, and come in late."""
    model = nn.Sequential(nn.Embedding(20, 1), nn.Identity()).double()
    data = [(torch.tensor([i, 0]),) for i in range(10)]  # 10 rows of 20 are ever used, one of them always

    def loss(model, tokens):
        return (model(tokens) * (1.0 + tokens[:, None]) ** 2).sum()

    drawn: dict[float, int] = {}
    for seed in range(300):
        noise = gradient_noise(model, data, loss, coordinates=3, seed=seed)["0.weight"]
        assert noise.shape == (10, 3)
        for spread in noise.std(0).tolist():
            drawn[round(spread, 6)] = drawn.get(round(spread, 6), 0) + 1
    assert len(drawn) == 10 and sum(drawn.values()) == 900
    assert sum((count - 90) ** 2 / 90 for count in drawn.values()) < 27.9  # chi-squared, 9 degrees of freedom, 0.1%


def test_noise_is_a_function_of_the_seed():
    model, data = gpt(), batches(8)
    one, same, other = (gradient_noise(model, data, loss_of, coordinates=5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_too_few_batches_are_named():
    with pytest.raises(ValueError, match=r"^7 batches are too few to tell their noise from; give 8 or more\.$"):
        gradient_noise(gpt(), batches(7), loss_of)
    with pytest.raises(ValueError, match=r"^no batch to measure gradients on; give at least one\.$"):
        gradient_stats(gpt(), [], loss_of)
