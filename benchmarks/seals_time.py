"""The share of a benchmark's time that goes into checksums: writing and checking them.

    .venv/bin/python benchmarks/seals_time.py PROTOCOL [KEY.PATH=VALUE ...]

Runs a protocol in a temporary folder in this process, with one job: once from nothing and once
again with nothing to do, as a resumed command does. Exit code 1 where checksums take more than
LIMIT of the first. The median of ROUNDS is told.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trm_bench import pipeline, seals

LIMIT = 0.02
ROUNDS = 3
# what a benchmark without checksums would not do
CHECKS = ("_sealed", "_require_seal", "_rest")


class Timed:
    """Counts the seconds in some functions of `seals`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in CHECKS:
            setattr(seals, name, self._timed(getattr(seals, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def measure(protocol: Any, out: Path, timed: Timed) -> tuple[float, float]:
    """Seconds in all, and in checksums."""
    timed.seconds, start = 0.0, time.perf_counter()
    pipeline.run(protocol, out, jobs=1, pages=False)
    return time.perf_counter() - start, timed.seconds


if __name__ == "__main__":
    loaded = pipeline.load(sys.argv[1], ["tracking=off", *sys.argv[2:]])
    timed, shares = Timed(), []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            for what in ("run", "the same command again"):
                took, checked = measure(loaded, Path(folder), timed)
                print(f"{what}: {took:.1f} s, of which checksums {checked:.3f} s", flush=True)
                shares += [checked / took] if what == "run" else []
    share = statistics.median(shares)
    print(f"checksums take {share:.2%} of a run, limit {LIMIT:.0%}")
    sys.exit(share > LIMIT)
