"""Everything that this package measures of one model at one moment, as tables: lists of plain rows.

gradients   of every part, of each role, of the matrices of all blocks, of all: dnt.analysis.gradients
tails       indices of each role and of the blocks' matrices, raw, levelled and unscaled
shares      of the variance of log|g|: between parameters, rows, columns, entries
noise       the alpha-stable index of the gradient's noise, of each role
scales      what the loss sees of scales that a norm would hide
jacobians   singular values of blocks, branches and all blocks together
weights     singular values of every matrix, and of W_q^T W_k
stream      the residual stream and its branches by depth
attention   the entropy of every head
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dnt.analysis.activations import attention_entropies, residual_norms
from dnt.analysis.anatomy import blocks, captured, parts, streams
from dnt.analysis.dependence import scale_dependence
from dnt.analysis.gradients import LOWEST, PER_DECADE, Entries, GradientStats, gradient_noise, mean_gradient, stats_of
from dnt.analysis.jacobian import EXACT, model_jacobians
from dnt.analysis.spectra import step_sizes, weight_spectra
from dnt.analysis.tails import ENOUGH, LEAST_BATCHES, Index, alpha_stable, tail_indices

BLOCKS = "blocks"  # the matrices of all blocks together
LISTS = ("singular_values", "heads")  # and the histograms of single parts
FEWEST = 8  # tokens, over which a Jacobian says something of attention

Rows = list[dict[str, Any]]


def diagnose(
    model: nn.Module,
    batches: Iterable[Sequence[Any]],
    loss_fn: Callable[..., Tensor],
    *,
    noise: Sequence[Sequence[Any]] = (),
    jacobians: bool = True,
    tokens: int = 64,
    singular_values: int = 16,
    exact: int = EXACT,
    entries: int = 200_000,
    resamples: int = 100,
    brief: bool = False,
    show: Callable[[str], None] = lambda name: None,
) -> dict[str, Rows]:
    """The tables, by name, of a model in evaluation mode; loss_fn(model, *batch) -> scalar.

    The gradient is that of the mean loss over the batches, all else is of the first. A model without one residual
    stream through all of its blocks has no scales, Jacobians or stream. noise: 64 or more batches, of whose gradients
    the noise is taken. jacobians: over `tokens` of the first sample, or fewer if of at most `exact` inputs all singular
    values can be had; where those are fewer than FEWEST, the largest singular_values alone. entries: that tails are
    estimated from. resamples: of their intervals. brief: without lists of singular values, and without histograms of
    single parts. show: is told of each table before it is made.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("no batch to diagnose a model on; give at least one.")
    show("gradients")
    loss, gradients = mean_gradient(model, batches, loss_fn)
    first = batches[0]

    def run(batch: Sequence[Any] = first) -> Any:
        with torch.no_grad():
            return loss_fn(model, *batch)

    flat = has_one_stream(model, run)
    tables: dict[str, Rows] = {"gradients": gradient_rows(stats_of(model, loss, gradients))}
    show("tails")
    tables |= tail_rows(model, gradients, entries, resamples)
    del gradients
    others: dict[str, Callable[[], Rows]] = {
        "noise": lambda: noise_rows(model, noise, loss_fn) if noise else [],
        "scales": lambda: scale_dependence(model, first, loss_fn) if flat else [],
        "jacobians": lambda: (
            jacobian_rows(model, run, first, tokens, singular_values, exact) if jacobians and flat else []
        ),
        "weights": lambda: weight_rows(model),
        "stream": lambda: [asdict(row) for row in residual_norms(model, run)] if flat else [],
        "attention": lambda: [asdict(row) for row in attention_entropies(model, run)],
    }
    for name, make in others.items():
        show(name)
        tables[name] = make()
    if brief:
        return {name: [without_lists(row) for row in rows] for name, rows in tables.items()}
    return tables


def has_one_stream(model: nn.Module, run: Callable[[], Any]) -> bool:
    """Whether one (B, T, D) passes all of its blocks: not in convolutional nets, nor in those of several stages, nor
    where two streams lie in one tensor.
    """
    stack = [block for _, block in blocks(model)]
    calls = captured(stack, run)
    entering = [next(iter((*args, *kwargs.values())), None) for args, kwargs in calls.values()]
    shapes = {tuple(x.shape) if isinstance(x, Tensor) else () for x in entering}
    alike = len(calls) == len(stack) and len(shapes) == 1 and len(shapes.pop()) == 3
    return bool(stack) and alike and all(streams(block) == 1 for block in stack)


