"""Focal and top-k loss against their formulas, written out with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import context, random

from trm_bench.data.patches import Batch
from trm_bench.methods.registry import create


def case(seed: int = 0) -> tuple[torch.Tensor, Batch, np.ndarray]:
    """Logits, their batch, and the cross-entropy of each voxel."""
    logits = 3 * random(2, 3, 5, 4, 3, seed=seed)
    label = torch.randint(0, 3, (2, 5, 4, 3), generator=torch.Generator().manual_seed(seed))
    batch = Batch(random(2, 1, 5, 4, 3), label, torch.ones_like(label, dtype=torch.bool), {})
    z = logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    true = np.take_along_axis(p, label.numpy()[:, None], axis=1)[:, 0]
    return logits, batch, -np.log(true)


def loss_of(name: str, logits: torch.Tensor, batch: Batch, **parameters: Any) -> float:
    return float(create(name, parameters).voxel_loss(context(), logits, batch))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal(gamma: float) -> None:
    logits, batch, ce = case()
    wanted = ((1 - np.exp(-ce)) ** gamma * ce).mean()
    assert loss_of("focal", logits, batch, gamma=gamma) == pytest.approx(wanted, rel=1e-5)


def test_focal_counts_easy_voxels_least() -> None:
    """As gamma grows the share of the easiest half of the voxels in the gradient shrinks."""
    logits, batch, ce = case()
    easy = torch.from_numpy(ce <= np.median(ce))
    shares = []
    for gamma in (0.0, 2.0, 5.0):
        at = logits.clone().requires_grad_()
        create("focal", {"gamma": gamma}).voxel_loss(context(), at, batch).backward()
        size = at.grad.abs().sum(1)  # type: ignore[union-attr]
        shares.append(float(size[easy].sum() / size.sum()))
    assert shares == sorted(shares, reverse=True) and shares[2] < shares[0] / 2


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_topk(share: float) -> None:
    logits, batch, ce = case(1)
    number = max(1, round(share * ce.size))
    wanted = np.sort(ce.ravel())[::-1][:number].mean()
    assert loss_of("topk", logits, batch, share=share) == pytest.approx(wanted, rel=1e-5)
