"""What the tests of clusters share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm import Slurm, absent


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A SLURM of two nodes with two GPUs each; the tests are skipped where there can be none."""
    if find_spec("distributed") is None:
        pytest.skip("no dask.distributed here: pip install 'trm-bench[cluster]'")
    if why := absent():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Slurm(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
