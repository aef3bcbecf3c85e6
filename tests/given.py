"""A small network in a checkpoint, and a scan of a few voxels on turned axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from helpers import CPU

from trm_bench import environment
from trm_bench.datasets.base import LabelMap
from trm_bench.protocol.schema import EvaluationConfig, NetworkConfig, TrainingConfig, VolumeConfig
from trm_bench.runs import compute
from trm_bench.runs.arrays import write_checkpoint
from trm_bench.runs.config import RunConfig, RunDomain, RunMethod, Subjects
from trm_bench.runs.records import Checkpoint

SHAPE = (12, 10, 14)
AFFINE = np.array([[0.0, -2, 0, 5], [1.5, 0, 0, -3], [0, 0, 1, 7], [0, 0, 0, 1]])  # axes turned


def config(**changes: Any) -> RunConfig:
    label_map = LabelMap(("background", "ball"), {0: 0, 1: 1})
    return RunConfig(
        kind="source",
        data="phantom",
        dataset="test",
        domain=RunDomain.of(("mri",), "ball", label_map),
        volume=VolumeConfig(spacing=(1.5, 1.5, 1.5), crop="brain"),
        subjects=Subjects(train=(), val=()),
        network=NetworkConfig.model_validate({"name": "UNet", "channels": [4, 8], "strides": [2]}),
        training=TrainingConfig(steps=1, patch=(16, 16, 16), precision="fp32"),
        evaluation=EvaluationConfig(),
        method=RunMethod(name="scratch"),
        seed=0,
        device="cpu",
        code="",
    ).model_copy(update=changes)


def weights(**changes: Any) -> dict[str, torch.Tensor]:
    return dict(compute.build(config(**changes), CPU).state_dict())


def checkpoint(path: Path, state: dict[str, torch.Tensor], **changes: Any) -> Path:
    made = config(**changes)
    about = Checkpoint(
        id=made.id, config=made, validation_dice=0.5, environment=environment.describe(CPU)
    )
    write_checkpoint(path, about, state)
    return path


def voxels() -> tuple[np.ndarray, np.ndarray]:
    """An image with an empty border, and a ball of labels 3 in 1 in 0."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    distance = np.linalg.norm(grid - np.array(SHAPE).reshape(3, 1, 1, 1) / 2, axis=0)
    label = np.where(distance < 2, 3, distance < 4).astype(np.uint8)
    image = np.random.default_rng(0).normal(100, 10, SHAPE) + 30 * label
    return (image * (distance < 5)).astype(np.float32), label


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path
