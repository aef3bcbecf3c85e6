"""Processor time of `trm-bench report` on a full benchmark of synthetic records, by stage.

    .venv/bin/python benchmarks/report_time.py

The records of tests/synthetic.py: 5 seeds, 100 subjects. Exit code 1 above LIMIT seconds, which an
idle machine keeps; a slow or throttled one, or one with other work on its cores, may not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

# in the place of this folder, whose statistics.py is not the standard library's
sys.path[0] = str(Path(__file__).parents[1] / "tests")

import synthetic

from trm_bench import report
from trm_bench.report import charts, figures, pages

LIMIT = 12.5  # a fifth above what an idle machine takes
STAGES = {
    "records": (report, "read_results"),
    "comparisons": (report, "collect"),
    "tables and files": (report, "_write"),
    "charts": (charts, "draw"),
    "pictures": (figures, "draw"),
    "page": (pages, "report"),
}


def timed(function: Callable[..., Any], spent: dict[str, float], stage: str) -> Callable[..., Any]:
    """A function that adds the processor time of its calls to a stage's."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[stage] = spent.get(stage, 0.0) + time.process_time() - start

    return call


if __name__ == "__main__":
    spent: dict[str, float] = {}
    for stage, (module, name) in STAGES.items():
        setattr(module, name, timed(getattr(module, name), spent, stage))
    with tempfile.TemporaryDirectory() as folder:
        results = synthetic.write(Path(folder) / "full")
        start = time.process_time()
        report.write_pages(results)
        seconds = time.process_time() - start
    for stage, of_stage in spent.items():
        print(f"{stage:20}{of_stage:6.1f} s")
    print(f"{seconds:.1f} s of processor time, limit {LIMIT:g} s")
    sys.exit(seconds > LIMIT)
