"""What passes before anything is trained: a command that starts, and a worker."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch

from trm_bench.bench.timing import Row, Section, Timed, in_turns, wall
from trm_bench.display import Display
from trm_bench.runs.executors import PRELOADED

COMMANDS = {
    "python": ["-c", "pass"],
    "trm-bench --help": ["-m", "trm_bench", "--help"],
    "imports of a worker": ["-c", f"import {', '.join(PRELOADED)}"],
}


def measure(rounds: int, display: Display) -> Section:
    """Times new processes, in turn, after each has been started once."""
    works: dict[str, Timed] = {name: partial(_seconds, words) for name, words in COMMANDS.items()}
    with display.stage("timing starts", (rounds + 1) * len(works)) as stage:
        for work in works.values():
            work()
            stage.advance()
        times = in_turns(works, rounds, stage.advance)
    note = "Time that passes from the start of a new process to its end, files in memory."
    return Section("starting", "process", tuple(Row(n, own) for n, own in times.items()), "", note)


def _seconds(words: list[str]) -> float:
    command = [sys.executable, *words]
    return wall(
        torch.device("cpu"),
        lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True),
    )
