"""Class term times within-class term: against NumPy, its invariants, and the oracle's cross-fit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, prepared, same, state, trained
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trm_bench.data.patches import PatchSampler
from trm_bench.errors import UserError
from trm_bench.methods import Context, Fit
from trm_bench.methods.registry import create
from trm_bench.methods.trm import FIELD
from trm_bench.protocol.schema import NetworkConfig
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train

DROPOUT = NetworkConfig.model_validate(
    {"name": "UNet", "channels": (4, 8), "strides": (2,), "norm": "batch", "dropout": 0.3}
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def informed(**training: Any) -> Context:
    """A run whose source says something about every voxel, and whose brains are a part."""
    run = context(**training)
    run.predict = lambda network, image: torch.cat([image, -image, image / 3], 1).softmax(1)
    for brain in run.training_set.brains:
        brain[:3] = False
    return run


def weights(run: Context) -> list[np.ndarray]:
    return [weight.double().numpy() for weight in run.training_set.fields[FIELD]]


def labels(run: Context) -> list[np.ndarray]:
    return [run.training_set.volume(i)[1][0].numpy() for i in range(len(run.training_set))]


def insides(run: Context, scope: str) -> list[np.ndarray]:
    if scope == "labelled":
        return [label > 0 for label in labels(run)]
    brains = [brain.numpy() for brain in run.training_set.brains]
    return brains if scope == "brain" else [np.ones_like(brain) for brain in brains]


def class_mean(maps: list[np.ndarray], run: Context, scope: str) -> list[float]:
    """Over all subjects at once; nan for a class without a voxel in the scope."""
    values, label, inside = (
        np.concatenate([one.ravel() for one in of])
        for of in (maps, labels(run), insides(run, scope))
    )
    chosen = [values[(label == k) & inside] for k in range(run.classes)]
    return [float(own.mean()) if len(own) else np.nan for own in chosen]


def risks_of(run: Context, scope: str) -> tuple[list[np.ndarray], np.ndarray]:
    """R = 1 - p of each subject, and the class prior, by LEEP's definitions."""
    theta = [
        run.predict(nn.Identity(), run.training_set.volume(i)[0])[0].double().numpy()
        for i in range(len(run.training_set))
    ]
    joint = np.zeros((run.classes, 3))
    for one, label, inside in zip(theta, labels(run), insides(run, scope), strict=True):
        for k in range(run.classes):
            joint[k] += one[:, (label == k) & inside].sum(1)
    prior = joint.sum(1) / joint.sum()
    conditional = joint / joint.sum(0)
    if scope == "labelled":
        prior[0] = conditional[0] = 1
    risks = []
    for one, label in zip(theta, labels(run), strict=True):
        p = (conditional[label] * one.transpose(1, 2, 3, 0)).sum(-1)
        risks.append(np.clip(1 - p, 0, None))
    return risks, prior


def spatial(
    risks: list[np.ndarray], run: Context, scope: str, gamma: float, floor: float
) -> list[np.ndarray]:
    """The within-class term: of mean 1 over each class in the scope."""
    means = class_mean(risks, run, scope)
    powers = []
    for risk, label in zip(risks, labels(run), strict=True):
        power = np.ones_like(risk)
        for k, mean in enumerate(means):
            if mean > 1e-6:
                floored = risk[label == k] + floor * mean
                power[label == k] = (floored / ((1 + floor) * mean)) ** gamma
        powers.append(power)
    scales = np.nan_to_num(class_mean(powers, run, scope), nan=1.0)
    return [power / scales[label] for power, label in zip(powers, labels(run), strict=True)]


