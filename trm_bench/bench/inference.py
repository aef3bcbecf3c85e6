"""Whole volumes by sliding windows, and their scores, beside the network alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from trm_bench.bench.bare import Kind, as_a_script
from trm_bench.bench.timing import Row, Section, Timed, in_turns, wall
from trm_bench.bench.workload import LABELS, Workload, context, radii, save
from trm_bench.data.patches import SubjectStore
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import Scan
from trm_bench.display import Display
from trm_bench.formats import autocast
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import EvaluationConfig, Metric, OptimizerConfig, VolumeConfig
from trm_bench.training import evaluation
from trm_bench.training.loop import Curves, fitting

SUBJECTS = 3
COARSER = 1.5  # the voxels that the network sees, mm; a scan's own have 1 mm
VOLUME = VolumeConfig(spacing=(COARSER,) * 3)
LEARNING = 40  # steps: masks of a network that has learned nothing have surfaces everywhere
BARE, WITH_DICE = "bare network", "ours, with Dice"


def measure(workload: Workload, folder: Path, display: Display) -> Section:
    """Times the network on all windows of a subject, our prediction of it, and its scores.

    Args:
        workload: Names patch and precision; a scan has three patches along each axis.
        folder: For the prepared volumes.
        display: Where progress is shown.
    """
    device, evaluated = workload.device, EvaluationConfig()
    config, rounds = workload.training, workload.rounds
    with display.phase("preparing volumes and a network for inference"):
        scans = _scans(workload)
        files = [save(folder / f"{i}.safetensors", s, VOLUME) for i, s in enumerate(scans)]
        store = SubjectStore(files, ("image",), LABELS, device)
        run = _taught(store, workload)
    network = run.network.eval()
    windows = _windows(run, store, evaluated)

    def of_subject(work: Callable[[], object]) -> float:
        return wall(device, work) / len(store)

    def predict() -> None:
        for i in range(len(store)):
            evaluation.predict(network, store.volume(i)[0], config, evaluated)

    def score(*metrics: str) -> dict[str, dict[str, dict[str, float]]]:
        return evaluation.score_subjects(network, store, metrics, config, evaluated)

    def prepare() -> None:
        for scan in scans:
            prepare_scan(scan, VOLUME)

    works: dict[str, Timed] = {
        "preparation": partial(of_subject, prepare),
        BARE: partial(of_subject, partial(_bare, run, windows)),
        "ours": partial(of_subject, predict),
        WITH_DICE: partial(of_subject, partial(score, "dice")),
        "ours, with all metrics": partial(of_subject, partial(score, *get_args(Metric))),
    }
    with display.stage("timing inference", (rounds + 1) * len(works)) as stage:
        for work in works.values():
            work()
            stage.advance()
        times = in_turns(works, rounds, stage.advance)
    scores = [regions["ball"]["dice"] for regions in score("dice").values()]
    note = (
        f"Time that passes; {config.precision}, windows of {_by(config.patch)} over "
        f"{_by(store.shapes[0])} voxels of {COARSER} mm, scored on a scan of "
        f"{_by(store.prepared[0].native_label().shape)} voxels of 1 mm; mean Dice "
        f"{float(np.mean(scores)):.2f}. `ratio` is to the network on the same windows."
    )
    rows = tuple(Row(name, own) for name, own in times.items())
    return Section("whole volumes", "subject", rows, BARE, note)


def _by(shape: Any) -> str:
    return "x".join(map(str, shape))


def _scans(workload: Workload) -> list[Scan]:
    """A head in air, with a bright ball in it, and noise."""
    flat = len(workload.training.patch) == 2
    shape = (*(3 * n for n in workload.training.patch), *([24] if flat else []))
    far = radii(shape)
    head, ball = far < 1, (far < 0.4).astype(np.uint8)
    noise = (np.random.default_rng([1, i]).normal(scale=0.2, size=shape) for i in range(SUBJECTS))
    images = [((1 + ball + own) * head).astype(np.float32) for own in noise]
    return [Scan(image[None], ball, np.eye(4), ("image",)) for image in images]


def _taught(store: SubjectStore, workload: Workload) -> Context:
    """A run whose network has learned to see the ball."""
    config = workload.config(steps=LEARNING, optimizer=OptimizerConfig(lr=1e-2))
    run, method = context(store, config, workload.device), create("finetune", {})
    method.train(run, fitting(run, method, Curves(looks=0)))
    return run


def _windows(run: Context, store: SubjectStore, evaluated: EvaluationConfig) -> list[Tensor]:
    """Noise in the shape of every batch that our prediction of the subjects passes on."""
    shapes: list[torch.Size] = []
    hook = run.network.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    for i in range(len(store)):
        evaluation.predict(run.network, store.volume(i)[0], run.config, evaluated)
    hook.remove()
    noise = {shape: torch.randn(shape, device=run.device) for shape in set(shapes)}
    return [noise[shape] for shape in shapes]


def _bare(run: Context, windows: list[Tensor]) -> None:
    """The network on these batches, and nothing else."""
    kind = Kind(run.config.precision)
    with as_a_script(kind), torch.inference_mode(), autocast(run.device, run.config.precision):
        for batch in windows:
            run.network(batch)
