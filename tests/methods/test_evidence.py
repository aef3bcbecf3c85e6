"""The source variable without a head: the mixture, the probe, and the maps that come of them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, positions, prepared, random, same, state, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from trm_bench.errors import UserError
from trm_bench.methods import Context
from trm_bench.methods.evidence import (
    Linear,
    Readout,
    Sample,
    clusters,
    draw,
    penultimate,
    probe,
    resampled,
    source_variable,
)
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.methods.trm import FIELD
from trm_bench.networks import Parts
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train
from trm_bench.transfer_risk import LeepStatistics, RiskMap

FITTED: Any = ("clusters", "probe")
SCOPES: Any = ("all", "brain", "labelled", "class_balanced")
OWN_FEATURES = pytest.mark.parametrize("evidence", FITTED)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def sample(features: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None) -> Sample:
    given = np.ones(len(label)) if weight is None else weight
    return Sample(features.astype(float), label.astype(np.int64), given)


def blobs(seed: int = 0, distance: float = 3.0) -> tuple[Sample, np.ndarray]:
    """Three blobs of different size in three directions, and which one each voxel is of."""
    draws = np.random.default_rng(seed)
    members = np.repeat([0, 1, 2], [60, 100, 140])
    centres = distance * np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 5]])
    features = centres[members] + 0.2 * draws.normal(size=(300, 3)) + np.array([7.0, 0, -2])
    label = draws.integers(0, 2, 300)
    return sample(features, label, draws.uniform(0.5, 2, 300)), members


def theta(linear: Linear, features: np.ndarray) -> np.ndarray:
    """(N, Z), by the map's own way to features of voxels."""
    volume = torch.from_numpy(features).float().T[None]  # (1, C, N)
    return linear(volume).double().softmax(1)[0].T.numpy()


# -------------------------------------------------------------------------------------- the mixture


def test_responsibilities_are_those_of_the_mixture_of_the_clusters() -> None:
    """Weights, centres and the one variance by hand, the densities by SciPy; between the blobs."""
    given, members = blobs(distance=0.5)
    linear = clusters(given, 3, seed=1)
    w = given.weight
    mean = np.average(given.features, axis=0, weights=w)
    deviation = np.sqrt(np.average((given.features - mean) ** 2, axis=0, weights=w))
    z = (given.features - mean) / deviation
    own = theta(linear, given.features).argmax(1)
    centres = np.array([np.average(z[own == k], axis=0, weights=w[own == k]) for k in range(3)])
    share = np.array([w[own == k].sum() for k in range(3)]) / w.sum()
    variance = np.average(((z - centres[own]) ** 2).mean(1), weights=w)
    at = given.features.mean(0) + np.random.default_rng(2).normal(size=(50, 3)) * 0.3
    density = np.array(
        [
            s * multivariate_normal(c, variance * np.eye(3)).pdf((at - mean) / deviation)
            for s, c in zip(share, centres, strict=True)
        ]
    ).T
    expected = density / density.sum(1, keepdims=True)
    assert (expected.max(1) < 0.9).mean() > 0.05, "nothing between the clusters"
    assert len(set(own)) == 3 and len(set(members)) == 3
    np.testing.assert_allclose(theta(linear, at), expected, atol=2e-4)


def test_separate_blobs_are_the_clusters() -> None:
    given, members = blobs()
    found = theta(clusters(given, 3, seed=0), given.features)
    assert (found.max(1) > 0.999).all()
    assert len(set(zip(members, found.argmax(1), strict=True))) == 3


def test_with_separate_class_indicators_n_leep_is_leep() -> None:
    draws = np.random.default_rng(0)
    source = draws.integers(0, 4, 500)
    y = torch.from_numpy(np.where(draws.random(500) < 0.7, source % 3, draws.integers(0, 3, 500)))
    indicators = np.eye(4)[source]
    found = theta(clusters(sample(indicators, y.numpy()), 15, seed=0), indicators)
    values = []
    for p in (found, indicators):
        softmax = torch.from_numpy(p.T)[None]
        statistics = LeepStatistics(3, softmax.shape[1])
        statistics.update(softmax, y[None])
        values.append(RiskMap(statistics.conditional()).transferability(softmax, y[None]))
    assert found.shape[1] == 4, "clusters without a voxel are left out"
    torch.testing.assert_close(values[0], values[1], atol=1e-6, rtol=0)