@pytest.mark.parametrize("scope", ["all", "brain", "labelled"])
@pytest.mark.parametrize("gamma", [-2.0, -0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("balance", ["prior", "mean_risk", "none"])
def test_the_weights_are_the_product_of_both_terms(balance: str, gamma: float, scope: str) -> None:
    run = informed()
    options: Any = {"weight": "affine", "strength": 4.0, "floor": 0.05, "scope": scope}
    prepared("trm_decomposed", run, balance=balance, gamma=gamma, **options)
    risks, prior = risks_of(run, scope)
    means = np.nan_to_num(class_mean(risks, run, scope))
    by_class = {"prior": 1 + 4 * (1 - prior), "mean_risk": 1 + 4 * means, "none": np.ones(2)}
    wanted = spatial(risks, run, scope, gamma, 0.05)
    for own, term, label in zip(weights(run), wanted, labels(run), strict=True):
        np.testing.assert_allclose(own, by_class[balance][label] * term, rtol=1e-5)
    if gamma and scope != "labelled":
        assert all(own[label == k].std() > 0.01 for own in weights(run) for k in (0, 1))


def test_a_class_at_no_risk_has_one_weight() -> None:
    """One labelled class is what the source expects there; what differs from that is rounding."""
    run = informed()
    prepared("trm_decomposed", run, scope="labelled", gamma=2, floor=1e-3)
    for own, label in zip(weights(run), labels(run), strict=True):
        assert all(len(np.unique(own[label == k])) == 1 for k in (0, 1))


@examples(40)
@given(
    gamma=st.floats(-4, 4),
    floor=st.floats(1e-3, 10),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 99),
    scope=st.sampled_from(["all", "brain"]),
)
def test_gamma_moves_weight_within_classes_and_never_between_them(
    gamma: float, floor: float, zeros: float, seed: int, scope: Any
) -> None:
    """Whatever the risks, be they 0: class means stay, and the order is that of gamma's sign."""
    run = informed()
    method: Any = create("trm_decomposed", {"gamma": gamma, "floor": floor, "scope": scope})
    draws, risks = torch.Generator().manual_seed(seed), []
    for label in labels(run):
        risk = torch.rand(1, *label.shape, generator=draws) ** 3
        risks.append(risk * (torch.rand(risk.shape, generator=draws) >= zeros))
    run.training_set.attach(FIELD, method.weighted(run, risks))
    own = weights(run)
    flat = create("trm_decomposed", {"gamma": 0.0, "scope": scope})
    run.training_set.attach(FIELD, flat.weighted(run, risks))  # type: ignore[attr-defined]
    balance = class_mean(weights(run), run, scope)
    np.testing.assert_allclose(class_mean(own, run, scope), balance, rtol=1e-4)
    assert all(np.isfinite(one).all() and (one >= 0).all() for one in own)
    for k in range(run.classes):
        values, risk = (
            np.concatenate(
                [one.squeeze()[label == k] for one, label in zip(of, labels(run), strict=True)]
            )
            for of in (own, [r.numpy() for r in risks])
        )
        by_risk = values[np.argsort(risk, kind="stable")]
        assert (np.sign(gamma) * np.diff(by_risk) >= -1e-6 * by_risk.max()).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"risk": "neg_log", "weight": "risk"},
        {"scope": "class_balanced", "weight": "affine", "strength": 3.0},
        {"scope": "brain", "base": 10.0, "denominator": "weights", "over": "foreground"},
    ],
)
def test_without_gamma_it_is_the_prior_bit_for_bit(options: dict[str, Any]) -> None:
    prior, _ = prepared("trm_prior", informed(), **options)
    own, _ = prepared("trm_decomposed", informed(), gamma=0, **options)
    assert all(map(np.array_equal, weights(own), weights(prior)))


@pytest.mark.parametrize("name", ["trm_decomposed", "trm_oracle"])
def test_without_gamma_it_trains_to_the_priors_weights(name: str) -> None:
    prior = trained("trm_prior", steps=3)
    own = trained(name, {"gamma": 0}, steps=3)
    assert same(own.after, prior.after) and own.curves == prior.curves
    assert create(name, {"gamma": 0}).passes() == 1


