"""The batches of a training, each made while the step before it is computed."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

from trm_bench.data.patches import Batch, PatchSampler


def upcoming(patches: PatchSampler, steps: range, device: torch.device) -> Generator[Batch]:
    """The batches of some steps, in order.

    On a CPU a second thread makes the next one, which is worth a sixth of a step where a core is
    free, and costs nothing where none is. A batch depends on its step alone, so that it does not
    matter who makes it when. On other devices batches are made there, one step after another.

    Args:
        patches: Makes them; what they carry must not change before the iterator is closed.
        steps: Which.
        device: Where the patches are.
    """
    if device.type != "cpu" or not steps:
        yield from map(patches.batch, steps)
        return
    with ThreadPoolExecutor(1, "batches") as other:
        coming = other.submit(patches.batch, steps[0])
        for _, following in pairwise(steps):
            batch = coming.result()
            coming = other.submit(patches.batch, following)
            yield batch
        yield coming.result()
