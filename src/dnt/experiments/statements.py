"""What each placement sees: the paper's statements (arXiv 2507.17501, section 3) as measurements, and "too large".

Something is rescaled by s in a small GPT of random weights, and the singular values of a Jacobian are compared with
those at s = 1. A placement that hides a scale leaves all of them as they are.
"""
# T tokens, D width

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from dnt.analysis.jacobian import singular_values
from dnt.nn.calibrate import rescale
from dnt.nn.config import GPTConfig
from dnt.nn.gpt import GPT
from dnt.nn.layers import Block, Sublayer
from dnt.settings import ABLATED

STATED = (*ABLATED, "post-ln", "peri-ln")  # placements of the five norms of the paper alone
FACTORS = tuple(2.0**i for i in range(-3, 4))
MATRICES = {  # of the last block
    "W_1, W_2": ("mlp.1", "mlp.2"),
    "W_v, W_o": ("attn.v", "attn.o"),
    "W_q, W_k": ("attn.q", "attn.k"),
}
THINGS = ("x_0", "columns of X", *MATRICES)
SMALL = GPTConfig(vocab_size=64, context=8, depth=2, dim=32, heads=4, norm_eps=0.0, activation="relu")
AS_WIDE_AS = 768  # GPT-2 small: sigma_1 of a random matrix grows as the root of its width
COMPARED = 0.01  # of the largest: smaller singular values are not
ZERO = 1e-8  # of the largest: smaller ones may be rounding
TWICE = 2.0  # or half as large: when a change of sigma_1 is too large


@dataclass(frozen=True)
class Change:
    """What a factor does to the singular values sigma_i of a Jacobian.

    largest: sigma_1 over that at factor 1. change: the largest |ln(sigma_i / sigma_i at factor 1)| of those that are
    above 1% of sigma_1 at factor 1; 0 if the factor is not seen, above 10 if one of them is lost. condition: sigma_1
    over the smallest that is not 0. spread: standard deviation of ln sigma_i.
    """

    placement: str
    thing: str
    factor: float
    largest: float
    change: float
    condition: float
    spread: float


def statements(
    placements: Iterable[str] = STATED,
    factors: Sequence[float] = FACTORS,
    config: GPTConfig = SMALL,
    seed: int = 0,
) -> list[Change]:
    """Each placement x each of THINGS x each factor s, in float64; the config's placement is not used.

    x_0: the map e -> blocks(InputNorm(s e)), where e is the sum of embedding and position. columns of X: the map from
    the residual stream X to the attention branch N(f(N(X diag(s^u)))) of the last block, u random, -1 or 1 for each
    token. Two matrices, each times s: the map from the stream to their branch. The Jacobian is taken where random
    tokens lead, at the same point for every s. With eps = 0 what is hidden is hidden exactly. W_q, W_k, W_v and
    W_1 have about the largest singular value of those of a fresh GPT-2 small; trained ones are larger. With ReLU all
    that MidNorm is said to hide is hidden; config.activation "gelu" says how much of it is not then.
    """
    return [change for placement in placements for change in changes(placement, factors, config, seed)]


def changes(placement: str, factors: Sequence[float], config: GPTConfig, seed: int) -> Iterator[Change]:
    model, tokens_1T = example(replace(config, placement=placement), seed)
    for thing in THINGS:
        before = singular_values(*rescaled(model, tokens_1T, thing, 1.0))
        compared = before > COMPARED * before[0]
        for factor in factors:
            after = singular_values(*rescaled(model, tokens_1T, thing, factor))
            after, logs = after.clamp(min=ZERO * after[0]), after[after > ZERO * after[0]].log()
            yield Change(
                placement,
                thing,
                factor,
                largest=float(after[0] / before[0]),
                change=float((after / before)[compared].log().abs().max()),
                condition=float((logs[0] - logs[-1]).exp()),
                spread=float(logs.std()),
            )


@torch.no_grad()
def example(config: GPTConfig, seed: int) -> tuple[GPT, Tensor]:
    """In float64, with random tokens (1, T) for it to read; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(config).double().eval().requires_grad_(False)
        tokens_1T = torch.randint(config.vocab_size, (1, config.context))
    for parameter in model.blocks.parameters():
        if parameter.ndim == 2:
            parameter.mul_(math.sqrt(AS_WIDE_AS / config.dim))
    return model, tokens_1T


def rescaled(model: GPT, tokens_1T: Tensor, thing: str, factor: float) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A map in which the thing is multiplied by the factor, and the point (1, T, D) at which to look at it."""
    blocks = cast(list[Block], list(model.blocks))
    last = blocks[-1]
    x_0 = model.tokens(tokens_1T) + model.positions.weight[: tokens_1T.shape[1]]
    if thing == "x_0":
        stack = nn.Sequential(model.input_norm, *blocks)
        return lambda x_1TD: stack(factor * x_1TD), x_0
    stream_1TD = nn.Sequential(model.input_norm, *blocks[:-1])(x_0)
    if thing == "columns of X":
        signs_T1 = (
            torch.randint(2, (tokens_1T.shape[1], 1), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        )
        return lambda x_1TD: branch(last.attn, x_1TD * factor**signs_T1), stream_1TD
    other = deepcopy(model)
    rescale(other, {f"blocks.{len(blocks) - 1}.{name}": factor for name in MATRICES[thing]})
    changed = cast(Block, other.blocks[-1])
    if thing == "W_1, W_2":
        return lambda x_1TD: branch(changed.mlp, x_1TD), last.attn(stream_1TD)
    return lambda x_1TD: branch(changed.attn, x_1TD), stream_1TD


def branch(sublayer: Sublayer, x_1TD: Tensor) -> Tensor:
    return sublayer.mid(sublayer.f(sublayer.pre(x_1TD)))


def limits(rows: Iterable[Change]) -> tuple[float | None, float | None]:
    """From where on a scale is too small, and from where on too large: the largest s < 1 and the smallest s > 1 at
    which sigma_1 has doubled or halved; None if it never does. Rows of one placement and thing.

    Between two factors ln sigma_1 is taken as a straight line over ln s.
    """
    points = sorted((math.log(row.factor), abs(math.log(row.largest))) for row in rows)
    smaller = [(-at, change) for at, change in reversed(points) if at < 0]
    larger = [(at, change) for at, change in points if at > 0]
    below, above = reaches(smaller), reaches(larger)
    return None if below is None else math.exp(-below), None if above is None else math.exp(above)


def reaches(points: Iterable[tuple[float, float]]) -> float | None:
    """Where ln TWICE is first reached on the way from (0, 0)."""
    goal, from_at, from_change = math.log(TWICE), 0.0, 0.0
    for at, change in points:
        if change >= goal:
            return from_at + (at - from_at) * (goal - from_change) / (change - from_change)
        from_at, from_change = at, change
    return None


def cell(rows: Sequence[Change]) -> str:
    change = max(row.change for row in rows)
    low, high = (f"{limit:.2g}" if limit else "never" for limit in limits(rows))
    return "0" if change < 1e-6 else f"{change:.2g} ({low}, {high})"


def summary(rows: Sequence[Change]) -> list[dict[str, str]]:
    """In words, a row for each placement: dnt.report.inspection says how a cell is read."""
    things = list(dict.fromkeys(row.thing for row in rows))
    return [
        {"placement": placement}
        | {thing: cell([row for row in rows if (row.placement, row.thing) == (placement, thing)]) for thing in things}
        for placement in dict.fromkeys(row.placement for row in rows)
    ]
