"""What a benchmark would take, before it is run: time, memory and disk.

All of it is estimated, from a plan, the prepared data and a few training steps on the device.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from trm_bench import networks
from trm_bench.data.cohorts import Cohorts, find
from trm_bench.display import duration
from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.plurals import counted
from trm_bench.runs import compute, execute
from trm_bench.runs.config import RunConfig, RunMethod, Subjects
from trm_bench.runs.executors import default_jobs
from trm_bench.runs.plan import Job, Plan, validations
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, fitting

PROCESS = 600 * 2**20  # bytes of a process that has imported all, measured on Linux
CONTEXT = 800 * 2**20  # bytes that a process takes of a GPU beside its tensors, measured on an H100
ROOM = 0.9  # of a GPU's memory that is given to trainings
STEPS, SECONDS = 10, 8.0  # at most so many steps are timed, and for about so long
RECORD, REPORT = 2**17, 2**23  # bytes of a run's record, and of a report with its figures
FEW = 4  # training subjects that are loaded for the timed steps


@dataclass(frozen=True)
class Estimate:
    """One thing that a benchmark takes.

    Attributes:
        name: `time`, `memory` or `disk`.
        text: How much, of how much, and where the number comes from.
        suffices: Whether this machine has it.
    """

    name: str
    text: str
    suffices: bool = True


@dataclass(frozen=True)
class Pace:
    """What the plan's largest training takes on a device.

    Attributes:
        config: Of that training.
        step: Seconds of a training step.
        steps: That were timed.
        subject: Seconds to predict and score a test subject.
        packed: Bytes of a test subject's label, compressed: a prediction takes about as much.
        busy: Share of a step in which the device computes, from 0 to 1; a GPU waits for the
            process that gives it work where the steps are small.
        tensors: Bytes at most of the training's tensors on a GPU; 0 on a CPU.
    """

    config: RunConfig
    step: float
    steps: int
    subject: float
    packed: int
    busy: float = 1.0
    tensors: int = 0


def jobs_that_fill(pace: Pace, device: torch.device) -> int:
    """How many trainings keep the GPUs busy, as far as their memory and the cores suffice.

    Processes take turns on a GPU: with steps that keep it busy for a share b of their time, 1 / b
    of them leave it no pause.
    """
    devices = default_jobs(device)
    by_memory = int(ROOM * memory_of(device) // (pace.tensors + CONTEXT))
    by_cores = default_jobs(torch.device("cpu")) // devices
    return devices * max(1, min(round(1 / pace.busy), by_memory, by_cores))


def pace_of(plan: Plan, device: torch.device) -> Pace:
    """Times a few steps of the plan's largest training as plain fine-tuning, and one test.

    Raises:
        UserError: The device's memory does not suffice.
    """
    job = few_subjects(max(plan.runs, key=lambda job: _size(job.config)))
    deterministic(device)
    try:
        return _pace(job, device)
    except torch.OutOfMemoryError as error:
        what = f"memory does not suffice for a training step on {device}"
        raise UserError(what, "training", "lower batch or patch, or raise the spacing") from error


def few_subjects(job: Job) -> Job:
    """A job as training from scratch, which costs a step as much as fine-tuning, on a few subjects.

    Args:
        job: Of a plan.
    """
    subjects = job.config.subjects
    few = Subjects(
        train=subjects.train[:FEW], val=subjects.val[:1], test=(subjects.test or subjects.val)[:1]
    )
    changes = {
        "subjects": few,
        "method": RunMethod(name="scratch"),
        "source": None,
        "same_task": False,
        "channels": None,
    }
    return replace(job, config=job.config.model_copy(update=changes))


def _pace(job: Job, device: torch.device) -> Pace:
    part = partial(execute.load_part, job, device)
    run, _ = compute.start(job.config, None, part, device)
    # a first step reserves memory and chooses kernels
    first = seconds_of_steps(run, 1, device)
    steps = max(1, min(STEPS, int(SECONDS / first)))
    step = seconds_of_steps(run, steps, device) / steps
    on_gpu = device.type == "cuda"
    # nothing where the driver lets nobody look
    busy = (_busy(run, steps, device) / (steps * step) if on_gpu else 0.0) or 1.0
    test_set = part("test")
    started = time.perf_counter()
    compute.test(job.config, run, test_set)
    subject = time.perf_counter() - started
    label = test_set.prepared[0].native_label().numpy()
    packed = len(zlib.compress(label.tobytes(), 1))
    tensors = torch.cuda.max_memory_reserved(device) if on_gpu else 0
    return Pace(job.config, step, steps, subject, packed, min(1.0, busy), tensors)


def _busy(run: Context, steps: int, device: torch.device) -> float:
    """Seconds that the kernels of some steps take on a GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as watched:
        seconds_of_steps(run, steps, device)
    return sum(event.self_device_time_total for event in watched.key_averages()) / 1e6


def seconds_of_steps(run: Context, steps: int, device: torch.device) -> float:
    """Seconds of some steps of training from scratch, up to the end of the last kernel on a GPU.

    Args:
        run: What is trained, from where it is.
        steps: How many.
        device: Where.
    """
    timed = replace(run, config=run.config.model_copy(update={"steps": steps, "select": "last"}))
    method = create("scratch", {})
    fit = fitting(timed, method, Curves(looks=0))
    _wait(device)
    started = time.perf_counter()
    method.train(timed, fit)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(config: RunConfig) -> tuple[int, int]:
    """By what the trainings of one protocol differ in size: channels and classes."""
    return len(config.domain.images), len(config.domain.classes)


