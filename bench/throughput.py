"""Tokens a second of our training step, and of one in the style of nanoGPT, at three sizes; all in turn.

python bench/throughput.py --out bench/results/throughput.json

The peer is written here from the architecture alone: GPT-2 without biases, LayerNorm before each branch, a tied head,
autocast, clipping at 1, torch's fused AdamW. On a CPU it has its four settings, on a GPU the fastest: bf16, compiled.
One more row says what the fastest gains if it keeps freed memory as dnt.fit does (dnt.machine.kept_memory).
"""
# B batch, T tokens, D width, H heads

import argparse
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnt.data.noise import random_text
from dnt.experiments.alternate import Measure, alternate
from dnt.experiments.benchmark import show, ways
from dnt.experiments.steps import DTYPES, config_of, timed_steps
from dnt.files import write_json
from dnt.machine import describe_machine, kept_memory, matmul_flops, wait
from dnt.nn.flops import training_flops
from dnt.report.measured import Measured, paired_ratio
from dnt.settings import BenchSettings

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Shape:
    depth: int
    dim: int
    heads: int
    context: int
    batch_size: int
    vocab_size: int


SHAPES = {
    "0.8M": Shape(depth=4, dim=128, heads=4, context=64, batch_size=64, vocab_size=65),
    "11M": Shape(depth=6, dim=384, heads=6, context=256, batch_size=8, vocab_size=2048),
    "124M": Shape(depth=12, dim=768, heads=12, context=256, batch_size=2, vocab_size=50257),
}
if DEVICE.type == "cuda":
    SHAPES = {"124M": Shape(depth=12, dim=768, heads=12, context=1024, batch_size=16, vocab_size=50257)}
SHAPES["tiny"] = Shape(depth=1, dim=32, heads=2, context=16, batch_size=4, vocab_size=65)  # to try it
OURS: dict[str, dict[str, Any]] = {
    "dnt + msgdw": {},  # as `dnt train` does it
    "dnt + msgdw, 32": {"precisions": ("32",)},
    "pre-ln + adamw": {"placements": ("pre-ln",), "optimizers": ("adamw",)},
}
PEERS = {
    f"peer, {precision}, {'compiled' if compiled else 'eager'}": (precision, compiled)
    for precision in ("32", "bf16-mixed")
    for compiled in (False, True)
    if DEVICE.type == "cpu" or (precision, compiled) == ("bf16-mixed", True)
}


KEPT = "peer, bf16-mixed, compiled, memory kept"  # not one of its settings: what it would gain by ours


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        D = shape.dim
        self.heads = shape.heads
        self.norm_1, self.norm_2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm_1(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Peer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(shape.vocab_size, shape.dim), nn.Embedding(shape.context, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.dim, bias=False)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x = self.tokens(tokens_BT) + self.positions(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets_BT.flatten())


def peer_steps(
    shape: Shape, precision: str, compiled: bool, steps: int, kept: bool = False
) -> tuple[Measure, Callable[[], dict[str, Any]]]:
    """A round is so many steps, and the loss read once after them; seconds a step."""
    torch.manual_seed(0)
    resources = ExitStack()
    if kept:
        resources.enter_context(kept_memory(DEVICE))
    model = Peer(shape).to(DEVICE)
    decayed, others = ([p for p in model.parameters() if (p.ndim == 2) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(random_text(shape.vocab_size, shape.context).train.tokens.astype("int64"))
    autocast = torch.autocast(DEVICE.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    loss_of = torch.compile(model) if compiled else model

    def step() -> Tensor:
        starts = torch.randint(len(tokens) - shape.context - 1, (shape.batch_size,)).tolist()
        x, y = (torch.stack([tokens[i + shift : i + shift + shape.context] for i in starts]) for shift in (0, 1))
        if DEVICE.type == "cuda":
            x, y = (t.pin_memory().to(DEVICE, non_blocking=True) for t in (x, y))
        with autocast:
            loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def measure() -> dict[str, float]:
        wait(DEVICE)
        start = perf_counter()
        for _ in range(steps):
            loss = step()
        float(loss)  # waits for a GPU
        return {"step": (perf_counter() - start) / steps}

    for _ in range(2):  # the first compiles
        step()

    def end() -> dict[str, Any]:
        resources.close()
        return {"matmul_flops": matmul_flops(DEVICE, DTYPES[precision[:2]])}

    return measure, end


def compared(shape: Shape, names: list[str], rounds: int, steps: int) -> tuple[list[dict[str, Any]], str, float]:
    """A row of each; the fastest setting of the peer, and how many times as fast as it our own step is."""
    builds: dict[str, Any] = {}
    precisions: dict[str, str] = {}
    with TemporaryDirectory() as folder:
        for name in names:
            if name in OURS:
                [(cell, threads)] = ways(BenchSettings(model="gpt-tiny", **vars(shape), **OURS[name]))
                precisions[name] = cell.precision
                builds[name] = partial(timed_steps, cell, Path(folder, name), threads, steps)
            else:
                precisions[name], compiled = PEERS.get(name, ("bf16-mixed", True))
                builds[name] = partial(peer_steps, shape, precisions[name], compiled, steps, name == KEPT)
        found = alternate(builds, rounds, show=partial(show, rounds))
    flops = shape.batch_size * training_flops(config_of(cell))  # of all: they differ in what is not counted
    peaks: dict[str, float] = {}
    for name, precision in precisions.items():
        peaks[precision] = max(peaks.get(precision, 0.0), found[name].end["matmul_flops"])
    rows = [row(shape, name, precisions[name], of, flops, peaks[precisions[name]]) for name, of in found.items()]
    best = min((name for name in names if name in PEERS), key=lambda name: found[name].median("step"))
    return rows, best, paired_ratio(found[best], found[next(iter(OURS))], "step")


def row(shape: Shape, name: str, precision: str, found: Measured, flops: int, peak: float) -> dict[str, Any]:
    seconds = found.median("step")
    return {
        "what": name,
        "precision": precision,
        "tokens_per_s": shape.batch_size * shape.context / seconds,
        "flops_per_s": flops / seconds,
        "matmul_flops": peak,
        "share_of_matmul": flops / seconds / peak,
        "rounds": [one["step"] for one in found.rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", choices=list(SHAPES), default=[name for name in SHAPES if name != "tiny"]
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--steps-per-round", type=int, default=10, help="as many as a training has between two rows of its log"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results/throughput.json"))
    arguments = parser.parse_args()
    report = {"machine": describe_machine(DEVICE), "shapes": {}}
    for size in arguments.shapes:
        shape = SHAPES[size]
        names = [*OURS, *arguments.peers, KEPT]
        rows, best, ratio = compared(shape, names, arguments.rounds, arguments.steps_per_round)
        report["shapes"][size] = {"shape": vars(shape), "rows": rows, "best_peer": best, "ours_over_best_peer": ratio}
        print(f"\n{size:28} {'tokens/s':>10} {'GFLOP/s':>10} {'of matmul':>10}")
        for found in rows:
            gflops = found["flops_per_s"] / 1e9
            print(f"{found['what']:28} {found['tokens_per_s']:10,.0f} {gflops:10,.0f} {found['share_of_matmul']:10.0%}")
        print(f"{next(iter(OURS))} is {ratio:.2f} times as fast as {best}, round by round", flush=True)
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
