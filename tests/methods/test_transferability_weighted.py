"""Regions weighed by their transferability: against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, prepared
from torch.nn import functional

from trm_bench.methods import Context
from trm_bench.methods.trm import FIELD
from trm_bench.seeds import deterministic
from trm_bench.transfer_risk import soft_dice


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def informed(**options: Any) -> Context:
    run = context(**options)
    run.predict = lambda network, image: torch.cat([image, -image, image / 3], 1).softmax(1)
    return run


def blocks(values: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """The mean of each voxel's block, one block after the other."""
    mean = np.empty_like(values)
    pairs = zip(values.shape, sizes, strict=True)
    for corner in np.ndindex(*(-(-n // size) for n, size in pairs)):
        starts = [c * size for c, size in zip(corner, sizes, strict=True)]
        block = tuple(slice(at, at + size) for at, size in zip(starts, sizes, strict=True))
        mean[block] = values[block].mean()
    return mean


@pytest.mark.parametrize(
    ("dims", "region", "sizes"),
    [(3, 1, (1, 1, 1)), (3, 4, (4, 4, 4)), (3, 100, (10, 9, 8)), (2, 4, (4, 4, 1))],
)
def test_regions_of_low_transferability_weigh_more(
    dims: int, region: int, sizes: tuple[int, ...]
) -> None:
    run, method = prepared(
        "transferability_weighted", informed(dims=dims), region=region, strength=3.0
    )
    conditional = method.statistics.conditional().numpy()
    risks = []
    for i in range(len(run.training_set)):
        image, label, _ = run.training_set.volume(i)
        theta = run.predict(run.network, image)[0].double().numpy().transpose(1, 2, 3, 0)
        risks.append(blocks(-np.log((conditional[label[0].numpy()] * theta).sum(-1)), sizes))
    mean = np.mean(risks)
    own = [weight.double().numpy() for weight in run.training_set.fields[FIELD]]
    for weight, risk in zip(own, risks, strict=True):
        np.testing.assert_allclose(weight, (1 + 3 * risk / mean) / 4, rtol=1e-5)
    assert np.mean(own) == pytest.approx(1, rel=1e-5)
    image, label, _ = run.training_set.volume(0)
    shown = method.maps(run, image, label)
    np.testing.assert_allclose(shown["risk"][0].numpy(), risks[0], rtol=1e-6)


def test_the_loss_is_a_mean_over_all_voxels_and_the_protocols_dice() -> None:
    run, method = prepared("transferability_weighted", informed(loss={"dice": 0.5}), region=2)
    batch = run.patches.batch(1)
    logits = run.network(batch.image)
    ce = functional.cross_entropy(logits, batch.label, reduction="none")
    wanted = (batch.fields[FIELD] * ce).mean() + 0.5 * soft_dice()(logits, batch.label.unsqueeze(1))
    torch.testing.assert_close(method.segmentation_loss(run, logits, batch), wanted)
    assert batch.fields[FIELD].std() > 0.05