def test_where_nothing_clusters_the_seed_decides() -> None:
    noise = np.random.default_rng(0).normal(size=(500, 4))
    one, again, other = (clusters(sample(noise, noise[:, 0] > 0), 8, seed) for seed in (1, 1, 2))
    assert torch.equal(one.weight, again.weight) and torch.equal(one.bias, again.bias)
    assert one.weight.shape != other.weight.shape or not torch.equal(one.weight, other.weight)


def test_the_order_of_the_clusters_does_not_matter() -> None:
    given, _ = blobs()
    linear = clusters(given, 3, seed=0)
    order = torch.tensor([2, 0, 1])
    turned = linear._replace(weight=linear.weight[order], bias=linear.bias[order])
    y = torch.from_numpy(given.label)[None]
    risks = []
    for one in (linear, turned):
        softmax = torch.from_numpy(theta(one, given.features).T)[None]
        statistics = LeepStatistics(2, 3)
        statistics.update(softmax, y)
        risks.append(RiskMap(statistics.conditional())(softmax, y))
    torch.testing.assert_close(risks[0], risks[1])


# ---------------------------------------------------------------------------------------- the probe


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_the_minimum_of_its_objective(classes: int) -> None:
    """The gradient of sum_i u_i CE_i + |w|^2 / 2 is 0 there, over the standardised features."""
    draws = np.random.default_rng(classes)
    features = draws.normal(size=(400, 5)) * [1, 10, 0.1, 3, 1] + 4
    label = 1 * (features[:, 0] + draws.normal(size=400) > 4)
    label[features[:, 1] > 8] = classes - 1
    given = sample(features, label, draws.uniform(0.1, 3, 400))
    linear = probe(given, classes)
    z = (features - linear.mean.numpy()) * linear.scale.numpy()
    np.testing.assert_allclose(np.average(z, axis=0, weights=given.weight), 0, atol=1e-5)
    np.testing.assert_allclose(np.average(z**2, axis=0, weights=given.weight), 1, rtol=1e-5)
    p = np.exp(log_softmax(z @ linear.weight.numpy().T + linear.bias.numpy(), axis=1))
    np.testing.assert_allclose(theta(linear, features), p, atol=1e-5)
    u = given.weight / given.weight.mean()
    residual = u[:, None] * (p - np.eye(classes)[label])
    # of two classes scikit-learn penalises the one vector of log odds, twice ours
    penalty = linear.weight.numpy() * (2 if classes == 2 else 1)
    np.testing.assert_allclose(residual.T @ z + penalty, 0, atol=0.05)
    np.testing.assert_allclose(residual.sum(0), 0, atol=0.05)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns(classes: int) -> None:
    given, members = blobs(distance=0.3)
    label = members % classes
    z, _, _ = sample(given.features, label, given.weight).standardised()
    model = LogisticRegression(max_iter=500).fit(
        z, label, sample_weight=given.weight / given.weight.mean()
    )
    found = theta(probe(sample(given.features, label, given.weight), classes), given.features)
    np.testing.assert_allclose(found, model.predict_proba(z), atol=1e-4)


def test_a_class_that_does_not_occur_has_no_probability() -> None:
    given, members = blobs()
    found = theta(probe(sample(given.features, members * 2), 6), given.features)
    assert (found[:, [1, 3, 5]] == 0).all() and (found[np.arange(300), members * 2] > 0.9).all()
    alone = theta(probe(sample(given.features, members * 0 + 1), 3), given.features)
    assert (alone == [0, 1, 0]).all()


# -------------------------------------------------------------------------- what both are fitted on


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    voxels=st.integers(1, 40),
    channels=st.integers(1, 6),
    classes=st.integers(2, 4),
    constant=st.integers(0, 6),
)
def test_any_sample_gives_finite_distributions(
    seed: int, voxels: int, channels: int, classes: int, constant: int
) -> None:
    """Fewer voxels than clusters, constant channels, absent classes."""
    draws = np.random.default_rng(seed)
    features = draws.normal(size=(voxels, channels)) * 10.0 ** draws.integers(-3, 4, channels)
    features[:, :constant] = 0.1
    label = draws.choice(draws.integers(0, classes, 2), voxels)
    given = sample(features, label, draws.uniform(1, 1000, voxels))
    for linear in (clusters(given, 10, seed), probe(given, classes)):
        far = np.concatenate([features, 1e3 * features, np.zeros((1, channels))])
        found = theta(linear, far)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_channels_that_only_round_are_constant() -> None:
    draws = np.random.default_rng(0)
    rounding = 100 + 1e-5 * draws.normal(size=50)
    z, _, scale = sample(np.stack([rounding, draws.normal(size=50)], 1), rounding).standardised()
    assert scale[0] == 0 and (z[:, 0] == 0).all() and z[:, 1].std() == pytest.approx(1)


