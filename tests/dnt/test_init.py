import math

import pytest
import torch
from torch import nn

import dnt
from dnt.experiments.statements import STATED
from dnt.nn.init import initialize

SHAPE = {"vocab_size": 200, "context": 32, "depth": 3, "dim": 128, "heads": 4}


def build(**fields) -> dnt.GPT:
    torch.manual_seed(0)
    return dnt.GPT(dnt.GPTConfig(**SHAPE, **fields))


@pytest.mark.parametrize(
    ("placement", "init", "divided"),
    [("pre-ln", "dnt", True), ("pre-ln", "gpt2", True), ("dnt", "dnt", False), ("dnt", "gpt2", True)],
)
def test_last_matrices_of_branches_are_divided_by_sqrt_2_depth_unless_a_midnorm_follows(placement, init, divided):
    model = build(placement=placement, init=init, bias=True)
    for name, p in model.named_parameters():
        if p.ndim < 2:
            assert torch.equal(p, torch.full_like(p, 0.0 if name.endswith("bias") else 1.0)), name
        else:
            expected = 0.02 / math.sqrt(2 * 3) if name.endswith("out.weight") and divided else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(p.mean().item()) < 4 * expected / math.sqrt(p.numel())


def test_the_same_seed_draws_the_same_matrices_for_every_placement():
    models = [build(placement=p, init="gpt2") for p in STATED]
    first = dict(models[0].named_parameters())
    for model in models[1:]:
        for name, p in model.named_parameters():
            if p.ndim == 2:
                assert torch.equal(p, first[name])


def test_a_parameter_without_a_rule_is_an_error():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.known = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))
            self.blocks = nn.ModuleList()

    with pytest.raises(ValueError, match="no initialization rule for scale;"):
        initialize(Odd(), build().config)


def test_init_std_scales_every_matrix():
    small, large = build(init_std=0.02), build(init_std=0.06)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(b, a * 3 if a.ndim == 2 else a)
