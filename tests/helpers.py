"""Subjects of a few voxels, and plans of the toy benchmark, for the tests of the numeric core."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toy
import yaml
from hypothesis import settings
from torch import Tensor

from trm_bench import pipeline
from trm_bench.data.patches import SubjectStore
from trm_bench.datasets.base import LabelMap
from trm_bench.display import Display
from trm_bench.protocol import parse
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.plan import Plan
from trm_bench.seals import BLANK, write_sealed

Run = Callable[..., tuple[int, str]]  # what the fixture `trm_bench` gives
CPU = torch.device("cpu")
THREE = LabelMap(("background", "core", "rim"), {0: 0, 1: 1, 2: 2})


def examples(number: int) -> settings:
    """Hypothesis settings: so many examples, the same ones every time, however slow the machine."""
    return settings(max_examples=number, deadline=None, derandomize=True)


@dataclass(frozen=True)
class InMemory:
    """What a store needs of a prepared subject, without a file."""

    subject: str
    image: Tensor
    label: Tensor
    brain: Tensor
    native: Tensor | None = None
    native_spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    diagonal: float = 10.0

    def load(self, modalities: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        return self.image, self.label, self.brain

    def native_label(self) -> Tensor:
        return self.label if self.native is None else self.native


def subject(seed: int, shape: Sequence[int], **given: Any) -> InMemory:
    """Random labels 0, 1, 2, a random brain, and normal noise; `given` replaces any of them."""
    draws = np.random.default_rng(seed)
    random = {
        "image": torch.from_numpy(draws.normal(0, 1, (1, *shape))).half(),
        "label": torch.from_numpy(draws.integers(0, 3, tuple(shape)).astype(np.uint8)),
        "brain": torch.from_numpy(draws.random(tuple(shape)) < 0.5),
    }
    return InMemory(**{"subject": f"subject-{seed}", **random, **given})


def store(*subjects: InMemory, label_map: LabelMap = THREE) -> SubjectStore:
    """A store of subjects in memory, on the CPU."""
    several: Any = subjects
    return SubjectStore(several, ["MR"], label_map, CPU)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the content of a sealed JSON or YAML file in place, and seals it again."""
    read = json.loads if path.suffix == ".json" else yaml.safe_load
    content = read(path.read_text())
    del content["sha256"]
    change(content)
    if path.suffix == ".json":
        write_sealed(path, json.dumps({**content, "sha256": BLANK}, indent=1))
    else:
        write_sealed(path, yaml.safe_dump(content, sort_keys=False) + f'sha256: "{BLANK}"\n')


def plan(root: Path, output: Path, device: torch.device = CPU, **changes: Any) -> Plan:
    """The plan of the toy protocol, its data prepared under `output`."""
    loaded = parse(toy.protocol(root, **changes), "test")
    folder = ResultsFolder(output).protocol(loaded.name)
    pool = LocalPool(device, 1)
    return pipeline.planned(loaded, folder, False, (), pool, 1, Display(quiet=True))[1]
