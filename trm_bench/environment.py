"""The machine a run happens on: what a record says of it, its devices and its memory."""

from __future__ import annotations

import platform
import re
import resource
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from trm_bench import __version__
from trm_bench.errors import UserError
from trm_bench.seeds import CPU_THREADS

# What a processor says of itself that bears on a training: Linux' names on x86 and on ARM.
CPUINFO = Path("/proc/cpuinfo")
FLAGS = re.compile(r"avx2|avx512f|avx512_(bf16|fp16)|amx_(bf16|tile)|fma|sve2?|bf16|svebf16")
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel", "safetensors")


class Environment(BaseModel):
    """What a record says of the machine.

    Attributes:
        trm_bench: Version of this package.
        python: Version.
        platform: Operating system.
        packages: Name to version, of those that can change a number, and in a record of those that
            brought its method and its data set.
        device: cpu, or cuda:N.
        device_name: As the maker calls it.
        flags: Of a processor, of `FLAGS`: with other instructions sums come in another order.
        threads: Of a training on a CPU.
        compute_capability: Of a GPU, with `cuda` and `cudnn`, the versions that ran there.
    """

    model_config = ConfigDict(frozen=True)
    trm_bench: str
    python: str
    platform: str
    packages: dict[str, str]
    device: str
    device_name: str
    flags: tuple[str, ...] = ()
    threads: int | None = None
    compute_capability: str = ""
    cuda: str = ""
    cudnn: str = ""


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
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        fix = "choose cpu; `trm-bench doctor` lists the devices"
        raise UserError(f"this machine has no {device}", "--device", fix)
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether a device of this machine computes in bfloat16 by itself."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@cache
def processor() -> tuple[str, tuple[str, ...]]:
    """Name and flags; where the system does not tell, what Python knows, and none."""
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.is_file() else ""
    said: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    flags = (said.get("flags") or said.get("Features") or "").split()
    return name, tuple(flag for flag in flags if FLAGS.fullmatch(flag))


@cache
def describe(device: torch.device) -> Environment:
    """The machine, seen from a device."""
    about: dict[str, Any] = {
        "trm_bench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: package_version(name) for name in PACKAGES},
        "device": str(device),
    }
    if device.type == "cuda" and torch.cuda.is_available():  # maybe not where runs are given out
        index = device.index or 0
        major, minor = torch.cuda.get_device_capability(index)
        about |= {
            "device_name": torch.cuda.get_device_name(index),
            "compute_capability": f"{major}.{minor}",
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
        }
    elif device.type == "cpu":
        name, flags = processor()
        about |= {"device_name": name, "flags": flags, "threads": CPU_THREADS}
    return Environment.model_validate(about)


def package_version(name: str) -> str:
    """The installed version, or "" where the package is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def reset_peak_memory(device: torch.device) -> None:
    """Starts the count of peak memory again, where the device can."""
    if device.type == "cuda":
        torch.cuda.init()  # a process that has not used the GPU yet has no count
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes at most: of a GPU's tensors since `reset_peak_memory`, or of this process on a CPU.

    On Linux that is the kernel's high-water mark of this program (VmHWM). Elsewhere it is
    getrusage's, which in a child process also holds the peak of its parent, from before exec.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