def test_the_mean_risk_to_the_first_power_is_the_risk() -> None:
    """b = mean of R, gamma = 1: `trm` with w = R, but for the floor."""
    plain, _ = prepared("trm", informed(), weight="risk", risk="neg_log")
    own, _ = prepared(
        "trm_decomposed",
        informed(),
        weight="risk",
        risk="neg_log",
        balance="mean_risk",
        gamma=1,
        floor=1e-3,
    )
    for one, other in zip(weights(own), weights(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_the_prior_inside_leaves_no_trace_in_the_record() -> None:
    options: Any = {"gamma": -1, "evidence": "probe"}
    own, _ = prepared("trm_decomposed", context(), **options)
    plain, _ = prepared("trm", context(), evidence="probe")
    assert own.diagnostics == plain.diagnostics and own.diagnostics["evidence"]["kind"] == "probe"


# ------------------------------------------------------------------------------------- the oracle


def folds_of(run: Context) -> list[list[int]]:
    return create("trm_oracle", {}).divided(run)  # type: ignore[attr-defined]


def by_hand(run: Context, name: str, fold: int, others: list[int]) -> nn.Module:
    """A network of the cross-fit, trained in a run of its own with the method of that name."""
    own = context(method=create(name, {}), steps=run.config.steps)
    seen = own.training_set.subset(others)
    own.patches = PatchSampler(seen, own.config, "patches", "trm_oracle", fold)
    train(own, create(name, {}), Curves())
    return own.network


@pytest.mark.parametrize("lost", ["soft", "hard"])
def test_the_oracle_weighs_what_plain_fine_tuning_loses(lost: str) -> None:
    steps = 8
    result = trained("trm_oracle", {"lost": lost, "gamma": 0.5, "floor": 0.2}, steps=steps)
    run = result.run
    risks: dict[int, np.ndarray] = {}
    outcomes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for fold, held_out in enumerate(folds_of(run)):
        others = [i for i in range(2) if i not in held_out]
        networks = [by_hand(run, name, fold, others) for name in ("scratch", "finetune")]
        for i in held_out:
            image, label, _ = run.training_set.volume(i)
            scores = [run.predict(one, image)[0].numpy() for one in networks]
            truth = label[0].numpy()
            p, q = (np.take_along_axis(s, truth[None], 0)[0].astype(float) for s in scores)
            a, b = (s.argmax(0) == truth for s in scores)
            risks[i] = np.clip(p - q, 0, None) if lost == "soft" else (a & ~b).astype(float)
            outcomes[i] = a & ~b, b & ~a
    maps = [risks[i] for i in range(2)]
    prior = np.bincount(np.concatenate([label.ravel() for label in labels(run)])) / sum(
        label.size for label in labels(run)
    )
    wanted = spatial(maps, run, "all", 0.5, 0.2)
    for own, term, label in zip(weights(run), wanted, labels(run), strict=True):
        np.testing.assert_allclose(own, 3 ** (1 - prior[label]) * term, rtol=1e-4)
    found = run.diagnostics["cross_fit"]
    for key, which in (("lost", 0), ("won", 1)):
        shares = class_mean([outcomes[i][which].astype(float) for i in range(2)], run, "all")
        assert found[key] == pytest.approx(shares) and max(shares) > 0
    assert found["risk_per_class"] == pytest.approx(class_mean(maps, run, "all"), rel=1e-5)
    assert result.curves.passes == steps * create("trm_oracle", {}).passes() == 5 * steps


class Watched:
    """What each training and each judgement of the cross-fit saw."""

    def __init__(self, run: Context) -> None:
        self.run, self.fits, self.judged = run, list[dict[str, Any]](), list[Tensor]()
        predict, self.subjects = run.predict, run.training_set.prepared

        def judging(network: nn.Module, image: Tensor) -> Tensor:
            self.judged.append(image)
            return predict(network, image)

        run.predict = judging

    def train(self, method: Any) -> None:
        trains = method.train

        def watching(run: Context, fit: Fit) -> None:
            def watch(first: int, last: int) -> None:
                known = {
                    "subjects": [self.subjects.index(p) for p in run.patches.store.prepared],
                    "draws": torch.get_rng_state(),
                    "start": state(run.network),
                    "judged": len(self.judged),
                    "steps": last - first,
                }
                self.fits.append(known)
                fit(first, last)

            trains(run, watch)

        method.train = watching
        train(self.run, method, Curves())


@pytest.mark.parametrize("folds", [2, 3])
def test_the_cross_fit_never_sees_the_fold_that_it_judges(folds: int) -> None:
    run = context(steps=4, network=DROPOUT, subjects=5, select="best", validate_every=2)
    volumes = [run.training_set.volume(i)[0] for i in range(5)]
    validated = []
    run.validate = lambda network: float(validated.append(len(watched.fits)) or 0.5)
    before, config, patches = state(run.network), run.config, run.patches
    watched = Watched(run)
    watched.train(create("trm_oracle", {"folds": folds, "share": 0.5}))
    *crossed, last = watched.fits
    judged = [fit["judged"] for fit in watched.fits]
    seen: list[int] = []
    for at, fit in enumerate(crossed):
        held_out = [
            next(i for i, volume in enumerate(volumes) if torch.equal(volume, image))
            for image in watched.judged[judged[at] : judged[at + 1]]
        ]
        assert held_out and sorted([*held_out, *fit["subjects"]]) == list(range(5))
        seen += held_out
        assert fit["steps"] == 2
    assert sorted(seen) == sorted([*range(5), *range(5)]), "each once from scratch, once tuned"
    assert last["subjects"] == list(range(5)) and last["steps"] == 4
    assert set(validated) == {len(watched.fits)}, "validation shapes the last training alone"
    assert all(torch.equal(fit["draws"], last["draws"]) for fit in crossed)
    fresh = run.fresh().state_dict()
    for at, fit in enumerate(watched.fits):
        scratch = at % 2 == 0 and fit is not last
        assert same(fit["start"], fresh if scratch else before)
    assert not same(fresh, before)
    assert run.config is config and run.patches is patches


def test_the_folds_depend_on_the_seed_of_the_run() -> None:
    found = []
    for seed in range(6):
        run = context(subjects=6)
        run.seed_axes = ("test", seed)
        found.append(folds_of(run))
        assert sorted(itertools.chain(*found[-1])) == list(range(6))
        assert folds_of(run) == found[-1]
    assert any(folds != found[0] for folds in found)


def test_the_oracle_needs_a_subject_in_each_fold() -> None:
    with pytest.raises(UserError, match="set folds to 2"):
        create("trm_oracle", {"folds": 3}).prepare(context())
    create("trm_oracle", {"folds": 3, "gamma": 0}).prepare(context())
    with pytest.raises(UserError, match="leave it out"):
        create("trm_oracle", {}).prepare(context(subjects=1))
