"""How fast images become training batches: every augmentation, in one process, from a cache that is warm.

python bench/images.py cifar10 --out bench/results/images.json
"""

import argparse
import json
import os
import platform
import re
import time
from pathlib import Path

import torch

import dnt


def measure(data: str, augment: str, batch_size: int, seconds: float) -> dict:
    prepared = dnt.prepare_images(data, augment=augment)
    prepared.train.batch(0, 0, batch_size)
    begin, used, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        steps += 1
        prepared.train.batch(0, steps, batch_size)
    elapsed, used = time.perf_counter() - begin, time.process_time() - used
    images = steps * batch_size
    return {
        "augmentation": augment,
        "images_per_s": round(images / elapsed),
        "images_per_cpu_s": round(images / used),
        "image_size": prepared.image_size,
        "sha256": prepared.describe()["sha256"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a name of image data, as for dnt.prepare_images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts, since other work only slows down")
    parser.add_argument("--out", type=Path, default=Path("bench/results/images.json"))
    arguments = parser.parse_args()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    rows = []
    print(f"{'augmentation':14} {'images/s':>10} {'per CPU s':>10}")
    for augment in dnt.AUGMENTATIONS:
        runs = [
            measure(arguments.data, augment, arguments.batch_size, arguments.seconds) for _ in range(arguments.repeats)
        ]
        row = max(runs, key=lambda run: run["images_per_s"])
        rows.append(row | {"images_per_s_of_all": [run["images_per_s"] for run in runs]})
        print(f"{augment:14} {row['images_per_s']:10,} {row['images_per_cpu_s']:10,}", flush=True)
    machine = {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    machine["torch"] = torch.__version__
    result = {"data": Path(arguments.data).name, "batch_size": arguments.batch_size, "machine": machine, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
