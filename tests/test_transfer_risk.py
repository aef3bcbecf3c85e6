"""LEEP, the risk map and the weighted loss against independent float64 computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trm_bench.transfer_risk import LeepStatistics, RiskMap, RiskSummary, RiskWeightedLoss


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(0, keepdims=True))
    return e / e.sum(0, keepdims=True)


def leep_by_hand(
    theta: list[np.ndarray], y: list[np.ndarray], kt: int
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Voxel by voxel, as the formulas read: conditional, EEP maps, LEEP."""
    ks = theta[0].shape[0]
    joint = np.zeros((kt, ks))
    n = 0
    for t, labels in zip(theta, y, strict=True):
        for v in np.ndindex(labels.shape):
            joint[labels[v]] += t[(slice(None), *v)]
            n += 1
    joint /= n
    conditional = np.array(
        [
            [joint[k, c] / joint[:, c].sum() if joint[:, c].sum() > 0 else 0.0 for c in range(ks)]
            for k in range(kt)
        ]
    )
    maps = []
    for t, labels in zip(theta, y, strict=True):
        p = np.zeros(labels.shape)
        for v in np.ndindex(labels.shape):
            p[v] = sum(conditional[labels[v], c] * t[(c, *v)] for c in range(ks))
        maps.append(p)
    return conditional, maps, float(np.mean(np.concatenate([np.log(m).ravel() for m in maps])))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), kt=st.integers(2, 4), ks=st.integers(1, 4), dims=st.integers(2, 3)
)
def test_leep_agrees_with_independent_float64(seed: int, kt: int, ks: int, dims: int) -> None:
    """Including target classes that no voxel has and source classes without any probability."""
    draws = np.random.default_rng(seed)
    shapes = [tuple(draws.integers(2, 5, dims)) for _ in range(3)]
    theta = [softmax(draws.normal(size=(ks, *s)) * 3) for s in shapes]
    if ks > 1 and seed % 2:
        for t in theta:  # a source class that never occurs
            t[-1] = 0
            t /= t.sum(0, keepdims=True)
    present = draws.choice(kt, size=draws.integers(1, kt + 1), replace=False)
    y = [draws.choice(present, size=s) for s in shapes]
    conditional, maps, leep = leep_by_hand(theta, y, kt)

    statistics = LeepStatistics(kt, ks)
    for t, labels in zip(theta, y, strict=True):
        statistics.update(torch.from_numpy(t)[None], torch.from_numpy(labels)[None])
    risk_map, summary = RiskMap(statistics.conditional()), RiskSummary(kt)
    seen = [c for c in range(ks) if sum(t[c].sum() for t in theta) > 0]
    np.testing.assert_allclose(
        statistics.conditional().numpy()[:, seen], conditional[:, seen], atol=1e-9
    )
    for t, labels, expected in zip(theta, y, maps, strict=True):
        tensors = torch.from_numpy(t)[None], torch.from_numpy(labels)[None]
        np.testing.assert_allclose(
            risk_map.expected_prediction(*tensors)[0].numpy(), expected, atol=1e-9
        )
        np.testing.assert_allclose(risk_map(*tensors)[0].numpy(), -np.log(expected), atol=1e-9)
        summary.update(risk_map(*tensors), risk_map.transferability(*tensors), tensors[1])
    assert summary.result()["leep"] == pytest.approx(leep, abs=1e-9)
    assert statistics.joint().sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(
        statistics.prior().numpy(),
        np.bincount(np.concatenate([a.ravel() for a in y]), minlength=kt) / sum(a.size for a in y),
        atol=1e-12,
    )


def test_float32_probabilities_are_accumulated_in_float64() -> None:
    """2^24 + 1 voxels of one class cannot be counted in float32."""
    statistics = LeepStatistics(2, 1)
    ones = torch.ones(1, 1, 2**22)
    for _ in range(5):
        statistics.update(ones, torch.zeros(1, 2**22, dtype=torch.uint8))
    statistics.update(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.uint8))
    assert statistics.prior()[1].item() == pytest.approx(1 / (5 * 2**22 + 1), rel=1e-12)


def test_batches_do_not_matter() -> None:
    theta = torch.rand(6, 3, 4, 5).softmax(1)
    y = torch.randint(0, 2, (6, 4, 5))
    whole, parts = LeepStatistics(2, 3), LeepStatistics(2, 3)
    whole.update(theta, y)
    for i in range(6):
        parts.update(theta[i : i + 1], y[i : i + 1])
    torch.testing.assert_close(whole.joint(), parts.joint(), rtol=0, atol=1e-15)


