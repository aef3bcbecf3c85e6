"""Calls commands in a warm process, each in a fork of its own, and says how each one ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60.0  # seconds; what takes longer hangs

# wide, so that no message is wrapped; alone, so that nothing of the person's settings counts
SETTINGS = {
    "COLUMNS": "400",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
}


def environment() -> dict[str, str]:
    """The environment of commands."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("TRM_", "MLFLOW_"))}
    return mine | SETTINGS


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Attributes:
        arguments: Of the command.
        code: Exit code; negative: the signal that ended it.
        output: All that it printed.
        seconds: It took.
        hung: It had to be killed.
        survivors: It left processes behind.
    """

    arguments: tuple[str, ...]
    code: int
    output: str
    seconds: float = 0.0
    hung: bool = False
    survivors: bool = False


class Runner:
    """One warm process; a context, and to be used by one thread at a time.

    Args:
        scratch: A folder for what commands print.
        plants: `module:function`s that are called in every fork before its command; a planted fault
            shows that the suite sees it.
    """

    def __init__(self, scratch: Path, plants: Sequence[str] = (), longest: float = LONGEST) -> None:
        self.plants, self.longest = list(plants), longest
        self.output = scratch / "printed"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def warm(self, *arguments: object) -> None:
        """Runs a command in the warm process itself: forks find loaded what it loads."""
        self._ask({"warm": True, "arguments": [str(a) for a in arguments]})

    def _ask(self, request: object) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the warm process died; see its standard error")
        return line

    def call(
        self,
        folder: Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Runs `trm-bench ARGUMENTS` in a folder."""
        request = {
            "warm": False,
            "arguments": [str(a) for a in arguments],
            "folder": str(folder),
            "output": str(self.output),
            "environment": dict(environment or {}),
            "longest": self.longest,
            "plants": self.plants,
        }
        ended = json.loads(self._ask(request))
        text = self.output.read_bytes().decode("utf-8", "replace")
        return Answer(tuple(map(str, arguments)), output=text, **ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
