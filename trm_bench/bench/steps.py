"""A training step of our methods beside the bare ones."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import torch

from trm_bench import environment
from trm_bench.bench.bare import COMPILED, PLAIN, Bare, kinds, operations
from trm_bench.bench.machine import Machine
from trm_bench.bench.timing import Row, Section, Timed, Work, in_turns
from trm_bench.bench.workload import Workload, context, random_subjects, step_seconds
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.protocol.schema import TrainingConfig
from trm_bench.runs.executors import PRELOADED
from trm_bench.seeds import deterministic

IN_EVERY_PRECISION = ("finetune", "trm")


def label(method: str, precision: str, compiled: bool = False) -> str:
    """The name of a method's row."""
    return f"{method} {precision}{COMPILED if compiled else ''}"


def measure(
    workload: Workload, methods: Sequence[str], compiled: bool, machine: Machine, display: Display
) -> Section:
    """Times the steps.

    Args:
        workload: What is trained.
        methods: Beside finetune, which all ratios are to.
        compiled: Time steps through torch.compile too, which takes minutes.
        machine: Where.
        display: Where progress is shown.

    Raises:
        UserError: Memory does not suffice.
    """
    device, own = workload.device, workload.training.precision
    bare = {
        kind.name: Bare(context(workload.subjects, workload.training, device), kind)
        for kind in kinds(device, machine.precisions, compiled)
    }
    ours = {
        label(name, precision): (name, workload.config(precision=precision))
        for name in ("finetune", *(name for name in methods if name != "finetune"))
        for precision in (machine.precisions if name in IN_EVERY_PRECISION else [own])
    }
    if compiled:
        for precision in machine.precisions:
            config = workload.config(precision=precision, compile=True)
            ours[label("finetune", precision, compiled)] = "finetune", config
    steps = {
        name: partial(step_seconds, method, workload.subjects, config, device)
        for name, (method, config) in ours.items()
    }
    works: dict[str, Timed] = {**{name: one.seconds for name, one in bare.items()}, **steps}
    flops, memory = {}, {}
    with display.stage("timing steps", (workload.rounds + 1) * len(works)) as stage:
        for name in works:  # a first time: it reserves memory and compiles
            environment.reset_peak_memory(device)
            if name in bare:
                flops[name] = bare[name].flops()
            else:  # what is compiled cannot be counted
                compiles = ours[name][1].compile
                flops[name] = 0 if compiles else round(steps[name](count))
            if device.type == "cuda":
                memory[name] = environment.peak_memory(device)
            stage.advance()
        times = in_turns(works, workload.rounds, stage.advance)
    if device.type == "cpu":
        memory = _peaks(ours, display)
    precisions = {name: one.kind.precision for name, one in bare.items()}
    precisions |= {name: config.precision for name, (_, config) in ours.items()}
    rows = tuple(
        Row(name, seconds, flops[name] or flops[PLAIN], precisions[name], memory.get(name))
        for name, seconds in times.items()
    )
    note = _note(workload, machine, compiled)
    return Section("a training step", "step", rows, label("finetune", own), note)


def count(device: torch.device, work: Work) -> float:
    """In the place of a clock: floating-point operations instead of seconds."""
    return operations(work)


def _note(workload: Workload, machine: Machine, compiled: bool) -> str:
    on_gpu = workload.device.type == "cuda"
    without = "" if "bf16" in machine.precisions else " This processor has no bf16."
    if not on_gpu and not machine.compiler:
        without += " There is no C++ compiler, which torch.compile needs."
    elif not compiled:
        without += " Not measured: torch.compile (--compile)."
    return (
        f"{'Time on the GPU' if on_gpu else 'Processor time'}, one batch again and again for the "
        "bare steps. `ratio` is to finetune, median and range of the rounds; `peak` the share of "
        "the machine's matrix products that the step's operations come to; MiB the peak memory "
        f"of {'tensors on the GPU' if on_gpu else 'a process that trains the method alone'}."
        f"{without}"
    )


def _peaks(ours: dict[str, tuple[str, TrainingConfig]], display: Display) -> dict[str, int]:
    """Bytes at most of a process that trains a method alone, by row.

    A peak never falls, so each has a process of its own.
    """
    forks = multiprocessing.get_context("forkserver")
    # what a process that trains imports, once: each process that is measured is a copy
    forks.set_forkserver_preload(["trm_bench.bench.steps", *PRELOADED])
    peaks = {}
    with (
        display.stage("memory of methods", len(ours)) as stage,
        ProcessPoolExecutor(1, forks, max_tasks_per_child=1) as pool,
    ):
        for name, (method, config) in ours.items():
            try:
                peaks[name] = pool.submit(peak, method, config).result()
            except BrokenProcessPool as error:
                what = f"a process that trains '{name}' was killed"
                fix = "lower --patch or --batch, or leave the method out"
                raise UserError(what, "bench", fix) from error
            stage.advance()
    return peaks


def peak(method: str, config: TrainingConfig) -> int:
    """Trains a method as `measure` does, on the CPU, and returns this process's peak, bytes."""
    cpu = torch.device("cpu")
    deterministic(cpu)
    with tempfile.TemporaryDirectory() as folder:
        step_seconds(method, random_subjects(Path(folder), config, cpu), config, cpu)
    return environment.peak_memory(cpu)
