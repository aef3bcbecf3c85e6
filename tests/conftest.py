"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy

from trm_bench.environment import CPU_THREADS

torch.set_num_threads(CPU_THREADS)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy dataset, written once."""
    return toy.write_dataset(tmp_path_factory.mktemp("toy"))
