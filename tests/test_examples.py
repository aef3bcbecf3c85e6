"""The examples run as written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reported import small

from trm_bench import report
from trm_bench.runs.folders import ProtocolFolder

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
REFERENCE = EXAMPLES.parent / "results/reference/hippocampus_cross_task"


def run(script: str, *arguments: Path, where: Path) -> str:
    """What a script prints."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_picture(file: Path) -> bool:
    return bool(np.asarray(Image.open(file).convert("L")).std() > 1)


@pytest.mark.slow
def test_monai_loop(tmp_path: Path) -> None:
    assert len((EXAMPLES / "monai_loop.py").read_text().splitlines()) < 100
    text = run("monai_loop.py", tmp_path, where=tmp_path)
    losses = re.findall(r"mean loss ([\d.]+) at first, ([\d.]+) at last", text)
    assert len(losses) == 2
    assert all(float(last) < float(first) for first, last in losses)
    dice = re.search(r"([\d.]+) % before, ([\d.]+) % after", text)
    assert dice and float(dice[1]) < float(dice[2])
    assert is_picture(tmp_path / "monai_loop.png")


def test_read_results_gives_the_reports_numbers(tmp_path: Path) -> None:
    text = run("read_results.py", where=tmp_path)
    summary = json.loads((REFERENCE / "summary.json").read_text())["metrics"]["dice"]
    for method, known in summary.items():
        assert re.search(rf"^{method} +{known['mean']:.2f}\b", text, re.M), method
        if method != "finetune":
            assert re.search(rf"^{method} +{known['gain']:.2f} ", text, re.M), method
    assert is_picture(tmp_path / "read_results.png")


def test_read_results_reads_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = small(tmp_path / "results", methods=["scratch", "finetune", "trm"])
    report.write(ProtocolFolder(folder))
    text = run("read_results.py", folder, where=tmp_path)
    assert re.search(r"^trm +\d", text, re.M) and is_picture(tmp_path / "read_results.png")
