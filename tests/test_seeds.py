"""What makes a process repeat itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from helpers import CPU

from trm_bench.seeds import deterministic


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Those of a CPU again for the tests that come after."""
    yield
    deterministic(CPU)


@pytest.mark.parametrize(("device", "said"), [("cpu", 2), ("cuda:0", 1)])
def test_only_kernels_that_do_not_repeat_themselves_go_unsaid(device: str, said: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deterministic(torch.device(device))
        warnings.warn(
            "nll_loss2d_forward does not have a deterministic implementation", stacklevel=1
        )
        warnings.warn("something else", stacklevel=1)
    assert len(caught) == said
