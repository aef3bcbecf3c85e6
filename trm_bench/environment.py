"""The machine a run happens on: what is recorded of it, determinism, threads and memory."""

from __future__ import annotations

import os
import platform
import resource
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from trm_bench import __version__
from trm_bench.errors import UserError

PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "safetensors")
CPU_THREADS = 1  # of a training: sums run in the same order, so numbers do not depend on how many run side by side


def device_of(name: str) -> torch.device:
    """`auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: The name is not a device, or that device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"'{name}' is not a device", "--device", "choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"this machine has no {device}", "--device", "choose cpu; `trm-bench doctor` lists the devices")
    return device


def deterministic(device: torch.device) -> None:
    """Sets PyTorch to repeat itself bit for bit on a CPU, and as far as its kernels can on a GPU."""
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it starts
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; bf16 is what makes GPUs fast here
    # warn_only: trilinear upsampling and cross-entropy over volumes have no deterministic CUDA kernel
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")


@cache
def describe(device: torch.device) -> dict[str, Any]:
    """What a record says of the machine."""
    about: dict[str, Any] = {
        "trm-bench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": str(device),
    }
    if device.type == "cuda":
        index = device.index or 0
        major, minor = torch.cuda.get_device_capability(index)
        about |= {
            "device_name": torch.cuda.get_device_name(index),
            "compute_capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    else:
        about |= {"device_name": platform.processor() or platform.machine(), "threads": CPU_THREADS}
    return about


def package_version(name: str) -> str:
    """The installed version, or "" where the package is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def reset_peak_memory(device: torch.device) -> None:
    """Starts the count of peak memory anew, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at most: of the GPU's tensors since `reset_peak_memory`; on a CPU of this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
