"""Step time and memory of methods beside the bare network step, measured in turns."""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from rich.table import Column, Table
from torch import nn

from trm_bench import environment
from trm_bench.data import prepared as volumes
from trm_bench.data.patches import SubjectStore
from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.estimates import memory_of
from trm_bench.formats import autocast, resolved_precision
from trm_bench.methods import Context
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.networks import training_bytes
from trm_bench.protocol.choices import refuse_twice
from trm_bench.protocol.schema import (
    EvaluationConfig,
    NetworkConfig,
    TrainingConfig,
    VolumeConfig,
)
from trm_bench.runs import compute
from trm_bench.runs.config import RunConfig, RunDomain, RunMethod, Subjects
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, fitting

SUBJECTS = 4
NETWORK = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 1}
BARE = "bare network step"
BYTES_OF_VOXEL = 64  # of the random volumes, while they are made and prepared


def bench(
    names: Sequence[str],
    device: torch.device,
    steps: int,
    rounds: int,
    patch: Sequence[int],
    batch: int,
) -> Table:
    """Times methods on random volumes with a small U-Net (channels 16 to 128).

    Every round trains each method from the same start for `steps` steps, in turn, so that a
    machine whose speed drifts slows all alike; ratios are taken within a round. Preparation (maps,
    statistics) and validation are not part of a step.

    Args:
        names: Methods, or `all`. Those that do not take an instance-norm network are timed with
            batch norm.
        device: Where.
        steps: Of one method in one round.
        rounds: How many; the first warms up and does not count.
        patch: Two or three sizes, divisible by 8.
        batch: Patches a step.

    Returns:
        Per method the median time of a step, its ratio to finetune with the smallest and largest
        of the rounds, and the peak memory: of a GPU's tensors, or on a CPU of a process that
        trains the method alone.

    Raises:
        UserError: A method is unknown, the patch does not fit, a number is out of range, or memory
            does not suffice.
    """
    if len(patch) not in (2, 3) or any(n % 8 or n < 16 for n in patch):
        what = f"patch {list(patch)}: give two or three sizes, divisible by 8"
        raise UserError(what, "--patch", "for example 48,64,48")
    chosen = REGISTRY.names() if list(names) == ["all"] else list(names)
    refuse_twice(chosen, "--methods")
    for name in chosen:
        REGISTRY.get(name)
    ordered = [BARE, "finetune", *[name for name in chosen if name != "finetune"]]
    config = _training(steps, batch, patch, device)
    deterministic(device)
    times: dict[str, list[float]] = {name: [] for name in ordered}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, Display() as display:
        subjects = _subjects(Path(folder), config, device)
        with display.stage("timing", (rounds + 1) * len(ordered)) as stage:
            for turn in range(rounds + 1):
                for name in ordered:
                    environment.reset_peak_memory(device)
                    seconds = _time(name, subjects, config, device)
                    if device.type == "cuda":
                        memory[name] = environment.peak_memory(device)
                    elif turn == 0:
                        memory[name] = _peak_of_process(name, config)
                    if turn > 0:
                        times[name].append(seconds / steps)
                    stage.advance()
    return _table(times, memory, config, rounds, device)


def _training(steps: int, batch: int, patch: Sequence[int], device: torch.device) -> TrainingConfig:
    """The training that is timed; raises `UserError` where it is impossible here."""
    precision = resolved_precision(device, "auto")
    try:
        config = TrainingConfig(steps=steps, batch=batch, patch=tuple(patch), precision=precision)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = "--" + ".".join(map(str, problem["loc"] or ("batch",)))
        what = problem["msg"].removeprefix("Value error, ")
        raise UserError(what, where, "lower it") from error
    network = NetworkConfig.model_validate({"name": "UNet", **NETWORK})
    voxels = SUBJECTS * math.prod(n + 8 for n in (*patch, 8)[:3])
    needed = training_bytes(network, config, 1, 2) + voxels * BYTES_OF_VOXEL
    if needed > (available := memory_of(device)):
        what = f"memory does not suffice: {needed} bytes of {available} on {device}"
        raise UserError(what, "--patch, --batch", "lower them")
    return config


def _table(
    times: dict[str, list[float]],
    memory: dict[str, int],
    config: TrainingConfig,
    rounds: int,
    device: torch.device,
) -> Table:
    # 80 columns wide with the longest name
    headers = ("method", "ms a step", "ratio", "range", "peak MiB", "ratio")
    sides = ["left", *["right"] * (len(headers) - 1)]
    table = Table(
        *[Column(h, no_wrap=True, justify=s) for h, s in zip(headers, sides, strict=True)]  # type: ignore[arg-type]
    )
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times["finetune"], strict=True)]
        table.add_row(
            name,
            f"{1000 * statistics.median(own):.1f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f} - {max(ratios):.3f}",
            f"{memory[name] / 2**20:.0f}",
            f"{memory[name] / memory['finetune']:.2f}",
        )
    patch = "x".join(map(str, config.patch))
    on_gpu = device.type == "cuda"
    peak_of = "tensors on the GPU" if on_gpu else "a process that trains the method alone"
    table.caption = (
        f"{environment.describe(device).device_name}; patch {patch}, batch {config.batch}, "
        f"{config.steps} steps a round, {rounds} rounds. Ratios are to finetune: of the step time "
        f"the median and the range of the rounds, of the peak memory that of {peak_of}."
    )
    return table


