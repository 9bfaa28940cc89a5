"""What the numbers of an inspection say, in sentences to act on. No torch."""

from collections.abc import Iterator
from typing import Any

Rows = list[dict[str, Any]]
SHOWN = 5  # names in a sentence
NOTICED = 1e-3  # nats: a smaller change of the loss is what eps and rounding make of a scale that is hidden
PARTLY = {"MidNorm after the feed-forward": "hides that of W_2, and that of W_1 if the activation is relu"}


def findings(tables: dict[str, Rows]) -> list[str]:
    """Of the tables of dnt.analysis.diagnosis."""
    return [
        *carriers(tables["gradients"]),
        *tail(tables),
        *noisy(tables["noise"]),
        *hidden(tables["scales"]),
        *depth(tables),
    ]


def carriers(rows: Rows) -> Iterator[str]:
    """Which matrices carry the gradient."""
    roles = sorted((row for row in rows if row["level"] == "role"), key=lambda row: -row["norm_share"])
    parts = [row for row in rows if row["level"] == "part"]
    total = next(row for row in rows if row["level"] == "all")
    mattering = [row for row in roles[:4] if row["norm_share"] >= 0.005]  # 1% when it is rounded
    shares = ", ".join(f"{called(row['name'])} {row['norm_share']:.0%}" for row in mattering) or "no entry at all"
    largest = max(parts, key=lambda row: row["norm_share"])
    yield (
        f"The gradient's squared norm lies in {shares}. The parameter with most of it is {largest['name']} "
        f"({largest['norm_share']:.0%} of it, in {largest['count'] / total['count']:.1%} of the entries)."
    )
    yield (
        f"{total['top_share']:.0%} of the squared norm is in the largest 1% of the entries (8% of a normal law), and "
        f"the largest entry is {short(total['max_to_median'])} times the median."
    )
    if unused := [row["name"] for row in parts if row["zeros"] == row["count"]]:
        more = ", ..." if len(unused) > SHOWN else ""
        yield f"No gradient at all in {len(unused)} of {len(parts)} parameters: {', '.join(unused[:SHOWN])}{more}."


def tail(tables: dict[str, Rows]) -> Iterator[str]:
    """How heavy the tail of the blocks' matrices is, and whether unequal scales make it."""
    raw, divided = (index_of(tables["tails"], "blocks", "hill", how) for how in ("raw", "levelled"))
    if not raw or not divided:
        return
    verdict = "whether unequal scales make the tail heavier is not clear, since the intervals overlap"
    if divided["low"] > raw["high"]:
        verdict = "unequal scales make a part of the tail"
    elif divided["high"] < raw["low"]:
        verdict = "unequal scales hide a part of the tail"
    shares = next(row for row in tables["shares"] if row["name"] == "blocks")
    yield (
        f"The blocks' matrices together have a tail index (Hill) of {interval(raw)}, and of {interval(divided)} once "
        f"rows and columns of each are divided by their geometric means: {verdict}. Of the variance of log|g|, "
        f"{shares['parameters']:.0%} lies between matrices, {shares['rows']:.0%} between rows, {shares['columns']:.0%} "
        f"between columns, {shares['entries']:.0%} within."
    )


def noisy(rows: Rows) -> Iterator[str]:
    """How heavy-tailed the gradient's noise is from batch to batch."""
    if found := [row for row in rows if row["value"] is not None]:
        heaviest = min(found, key=lambda row: row["value"])
        listed = ", ".join(f"{called(row['role'])} {row['value']:.2f}" for row in found)
        yield (
            f"The noise of the gradient has an alpha-stable index of {interval(heaviest)} in "
            f"{called(heaviest['role'])}, where it is heaviest (2 is a normal law): {listed}."
        )
    if still := [called(row["role"]) for row in rows if row["value"] is None]:
        yield f"The noise of {', '.join(still)} hardly ever moves and has no index (noise.parquet says why)."


def hidden(rows: Rows) -> Iterator[str]:
    """Which position removes which dependence, where a model has a norm there (and none of the biases interferes)."""
    for row in rows:
        if not row["change"] < NOTICED:  # nan too
            yield (
                f"The loss sees the scale of {row['what']}: it changes by {short(row['change'])} nats at a factor of "
                f"{row['factor']:g}. {row['norm']} {PARTLY.get(row['norm'], 'is what hides it')}."
            )
    if unseen := [row["what"] for row in rows if row["change"] < NOTICED]:
        yield (
            f"The loss hardly sees the scale of {'; '.join(unseen)} (less than {NOTICED:g} nats): a norm hides it, or "
            "it is too small to matter."
        )


def depth(tables: dict[str, Rows]) -> Iterator[str]:
    """Where the stream or the Jacobians stretch."""
    blocks = [row for row in tables["jacobians"] if row["what"] == "block"]
    if blocks:
        worst = max(blocks, key=lambda row: row["largest"])
        end = next((row for row in tables["jacobians"] if row["what"] == "end to end"), None)
        through = f", the whole stack {short(end['largest'])}" if end else ""
        yield (
            f"Block {worst['layer']} stretches most: the largest singular value of its Jacobian is "
            f"{short(worst['largest'])}{through}."
        )
    stream = [row for row in tables["stream"] if row["what"] == "stream"]
    if len(stream) > 1:
        cosine = stream[-1]["of_x_0"]
        yield (
            f"The residual stream goes from an RMS of {short(stream[0]['mean'])} to {short(stream[-1]['mean'])}"
            f"{'' if cosine is None else f'; its cosine with x_0 is {cosine:.2f} at the end'}."
        )


def index_of(rows: Rows, name: str, index: str, how: str) -> dict[str, Any] | None:
    return next((r for r in rows if (r["name"], r["index"], r["how"]) == (name, index, how)), None)


def interval(index: dict[str, Any] | None) -> str:
    return f"{index['value']:.2f} [{index['low']:.2f}, {index['high']:.2f}]" if index else ""


def short(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def called(role: str) -> str:
    return f"W_{role}" if len(role) == 1 else role
