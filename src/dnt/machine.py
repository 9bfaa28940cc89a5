"""What this machine is and can do."""

import os
import platform
import resource
import shutil
import sys
import warnings
from typing import Any

import torch


def best_precision() -> str:
    """bf16-mixed where the hardware multiplies bfloat16 matrices (never by timing), else 32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32"


def can_compile() -> bool:
    """Whether torch.compile has the C++ compiler it needs on a CPU; a warning if not."""
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if torch.cuda.is_available() or any(shutil.which(name) for name in compilers if name):
        return True
    warnings.warn("no C++ compiler found (g++ or clang++): training runs eagerly, which is slower.", stacklevel=3)
    return False


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a measurement made here must state."""
    cpu = f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