def _time(name: str, subjects: SubjectStore, config: TrainingConfig, device: torch.device) -> float:
    """Seconds of one training without its preparation."""
    run = _context(subjects, config, device, "batch" if name == "stochnorm" else "instance")
    if name == BARE:
        return _clock(device, lambda: _bare(run))
    method = create(name, {})
    method.check(run.network, run.parts)
    method.prepare(run)
    fit = fitting(run, method, Curves(looks=0))
    seconds = _clock(device, lambda: method.train(run, fit))
    subjects.fields.clear()
    return seconds


def _peak_of_process(name: str, config: TrainingConfig) -> int:
    """Bytes at most of a process that trains the method alone.

    A peak never falls, so each method needs a new process.
    """
    code = "import sys; from trm_bench.step_time import peak; print(peak(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, name, config.model_dump_json()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
        what = f"a process that trains '{name}' failed: {said[-1][:300]}"
        raise UserError(what, "bench", "lower --patch or --batch, or leave the method out")
    return int(ended.stdout.split()[-1])


def peak(name: str, config: str) -> int:
    """Trains a method as `bench` does, on the CPU, and returns this process's peak, bytes."""
    cpu, loaded = torch.device("cpu"), TrainingConfig.model_validate_json(config)
    deterministic(cpu)
    with tempfile.TemporaryDirectory() as folder:
        _time(name, _subjects(Path(folder), loaded, cpu), loaded, cpu)
    return environment.peak_memory(cpu)


def _clock(device: torch.device, work: Callable[[], None]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _bare(run: Context) -> None:
    """Forward, plain loss, backward and update on one batch: no sampling, no logging."""
    batch, config = run.patches.batch(0), run.config
    plain = create("finetune", {})
    optimizer = torch.optim.AdamW(run.network.parameters(), lr=config.optimizer.lr)
    run.network.train()
    for _ in range(config.steps):
        optimizer.zero_grad(set_to_none=True)
        with autocast(run.device, config.precision):
            loss = plain.segmentation_loss(run, run.network(batch.image), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(run.network.parameters(), config.clip or float("inf"))
        optimizer.step()


def _context(
    subjects: SubjectStore, training: TrainingConfig, device: torch.device, norm: str
) -> Context:
    """A run on the random volumes, from a source network that is as random."""
    source = RunConfig(
        kind="source",
        data="phantom",
        dataset="bench",
        domain=RunDomain.of(("image",), "ball", subjects.label_map),
        volume=VolumeConfig(crop="none"),
        subjects=Subjects(train=(), val=()),
        network=NetworkConfig.model_validate({"name": "UNet", "norm": norm, **NETWORK}),
        training=training,
        evaluation=EvaluationConfig(),
        method=RunMethod(name="scratch"),
        seed=0,
        device="cuda" if device.type == "cuda" else "cpu",
        code="",
    )
    config = source.model_copy(update={"kind": "run", "source": source, "same_task": True})
    state = compute.build(source, device).state_dict()
    started = compute.source_of(config, state, device)
    run, _ = compute.start(config, started, lambda part: subjects, device)
    # how often a method validates does not depend on the number of steps
    return dataclasses.replace(run, validate=lambda network: 0.0)


def _subjects(folder: Path, config: TrainingConfig, device: torch.device) -> SubjectStore:
    """Random volumes somewhat larger than the patch, with a ball of foreground."""
    draws = np.random.default_rng(0)
    shape = tuple(n + 8 for n in (*config.patch, 8)[:3])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    ball = (np.linalg.norm(grid, axis=0) < 0.5).astype(np.uint8)
    prepared = []
    for i in range(SUBJECTS):
        image = draws.normal(size=(1, *shape)).astype(np.float32) + ball
        scan = Scan(image, ball, np.eye(4), ("image",))
        tensors, about = prepare_scan(scan, VolumeConfig(crop="none"))
        about |= {"subject": str(i), "files": {}}
        prepared.append(volumes.save(folder / f"{i}.safetensors", tensors, about))
    label_map = LabelMap(("background", "ball"), {0: 0, 1: 1})
    return SubjectStore(prepared, ("image",), label_map, device)
