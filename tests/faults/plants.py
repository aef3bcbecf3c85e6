"""What is changed in a fork before its command: to save time, or to plant a fault."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def no_pictures() -> None:
    """Pictures become files of one byte; nothing is judged by them, and they take the most time."""
    from matplotlib.figure import Figure

    def save(self: Figure, file: Any, **how: Any) -> None:
        if isinstance(file, io.StringIO):
            file.write('<svg xmlns="http://www.w3.org/2000/svg"/>')
        else:
            Path(file).write_bytes(b"-")

    Figure.savefig = save  # type: ignore[method-assign,assignment]


def no_seals() -> None:
    """Damaged text is taken as it is."""
    from trm_bench import seals

    seals._require_seal = lambda path, content: None


def stops_a_run() -> None:
    """The first run stops in good order after a step, as after a signal."""
    from trm_bench import signals
    from trm_bench.runs.savepoints import SavepointFile

    plain = SavepointFile.look

    def look(self: SavepointFile, step: int, state: Callable[[], Any]) -> None:
        if any((self.path.parents[2] / "sources").glob("*.safetensors")):
            signals.ask_to_stop()
        plain(self, step, state)

    SavepointFile.look = look  # type: ignore[method-assign]


def raises() -> None:
    """Every command has a fault."""
    _main(lambda: [][0])


def fails() -> None:
    """Every command says itself that it has one."""
    _main(lambda: sys.exit(3))


def waits() -> None:
    """Every command waits for ever."""
    _main(signal.pause)


def dies() -> None:
    """Every command is killed."""
    _main(lambda: os.kill(os.getpid(), signal.SIGKILL))


def says_nothing() -> None:
    """Every command refuses without a word."""
    _main(lambda: sys.exit(2))


def leaves_a_process() -> None:
    """Every command leaves one behind."""
    _main(lambda: os.fork() or signal.pause())


def other_numbers() -> None:
    """Every table has another number, and nothing says so."""
    from trm_bench import report

    plain = report.write_pages

    def write(output: Path) -> list[Path]:
        written = plain(output)
        for path in written:
            if path.name == "metrics.csv":
                path.write_text(path.read_text().replace("1", "2"))
        return written

    report.write_pages = write


def _main(function: Callable[[], object]) -> None:
    from trm_bench import cli

    cli.main = function  # type: ignore[assignment]
