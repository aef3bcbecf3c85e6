"""All of it, in one go: from what is asked for to a report."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trm_bench.bench import inference, machine, occupancy, start, steps, tutorial
from trm_bench.bench.machine import Machine
from trm_bench.bench.targets import Target, targets
from trm_bench.bench.timing import Section
from trm_bench.bench.workload import Workload, random_subjects, training_of
from trm_bench.display import Display
from trm_bench.errors import UserError, nearest
from trm_bench.methods.registry import REGISTRY
from trm_bench.protocol.choices import refuse_twice
from trm_bench.seeds import deterministic

SECTIONS = ("steps", "loop", "inference", "start", "protocol")
SLOW_ROUNDS = 3  # of what takes seconds


@dataclass(frozen=True)
class Report:
    """What was measured.

    Attributes:
        machine: Where.
        settings: What was asked for.
        sections: By name.
        targets: What is to be reached, and what was.
    """

    machine: Machine
    settings: dict[str, Any]
    sections: dict[str, Section]
    targets: list[Target]

    def json(self) -> dict[str, Any]:
        """All of it as plain values."""
        sections = {name: dataclasses.asdict(s) for name, s in self.sections.items()}
        for name, section in self.sections.items():
            for row, plain in zip(section.rows, sections[name]["rows"], strict=True):
                plain |= {"median": row.median, "share_of_peak": self.machine.share(row)}
        return {
            "machine": dataclasses.asdict(self.machine),
            "settings": self.settings,
            "sections": sections,
            "targets": [dataclasses.asdict(t) | {"met": t.met} for t in self.targets],
        }


def run(
    device: torch.device,
    *,
    sections: Sequence[str],
    methods: Sequence[str],
    steps_of_turn: int,
    rounds: int,
    patch: Sequence[int],
    batch: int,
    compiled: bool,
    display: Display,
) -> Report:
    """Measures, with a small U-Net (channels 16 to 128) on random volumes.

    Args:
        device: Where.
        sections: Names of `SECTIONS`, or `all`.
        methods: Their names, or `all`. Those that do not take an instance-norm network are timed
            with batch norm.
        steps_of_turn: Steps of one method in one round.
        rounds: How many; each competitor has a turn before, which warms up and does not count.
        patch: Two or three sizes, divisible by 8.
        batch: Patches a step.
        compiled: Time steps through torch.compile too.
        display: Where progress is shown.

    Raises:
        UserError: A name is unknown, the patch does not fit, a number is out of range, or memory
            does not suffice.
    """
    wanted, named = _sections(sections), _methods(methods)
    config = training_of(device, steps_of_turn, batch, patch)
    deterministic(device)  # and one thread, as a training has
    here = machine.look(device)
    compiled = compiled and bool(here.compiler or device.type == "cuda")
    measured: dict[str, Section] = {}
    with tempfile.TemporaryDirectory() as folder, display:
        subjects = random_subjects(_made(folder, "patches"), config, device)
        load = Workload(device, config, rounds, subjects)
        slow = dataclasses.replace(load, rounds=min(rounds, SLOW_ROUNDS))
        ways: dict[str, Callable[[], Section | None]] = {
            "steps": lambda: steps.measure(load, named, compiled, here, display),
            "loop": lambda: tutorial.measure(load, compiled, here, display),
            "inference": lambda: inference.measure(slow, _made(folder, "volumes"), display),
            "start": lambda: start.measure(slow.rounds, display),
            "protocol": lambda: occupancy.measure(device, _made(folder, "results"), display),
        }
        for name in SECTIONS:
            if name in wanted and (section := ways[name]()) is not None:
                measured[name] = section
    settings = {"steps": steps_of_turn, "rounds": rounds, "patch": list(patch), "batch": batch}
    return Report(here, settings, measured, targets(measured, device.type == "cuda"))


def _sections(names: Sequence[str]) -> list[str]:
    refuse_twice(names, "--sections")
    for name in names:
        if name not in (*SECTIONS, "all"):
            hint = nearest(name, [*SECTIONS, "all"])
            raise UserError(f"there is no section '{name}'", "--sections", hint)
    return list(SECTIONS) if "all" in names else list(names)


def _methods(names: Sequence[str]) -> list[str]:
    chosen = REGISTRY.names() if list(names) == ["all"] else list(names)
    refuse_twice(chosen, "--methods")
    for name in chosen:
        REGISTRY.get(name)
    return chosen


def _made(folder: str, name: str) -> Path:
    made = Path(folder) / name
    made.mkdir()
    return made
