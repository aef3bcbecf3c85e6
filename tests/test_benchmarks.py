"""Benchmarks are run by hand: this sees that what they call is still there."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_a_benchmark_finds_all_that_it_imports(name: str) -> None:
    if name == "scale.py" and find_spec("distributed") is None:
        pytest.skip("needs trm-bench[cluster]")
    code = "import runpy, sys; sys.path[0] = sys.argv[1]; runpy.run_path(sys.argv[2], run_name='x')"
    command = [sys.executable, "-c", code, str(FOLDER), str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
