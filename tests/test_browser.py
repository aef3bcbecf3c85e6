"""What a person sees who follows the printed link: MLflow's page of the runs, in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from faults.kills import wait_for_none
from helpers import Run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LONG = 60_000  # ms; a server that is new to a busy machine takes its time


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_printed_link_lands_on_the_runs(
    trm_bench: Run,
    tmp_path: Path,
    toy_data: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(empty_store, out / "mlflow.db")
    file = toy.write_protocol(tmp_path / "toy.yaml", toy_data, tracking="mlflow")
    code, text = trm_bench("run", file, "--out", out, "--methods", "finetune,trm", "--jobs", 1)
    assert code == 0
    (command,) = re.findall(r"trm-bench (mlflow \S+)", text)
    process = subprocess.Popen(
        [sys.executable, "-m", "trm_bench", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        name, _, link = process.stdout.readline().strip().partition(": ")
        assert name == "toy" and link.startswith("http://127.0.0.1:")
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 2600, "height": 1000})
            page.set_default_timeout(LONG)
            page.goto(link)
            page.get_by_role("link", name="finetune seed 0 whole->lower_upper").wait_for()
            for column in ("test_dice_percent", "test_hd95_mm", "validation_dice_percent"):
                page.get_by_role("columnheader", name=column).first.wait_for()
            page.get_by_role("link", name="trm seed 0 whole->lower_upper").click()
            page.get_by_role("link", name="train_loss").wait_for()
            page.get_by_role("link", name="test_dice_percent").wait_for()
            page.locator("a[href*='/runs/']", has_text=re.compile("^toy$")).first.click()
            page.get_by_text("The gain of trm over finetune is").wait_for()
            browser.close()
        group = server_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in said
        assert wait_for_none(group, 10) == []
    finally:
        process.kill()


def server_of(command: int) -> int:
    """The process group of the server that a command has started."""
    pids = Path(f"/proc/{command}/task/{command}/children").read_text().split()
    (group,) = {os.getpgid(int(pid)) for pid in pids}
    assert group != os.getpgid(command)
    return group