def test_voxels_are_drawn_class_by_class_and_stand_for_all_in_the_scope() -> None:
    label = torch.zeros(1, 6, 5, 4, dtype=torch.long)
    label[:, :3, 0] = 1  # 12 voxels
    label[:, 5, 4, :2] = 2
    features = torch.arange(240.0).reshape(1, 2, 6, 5, 4)
    inside = torch.ones_like(label, dtype=torch.bool)
    inside[:, 3:5] = False
    drawn = draw(features, label, inside, 4, 10, torch.Generator().manual_seed(0))
    assert np.bincount(drawn.label).tolist() == [10, 10, 2]
    counts = torch.bincount(label[inside]).tolist()
    assert np.bincount(drawn.label, drawn.weight) == pytest.approx(counts)
    places = drawn.features[:, 0].astype(int)
    assert len(set(places)) == 22 and inside.flatten()[places].all()
    assert (label.flatten()[places].numpy() == drawn.label).all()
    assert (drawn.features[:, 1] == places + 120).all()
    balanced = Sample.joined([drawn, drawn], balanced=True)
    assert np.bincount(balanced.label, balanced.weight) == pytest.approx([1, 1, 1])


# ----------------------------------------------------------------------------- features of a volume


class Strided(nn.Module):
    """Its head undoes a stride, as MONAI's UNet does; features are the image at every second."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.down = kind(1, 1, 3, stride=2, padding=1, bias=False)
        self.down.weight.data.zero_()
        self.down.weight.data[(0, 0, *[1] * axes)] = 1.0
        self.head = nn.Upsample(scale_factor=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.down(image))


@pytest.mark.parametrize("axes", [2, 3])
def test_features_behind_strides_lie_where_they_come_from(axes: int) -> None:
    """A linear image comes back as it was, but for the last voxel, behind the last feature."""
    grid = torch.meshgrid(*[torch.arange(8.0)] * axes, indexing="ij")
    image = sum((d + 1) * g for d, g in enumerate(grid))[None, None]
    found = Readout(Strided(axes), "head")(image)
    inner = (..., *[slice(0, 7)] * axes)
    torch.testing.assert_close(found[inner], image[inner])
    assert found.shape == image.shape


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Bilinear(1, 1, 1)
        self.head.forward = lambda fine, coarse, name: fine  # type: ignore[method-assign]

    def forward(self, image: Tensor) -> Tensor:
        return self.head(image, 3 * image[..., ::2, ::2], "a name")


def test_a_head_of_several_inputs_is_read_at_the_finest() -> None:
    image = random(2, 3, 8, 6)
    found = penultimate(TwoInputs(), "head", image)
    assert found.shape == (2, 6, 8, 6) and torch.equal(found[:, :3], image)
    torch.testing.assert_close(found[:, 3:, ::2, ::2], 3 * image[..., ::2, ::2])


def test_a_head_without_a_feature_map_is_said() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(UserError, match="takes no feature map"):
        penultimate(network, "1", random(1, 1, 4, 4))


def test_a_map_before_resampling_is_one_after_it() -> None:
    linear = Linear(random(3), random(3, seed=1).abs(), random(4, 3, seed=2), random(4, seed=3))
    coarse = random(1, 3, 5, 4, 3)
    torch.testing.assert_close(
        resampled(linear(coarse), (10, 8, 3)), linear(resampled(coarse, (10, 8, 3)))
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_a_readout_is_the_map_of_the_features_of_every_voxel(dims: int) -> None:
    """Through windows, by hand: the hook's features, the map, the softmax."""
    run = context(dims=dims, patch=(16,) * dims)
    assert run.source is not None
    image = run.training_set.volume(0)[0]
    whole = run.outputs(Readout(run.source, run.parts.head), image)
    channels = whole.shape[1]
    linear = Linear(
        random(channels), torch.ones(channels), random(2, channels, seed=1), random(2, seed=2)
    )
    found = run.predict(Readout(run.source, run.parts.head, linear), image)
    assert whole.shape[2:] == image.shape[2:]
    for at in positions(image)[::50]:
        f = (whole[(0, slice(None), *at)] - linear.mean).double()
        expected = (linear.weight.double() @ f + linear.bias.double()).softmax(0)
        torch.testing.assert_close(found[(0, slice(None), *at)].double(), expected)


# ------------------------------------------------------------------------------------ maps of a run


def weights(run: Context) -> Tensor:
    return torch.cat([field.flatten() for field in run.training_set.fields[FIELD]])


