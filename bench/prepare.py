"""How fast a corpus becomes tokens, and in how much memory: each case in a process and a cache of its own.

python bench/prepare.py books --out bench/results/prepare.json
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = [("byte", 1), ("byte", 2), ("gpt2", 1), ("gpt2", 2), ("bpe:8192", 2)]
ONE = r"""
import json, re, sys, time
from dnt.data.text import prepare_text
begin, used = time.perf_counter(), time.process_time()
prepared = prepare_text(sys.argv[1], sys.argv[2], progress=False, threads=int(sys.argv[3]))
seconds, used = time.perf_counter() - begin, time.process_time() - used
peak = int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1]) * 1024  # Linux
print(json.dumps({"seconds": seconds, "cpu_seconds": used, "peak_bytes": peak, **prepared.describe()}))
"""


def measure(data: str, tokenizer: str, threads: int) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", ONE, data, tokenizer, str(threads)]
        out = subprocess.run(command, env=os.environ | {"DNT_CACHE": cache}, stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(out)
    tokens = sum(found["tokens"].values())
    return {
        "tokenizer": tokenizer,
        "threads": threads,
        "seconds": round(found["seconds"], 2),
        "cpu_seconds": round(found["cpu_seconds"], 2),
        "tokens": tokens,
        "tokens_per_s": round(tokens / found["seconds"]),
        "peak_MB": round(found["peak_bytes"] / 1e6),
        "sha256": found["sha256"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data name, as for dnt data")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts, since other work only slows down")
    parser.add_argument("--out", type=Path, default=Path("bench/results/prepare.json"))
    arguments = parser.parse_args()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    rows = []
    print(f"{'tokenizer':10} {'threads':>7} {'seconds':>8} {'CPU s':>7} {'tokens':>12} {'tokens/s':>12} {'peak MB':>8}")
    for tokenizer, threads in CASES:
        runs = [measure(arguments.data, tokenizer, threads) for _ in range(arguments.repeats)]
        row = min(runs, key=lambda run: run["seconds"])
        row |= {"seconds_of_all": [run["seconds"] for run in runs], "peak_MB": max(run["peak_MB"] for run in runs)}
        rows.append(row)
        print(
            f"{tokenizer:10} {threads:7} {row['seconds']:8.2f} {row['cpu_seconds']:7.2f} {row['tokens']:12,} "
            f"{row['tokens_per_s']:12,} {row['peak_MB']:8}",
            flush=True,
        )
    machine = {"cpu": cpu[1] if cpu else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()}
    result = {"data": Path(arguments.data).name, "machine": machine, "rows": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