def test_scopes() -> None:
    theta = torch.rand(1, 2, 10, dtype=torch.float64).softmax(1)
    y = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1, 2]])
    brain = torch.tensor([[False] * 4 + [True] * 6])
    inside, alone = LeepStatistics(3, 2, "brain"), LeepStatistics(3, 2)
    inside.update(theta, y, brain)
    alone.update(theta[..., 4:], y[:, 4:])
    torch.testing.assert_close(inside.joint(), alone.joint())
    balanced = LeepStatistics(4, 2, "class_balanced")  # class 3 never occurs
    balanced.update(theta, y)
    torch.testing.assert_close(
        balanced.prior(), torch.tensor([1 / 3, 1 / 3, 1 / 3, 0], dtype=torch.float64)
    )
    means = torch.stack([theta[0][:, y[0] == k].mean(1) for k in range(3)]) / 3
    torch.testing.assert_close(balanced.joint()[:3], means)


def test_labelled_voxels_alone() -> None:
    """The joint of the voxels with y > 0; the background is at no risk, whatever the source."""
    theta = torch.rand(2, 3, 20, dtype=torch.float64).softmax(1)
    y = torch.randint(0, 3, (2, 20))
    labelled, alone = LeepStatistics(3, 3, "labelled"), LeepStatistics(3, 3)
    labelled.update(theta, y)
    alone.update(theta.movedim(1, 0)[:, y > 0][None], y[y > 0][None])
    torch.testing.assert_close(labelled.joint(), alone.joint())
    torch.testing.assert_close(labelled.conditional()[1:], alone.conditional()[1:])
    torch.testing.assert_close(labelled.prior()[1:], alone.prior()[1:])
    for risk in ("neg_log", "one_minus"):
        own = RiskMap(labelled.conditional(), risk)(theta, y)  # type: ignore[arg-type]
        other = RiskMap(alone.conditional(), risk)(theta, y)  # type: ignore[arg-type]
        assert bool((own[y == 0] < 1e-12).all()) and bool((own[y > 0] > 1e-3).all())
        torch.testing.assert_close(own[y > 0], other[y > 0])


def test_a_perfect_source_has_no_risk_and_a_useless_one_has_the_prior() -> None:
    y = torch.tensor([[0, 0, 0, 1]])
    perfect = torch.nn.functional.one_hot(y, 2).movedim(-1, 1).double()
    useless = torch.full((1, 2, 4), 0.5, dtype=torch.float64)
    for theta, expected in (
        (perfect, [0, 0, 0, 0]),
        (useless, [-math.log(0.75)] * 3 + [-math.log(0.25)]),
    ):
        statistics = LeepStatistics(2, 2)
        statistics.update(theta, y)
        risk = RiskMap(statistics.conditional())(theta, y)
        torch.testing.assert_close(risk[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("normalise", ["none", "max", "minmax_per_image", "mean_one"])
@pytest.mark.parametrize("weight", ["risk", "affine", "power"])
def test_weights_against_numpy(normalise: str, weight: str) -> None:
    risks = [torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[2.0, 4.0]])]
    maps = RiskMap(torch.eye(2), normalise=normalise, weight=weight, strength=2.0, base=3.0)  # type: ignore[arg-type]
    arrays = [np.array([0, 1, 3.0]), np.array([2, 4.0])]
    scaled = {
        "none": arrays,
        "max": [a / 4 for a in arrays],
        "minmax_per_image": [arrays[0] / 3, (arrays[1] - 2) / 2],
        "mean_one": [a / 2 for a in arrays],
    }[normalise]
    expected = {"risk": lambda r: r, "affine": lambda r: 1 + 2 * r, "power": lambda r: 3**r}[weight]
    for found, r in zip(maps.weights(risks), scaled, strict=True):
        np.testing.assert_allclose(found[0].numpy(), expected(r), rtol=1e-6)


def test_constant_risks_stay_finite() -> None:
    for normalise in ("max", "minmax_per_image", "mean_one"):
        (weights,) = RiskMap(torch.eye(2), normalise=normalise).weights([torch.zeros(1, 4)])  # type: ignore[arg-type]
        assert weights.isfinite().all()


def test_one_minus() -> None:
    theta = torch.tensor([[[0.7, 0.2], [0.3, 0.8]]], dtype=torch.float64)
    y = torch.tensor([[0, 1]])
    maps = RiskMap(torch.tensor([[0.9, 0.4], [0.1, 0.6]]), risk="one_minus")
    expected = 1 - torch.tensor(
        [[0.9 * 0.7 + 0.4 * 0.3, 0.1 * 0.2 + 0.6 * 0.8]], dtype=torch.float64
    )
    torch.testing.assert_close(maps(theta, y), expected, atol=1e-7, rtol=0)


