"""Clocks, turns, and what they come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]
Timed = Callable[[], float]
"""Does something, and returns the seconds that it took for each unit of it."""
Clock = Callable[[torch.device, Work], float]


def wall(device: torch.device, work: Work) -> float:
    """Seconds that pass while something is done, up to its end on the device."""
    return _between(time.perf_counter, device, work)


def busy(device: torch.device, work: Work) -> float:
    """Seconds that the device works on something that one thread does.

    On a CPU the processor time of this process, which others on the machine hardly change.
    """
    return _between(time.process_time if device.type == "cpu" else time.perf_counter, device, work)


def _between(clock: Callable[[], float], device: torch.device, work: Work) -> float:
    wait_for(device)
    start = clock()
    work()
    wait_for(device)
    return clock() - start


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    works: Mapping[str, Timed], rounds: int, advance: Callable[[], None]
) -> dict[str, tuple[float, ...]]:
    """Times several works in turn, so that a machine whose speed drifts slows all alike.

    Args:
        works: By name; each has been done once before, as a first time takes longer.
        rounds: How many; every work has a turn in each.
        advance: Called after each turn.

    Returns:
        By name the seconds of each round.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(work())
            advance()
    return {name: tuple(own) for name, own in times.items()}


@dataclass(frozen=True)
class Ratio:
    """Of two rows, round by round: the median, and the smallest and the largest."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Row:
    """What was timed.

    Attributes:
        name: Of it, in its section.
        seconds: For one unit, in each round.
        flops: Floating-point operations of one unit, where they were counted.
        precision: That they were done in.
        peak_memory: Bytes, where it was measured.
    """

    name: str
    seconds: tuple[float, ...]
    flops: int | None = None
    precision: str = ""
    peak_memory: int | None = None

    @property
    def median(self) -> float:
        """Seconds for one unit."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Section:
    """What was timed beside each other.

    Attributes:
        title: What it is about.
        unit: That times are for, such as `step`.
        rows: In order.
        reference: The row that ratios are to; "" for none.
        note: What must be known to read it.
    """

    title: str
    unit: str
    rows: tuple[Row, ...]
    reference: str = ""
    note: str = ""

    def row(self, name: str) -> Row | None:
        """The row of that name, if it was timed."""
        return next((row for row in self.rows if row.name == name), None)


def ratio(one: Row, other: Row) -> Ratio:
    """How many times as long one takes as the other, which had their turns in the same rounds."""
    each = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))