def without_head(**options: Any) -> Context:
    """A run whose source's head gives NaN."""
    run = context(**options)
    assert run.source is not None
    for tensor in run.source.get_submodule(run.parts.head).state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    run.source_has_head = False
    return run


@OWN_FEATURES
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("risk", ["neg_log", "one_minus"])
def test_maps_are_finite_and_vary_within_classes(evidence: str, scope: str, risk: str) -> None:
    run, _ = prepared("trm", without_head(), evidence=evidence, scope=scope, risk=risk)
    assert bool(weights(run).isfinite().all()) and run.diagnostics["leep"] < 1e-6
    if scope != "labelled":
        assert run.diagnostics["class_explained"] < 0.99
    else:  # one labelled class: nothing is at risk
        assert run.diagnostics["risk_mean"] == pytest.approx(0, abs=1e-6)


def test_informative_features_under_a_head_that_tells_nothing() -> None:
    """A head of zeros gives every voxel the same softmax, so its map is the prior's."""
    leep, explained = {}, {}
    for evidence in ("classes", *FITTED):
        run = context()
        assert run.source is not None
        for weight in run.source.get_submodule(run.parts.head).parameters():
            weight.data.zero_()
        prepared("trm", run, evidence=evidence, risk="neg_log")
        leep[evidence] = run.diagnostics["leep"]
        explained[evidence] = run.diagnostics["class_explained"]
    prior = prepared("trm_prior", context(), risk="neg_log")[0].diagnostics["leep"]
    assert leep["classes"] == pytest.approx(prior, rel=1e-6)
    assert explained["classes"] > 0.999
    for evidence in FITTED:
        assert leep[evidence] > 0.8 * prior and explained[evidence] < 0.9


def test_constant_features_give_the_map_of_the_prior() -> None:
    runs = []
    for name, evidence in (("trm", "clusters"), ("trm", "probe"), ("trm_prior", "probe")):
        run = context()
        assert run.source is not None
        for weight in run.source.parameters():
            weight.data.zero_()
        prepared(name, run, evidence=evidence, risk="neg_log")
        runs.append(run)
    by_clusters, by_probe, prior = map(weights, runs)
    torch.testing.assert_close(by_clusters, prior)
    assert runs[0].diagnostics["evidence"]["components"] == 1
    # cross-fitted: each subject gets the prior of the other
    store = runs[1].training_set
    shares = [store.volume(i)[1].double().mean() for i in range(2)]
    wanted = [
        torch.where(store.volume(i)[1] > 0, shares[1 - i], 1 - shares[1 - i]).flatten()
        for i in range(2)
    ]
    torch.testing.assert_close(
        by_probe, (3.0 ** -torch.cat(wanted).log()).float(), rtol=0.02, atol=0
    )


def test_separable_features_see_no_risk() -> None:
    """Features that are the label, far from each other."""
    run = context()
    store = run.training_set
    for (image,), label in zip(store.images, store.labels, strict=True):
        image.copy_(50 * (label > 0))
    run.source, run.parts = nn.Sequential(nn.Identity(), nn.Identity()), Parts("1", (), ())
    for evidence in FITTED:
        prepared("trm", run, evidence=evidence, risk="neg_log")
        assert run.diagnostics["leep"] == pytest.approx(0, abs=1e-2)


