"""The forms of the loss against their formulas, written out with NumPy, and in every arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, prepared, random, same, trained
from pydantic import ValidationError
from torch.nn import functional

from trm_bench import losses
from trm_bench.data.patches import PatchSampler
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import LossConfig
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train

VOXELS: list[dict[str, Any]] = [
    {"voxels": "cross_entropy"},
    {"voxels": "focal", "gamma": 0.5},
    {"voxels": "focal"},
    {"voxels": "topk"},
    {"voxels": "topk", "share": 0.5},
    {"voxels": "class_balanced"},
]
OVERLAPS: list[dict[str, Any]] = [
    {"overlap": "dice"},
    {"overlap": "tversky"},
    {"overlap": "tversky", "alpha": 0.5, "beta": 2.0},
    {"overlap": "generalized_dice"},
]
BALANCE = torch.tensor([0.01, 0.5, 0.2])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def case() -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Logits and labels, and in double precision the softmax and the one-hot labels, class last."""
    logits = 3 * random(2, 3, 5, 4, 3)
    label = torch.randint(0, 3, (2, 5, 4, 3), generator=torch.Generator().manual_seed(1))
    z = np.moveaxis(logits.double().numpy(), 1, -1)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return logits, label, p, np.eye(3)[label.numpy()]


def by_hand(form: dict[str, Any], p: np.ndarray, y: np.ndarray) -> np.ndarray:
    true = (p * y).sum(-1)
    ce = -np.log(true)
    match form["voxels"]:
        case "focal":
            return (1 - true) ** form.get("gamma", 2.0) * ce
        case "topk":
            number = max(1, round(form.get("share", 0.1) * ce.size))
            hard = ce >= np.sort(ce.ravel())[-number]
            return np.where(hard, ce * ce.size / number, 0.0)
        case "class_balanced":
            b = y @ BALANCE.double().numpy()
            return b * ce / b.mean()
    return ce


@pytest.mark.parametrize("form", VOXELS, ids=str)
def test_values_of_voxels_are_the_formulas(form: dict[str, Any]) -> None:
    logits, label, p, y = case()
    values = losses.voxel_values(LossConfig(**form), logits, label, BALANCE)
    np.testing.assert_allclose(values.numpy(), by_hand(form, p, y), rtol=1e-4, atol=1e-6)


def test_focal_and_balanced_are_those_of_the_libraries() -> None:
    from monai.losses import FocalLoss

    logits, label, _, _ = case()
    focal = FocalLoss(gamma=2.0, use_softmax=True, to_onehot_y=True, reduction="none")
    values = losses.voxel_values(LossConfig(voxels="focal"), logits, label)
    torch.testing.assert_close(values, focal(logits, label.unsqueeze(1)).sum(1))
    balanced = losses.voxel_values(LossConfig(voxels="class_balanced"), logits, label, BALANCE)
    weighted = functional.cross_entropy(logits, label, weight=BALANCE)
    torch.testing.assert_close(balanced.mean(), weighted)


@pytest.mark.parametrize("form", VOXELS, ids=str)
def test_a_sure_network_has_finite_gradients(form: dict[str, Any]) -> None:
    label = torch.tensor([[0, 1, 1, 0]])
    logits = torch.tensor([[[300.0, -300, 5, 0], [-300.0, 300, 0, 5]]]).requires_grad_()
    losses.voxel_values(LossConfig(**form), logits, label, BALANCE[:2]).mean().backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("form", OVERLAPS, ids=str)
def test_overlaps_are_the_formulas(form: dict[str, Any]) -> None:
    logits, label, p, y = case()
    p, y, axes = p[..., 1:], y[..., 1:], (0, 1, 2, 3)
    right, falsely, missed = ((x * z).sum(axes) for x, z in ((p, y), (p, 1 - y), (1 - p, y)))
    weight = 1 / y.sum(axes) ** 2
    wanted = {
        "dice": (1 - 2 * right / (2 * right + falsely + missed)).mean(),
        "tversky": (
            1 - right / (right + form.get("alpha", 0.3) * falsely + form.get("beta", 0.7) * missed)
        ).mean(),
        "generalized_dice": 1
        - 2 * (weight * right).sum() / (weight * (2 * right + falsely + missed)).sum(),
    }[form["overlap"]]
    loss = losses.overlap(LossConfig(**form))(logits, label.unsqueeze(1))
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_class_weights_are_inverse_frequencies_of_the_training_set() -> None:
    run = context(dims=2, loss=LossConfig(voxels="class_balanced"))
    volumes = [run.training_set.volume(i)[1] for i in range(len(run.training_set))]
    counts = [sum(int((v == k).sum()) for v in volumes) for k in range(2)]
    weight = run.patches.batch(0).class_weight
    assert weight is not None and weight.tolist() == pytest.approx([1 / n for n in counts])
    sources = run.source_patches().batch(0).class_weight
    assert sources is not None and len(sources) == 3, "a batch of the source has the source's"
    assert context(dims=2).patches.batch(0).class_weight is None


def moved(name: str, parameters: dict[str, Any], **loss: Any) -> torch.Tensor:
    """All weights after a training without AdamW, which makes steps of rounding."""
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
    after = trained(name, parameters, loss=LossConfig(**loss), optimizer=sgd).after
    return torch.cat([w.flatten().double() for w in after.values()])


