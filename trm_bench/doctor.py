"""What this machine has: versions, devices, memory, disk, data; and whether it suffices."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trm_bench import environment
from trm_bench.estimates import memory_of, size

NEEDED = (
    *("torch", "monai", "nibabel", "nilearn", "numpy", "scipy", "pandas", "matplotlib"),
    *("optuna", "pydantic", "safetensors"),
)
# name to distribution, the extra that brings it, and what it is for
OPTIONAL = {
    "psycopg": ("psycopg", "export", "studies in PostgreSQL"),
    "optuna-dashboard": ("optuna-dashboard", "export", "pages over exported studies"),
    "nnU-Net": ("dynamic-network-architectures", "nnunet", "its networks"),
    "dask": ("distributed", "cluster", "several machines"),
    "SimpleITK": ("SimpleITK", "sitk", ".nrrd and .mha files"),
}
QUEUES = {"slurm": "sbatch", "lsf": "bsub", "pbs": "qsub"}  # of `cluster`, to their programs
LEAST_MEMORY, LEAST_DISK = 3 * 2**30, 2**30
DATA = "${TRM_DATA}/"


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    Attributes:
        name: Of what was looked for.
        here: What is here.
        verdict: `missing` is a fault, `optional` none.
    """

    name: str
    here: str
    verdict: Literal["ok", "missing", "optional"] = "ok"


def findings() -> Iterator[Finding]:
    """All that `trm-bench doctor` tells."""
    python = sys.version.split()[0]
    yield Finding("Python", python, "ok" if sys.version_info >= (3, 11) else "missing")
    for name in NEEDED:
        installed = environment.package_version(name)
        yield Finding(name, installed or "not installed", "ok" if installed else "missing")
    yield from _optional()
    yield from _devices()
    yield from _places()


def _optional() -> Iterator[Finding]:
    mlflow = environment.package_version("mlflow") or environment.package_version("mlflow-skinny")
    absent = "not installed: pip install mlflow (runs work without: --set tracking=off)"
    yield Finding("mlflow", mlflow or absent, "ok" if mlflow else "optional")
    for name, (package, extra, purpose) in OPTIONAL.items():
        installed = environment.package_version(package)
        absent = f"not installed: pip install 'trm-bench[{extra}]' ({purpose})"
        yield Finding(name, installed or absent, "ok" if installed else "optional")
    for name, program in QUEUES.items():
        if found := shutil.which(program):
            yield Finding(name, f"{found}: trm-bench cluster {name}", "ok")


def _devices() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        card = f"{torch.cuda.get_device_name(index)}, {size(memory_of(device))}"
        yield Finding(str(device), f"{card}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"PyTorch is built for CUDA {built} and finds no GPU"
            if built
            else "this PyTorch is built without it"
        )
        yield Finding("CUDA", f"{why}: trainings run on the CPU, one core each", "optional")
    yield Finding("cores", str(os.cpu_count()))
    memory = memory_of(torch.device("cpu"))
    yield Finding("memory", size(memory), "ok" if memory > LEAST_MEMORY else "missing")
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("disk here", f"{size(free)} free", "ok" if free > LEAST_DISK else "missing")


def _places() -> Iterator[Finding]:
    """Where data are looked for, and which of the bundled protocols' lie there."""
    root = os.environ.get("TRM_DATA")
    if not root:
        absent = "not set: where bundled protocols look for data (--phantom takes none)"
        yield Finding("TRM_DATA", absent, "optional")
        return
    there = Path(root).is_dir()
    yield Finding(
        "TRM_DATA", root if there else f"{root}: no such folder", "ok" if there else "optional"
    )
    for folder, protocols in _wanted().items():
        if (Path(root) / folder).is_dir():
            yield Finding("", f"{folder}: {', '.join(protocols)}")


def _wanted() -> dict[str, list[str]]:
    """Folder below TRM_DATA to the bundled protocols that read it."""
    from trm_bench.protocol import bundled, load_protocol

    wanted: dict[str, list[str]] = {}
    for name in bundled():
        for data in load_protocol(name).sets:
            if data.root.startswith(DATA):
                wanted.setdefault(data.root.removeprefix(DATA), []).append(name)
    return wanted
