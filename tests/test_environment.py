"""The machine: what a process may ask of a GPU that it has not used yet."""

from __future__ import annotations

import pytest
import torch
from helpers import CPU

from trm_bench import environment


def test_a_process_that_has_not_used_its_gpu_can_count_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []
    monkeypatch.setattr(torch.cuda, "init", lambda: done.append("init"))
    # PyTorch refuses the device before CUDA has started
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda device: done.append(str(device))
    )
    environment.reset_peak_memory(CPU)
    assert not done
    environment.reset_peak_memory(torch.device("cuda", 0))
    assert done == ["init", "cuda:0"]