def test_a_subject_is_judged_by_a_probe_that_has_not_seen_it() -> None:
    def maps(changed: int | None) -> list[Linear]:
        run = context()
        if changed is not None:
            of_subject = run.training_set.labels[changed]
            half = of_subject[: len(of_subject) // 2]
            half.copy_(1 - half)
        networks: Any = source_variable(run, "probe", "all", 5)
        assert run.diagnostics["evidence"]["cross_fitted"] and len(networks) == 2
        return [network.linear for network in networks]

    before = maps(None)
    for changed in (0, 1):
        after = maps(changed)
        assert torch.equal(before[changed].weight, after[changed].weight)
        assert not torch.equal(before[1 - changed].weight, after[1 - changed].weight)


@OWN_FEATURES
@pytest.mark.parametrize("scope", SCOPES)
def test_a_class_that_one_subject_lacks(evidence: str, scope: str) -> None:
    run = context()
    run.training_set.labels[0].zero_()
    prepared("trm", run, evidence=evidence, scope=scope, risk="neg_log")
    assert bool(weights(run).isfinite().all())
    assert weights(run).max() < 3.0**20, "no risk of a class that a probe never saw"
    if evidence == "probe":
        assert not run.diagnostics["evidence"]["cross_fitted"]


@OWN_FEATURES
def test_one_subject_without_any_label(evidence: str) -> None:
    run = context()
    size = run.training_set.volume(0)[1].numel()
    for name in ("prepared", "shapes", "images", "labels", "brains"):
        setattr(run.training_set, name, getattr(run.training_set, name)[:1])
    prepared("trm", run, evidence=evidence)
    assert weights(run).shape == (size,) and bool(weights(run).isfinite().all())
    run.training_set.labels[0].zero_()
    prepared("trm", run, evidence=evidence)
    assert run.diagnostics["leep"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="no voxel in scope='labelled'"):
        prepared("trm", run, evidence=evidence, scope="labelled")


@OWN_FEATURES
def test_a_map_depends_on_the_seed_of_the_run_and_on_nothing_before(
    evidence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trm_bench.methods.evidence.MOST_VOXELS", 200)  # of some 1400
    runs = [context() for _ in range(3)]
    runs[2].seed_axes = ("another seed",)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    prepared("trm", runs[0], evidence="probe" if evidence == "clusters" else "clusters")
    for run in runs:
        prepared("trm", run, evidence=evidence)
    one, again, other = map(weights, runs)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_shuffled_control_has_the_values_of_the_map() -> None:
    own, mixed = (prepared(n, evidence="clusters")[0] for n in ("trm", "trm_shuffled"))
    assert torch.equal(weights(own).sort().values, weights(mixed).sort().values)
    assert not torch.equal(weights(own), weights(mixed))


# ---------------------------------------------------------------------- who needs the source's head


@OWN_FEATURES
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trm_trains_without_a_head(evidence: str, dims: int, precision: str) -> None:
    ends = []
    for _ in range(2):
        # deeper than what `formats.has_sound_bf16` tells of
        run = without_head(dims=dims, steps=2, precision=precision, patch=(16,) * dims)
        method = create("trm", {"evidence": evidence})
        train(run, method, Curves())
        image, label, _ = run.training_set.volume(0)
        assert method.maps(run, image, label)["risk"].isfinite().all()
        ends.append(state(run.network))
    assert same(*ends) and all(bool(t.isfinite().all()) for t in ends[0].values())


@pytest.mark.parametrize("name", sorted(n for n in REGISTRY.names() if REGISTRY.get(n).transfers))
def test_declares_whether_it_needs_the_head(name: str) -> None:
    """Training depends on the head exactly where it says so, and is refused without one."""
    method = create(name, {})
    ends = []
    for scale in (1.0, -2.0):
        run = context(method=method)
        assert run.source is not None
        for weight in run.source.get_submodule(run.parts.head).parameters():
            weight.data.mul_(scale)
        run.validate = lambda network: float(sum(p.detach().sum() for p in network.parameters()))
        run.config = create(name, {}).adjusted(run.config)
        train(run, create(name, {}), Curves())
        ends.append(state(run.network))
    assert same(*ends) != method.needs_head()
    run = without_head(method=method, steps=2)
    run.config = method.adjusted(run.config)
    if method.needs_head():
        with pytest.raises(UserError, match=r"evidence.* clusters or .*probe"):
            train(run, method, Curves())
    else:
        train(run, method, Curves())
        assert all(bool(t.isfinite().all()) for t in run.network.state_dict().values())


@pytest.mark.parametrize("name", sorted(REGISTRY.names()))
def test_methods_that_train_on_source_data_are_refused_without(name: str) -> None:
    method = create(name, {})
    if method.uses_source_data:
        with pytest.raises(UserError, match="source's subjects"):
            method.check_source(has_head=True, has_data=False)
    else:
        method.check_source(has_head=True, has_data=False)
    method.check_source(has_head=True, has_data=True)


def test_fixed_readings_name_a_way_out_that_they_have() -> None:
    messages = {}
    for name in ("trm", "trm_paper_literal"):
        with pytest.raises(UserError) as caught:
            create(name, {}).check_source(has_head=False, has_data=True)
        messages[name] = str(caught.value)
    assert "set its parameter evidence" in messages["trm"]
    assert "leave it out" in messages["trm_paper_literal"]
    for name, evidence in itertools.product(("trm_prior", "trm_uniform"), ("classes", *FITTED)):
        create(name, {"evidence": evidence}).check_source(has_head=False, has_data=False)


def test_training_with_clusters_is_another_training() -> None:
    ends = [trained("trm", {"evidence": e}, steps=3).after for e in ("classes", *FITTED)]
    assert not any(same(a, b) for a, b in itertools.combinations(ends, 2))
