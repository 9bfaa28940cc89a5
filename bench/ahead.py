"""What it brings to make the next batch of images while a step computes: one small ViT, trained with it and without.

python bench/ahead.py cifar10 --out bench/results/ahead.json
"""

import argparse
import json
import os
import platform
import re
import tempfile
from pathlib import Path
from statistics import median

import torch

import dnt
from dnt import loop
from dnt.data.ahead import ahead


def in_turn(items):
    """As `ahead`, but each is made when it is asked for."""
    yield from items


def images_per_s(data, way, steps: int, batch_size: int) -> float:
    """The median over the log, without its first row: it holds the compilation."""
    loop.ahead = way
    torch.manual_seed(0)
    of_data = {"classes": data.classes, "channels": data.channels, "image_size": data.image_size}
    model = dnt.vit("vit-tiny", placement="dnt", depth=6, patch_size=4, **of_data)
    optimizer = dnt.MSGDW(dnt.param_groups(model, weight_decay=1e-4), lr=0.1)
    options = {"steps": steps, "batch_size": batch_size, "warmup": 5, "eval_tokens": 64, "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        run = dnt.fit(model, data, optimizer, out=f"{folder}/run", **options)
        return median(row["images_per_s"] for row in run.rows("train")[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a name of image data, as for dnt.prepare_images")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3, help="of both ways in turn; the ratio is their median")
    parser.add_argument("--out", type=Path, default=Path("bench/results/ahead.json"))
    arguments = parser.parse_args()
    rows = []
    print(f"{'augmentation':14} {'in turn':>10} {'ahead':>10} {'ratio':>7}   images/s")
    for augment in ("flip-crop", "deit"):
        data = dnt.prepare_images(arguments.data, augment=augment)
        pairs = [
            [images_per_s(data, way, arguments.steps, arguments.batch_size) for way in (in_turn, ahead)]
            for _ in range(arguments.repeats)
        ]
        before, after = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(after / before for before, after in pairs)
        rows.append({"augmentation": augment, "in_turn": before, "ahead": after, "ratio": ratio, "pairs": pairs})
        print(f"{augment:14} {before:10,.0f} {after:10,.0f} {ratio:7.2f}", flush=True)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    machine = {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    machine |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    result = {"data": Path(arguments.data).name, "batch_size": arguments.batch_size, "machine": machine, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
