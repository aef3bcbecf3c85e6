"""Step time and memory of methods beside the bare network step, measured in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Column, Table
from torch import nn

from trm_bench import environment, networks, registry, runs, volumes
from trm_bench.datasets.base import LabelMap, Scan
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.patches import SubjectStore
from trm_bench.protocol import EvaluationConfig, NetworkConfig, TrainingConfig, VolumeConfig
from trm_bench.training import Curves, autocast, train

SUBJECTS = 4
NETWORK = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 1}
BARE = "bare network step"


def bench(
    names: Sequence[str], device: torch.device, steps: int, rounds: int, patch: Sequence[int], batch: int
) -> Table:
    """Times methods on random volumes with a small U-Net (channels 16 to 128).

    Every round trains each method from the same start for `steps` steps, in turn, so that a machine whose speed drifts
    slows all alike; ratios are taken within a round. Preparation (maps, statistics) and
    validation are not part of a step.

    Args:
        names: Methods, or `all`. Those that do not take an instance-norm network are timed with batch norm.
        device: Where.
        steps: Of one method in one round.
        rounds: How many; the first warms up and does not count.
        patch: Two or three sizes, divisible by 8.
        batch: Patches a step.

    Returns:
        Per method the median time of a step, its ratio to finetune with the smallest and largest of the rounds, and the
        peak memory: of a GPU's tensors, or on a CPU of a process that trains the method alone.

    Raises:
        UserError: A method is unknown or the patch does not fit.
    """
    if len(patch) not in (2, 3) or any(n % 8 or n < 16 for n in patch):
        raise UserError(f"patch {list(patch)}: give two or three sizes, divisible by 8", "--patch")
    chosen = list(registry.known()) if list(names) == ["all"] else list(names)
    for name in chosen:
        registry.get(name)
    ordered = [BARE, "finetune", *[name for name in chosen if name != "finetune"]]
    config = TrainingConfig(steps=steps, batch=batch, patch=tuple(patch))
    environment.deterministic(device)
    times: dict[str, list[float]] = {name: [] for name in ordered}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, Display() as display:
        store = _store(Path(folder), config, device)
        with display.stage("timing", (rounds + 1) * len(ordered)) as stage:
            for turn in range(rounds + 1):
                for name in ordered:
                    environment.reset_peak_memory(device)
                    seconds = _time(name, store, config, device)
                    if device.type == "cuda":
                        memory[name] = environment.peak_memory(device)
                    elif turn == 0:
                        memory[name] = _peak_of_process(name, config)
                    if turn > 0:
                        times[name].append(seconds / steps)
                    stage.advance()
    headers = ("method", "ms a step", "ratio", "range", "peak MiB", "ratio")  # 80 columns wide with the longest name
    table = Table(*[Column(header, no_wrap=True, justify="right" if i else "left") for i, header in enumerate(headers)])
    for name in ordered:
        ratios = [a / b for a, b in zip(times[name], times["finetune"], strict=True)]
        peak, relative = f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory['finetune']:.2f}"
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        milliseconds = f"{1000 * statistics.median(times[name]):.1f}"
        table.add_row(name, milliseconds, f"{statistics.median(ratios):.3f}", spread, peak, relative)
    batch_text = f"patch {'x'.join(map(str, patch))}, batch {batch}, {steps} steps a round, {rounds} rounds"
    peak_of = "tensors on the GPU" if device.type == "cuda" else "a process that trains the method alone"
    table.caption = (
        f"{environment.describe(device)['device_name']}; {batch_text}. Ratios are to finetune: of the step time the "
        f"median and the range of the rounds, of the peak memory that of {peak_of}."
    )
    return table


def _time(name: str, store: SubjectStore, config: TrainingConfig, device: torch.device) -> float:
    """Seconds of one training without its preparation."""
    run = _context(store, config, device, "batch" if name == "stochnorm" else "instance")
    if name == BARE:
        return _clock(device, lambda: _bare(run))
    run.validate = lambda network: 0.0  # how often a method validates does not depend on the number of steps
    method = registry.create(name, {})
    seconds = 0.0
    whole = method.train

    def timed(run: Context) -> None:
        nonlocal seconds
        seconds = _clock(device, lambda: whole(run))

    method.train = timed  # type: ignore[method-assign]
    method.finish = lambda run: None  # type: ignore[method-assign]
    train(run, method, Curves())
    store.fields.clear()
    return seconds


def _peak_of_process(name: str, config: TrainingConfig) -> int:
    """Bytes at most of a process that trains the method alone: a peak never falls, so each method needs a new one."""
    code = "import sys; from trm_bench.benching import peak; print(peak(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, name, config.model_dump_json()]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak(name: str, config: str) -> int:
    """Trains a method as `bench` does, on the CPU, and returns this process's peak memory, bytes."""
    cpu, loaded = torch.device("cpu"), TrainingConfig.model_validate_json(config)
    environment.deterministic(cpu)
    with tempfile.TemporaryDirectory() as folder:
        _time(name, _store(Path(folder), loaded, cpu), loaded, cpu)
    return _high_water() or environment.peak_memory(cpu)


def _high_water() -> int | None:
    """Linux's peak of this program alone, bytes: getrusage's would hold that of the parent, from before exec."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.is_file() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


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
    plain = registry.create("finetune", {})
    optimizer = torch.optim.AdamW(run.network.parameters(), lr=config.optimizer.lr)
    run.network.train()
    for _ in range(config.steps):
        optimizer.zero_grad(set_to_none=True)
        with autocast(run.device, config.precision):
            loss = plain.segmentation_loss(run, run.network(batch.image), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(run.network.parameters(), config.clip or float("inf"))
        optimizer.step()


def _context(store: SubjectStore, config: TrainingConfig, device: torch.device, norm: str) -> Context:
    network_config = NetworkConfig.model_validate({"name": "UNet", "norm": norm, **NETWORK})
    dims = len(config.patch)
    network, source = (networks.build(network_config, 1, store.classes, dims, seed).to(device) for seed in (0, 1))
    source.eval().requires_grad_(False)
    parts = networks.parts(network_config, 1, dims)
    networks.load_source(network, source.state_dict(), parts, with_head=True)
    axes = ("bench",)
    return runs.make_context(
        network,
        source,
        parts,
        store,
        store,
        lambda: store,
        config,
        EvaluationConfig(),
        same_task=True,
        axes=axes,
        device=device,
    )


def _store(folder: Path, config: TrainingConfig, device: torch.device) -> SubjectStore:
    """Random volumes somewhat larger than the patch, with a ball of foreground."""
    draws = np.random.default_rng(0)
    shape = tuple(n + 8 for n in (*config.patch, 8)[:3])
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    ball = (np.linalg.norm(grid, axis=0) < 0.5).astype(np.uint8)
    prepared = []
    for i in range(SUBJECTS):
        image = draws.normal(size=(1, *shape)).astype(np.float32) + ball
        tensors, about = volumes.prepare_scan(Scan(image, ball, np.eye(4), ("image",)), VolumeConfig(crop="none"))
        prepared.append(volumes.save(folder / f"{i}.safetensors", tensors, {**about, "subject": str(i), "files": {}}))
    return SubjectStore(prepared, ("image",), LabelMap(("background", "ball"), {0: 0, 1: 1}), device)