def gradient_rows(stats: GradientStats) -> Rows:
    levels = {"part": stats.parts, "role": stats.roles, BLOCKS: {BLOCKS: stats.blocks}, "all": {"all": stats.total}}
    whole = square_sum(stats.total)
    return [
        {"level": level, "name": name}
        | asdict(entries)
        | {
            "histogram": list(entries.histogram),
            "lowest_decade": LOWEST,
            "bins_per_decade": PER_DECADE,
            "zero_share": entries.zeros / entries.count if entries.count else 0.0,
            "norm_share": square_sum(entries) / whole if whole else 0.0,
        }
        for level, found in levels.items()
        for name, entries in found.items()
        if entries.count
    ]


def square_sum(entries: Entries) -> float:
    return entries.rms**2 * (entries.count - entries.zeros)


def tail_rows(model: nn.Module, gradients: Mapping[nn.Parameter, Tensor], most: int, resamples: int) -> dict[str, Rows]:
    """Of each role with entries enough, and of the blocks' matrices together."""
    by_name: dict[str, list[Tensor]] = {BLOCKS: []}
    for part in parts(model):
        matrix = part.matrix(gradients[part.parameter])
        by_name.setdefault(part.role, []).append(matrix)
        if part.of_block:
            by_name[BLOCKS].append(matrix)
    found: dict[str, Rows] = {"tails": [], "shares": []}
    for name, matrices in by_name.items():
        if sum(matrix.numel() for matrix in matrices) < ENOUGH:
            continue
        tails = tail_indices(matrices, most, resamples)
        found["shares"].append({"name": name} | asdict(tails.shares))
        for how in ("raw", "levelled", "unscaled"):
            for index in getattr(tails, how):
                row = asdict(index)
                found["tails"].append({"name": name, "index": row.pop("name"), "how": how} | row)
    return found


def noise_rows(model: nn.Module, batches: Sequence[Sequence[Any]], loss_fn: Callable[..., Tensor]) -> Rows:
    """The alpha-stable index, 2 for a normal law, over the coordinates of each role; why, where there is none."""
    if len(batches) < LEAST_BATCHES:
        raise ValueError(f"noise is of {len(batches)} batches; its index needs {LEAST_BATCHES} or more (better 64).")
    by_role: dict[str, list[Tensor]] = {}
    samples = gradient_noise(model, batches, loss_fn)
    for part in parts(model):
        if samples[part.name].shape[1]:
            by_role.setdefault(part.role, []).append(samples[part.name])
    rows: Rows = []
    for role, noises in by_role.items():
        try:
            rows.append({"role": role, "why": None} | asdict(alpha_stable(torch.cat(noises, dim=1))))
        except ValueError as error:  # of a role that hardly ever moves
            rows.append({"role": role, "why": str(error)} | dict.fromkeys(field.name for field in fields(Index)))
    return rows


def jacobian_rows(
    model: nn.Module, run: Callable[[Sequence[Any]], Any], batch: Sequence[Any], tokens: int, k: int, exact: int
) -> Rows:
    """Of the first sample alone; a sequence of tokens is cut to those that are looked at, which is faster."""
    _, first = blocks(model)[0]
    args, kwargs = captured([first], partial(run, beginning(batch, tokens)))[first]
    width = (args[0] if args else next(iter(kwargs.values()))).shape[-1]
    how: dict[str, Any] = {"tokens": tokens, "k": k}
    if exact // width >= FEWEST:
        how = {"tokens": min(tokens, exact // width), "exact": exact}
    return [
        {"layer": row.layer, "what": row.what} | asdict(row.spread) | {"singular_values": row.singular_values.tolist()}
        for row in model_jacobians(model, partial(run, beginning(batch, how["tokens"])), **how)
    ]


def beginning(batch: Sequence[Any], tokens: int) -> list[Any]:
    """The first sample, and of sequences of token ids (B, T) its first tokens."""

    def of(part: Any) -> Any:
        if not isinstance(part, Tensor) or part.ndim == 0:
            return part
        is_sequence = part.ndim == 2 and not part.is_floating_point()
        return part[:1, :tokens] if is_sequence else part[:1]

    return [of(part) for part in batch]


def weight_rows(model: nn.Module) -> Rows:
    rows = []
    for found in weight_spectra(model):
        spread = asdict(found.spread)
        rows.append(
            {"name": found.name, "role": found.role, "layer": found.layer, "norm": found.norm}
            | {name: spread[name] for name in ("largest", "condition", "effective_rank", "stable_rank", "log_spread")}
            | {"heads": list(found.heads), "singular_values": found.singular_values.tolist()}
        )
    return rows


def step_rows(model: nn.Module, before: Mapping[str, Tensor]) -> Rows:
    """By how much of each matrix the steps since `before` have moved it."""
    return [asdict(row) for row in step_sizes(before, model)]


def without_lists(row: dict[str, Any]) -> dict[str, Any]:
    left_out = (*LISTS, "histogram") if row.get("level") == "part" else LISTS
    return {name: value for name, value in row.items() if name not in left_out}