def test_a_label_never_seen_has_a_finite_risk() -> None:
    maps = RiskMap(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert maps(torch.full((1, 2, 3), 0.5), torch.ones(1, 3, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize("over", ["all", "foreground"])
@pytest.mark.parametrize(
    "denominator", ["label_foreground", "image_foreground", "weights", "voxels"]
)
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_loss_against_numpy(denominator: str, over: str, shape: tuple[int, ...]) -> None:
    draws = np.random.default_rng(1)
    logits, weight = draws.normal(size=(2, 3, *shape)), draws.uniform(0, 4, (2, *shape))
    y, brain = draws.integers(0, 3, (2, *shape)), draws.random((2, *shape)) < 0.7
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ce = -np.log(np.take_along_axis(p, y[:, None], 1)[:, 0])
    counted = weight * (y > 0) if over == "foreground" else weight
    count = {
        "label_foreground": (y > 0).sum(),
        "image_foreground": brain.sum(),
        "weights": counted.sum(),
        "voxels": (y > 0).sum() if over == "foreground" else y.size,
    }[denominator]
    loss = RiskWeightedLoss(denominator, over)  # type: ignore[arg-type]
    tensors = [torch.from_numpy(a) for a in (logits, y, weight, brain)]
    assert loss(*tensors).item() == pytest.approx((counted * ce).sum() / count, rel=1e-5)


def test_uniform_weights_over_all_voxels_are_plain_cross_entropy() -> None:
    logits, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    loss = RiskWeightedLoss("voxels")(logits, y, torch.ones(2, 4, 4))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, y))


def test_dice_term_is_added() -> None:
    from monai.losses import DiceLoss

    logits, y = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)(
        logits, y[:, None]
    )
    plain, both = (
        RiskWeightedLoss(with_dice=w)(logits, y, torch.ones(2, 4, 4)) for w in (0.0, 0.5)
    )
    torch.testing.assert_close(both - plain, 0.5 * dice)


@pytest.mark.parametrize(
    "denominator", ["label_foreground", "image_foreground", "weights", "voxels"]
)
@pytest.mark.parametrize("over", ["all", "foreground"])
def test_a_patch_without_foreground_gives_a_finite_loss_and_gradient(
    denominator: str, over: str
) -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    y, brain = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.bool)
    loss = RiskWeightedLoss(denominator, over, with_dice=1.0)(logits, y, torch.ones(1, 4, 4), brain)  # type: ignore[arg-type]
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_class_explained_variance_against_numpy() -> None:
    draws = np.random.default_rng(2)
    y = draws.integers(0, 3, 500)
    risk = y * 1.5 + draws.normal(size=500)
    summary = RiskSummary(3)
    for part in (slice(0, 200), slice(200, 500)):
        summary.update(
            torch.from_numpy(risk[part]), torch.from_numpy(-risk[part]), torch.from_numpy(y[part])
        )
    between = sum((y == k).mean() * (risk[y == k].mean() - risk.mean()) ** 2 for k in range(3))
    assert summary.result()["class_explained"] == pytest.approx(between / risk.var(), rel=1e-9)
    assert summary.result()["leep"] == pytest.approx(-risk.mean(), rel=1e-12)


def test_the_prior_is_explained_by_the_class_alone() -> None:
    """What method.md calls the collapse: a source that tells nothing gives class weights."""
    y = torch.randint(0, 2, (1, 400), generator=torch.Generator().manual_seed(0))
    summary, risk = RiskSummary(2), torch.where(y > 0, 5.16, 0.006)
    summary.update(risk, -risk, y)
    assert summary.result()["class_explained"] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LeepStatistics(2, 2, "everywhere"), "scope"),  # type: ignore[arg-type]
        (lambda: RiskMap(torch.eye(2), risk="log"), "risk"),  # type: ignore[arg-type]
        (lambda: RiskMap(torch.eye(2), normalise="sum"), "normalise"),  # type: ignore[arg-type]
        (lambda: RiskMap(torch.eye(2), weight="square"), "weight"),  # type: ignore[arg-type]
        (lambda: RiskMap(torch.eye(2), base=0.0), "base"),
        (lambda: RiskWeightedLoss("pixels"), "denominator"),  # type: ignore[arg-type]
        (lambda: LeepStatistics(2, 2).joint(), "no voxel"),
        (
            lambda: LeepStatistics(2, 3).update(torch.rand(1, 2, 4), torch.zeros(1, 4)),
            "source channels",
        ),
        (lambda: LeepStatistics(2, 2).update(torch.rand(1, 2, 4), torch.zeros(1, 5)), "do not fit"),
        (
            lambda: LeepStatistics(2, 2).update(torch.rand(1, 2, 4), torch.full((1, 4), 2)),
            "target_classes",
        ),
        (
            lambda: LeepStatistics(2, 2, "brain").update(torch.rand(1, 2, 4), torch.zeros(1, 4)),
            "brain mask",
        ),
        (lambda: RiskWeightedLoss("image_foreground")(*[torch.rand(1, 2, 4)] * 3), "brain mask"),
    ],
)
def test_wrong_use_is_said(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
