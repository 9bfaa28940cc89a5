"""What this machine is and can do."""

import ctypes
import os
import platform
import resource
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

SIZES, GPU_SIZES, REPEATS = (1024, 2048, 4096), (4096, 8192), 3  # of the matrices that the peak is measured with


def best_precision() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 matrices (never by timing), else 32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32"


def can_compile() -> bool:
    """Whether torch.compile finds the compiler and the Python headers that it calls; a warning if not."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if not shutil.which(compiler):
        missing = f"no C++ compiler ({compiler})"
    elif not Path(sysconfig.get_path("include"), "Python.h").exists():
        missing = "no Python headers (Debian, Ubuntu: apt-get install python3-dev)"
    else:
        return True
    warnings.warn(f"{missing}: training runs eagerly, which is slower.", stacklevel=3)
    return False


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Sums in a fixed order on a CPU: with several threads the compiled gradient of an embedding has none else."""
    memory: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # it would only matter to a reader of what was never written
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        memory.fill_uninitialized_memory = before[1]


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, what a step frees the next one takes: glibc would give it back, and the kernel clear each page again.

    Else up to a fifth of a training step is page faults (docs/performance.md). Whoever tells glibc something else, by
    its environment variables, is obeyed.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or told:
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # their names in malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
    try:
        yield
    finally:  # the thresholds that glibc would have arrived at by itself
        libc.mallopt(mmap_max, 65536)
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 64 << 20)
        libc.malloc_trim(0)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a measurement made here must state."""
    cpu = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The most floating-point operations a second of a square matrix product here, with this many threads.

    The best of a few sizes: what a training step could reach if it were nothing else.
    """
    rates = []
    for n in GPU_SIZES if device.type == "cuda" else SIZES:
        a = torch.randn(n, n, device=device, dtype=dtype)
        out = a @ a  # warms up
        for _ in range(REPEATS):
            wait(device)
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            wait(device)
            rates.append(2 * n**3 / (time.perf_counter() - start))
    return max(rates)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):  # ru_maxrss would count what the parent held when it started this process
            return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