def estimates(
    plan: Plan,
    needed: int,
    cohorts: Cohorts,
    device: torch.device,
    jobs: int | None,
    output: Path,
) -> list[Estimate]:
    """Memory, time and disk of what is missing of a plan.

    Args:
        plan: All of it.
        needed: Bytes of its largest training step; see `pipeline.check_networks`.
        cohorts: The data, prepared.
        device: Where it is to run.
        jobs: Trainings at a time; by default one a core, or as many as fill the GPUs.
        output: The folder of the results.

    Raises:
        UserError: The memory does not suffice for a single training.
    """
    subjects = max(_store_bytes(job.config, cohorts) for job in plan.runs)
    about = f"about {size(needed)} a training step, {size(subjects)} of voxels"
    if needed + subjects > (available := memory_of(device)):
        raise UserError(
            f"memory does not suffice: {about}, of {size(available)} on {device}",
            "training",
            "lower batch or patch, or raise the spacing",
        )
    missing = [job for job in (*plan.sources, *plan.runs) if not job.is_done()]
    pace = pace_of(plan, device) if missing else None
    filled = jobs_that_fill(pace, device) if pace and device.type == "cuda" else None
    at_once = jobs or filled or default_jobs(device)
    found = [_memory(plan, needed + subjects, about, device, at_once)]
    if not pace:
        return [*found, Estimate("time", "nothing is left to train")]
    return [*found, _time(missing, pace, device, at_once), _disk(missing, pace, cohorts, output)]


def _memory(plan: Plan, one: int, about: str, device: torch.device, jobs: int) -> Estimate:
    """Of a training's bytes, what so many take."""
    available, on_cpu = memory_of(device), device.type == "cpu"
    devices = 1 if on_cpu else default_jobs(device)
    trainings = min(len(plan.runs), math.ceil(jobs / devices))
    process = PROCESS if on_cpu else CONTEXT
    total = trainings * (one + process)
    text = (
        f"{about}, {size(process)} of the process: {size(total)} with "
        f"{counted(trainings, 'training')} at a time, of {size(available)} on {device} "
        "(estimated from the outputs of all layers)"
    )
    fits = total <= available
    return Estimate("memory", text if fits else f"{text}: lower --jobs", fits)


def _store_bytes(config: RunConfig, cohorts: Cohorts) -> int:
    """Voxels that a run keeps on the device.

    2 bytes a channel, 2 for label and mask, 4 for a weight map.
    """
    per_voxel = 2 * len(config.domain.images) + 2 + 4
    members = (m for part in config.subjects.parts().values() for m in part)
    volumes = (find(cohorts, config.dataset, config.volume, *m) for m in members)
    return per_voxel * sum(math.prod(volume.shape) for volume in volumes if volume)


def memory_of(device: torch.device) -> int:
    """Bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _time(missing: Sequence[Job], pace: Pace, device: torch.device, jobs: int) -> Estimate:
    seconds = [_seconds(job.config, pace) for job in missing]
    at_once = min(jobs, len(missing))
    # on a GPU that has no pause more processes are no faster
    most = at_once if device.type == "cpu" else default_jobs(device) / pace.busy
    total = max(sum(seconds) / min(at_once, most), *seconds)
    patch = "x".join(map(str, pace.config.training.patch))
    text = (
        f"about {duration(total)} for {counted(len(missing), 'training')}, {at_once} at a time: "
        f"{counted(pace.steps, 'step')} timed at {pace.step:.3f} s each (patch {patch}, batch "
        f"{pace.config.training.batch}), a test subject at {pace.subject:.2f} s; methods that pass "
        "the network more than once a step take longer"
    )
    return Estimate("time", text)


def _seconds(config: RunConfig, pace: Pace) -> float:
    """Of a training with its validations and its test."""
    training, subjects = config.training, config.subjects
    scored = validations(training) * len(subjects.val) + len(subjects.test)
    return training.steps * pace.step + scored * pace.subject


def _disk(missing: Sequence[Job], pace: Pace, cohorts: Cohorts, output: Path) -> Estimate:
    config = pace.config
    network = networks.build(config.network, *_size(config), config.spatial_dims, seed=0)
    weights = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
    kept = [job for job in missing if job.keep or job.config.kind == "source"]
    runs = [job for job in missing if job.config.kind == "run"]
    predictions = sum(len(job.config.subjects.test) for job in runs) * pace.packed
    needed = len(kept) * weights + predictions + len(runs) * RECORD + REPORT
    files = {p.path for cohort in cohorts.values() for p in cohort.prepared.values()}
    prepared = sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(_existing(output)).free
    text = (
        f"about {size(needed)} for {counted(len(kept), 'network')}, predictions and records, "
        f"beside {size(prepared)} of prepared volumes; {size(free)} are free"
    )
    fits = needed <= free
    return Estimate("disk", text if fits else f"{text}: choose another --out", fits)


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(folder for folder in (path, *path.resolve().parents) if folder.is_dir())


def size(number: int) -> str:
    """Bytes, in the unit that says them."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{math.ceil(number / 2**20)} MiB"
