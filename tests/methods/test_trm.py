"""The paper's method and its controls inside a run: which map, which weights, which loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import CPU, context, prepared, trained
from torch.nn import functional

from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.methods.registry import create
from trm_bench.methods.trm import FIELD
from trm_bench.protocol.schema import LossConfig, MethodTraining
from trm_bench.seeds import deterministic
from trm_bench.transfer_risk import LeepStatistics, RiskMap, soft_dice

FAMILY = ["trm", "trm_prior", "trm_uniform", "trm_shuffled"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def weights(run: Context) -> list[torch.Tensor]:
    """The weight map of each training subject, (X, Y, Z), as batches will carry it."""
    return run.training_set.fields[FIELD]


def labels(run: Context) -> list[torch.Tensor]:
    return [run.training_set.volume(i)[1][0] for i in range(len(run.training_set))]


@pytest.mark.parametrize("normalise", ["none", "max", "minmax_per_image", "mean_one"])
@pytest.mark.parametrize("weight", ["risk", "affine", "power"])
def test_the_weights_are_those_of_the_map_over_the_training_set(
    normalise: str, weight: str
) -> None:
    options: Any = {"normalise": normalise, "weight": weight, "risk": "neg_log"}
    run, _ = prepared("trm", strength=2.0, base=5.0, **options)
    volumes = [run.training_set.volume(i) for i in range(len(run.training_set))]
    softmax = [run.predict(run.source, image) for image, _, _ in volumes]
    statistics = LeepStatistics(2, 3)
    for probabilities, (_, label, _) in zip(softmax, volumes, strict=True):
        statistics.update(probabilities, label)
    expected = RiskMap(statistics.conditional(), strength=2.0, base=5.0, **options)
    risks = [expected(p, label).float() for p, (_, label, _) in zip(softmax, volumes, strict=True)]
    for own, wanted in zip(weights(run), expected.weights(risks), strict=True):
        torch.testing.assert_close(own, wanted[0].float())


def test_each_normalisation_gives_other_weights() -> None:
    maps = [
        torch.stack(weights(prepared("trm", risk="neg_log", normalise=n)[0]))
        for n in ("none", "max", "minmax_per_image", "mean_one")
    ]
    for i, one in enumerate(maps):
        assert all(not torch.allclose(one, other) for other in maps[i + 1 :])


def test_the_scope_decides_which_voxels_count() -> None:
    run = context()
    for brain, label in zip(run.training_set.brains, run.training_set.labels, strict=True):
        brain.copy_(label == 0)
        brain[: len(brain) // 3] = True
    diagnostics = []
    for scope in ("all", "brain", "class_balanced", "labelled"):
        run.diagnostics = {}
        prepared("trm", run, scope=scope)
        diagnostics.append(run.diagnostics)
    priors = [tuple(d["prior"]) for d in diagnostics]
    assert len(set(priors)) == 4 and priors[2] == pytest.approx((0.5, 0.5))
    assert diagnostics[3]["leep"] == pytest.approx(
        0, abs=1e-9
    )  # one labelled class: nothing is at risk
    assert diagnostics[0]["leep"] != diagnostics[1]["leep"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("trm_paper_literal", {"weight": "risk", "normalise": "none"}),
        (
            "trm_minmax_power",
            {
                "weight": "power",
                "base": 10.0,
                "normalise": "minmax_per_image",
                "over": "foreground",
            },
        ),
    ],
)
def test_a_named_reading_is_trm_with_its_options(name: str, options: dict[str, Any]) -> None:
    losses = []
    for method, given in ((name, {}), ("trm", {"risk": "neg_log", **options})):
        run, made = prepared(method, **given)
        batch = run.patches.batch(0)
        losses.append(made.segmentation_loss(run, run.network(batch.image), batch))
    assert torch.equal(*losses)
    with pytest.raises(UserError, match=name):
        create(name, {"risk": "one_minus"})


def test_the_literal_reading_by_hand() -> None:
    """R = -log p, w = R, over the labelled voxels; Dice as the protocol weighs it."""
    run, method = prepared("trm_paper_literal")
    batch = run.patches.batch(1)
    logits = run.network(batch.image)
    image, label, _ = run.training_set.volume(0)
    source = run.predict(run.source, image).double().flatten(2)[0]  # (Ks, V)
    p = (method.statistics.conditional()[label.flatten().long()] * source.T).sum(1)
    torch.testing.assert_close(weights(run)[0].flatten(), -p.log().float())
    ce = functional.cross_entropy(logits, batch.label, reduction="none")
    wanted = (batch.fields[FIELD] * ce).sum() / (batch.label > 0).sum()
    wanted = wanted + soft_dice()(logits, batch.label.unsqueeze(1))
    torch.testing.assert_close(method.segmentation_loss(run, logits, batch), wanted)


def test_the_prior_is_one_weight_a_class_and_the_map_is_not() -> None:
    run, _ = prepared("trm_prior", base=3.0)
    counts = torch.stack([torch.bincount(y.flatten(), minlength=2) for y in labels(run)]).sum(0)
    share = counts / counts.sum()
    for weight, label in zip(weights(run), labels(run), strict=True):
        torch.testing.assert_close(weight, (3.0 ** (1 - share.double()))[label].float())
    run, _ = prepared("trm", base=3.0)
    for weight, label in zip(weights(run), labels(run), strict=True):
        assert all(weight[label == k].std() > 1e-4 for k in (0, 1))


def test_uniform_weights_are_ones_whatever_the_weighting() -> None:
    run, _ = prepared("trm_uniform", weight="affine", strength=9.0)
    assert all(bool((weight == 1).all()) for weight in weights(run))


def test_shuffling_permutes_within_each_class_of_each_image() -> None:
    maps, _ = prepared("trm")
    shuffled, _ = prepared("trm_shuffled")
    places = 0
    for own, mixed, label in zip(weights(maps), weights(shuffled), labels(maps), strict=True):
        for k in (0, 1):
            a, b = own[label == k], mixed[label == k]
            assert torch.equal(a.sort().values, b.sort().values), "other values than the map's"
            places += int((a != b).sum()) / len(a) > 0.5
    assert places == 4, "in each class of both images most voxels have got another's weight"


def test_shuffling_depends_on_the_seed_of_the_run() -> None:
    runs = [context(), context(), context()]
    runs[2].seed_axes = ("another seed",)
    for run in runs:
        prepared("trm_shuffled", run)
    one, again, other = (torch.stack(weights(run)) for run in runs)
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("name", FAMILY)
def test_the_protocol_weighs_the_terms_of_the_loss(name: str) -> None:
    """`loss.cross_entropy` and `loss.dice` weigh the terms of trm as they do those of finetune."""

    def losses(method: str, cross_entropy: float, dice: float) -> float:
        loss = LossConfig(cross_entropy=cross_entropy, dice=dice)
        run, made = context(loss=loss), create(method, {})
        made.prepare(run)
        batch = run.patches.batch(0)
        return made.segmentation_loss(run, run.network(batch.image), batch).item()

    for method in (name, "finetune"):
        voxels, overlap = losses(method, 1, 0), losses(method, 0, 1)
        assert losses(method, 1, 1) == pytest.approx(voxels + overlap, rel=1e-5)
        assert losses(method, 0.5, 1) == pytest.approx(voxels / 2 + overlap, rel=1e-5)
        assert losses(method, 1, 0.25) == pytest.approx(voxels + overlap / 4, rel=1e-5)


def test_the_loss_by_hand() -> None:
    run, method = prepared("trm", denominator="image_foreground", with_dice=0.25)
    for brain in run.training_set.brains:
        brain[::3] = False
    batch = run.patches.batch(1)
    logits = run.network(batch.image)
    ce = functional.cross_entropy(logits, batch.label, reduction="none")
    wanted = (batch.fields[FIELD] * ce).sum() / batch.brain.sum()
    wanted = wanted + 0.25 * soft_dice()(logits, batch.label.unsqueeze(1))
    assert 0 < batch.brain.sum() < batch.brain.numel()
    torch.testing.assert_close(method.segmentation_loss(run, logits, batch), wanted)


def test_the_controls_train_to_other_weights_than_the_map() -> None:
    ends = {name: trained(name, steps=3).after for name in FAMILY}
    flat = {n: torch.cat([t.flatten().float() for t in s.values()]) for n, s in ends.items()}
    names = list(flat)
    for i, one in enumerate(names):
        assert all(not torch.equal(flat[one], flat[other]) for other in names[i + 1 :]), one


@pytest.mark.parametrize("name", FAMILY)
def test_a_loss_without_any_weight_is_refused(name: str) -> None:
    """with_dice = 0 leaves the cross-entropy alone, which a dice_share of 1 takes away."""
    training = context().config
    nothing = MethodTraining(dice_share=1.0).applied(training)
    for tiny in (0.0, 1e-320):
        with pytest.raises(UserError, match="nothing would be learned"):
            create(name, {"with_dice": tiny}).adjusted(nothing)
        assert create(name, {"with_dice": tiny}).adjusted(training) == training
    assert create(name, {}).adjusted(nothing) == nothing
