"""The machine: what a process may ask of a GPU that it has not used yet."""

from __future__ import annotations

import platform
from pathlib import Path

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


@pytest.mark.parametrize(
    ("said", "name", "flags"),
    [
        (
            "model name\t: Some CPU\nflags\t\t: fpu ssse3 fma avx512_bf16\n",
            "Some CPU",
            ("fma", "avx512_bf16"),
        ),
        (
            "Features\t: fp bf16 sve2\n",
            platform.processor() or platform.machine(),
            ("bf16", "sve2"),
        ),
        (None, platform.processor() or platform.machine(), ()),
    ],
)
def test_a_record_says_which_processor_computed(
    said: str | None,
    name: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "cpuinfo"
    if said is not None:
        # as of a second core, whose lines follow
        file.write_text(said + said.replace("Some", "Another"))
    monkeypatch.setattr(environment, "CPUINFO", file)
    environment.processor.cache_clear()
    environment.describe.cache_clear()
    try:
        about = environment.describe(CPU)
    finally:
        environment.processor.cache_clear()
        environment.describe.cache_clear()
    assert (about.device_name, about.flags) == (name, flags)
