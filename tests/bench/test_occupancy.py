"""How much of a whole benchmark is training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trm_bench.bench import occupancy
from trm_bench.bench.timing import ratio
from trm_bench.display import Display
from trm_bench.errors import UserError

CPU, QUIET = torch.device("cpu"), Display(quiet=True)


@pytest.mark.slow
def test_a_whole_command_is_run_and_its_trainings_are_a_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [f"training.{side}.steps=2" for side in ("source", "target")]
    monkeypatch.setattr(occupancy, "SETTINGS", ["tracking=off", "metrics=[dice]", *few])
    monkeypatch.setattr(occupancy, "SEEDS", ("0",))
    monkeypatch.setattr(occupancy, "METHODS", ("finetune",))
    section = occupancy.measure(CPU, tmp_path, QUIET)
    at_hand, training = section.rows
    assert 0 < ratio(training, at_hand).median < 1
    assert (tmp_path / "demo" / "report.html").is_file()


def test_a_command_that_fails_is_a_message() -> None:
    with pytest.raises(UserError, match=r"demo failed: (?s:.*)no-such-option"):
        occupancy._run(["--no-such-option"])
