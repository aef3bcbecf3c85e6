"""The examples run as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_monai_loop(tmp_path: Path) -> None:
    script = EXAMPLES / "monai_loop.py"
    assert len(script.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=True
    )
    losses = [
        [float(x) for x in found]
        for found in re.findall(r"mean loss ([\d.]+) at first, ([\d.]+) at", done.stdout)
    ]
    assert len(losses) == 2
    assert all(last < first for first, last in losses)
