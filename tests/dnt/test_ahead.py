"""Batches made in a background thread: the same ones, the same errors, and nothing of the step's own randomness."""

import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import dnt
from dnt.data.ahead import ahead
from dnt.data.images import Images
from dnt.data.transforms import AFTER, Randomness
from tests.dnt.test_classify import fit, small_vit
from tests.dnt.test_train import same_weights


def test_the_next_item_is_made_while_this_one_is_used_and_never_a_third():
    made = [threading.Event() for _ in range(4)]

    def items():
        for i, event in enumerate(made):
            event.set()
            yield i, threading.get_ident()

    for i, thread in ahead(items()):
        assert thread != threading.get_ident()
        assert all(event.wait(10) for event in made[: i + 2]) and not any(event.is_set() for event in made[i + 2 :])
    assert i == 3 and list(ahead([])) == []


def test_an_error_is_raised_where_its_item_was_to_be_used():
    def items():
        yield 1
        raise ValueError("the second is broken.")

    got = []
    with pytest.raises(ValueError, match=r"^the second is broken\.$"):
        for item in ahead(items()):
            got.append(item)
    assert got == [1]


def test_a_run_stops_at_the_step_whose_batch_cannot_be_made(workplace, monkeypatch):
    data, real = dnt.prepare_images("digits"), Images.batch

    def batch(self, seed, step, *rest):
        if step == 3:
            raise ValueError("image 7 is gone.")
        return real(self, seed, step, *rest)

    monkeypatch.setattr(Images, "batch", batch)
    with pytest.raises(ValueError, match=r"^image 7 is gone\.$"):
        fit(small_vit(data), data, out="run", steps=6, batch_size=8, checkpoint_every=1)
    assert dnt.Run(workplace / "run").last_checkpoint()[0] == 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_a_run_is_bit_for_bit_the_one_whose_batches_are_made_in_turn(workplace, monkeypatch):
    """Dropout and drop-path draw from torch's generator while the next batch is augmented."""
    data = dnt.prepare_images("digits", augment="deit")
    options = {"steps": 8, "batch_size": 16, "eval_every": 3}
    fit(small_vit(data, dropout=0.1, drop_path=0.2), data, out="ahead", **options)
    monkeypatch.setattr("dnt.loop.ahead", iter)
    monkeypatch.setattr("dnt.loop.closing", nullcontext)
    fit(small_vit(data, dropout=0.1, drop_path=0.2), data, out="turn", **options)
    assert same_weights("ahead", "turn")


def test_torchvision_draws_what_it_would_from_the_global_generator():
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    transforms = [v2.RandomResizedCrop(12), v2.RandomCrop(12, padding=4), v2.RandomHorizontalFlip(), v2.RandAugment(2)]
    erase = v2.RandomErasing(0.5, value="random")
    for sample in range(40):
        varied = []
        before = torch.get_rng_state()
        with Randomness(5, sample, AFTER):
            for transform in transforms:
                varied.append(transform(image))
            varied.append(erase(image.float()))
        assert torch.equal(before, torch.get_rng_state()), "a function of torchvision's that is not in DRAWS"
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.SeedSequence([5, sample, AFTER]).generate_state(1, np.uint64)[0]))
            assert all(torch.equal(f(image), seen) for f, seen in zip(transforms, varied, strict=False))
            assert torch.equal(erase(image.float()), varied[-1])
