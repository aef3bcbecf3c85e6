"""Processor time of `trm-bench report` on a full benchmark of synthetic records.

    .venv/bin/python benchmarks/report_time.py

The records of tests/synthetic.py: 5 seeds, 100 subjects. Exit code 1 above LIMIT seconds, which an
idle machine keeps; a slow or throttled one may not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

# in the place of this folder, whose statistics.py is not the standard library's
sys.path[0] = str(Path(__file__).parents[1] / "tests")

import synthetic

from trm_bench import report

LIMIT = 60.0

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        results = synthetic.write(Path(folder) / "full")
        start = time.process_time()
        report.write_pages(results)
        seconds = time.process_time() - start
    print(f"{seconds:.1f} s of processor time, limit {LIMIT:g} s")
    sys.exit(seconds > LIMIT)
