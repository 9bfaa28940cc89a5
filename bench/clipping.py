"""What can replace clipping by the global gradient norm, which momentum kept in the gradient cannot have?

python bench/clipping.py shakespeare.txt --runs runs/clipping --out bench/results/clipping.json

Every way at several rates on one seed; the best with clipping and the best without on fresh seeds too. Finished runs in
--runs are not run again.
"""

import argparse
import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.nn.utils import get_total_norm

import dnt
from dnt.files import write_json
from dnt.settings import VARIATIONS

DECAY = 1e-4  # lr x weight decay
TUNING_SEED = 1000


class StepBounded(dnt.MSGDW):
    """w -= lr m min(1, c / ||m||), the norm over all parameters."""

    def __init__(self, *arguments, most: float, **options):
        super().__init__(*arguments, **options)
        self.most = most

    @torch.no_grad()
    def step(self, closure=None):
        buffers = [s["momentum_buffer"] for s in self.state.values()]
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        momentum = self.param_groups[0]["momentum"]
        new = [momentum * m + g for m, g in zip(buffers, gradients, strict=True)] if buffers else gradients
        share = float((self.most / get_total_norm(new)).clamp(max=1))
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:  # of the step alone: the decay is that of the rate
            group["weight_decay"], group["lr"] = group["weight_decay"] / max(share, 1e-9), group["lr"] * share
        super().step()
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["weight_decay"], group["lr"] = group["weight_decay"] * max(share, 1e-9), rate


class Previous(dnt.MSGDW):
    """g min(1, c / ||g of the step before||)."""

    def __init__(self, *arguments, most: float, **options):
        super().__init__(*arguments, **options)
        self.most, self.norm = most, torch.tensor(0.0)

    @torch.no_grad()
    def step(self, closure=None):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        share = (self.most / self.norm).clamp(max=1)
        self.norm = get_total_norm(gradients)
        torch._foreach_mul_(gradients, share)
        super().step()


class Own(dnt.MSGDW):
    """Each parameter's g by its own norm: lr ||g|| <= c ||w|| (2102.06171, of whole parameters)."""

    def __init__(self, *arguments, most: float, **options):
        super().__init__(*arguments, **options)
        self.most = most

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim >= 2 and group["lr"]:
                    p.grad.mul_((self.most * p.norm() / (group["lr"] * p.grad.norm())).clamp(max=1))
        super().step()


@dataclass(frozen=True)
class Way:
    """How the steps are held back: clipped by the gradient's norm, or by one of the classes above, at `most`."""

    recipe: str  # plain, or calibrated: without Nesterov, which needs the gradient beside the momentum
    name: str
    most: float
    rates: tuple[float, ...]
    bound: float | None = None  # of the recipe, if not its own
    momentum: float = 0.9

    @property
    def label(self) -> str:
        bound = "" if self.bound is None else f"-bound{self.bound:g}"
        momentum = "" if self.momentum == 0.9 else f"-momentum{self.momentum:g}"
        return f"{self.recipe}-{self.name}{self.most:g}{bound}{momentum}"


RATES = (0.03, 0.1, 0.3)
WAYS = [
    Way("plain", "clipped", 1, RATES),
    Way("plain", "none", 0, RATES),
    *(Way("plain", "step", c, (0.1, 0.3, 1.0)) for c in (1, 3)),
    Way("plain", "previous", 1, RATES),
    Way("calibrated", "clipped", 1, (0.3,)),
    Way("calibrated", "none", 0, (0.1, 0.3, 0.5)),
    *(Way("calibrated", "step", c, (0.3,)) for c in (1, 3)),
    Way("calibrated", "previous", 1, (0.3,)),
    *(Way("calibrated", "own", c, (0.3,)) for c in (0.003, 0.01)),
    *(Way("calibrated", "none", 0, (0.3,), bound) for bound in (0.02, 0.05)),
    *(Way("calibrated", "none", 0, (0.3, 0.5), momentum=momentum) for momentum in (0.8, 0.7, 0.5)),
    Way("calibrated", "none", 0, (0.3,), 0.05, momentum=0.7),
    Way("calibrated", "step", 0.3, (0.3, 1.0)),
]
CLASSES = {"step": StepBounded, "previous": Previous, "own": Own}


def trained(corpus: str, steps: int, runs: Path, job: tuple[Way, float, int]) -> dict[str, float]:
    """The end of a run; infinite losses if it diverged."""
    way, lr, seed = job
    out = runs / f"{way.label}-lr{lr:g}-seed{seed}"
    data = dnt.prepare(corpus, "char")
    torch.manual_seed(seed)
    model = dnt.gpt("gpt-tiny", placement="dnt", vocab_size=data.vocab_size)
    rates, options, calibrate = {}, {"momentum": way.momentum}, 0.0
    if way.recipe == "calibrated":
        recipe = VARIATIONS["calibrated"]
        rates = {name: recipe[name] for name in ("embedding_rate", "gain_rate")}
        options["bound"] = recipe["bound"] if way.bound is None else way.bound
        calibrate = recipe["calibrate"]
    if way.name in CLASSES:
        options["most"] = way.most
    optimizer = CLASSES.get(way.name, dnt.MSGDW)(dnt.param_groups(model, DECAY / lr, lr, **rates), lr, **options)
    fit = partial(dnt.fit, model, data, optimizer, seed=seed, out=out, progress=False, steps=steps, warmup=steps // 10)
    clip = way.most if way.name == "clipped" else 0
    try:
        return fit(
            calibrate=calibrate,
            clip=clip,
            eval_every=steps,
            checkpoint_every=steps,
            resume=(out / "config.json").exists(),
        ).end
    except FloatingPointError:
        return {"validation": math.inf, "test": math.inf}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="fresh ones; none for no second part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/clipping"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/clipping.json"))
    arguments = parser.parse_args()
    train = partial(trained, arguments.data, arguments.steps, arguments.runs)
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        trials = [(way, lr, TUNING_SEED) for way in WAYS for lr in way.rates]
        losses = {}
        for (way, lr, _), end in zip(trials, pool.map(train, trials), strict=True):
            losses.setdefault(way, {})[lr] = end["validation"]
            print(f"{way.label:32} lr {lr:<6g} {end['validation']:.4f}", flush=True)
        best = {way: min(found, key=found.__getitem__) for way, found in losses.items()}
        kinds = {}  # with clipping and without, the best way alone is run again
        for way in sorted(WAYS, key=lambda way: losses[way][best[way]], reverse=True):
            if way.name in ("clipped", "none"):
                kinds[way.recipe, way.name] = way
        fresh = [(way, best[way], seed) for way in kinds.values() for seed in arguments.seeds]
        tests = {way: [] for way in WAYS}
        for (way, _, _), end in zip(fresh, pool.map(train, fresh), strict=True):
            tests[way].append(end["test"])
    rows = [
        {
            **{"recipe": way.recipe, "way": way.name, "most": way.most, "bound": way.bound, "momentum": way.momentum},
            **{"validation": losses[way], "lr": best[way], "test": tests[way]},
        }
        for way in WAYS
    ]
    for row in filter(lambda row: row["test"], rows):
        name = f"{row['recipe']} {row['way']} {row['most']:g} {row['bound']} {row['momentum']}"
        print(f"{name:36} lr {row['lr']:<6g} test {statistics.mean(row['test']):.4f}")
    report = {
        "data": Path(arguments.data).name,
        "steps": arguments.steps,
        "decay": DECAY,
        "seeds": arguments.seeds,
        "rows": rows,
    }
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
