"""What can be known without training: would a protocol run, are data sound, what has a machine?"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from trm_bench import environment, pipeline, prospects
from trm_bench.data.cohorts import find
from trm_bench.display import Display
from trm_bench.errors import BadSubject, UserError
from trm_bench.inputs import ensure_writable
from trm_bench.methods.registry import create
from trm_bench.preparing import open_sets
from trm_bench.protocol import Protocol
from trm_bench.protocol.transfers import in_play
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.plan import Plan


def check(
    protocol: Protocol, output: Path, stand_in: bool, device: torch.device, display: Display
) -> Iterator[tuple[str, str]]:
    """Does all that a run would, but train; yields what was found, as (name, text).

    Raises:
        UserError: At the first thing that would stop the run.
    """
    yield "schema", f"{protocol.name}: {len(protocol.methods)} methods, {len(protocol.seeds)} seeds"
    for index, chosen in enumerate(protocol.methods):
        create(chosen.name, chosen.parameters, f"methods.{index}")
    yield "methods", ", ".join(m.label for m in protocol.methods)
    folder = ResultsFolder(output).protocol(protocol.name)
    ensure_writable(output)
    with display:
        data, plan = pipeline.planned(protocol, folder, stand_in, (), device, 1, display)
    left_out = f", {len(data.left_out)} left out" if data.left_out else ""
    yield (
        "data",
        "; ".join(
            f"{cohort.dataset.name}: {len(cohort.subjects)} subjects readable and prepared"
            for cohort in data.cohorts.values()
        )
        + left_out,
    )
    parts = {part: len(members) for part, members in plan.runs[0].config.subjects.parts().items()}
    if plan.sources:
        parts["source"] = len(plan.sources[-1].config.subjects.train)
    sizes = ", ".join(f"{part} {size}" for part, size in parts.items())
    yield "split", f"{protocol.split.design}: {sizes}; no patient on two sides"
    done = sum(job.is_done() for job in (*plan.sources, *plan.runs))
    yield (
        "plan",
        f"{len(plan.sources)} source networks and {len(plan.runs)} runs, {done} of them done",
    )
    yield "power", prospects.line(prospects.of_plan(protocol, plan))
    needed = pipeline.check_networks(protocol, plan)
    subjects = _store_bytes(plan, data)
    available = memory_of(device)
    needs = f"about {_gib(needed)} a training step and {_gib(subjects)} of voxels"
    text = f"{needs}, of {_gib(available)} on {device}"
    if needed + subjects > available:
        raise UserError(
            f"memory does not suffice: {text}",
            "training",
            "lower batch or patch, or raise the spacing",
        )
    yield "memory", text


def _store_bytes(plan: Plan, data: pipeline.Data) -> int:
    """Voxels that the largest run keeps on the device.

    2 bytes a channel, 2 for label and mask, 4 for a weight map.
    """
    largest = 0
    for config in (job.config for job in plan.runs):
        per_voxel = 2 * len(config.domain.images) + 2 + 4
        members = (m for part in config.subjects.parts().values() for m in part)
        volumes = (find(data.cohorts, config.dataset, config.volume, *m) for m in members)
        voxels = sum(math.prod(volume.shape) for volume in volumes if volume)
        largest = max(largest, voxels * per_voxel)
    return largest


def memory_of(device: torch.device) -> int:
    """Bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def check_data(protocol: Protocol, display: Display) -> tuple[int, list[BadSubject]]:
    """Reads every subject of the real data.

    Returns:
        Number of usable subjects, and what is wrong with the others.

    Raises:
        UserError: The folder does not hold the dataset.
    """
    opened = open_sets(protocol, None, display)
    subjects = [
        (dataset, subject, in_play(protocol, data, dataset))
        for data, dataset in opened.items()
        for subject in dataset.subjects()
    ]
    bad = []
    with display, display.stage("reading subjects", len(subjects)) as stage:
        for dataset, subject, modalities in subjects:
            try:
                dataset.read(subject, modalities)
            except BadSubject as error:
                bad.append(error)
            stage.advance()
    return len(subjects) - len(bad), bad


def doctor() -> Iterator[tuple[str, str, bool]]:
    """Yields (name, what was found, whether it suffices)."""
    yield "Python", sys.version.split()[0], sys.version_info >= (3, 11)
    computing = ("torch", "monai", "nibabel", "nilearn", "numpy", "scipy", "pandas", "matplotlib")
    for name in (*computing, "optuna"):
        installed = environment.package_version(name)
        yield name, installed or "-", bool(installed)
    mlflow = environment.package_version("mlflow") or environment.package_version("mlflow-skinny")
    yield "mlflow", mlflow or "- (runs work without it: --set tracking=off)", True
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{properties.name}, {_gib(properties.total_memory)}", True
    if not torch.cuda.is_available():
        yield "GPU", "none: trainings run on the CPU, one core each", True
    yield "cores", str(os.cpu_count()), True
    memory = memory_of(torch.device("cpu"))
    yield "memory", _gib(memory), memory > 3 * 2**30
    free = shutil.disk_usage(Path.cwd()).free
    yield "disk here", f"{_gib(free)} free", free > 2**30
    root = os.environ.get("TRM_DATA")
    yield "TRM_DATA", root or "not set (needed by the bundled protocols, but for --phantom)", True
