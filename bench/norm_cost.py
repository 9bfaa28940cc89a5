"""What DNT's extra norms cost: the step time of dnt over that of pre-ln, same model, same optimizer, in turn.

python bench/norm_cost.py --out bench/results/norm-cost.json
"""

import argparse
from pathlib import Path

import torch

import dnt
from dnt.files import write_json
from dnt.machine import best_precision

GPU = torch.cuda.is_available()
SHAPES = {  # what gpt2-small and vit-small train on here
    "gpt2-small": {"context": 1024, "batch_size": 16} if GPU else {"context": 256, "batch_size": 4},
    "vit-small": {"batch_size": 128 if GPU else 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--optimizer", default="msgdw")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps-per-round", type=int, default=3)
    parser.add_argument("--depth", type=int, help="blocks, if not the size's own: to try it")
    parser.add_argument("--out", type=Path, default=Path("bench/results/norm-cost.json"))
    arguments = parser.parse_args()
    found, ratios = [], []
    for model in arguments.models:
        for precision in dict.fromkeys((best_precision(), "32")):
            result = dnt.benchmark(
                model=model,
                placements=("pre-ln", "dnt"),
                optimizers=(arguments.optimizer,),
                precisions=(precision,),
                rounds=arguments.rounds,
                steps_per_round=arguments.steps_per_round,
                depth=arguments.depth,
                **SHAPES[model],
            )
            found.append(result.as_json())
            ratios.append(f"{model:12} {precision:12} {result.rows()[1]['to_first']:8.3f}")
    print(f"{'model':12} {'precision':12} {'dnt / pre-ln, step time':>8}", *ratios, sep="\n")
    write_json(arguments.out, found)


if __name__ == "__main__":
    main()
