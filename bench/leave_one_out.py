"""Which matrices must be calibrated? The recipe with one kind of matrix left as it was initialized.

python bench/leave_one_out.py shakespeare.txt --runs runs/leave-one-out --out bench/results/leave-one-out.json

One rate, not tuned again for each row. Finished runs in --runs are not run again.
"""

import argparse
import json
from pathlib import Path

import torch

import dnt
from dnt.settings import VARIATIONS

KINDS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.1", "mlp.2")
LR, WEIGHT_DECAY = 0.3, 1e-3 / 0.3


def trained(data, spared: tuple[str, ...], seed: int, steps: int, out: Path) -> dict[str, float]:
    """The end of a run whose matrices were calibrated, but those spared."""
    torch.manual_seed(seed)
    model = dnt.gpt("gpt-tiny", placement="dnt", vocab_size=data.vocab_size)
    recipe = dict(VARIATIONS["calibrated"])
    rho = recipe.pop("calibrate")
    batches = [data.train.batch(seed, i, 64) for i in range(4)]
    if only := [kind for kind in KINDS if kind not in spared]:
        dnt.calibrate(model, batches, LR, rho, only)
    rates = {"embedding_rate": recipe.pop("embedding_rate"), "gain_rate": recipe.pop("gain_rate")}
    optimizer = dnt.MSGDW(dnt.param_groups(model, WEIGHT_DECAY, LR, **rates), LR, **recipe)
    options = {"steps": steps, "warmup": steps // 10, "eval_every": steps, "checkpoint_every": steps}
    done = (out / "config.json").exists()
    return dnt.fit(model, data, optimizer, seed=seed, out=out, resume=done, progress=False, **options).end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a text")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/leave-one-out"))
    parser.add_argument("--out", type=Path, default=Path("bench/results/leave-one-out.json"))
    arguments = parser.parse_args()
    data = dnt.prepare(arguments.data, "char")
    rows = []
    for spared in ((), *((kind,) for kind in KINDS), KINDS[:2], KINDS):
        name = "-".join(spared) or "none"
        ends = [
            trained(data, spared, seed, arguments.steps, arguments.runs / f"without-{name}-seed{seed}")
            for seed in arguments.seeds
        ]
        rows.append(
            {"spared": spared} | {split: [round(end[split], 4) for end in ends] for split in ("validation", "test")}
        )
        print(f"{name:40} {rows[-1]['validation']}", flush=True)
    report = {"data": Path(arguments.data).name, "steps": arguments.steps, "seeds": arguments.seeds, "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