@pytest.mark.parametrize(
    ("name", "parameters"), [("focal", {"gamma": 1.5}), ("topk", {"share": 0.3})]
)
def test_finetune_under_a_form_is_the_method_of_that_form(
    name: str, parameters: dict[str, Any]
) -> None:
    method = moved(name, parameters)
    torch.testing.assert_close(moved("finetune", {}, voxels=name, **parameters), method)
    assert not torch.allclose(moved("finetune", {}), method)


def test_a_method_with_a_loss_of_its_own_keeps_it_and_takes_the_overlap() -> None:
    gamma = {"gamma": 1.0}
    plain, other = (moved("focal", gamma, voxels=v) for v in ("cross_entropy", "topk"))
    assert torch.equal(plain, other)
    assert not torch.allclose(plain, moved("focal", gamma, overlap="tversky"))


@pytest.mark.parametrize("form", VOXELS, ids=str)
@pytest.mark.parametrize("overlap", OVERLAPS[1:], ids=str)
def test_trm_weighs_the_form(form: dict[str, Any], overlap: dict[str, Any]) -> None:
    config = LossConfig(**form, **overlap, cross_entropy=0.5)
    run, method = prepared("trm", context(loss=config), denominator="voxels", with_dice=0.25)
    batch = run.patches.batch(0)
    logits = random(*batch.image.shape[:1], 2, *batch.label.shape[1:])
    values = losses.voxel_values(config, logits, batch.label, batch.class_weight)
    wanted = 0.5 * (batch.fields["risk weight"] * values).mean()
    wanted = wanted + 0.25 * losses.overlap(config)(logits, batch.label.unsqueeze(1))
    torch.testing.assert_close(method.segmentation_loss(run, logits, batch), wanted)


@pytest.mark.parametrize("form", VOXELS[1:], ids=str)
def test_trm_without_a_map_over_all_voxels_is_finetune(form: dict[str, Any]) -> None:
    """Whatever the form, so that what the map adds is compared at equal form."""
    run, method = prepared("trm_uniform", context(loss=LossConfig(**form)), denominator="voxels")
    batch = run.patches.batch(0)
    logits = random(*batch.image.shape[:1], 2, *batch.label.shape[1:])
    plain = create("finetune", {}).segmentation_loss(run, logits, batch)
    torch.testing.assert_close(method.segmentation_loss(run, logits, batch), plain)


@pytest.mark.parametrize("name", ["forkmerge", "disagreement", "co_tuning"])
@pytest.mark.parametrize("form", VOXELS[3:], ids=str)
def test_methods_that_see_source_batches_train_under_a_form(
    name: str, form: dict[str, Any]
) -> None:
    result = trained(name, loss=LossConfig(**form, overlap="generalized_dice"), dims=2)
    assert all(np.isfinite(loss) for _, loss in result.curves.loss)


def test_the_balance_of_the_gradients_is_looked_at_under_a_form() -> None:
    run = context(loss=LossConfig(voxels="focal", overlap="tversky"), steps=10)
    curves = Curves()
    train(run, create("finetune", {}), curves)
    assert len(curves.voxel_share) == curves.looks


def test_forms_that_are_not_named_change_nothing() -> None:
    named = LossConfig(voxels="cross_entropy", overlap="dice")
    assert same(trained("finetune", loss=named).after, trained("finetune").after)


def test_a_form_has_its_papers_values_unless_given_others() -> None:
    focal = LossConfig(voxels="focal", overlap="tversky")
    assert (focal.gamma, focal.share, focal.alpha, focal.beta) == (2.0, None, 0.3, 0.7)
    assert LossConfig.model_validate(focal.model_dump()) == focal
    assert LossConfig(voxels="topk").share == 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gamma": 2.0}, "gamma is a parameter of voxels: focal, which is not chosen"),
        ({"voxels": "focal", "share": 0.1}, "share is a parameter of voxels: topk"),
        ({"alpha": 0.3}, "alpha is a parameter of overlap: tversky"),
        ({"voxels": "topk", "share": 0}, "greater than 0"),
        ({"overlap": "tversky", "alpha": 0, "beta": 0}, "no voxel would be wrong"),
        ({"voxels": "dice"}, "cross_entropy"),
    ],
)
def test_what_does_not_fit_a_form_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        LossConfig(**given)


def test_patches_of_a_store_without_a_class_are_balanced_too() -> None:
    run = context(loss=LossConfig(voxels="class_balanced"))
    run.training_set.labels = [torch.zeros_like(label) for label in run.training_set.labels]
    sampler = PatchSampler(run.training_set, run.config, "patches")
    logits = random(2, 2, 8, 8, 8)
    batch = sampler.batch(0)
    loss = create("finetune", {}).segmentation_loss(run, logits, batch)
    assert bool(loss.isfinite())


def test_the_cross_entropy_of_voxels_is_pytorchs_to_the_bit() -> None:
    logits = random(2, 3, 5, 4, 3).requires_grad_()
    label = torch.randint(0, 3, (2, 5, 4, 3), generator=torch.Generator().manual_seed(1))
    weight = random(2, 5, 4, 3, seed=2)
    ours = losses.cross_entropy(logits, label)
    theirs = functional.cross_entropy(logits, label, reduction="none")
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad((weight * ce).sum(), logits)[0] for ce in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)
