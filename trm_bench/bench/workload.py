"""The network, the random volumes and the training that are timed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from trm_bench.bench.timing import Clock, busy
from trm_bench.data import prepared as volumes
from trm_bench.data.patches import SubjectStore
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.errors import UserError
from trm_bench.estimates import memory_of
from trm_bench.formats import autocast, resolved_precision
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.networks import training_bytes
from trm_bench.protocol.schema import (
    EvaluationConfig,
    NetworkConfig,
    TrainingConfig,
    VolumeConfig,
)
from trm_bench.runs import compute
from trm_bench.runs.config import RunConfig, RunDomain, RunMethod, Subjects
from trm_bench.training.loop import Curves, fitting

SUBJECTS = 4
NETWORK = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 1}
LABELS = LabelMap(("background", "ball"), {0: 0, 1: 1})
WHOLE = VolumeConfig(crop="none")
BYTES_OF_VOXEL = 64  # of the random volumes, while they are made and prepared


@dataclass(frozen=True)
class Workload:
    """What is timed, and how often.

    Attributes:
        device: Where.
        training: Its steps are those of a turn; precision is what `auto` means on the device.
        rounds: Every competitor has a turn in each.
        subjects: Random volumes somewhat larger than a patch, with a ball of foreground.
    """

    device: torch.device
    training: TrainingConfig
    rounds: int
    subjects: SubjectStore

    def config(self, **changes: object) -> TrainingConfig:
        """The training with other settings."""
        return self.training.model_copy(update=changes)


def training_of(
    device: torch.device, steps: int, batch: int, patch: Sequence[int]
) -> TrainingConfig:
    """The training that is timed.

    Raises:
        UserError: It is impossible here.
    """
    if len(patch) not in (2, 3) or any(n % 8 or n < 16 for n in patch):
        what = f"patch {list(patch)}: give two or three sizes, divisible by 8"
        raise UserError(what, "--patch", "for example 48,64,48")
    precision = resolved_precision(device, "auto")
    try:
        config = TrainingConfig(steps=steps, batch=batch, patch=tuple(patch), precision=precision)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = "--" + ".".join(map(str, problem["loc"] or ("batch",)))
        what = problem["msg"].removeprefix("Value error, ")
        raise UserError(what, where, "lower it") from error
    network = NetworkConfig.model_validate({"name": "UNet", **NETWORK})
    voxels = SUBJECTS * math.prod(_shape(config))
    needed = training_bytes(network, config, 1, 2) + voxels * BYTES_OF_VOXEL
    if needed > (available := memory_of(device)):
        what = f"memory does not suffice: {needed} bytes of {available} on {device}"
        raise UserError(what, "--patch, --batch", "lower them")
    return config


def _shape(config: TrainingConfig) -> tuple[int, ...]:
    return tuple(n + 8 for n in (*config.patch, 8)[:3])


def random_subjects(folder: Path, config: TrainingConfig, device: torch.device) -> SubjectStore:
    """The volumes of a `Workload`.

    Args:
        folder: Where their files lie.
        config: Names the patch.
        device: Where they live.
    """
    draws = np.random.default_rng(0)
    shape = _shape(config)
    ball = (radii(shape) < 0.5).astype(np.uint8)
    scans = [draws.normal(size=(1, *shape)).astype(np.float32) + ball for _ in range(SUBJECTS)]
    prepared = [
        save(folder / f"{i}.safetensors", Scan(image, ball, np.eye(4), ("image",)), WHOLE)
        for i, image in enumerate(scans)
    ]
    return SubjectStore(prepared, ("image",), LABELS, device)


def radii(shape: Sequence[int]) -> np.ndarray:
    """How far each voxel is from the middle, 1 at the middle of each face."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)
    return np.sqrt(sum(axis**2 for axis in grid))


def save(path: Path, scan: Scan, volume: VolumeConfig) -> volumes.Prepared:
    """Prepares a scan and writes it."""
    tensors, about = prepare_scan(scan, volume)
    return volumes.save(path, tensors, about | {"subject": path.stem, "files": {}})


def context(
    subjects: SubjectStore,
    training: TrainingConfig,
    device: torch.device,
    norm: str = "instance",
    network: NetworkConfig | None = None,
    method: str = "finetune",
) -> Context:
    """A run of a method on the random volumes, from a source network that is as random."""
    source = RunConfig(
        kind="source",
        data="phantom",
        dataset="bench",
        domain=RunDomain.of(("image",), "ball", subjects.label_map),
        volume=WHOLE,
        subjects=Subjects(train=(), val=()),
        network=network or NetworkConfig.model_validate({"name": "UNet", "norm": norm, **NETWORK}),
        training=training,
        evaluation=EvaluationConfig(),
        method=RunMethod(name="scratch"),
        seed=0,
        device="cuda" if device.type == "cuda" else "cpu",
        code="",
    )
    changes = {"kind": "run", "source": source, "same_task": True}
    config = source.model_copy(update={**changes, "method": RunMethod(name=method)})
    state = compute.build(source, device).state_dict()
    started = compute.source_of(config, state, device)
    run, _ = compute.start(config, started, lambda part: subjects, device)
    # how often a method validates does not depend on the number of steps
    return dataclasses.replace(run, validate=lambda network: 0.0)


def step_seconds(
    name: str,
    subjects: SubjectStore,
    config: TrainingConfig,
    device: torch.device,
    clock: Clock = busy,
) -> float:
    """Seconds of a step of a method's training, without its preparation (maps, statistics)."""
    norm = "batch" if name in ("stochnorm", "norm_tuning") else "instance"
    run = context(subjects, config, device, norm, method=name)
    method = create(name, {})
    method.check(run.network, run.parts)
    method.prepare(run)
    fit = fitting(run, method, Curves(looks=0))
    if config.compile:  # when the first step comes, under a training's settings or once more
        with autocast(device, config.precision, cache=False):
            method.loss(run, run.patches.batch(0)).backward()
    seconds = clock(device, lambda: method.train(run, fit))
    subjects.fields.clear()
    return seconds / config.steps
