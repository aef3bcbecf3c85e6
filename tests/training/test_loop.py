"""Training.

The learning rate's factors, what ends a run, which weights are kept, precision, and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CPU, examples, store, subject
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from trm_bench.baselines.finetune import Finetune

from trm_bench.data.patches import Batch, PatchSampler
from trm_bench.formats import resolved_precision
from trm_bench.methods import Context, Fit, Method, Parameters
from trm_bench.networks import Parts, evaluating
from trm_bench.protocol.schema import EvaluationConfig, LossConfig, TrainingConfig
from trm_bench.seeds import generator, seed_of
from trm_bench.training import evaluation
from trm_bench.training.loop import Curves, Diverged, learning_rate_factor, train
from trm_bench.transfer_risk import soft_dice

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


class Voxelwise(nn.Module):
    """One 1x1x1 convolution that remembers in which precision it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 3, 1)
        self.computed: list[torch.dtype] = []

    def forward(self, image: Tensor) -> Tensor:
        logits = self.conv(image)
        self.computed.append(logits.dtype)
        return logits


class Slope(Method):
    """A loss whose gradient is `slope` for every weight.

    What it does at other moments is set by a test.
    """

    name = "slope"

    def __init__(self, slope: float = 1.0, **moments: Callable[[Context], Any]) -> None:
        super().__init__(Parameters())
        self.slope, self.moments = slope, moments
        self.weights: list[Tensor] = []

    def loss(self, run: Context, batch: Any) -> Tensor:
        if not self.weights:
            self.weights.append(flat(run.network))
        if "loss" in self.moments:
            return self.moments["loss"](run) + 0 * weights_of(run.network).sum()
        return self.slope * weights_of(run.network).sum()

    def parameters(self, run: Context) -> Iterable[Any]:
        return self.moments.get("parameters", super().parameters)(run)

    def train(self, run: Context, fit: Fit) -> None:
        self.moments.get("train", super().train)(run, fit)

    def before_update(self, run: Context) -> None:
        self.moments.get("before_update", super().before_update)(run)

    def after_update(self, run: Context) -> None:
        self.weights.append(flat(run.network))

    def finish(self, run: Context) -> None:
        self.moments.get("finish", super().finish)(run)

    @property
    def moves(self) -> np.ndarray:
        """Length of each step."""
        return torch.stack(self.weights).diff(dim=0).norm(dim=1).numpy()


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in network.parameters()])


def flat(network: nn.Module) -> Tensor:
    return weights_of(network).detach().clone()


def context(**training: Any) -> Context:
    """A run of a network of six weights on one subject."""
    config = TrainingConfig(
        **{"steps": 10, "batch": 1, "patch": (4, 4, 4), "optimizer": SGD, "clip": None, **training}
    )
    torch.manual_seed(0)
    volumes = store(subject(0, (6, 6, 6)))
    windows = EvaluationConfig()
    return Context(
        network=Voxelwise(),
        parts=Parts("conv", (), ()),
        source=None,
        same_task=False,
        training_set=volumes,
        patches=PatchSampler(volumes, config, "patches", "test"),
        source_patches=lambda: pytest.fail("the source is not asked for"),
        validate=lambda network: evaluation.mean_dice(network, volumes, config, windows),
        predict=lambda network, image: evaluation.predict(network, image, config, windows),
        outputs=lambda network, image: evaluation.outputs(network, image, config, windows),
        fresh=Voxelwise,
        config=config,
        seed_axes=("test",),
        device=CPU,
    )


def trained(method: Method, curves: Curves | None = None, **training: Any) -> Context:
    run = context(**training)
    train(run, method, Curves() if curves is None else curves)
    return run


# ------------------------------------------------------------------------------------ learning rate


@pytest.mark.parametrize(
    "schedule, factors",
    [
        ("constant", {0: 1, 0.3: 1, 1: 1}),
        ("poly", {0: 1, 0.25: 0.75**0.9, 0.5: 0.5358867, 0.99: 0.01584893, 1: 0}),
        ("cosine", {0: 1, 0.25: 0.8535534, 0.5: 0.5, 0.75: 0.1464466, 1: 0}),
        ("one_cycle", {0: 0.04, 0.15: 0.52, 0.3: 1, 0.65: 0.50005, 0.825: 0.1465320, 1: 1e-4}),
    ],
)
def test_factors_of_the_learning_rate(schedule: str, factors: dict[float, float]) -> None:
    for t, factor in factors.items():
        assert learning_rate_factor(schedule, round(200 * t), 200) == pytest.approx(
            factor, rel=1e-5, abs=1e-12
        ), t


@examples(50)
@given(
    schedule=st.sampled_from(["poly", "cosine", "one_cycle", "constant"]), steps=st.integers(1, 500)
)
def test_factors_stay_between_0_and_1(schedule: str, steps: int) -> None:
    factors = [learning_rate_factor(schedule, t, steps) for t in range(steps + 1)]
    assert all(0 <= f <= 1 for f in factors) and factors[0] > 0
    top = int(np.argmax(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1]) and factors[top:] == sorted(
        factors[top:], reverse=True
    )


@pytest.mark.parametrize("schedule", ["poly", "cosine", "one_cycle", "constant"])
def test_warm_up_rises_from_0_to_the_schedule(schedule: str) -> None:
    plain = [learning_rate_factor(schedule, t, 20) for t in range(21)]
    assert [learning_rate_factor(schedule, t, 20, warmup=0.0) for t in range(21)] == plain
    warm = [learning_rate_factor(schedule, t, 20, warmup=0.25) for t in range(21)]
    rise = [0, 0.2, 0.4, 0.6, 0.8]
    assert warm[:5] == pytest.approx([r * f for r, f in zip(rise, plain, strict=False)])
    assert warm[5:] == plain[5:]


def test_the_optimiser_warms_up() -> None:
    method = Slope()
    trained(method, schedule="constant", warmup=0.5)
    wanted = [0.1 * math.sqrt(6) * factor for factor in (0, 0.2, 0.4, 0.6, 0.8, *[1] * 5)]
    np.testing.assert_allclose(method.moves, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["poly", "cosine", "one_cycle", "constant"])
@pytest.mark.parametrize("pieces", [[(0, 10)], [(0, 3), (3, 10)], [(0, 1), (1, 9), (9, 10)]])
def test_the_optimiser_follows_the_schedule_also_in_pieces(
    schedule: str, pieces: list[tuple[int, int]]
) -> None:
    method = Slope(train=lambda run, fit: [fit(*piece) for piece in pieces])
    trained(method, schedule=schedule)
    wanted = [0.1 * math.sqrt(6) * learning_rate_factor(schedule, t, 10) for t in range(10)]
    np.testing.assert_allclose(method.moves, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_is_the_protocols(name: str) -> None:
    """Three steps against PyTorch's own, driven by hand."""
    options = {"lr": 0.05, "weight_decay": 0.1}
    method = Slope()
    trained(
        method, steps=3, schedule="constant", optimizer={"name": name, "momentum": 0.8, **options}
    )
    weights = method.weights[0].clone().requires_grad_()
    optimizer = (
        torch.optim.AdamW([weights], **options)
        if name == "adamw"
        else torch.optim.SGD([weights], momentum=0.8, nesterov=True, **options)
    )
    for step in range(3):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        torch.testing.assert_close(method.weights[step + 1], weights.detach())


def test_only_the_methods_parameters_move() -> None:
    method = Slope(parameters=lambda run: [run.network.conv.bias])
    trained(method)
    moved = method.weights[0] != method.weights[-1]
    assert moved.tolist() == [False] * 3 + [True] * 3


# ----------------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize(
    "clip, length",
    [(None, 100 * math.sqrt(6)), (1.0, 1.0), (50.0, 50.0), (1e4, 100 * math.sqrt(6))],
)
def test_gradients_are_clipped_by_their_norm(clip: float | None, length: float) -> None:
    method = Slope(100.0)
    trained(method, clip=clip, schedule="constant")
    np.testing.assert_allclose(method.moves, 0.1 * length, rtol=1e-4)


def test_clipping_sees_what_a_method_did_to_the_gradients() -> None:
    def enlarge(run: Context) -> None:
        for parameter in run.network.parameters():
            parameter.grad *= 1000

    method = Slope(0.001, before_update=enlarge)
    trained(method, clip=0.5, schedule="constant")
    np.testing.assert_allclose(method.moves, 0.05, rtol=1e-4)


# ------------------------------------------------------------------------------ balance of the loss


def test_the_balance_is_that_of_the_gradients_of_both_terms() -> None:
    curves, method = Curves(), Finetune(Parameters())
    run = context(steps=10, loss=LossConfig(cross_entropy=0.7, dice=2.0))
    norms = []
    for term in (0, 1):
        run.network.zero_grad()
        batch = run.patches.batch(0)
        logits = run.network(batch.image)
        losses = (
            functional.cross_entropy(logits, batch.label),
            soft_dice()(logits, batch.label.unsqueeze(1)),
        )
        ((0.7, 2.0)[term] * losses[term]).backward()
        gradients = [p.grad.flatten() for p in run.network.parameters() if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
    run.network.zero_grad()
    train(run, method, curves)
    assert [step for step, _ in curves.voxel_share] == [1, 3, 5, 7, 9]
    assert curves.voxel_share[0][1] == pytest.approx(norms[0] / sum(norms), rel=1e-5)


def test_looking_at_the_balance_changes_nothing() -> None:
    ends = []
    for looks in (0, 5):
        run = context(steps=10)
        curves = Curves(looks=looks)
        train(run, Finetune(Parameters()), curves)
        assert len(curves.voxel_share) == looks and curves.passes == 10
        ends.append(torch.cat([p.detach().flatten() for p in run.network.parameters()]))
    assert torch.equal(*ends)


def test_one_term_alone_has_no_balance() -> None:
    curves = Curves()
    trained(Finetune(Parameters()), curves, loss=LossConfig(cross_entropy=1, dice=0))
    assert curves.voxel_share == [] and curves.passes == 10


# ------------------------------------------------------------------------------- what was trained


def test_trained_parameters_are_the_most_of_any_fit() -> None:
    def rounds(run: Context, fit: Fit) -> None:
        for frozen in (False, True):
            run.network.conv.bias.requires_grad_(not frozen)
            fit(0, 2)

    curves = Curves()
    trained(Slope(train=rounds), curves)
    assert curves.trained == 6
    curves = Curves()
    bias = Slope(parameters=lambda run: [{"params": [run.network.conv.bias]}])
    trained(bias, curves)
    assert curves.trained == 3


# --------------------------------------------------------------------------------------- divergence


def test_curves_are_means_of_ten_steps() -> None:
    curves, heard = Curves(), []
    run = context(steps=25)
    train(
        run,
        Slope(loss=lambda run: torch.tensor(float(run.step))),
        curves,
        lambda *at: heard.append(at),
    )
    assert curves.loss == heard == [(10, 4.5), (20, 14.5), (25, 22.0)] and curves.validation == []
    assert not run.network.training


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_curves(bad: float) -> None:
    curves = Curves()
    method = Slope(loss=lambda run: torch.tensor(bad if run.step == 14 else 1.0))
    with pytest.raises(Diverged, match=r"the loss became .* before step 20"):
        trained(method, curves, steps=30)
    assert curves.loss == [(10, 1.0)] and len(method.weights) == 21


def spoil(run: Context) -> None:
    if run.step == 9:
        for parameter in run.network.parameters():
            parameter.grad.fill_(math.nan)


def spoil_all(run: Context) -> None:
    with torch.no_grad():
        run.network.conv.bias.fill_(math.inf)


@pytest.mark.parametrize(
    "moment", [{"before_update": spoil}, {"finish": spoil_all}], ids=["last step", "finish"]
)
def test_weights_that_are_not_finite_at_the_end_are_a_divergence(moment: dict[str, Any]) -> None:
    """No loss has seen them: the last look was before."""
    curves = Curves()
    with pytest.raises(Diverged, match="weights are no longer finite"):
        trained(Slope(**moment), curves)
    assert [step for step, _ in curves.loss] == [10] and all(
        math.isfinite(loss) for _, loss in curves.loss
    )


# ---------------------------------------------------------------------------------------- selection


def selected(scores: list[float], **training: Any) -> tuple[Context, Slope, Curves]:
    run, method, curves, left = context(**training), Slope(), Curves(), iter(scores)
    run.validate = lambda network: next(left)
    train(run, method, curves)
    assert next(left, None) is None, "not validated as often as expected"
    return run, method, curves


@pytest.mark.parametrize(
    "scores, best",
    [
        ([0.1, 0.5, 0.3, 0.2], 6),
        ([0.5, 0.5, 0.3, 0.5], 3),
        ([0.1, 0.2, 0.3, 0.4], 10),
        ([0.4, 0.1, 0.1, 0.1], 3),
    ],
)
def test_the_best_validated_weights_are_kept_the_first_of_equals(
    scores: list[float], best: int
) -> None:
    run, method, curves = selected(scores, select="best", validate_every=3)
    assert curves.validation == list(zip([3, 6, 9, 10], scores, strict=True))
    assert torch.equal(flat(run.network), method.weights[best])
    assert len({tuple(w.tolist()) for w in method.weights}) == 11


def test_ten_validations_by_default_and_none_where_the_last_is_kept() -> None:
    _, _, curves = selected([0.1] * 10, select="best", steps=40)
    assert [step for step, _ in curves.validation] == list(range(4, 41, 4))
    run, method, curves = selected([], select="last", steps=40)
    assert curves.validation == [] and torch.equal(flat(run.network), method.weights[-1])


def test_a_real_validation_leaves_the_network_in_training_mode() -> None:
    modes = []
    method = Slope(before_update=lambda run: modes.append(run.network.conv.training))
    run = trained(method, select="best", validate_every=2)
    assert modes == [True] * 10 and 0 <= run.validate(run.network) <= 1


# ---------------------------------------------------------------------------------------- precision


class Plain(Method):
    """Fine-tuning as it is."""

    name = "plain"


@pytest.mark.parametrize(
    "precision, computed",
    [("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)],
)
def test_precision_on_a_cpu(precision: str, computed: torch.dtype) -> None:
    curves, method = Curves(), Plain(Parameters())
    run = trained(method, curves, precision=precision)
    assert set(run.network.computed) == {computed}
    assert all(
        p.dtype == torch.float32 and p.grad.dtype == torch.float32 for p in run.network.parameters()
    )
    assert all(math.isfinite(loss) for _, loss in curves.loss)
    assert (resolved_precision(CPU, precision) == "bf16") == (computed == torch.bfloat16)
    before = len(run.network.computed)
    assert 0 <= run.validate(run.network) <= 1
    assert set(run.network.computed[before:]) == {computed}


def test_bf16_learns_what_float32_learns() -> None:
    curves = {precision: Curves() for precision in ("fp32", "bf16")}
    for precision, curve in curves.items():
        trained(Plain(Parameters()), curve, precision=precision, steps=30)
    (_, start), *_, (_, full) = curves["fp32"].loss
    assert curves["bf16"].loss[-1][1] == pytest.approx(full, rel=0.02) and full < start


class Twice(Plain):
    """Two passes a step; in between another thread's context may end, as that of batches does."""

    emptied = False

    def loss(self, run: Context, batch: Batch) -> Tensor:
        first = super().loss(run, batch)
        if self.emptied:
            torch.clear_autocast_cache()
        return first + super().loss(run, run.patches.batch(run.step + 100))


def test_a_batch_made_meanwhile_changes_no_bit_of_several_passes() -> None:
    once, again = Twice(Parameters()), Twice(Parameters())
    again.emptied = True
    runs = [trained(method, precision="bf16", steps=3) for method in (once, again)]
    weights = [run.network.state_dict() for run in runs]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())


@pytest.mark.parametrize("raises", [False, True])
def test_eval_mode_for_a_while(raises: bool) -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    network[1][0].eval()
    before = [m.training for m in network.modules()]
    try:
        with evaluating(network):
            assert not any(m.training for m in network.modules())
            if raises:
                raise KeyError
    except KeyError:
        assert raises
    assert [m.training for m in network.modules()] == before


# -------------------------------------------------------------------------------------------- seeds


def test_a_seed_is_the_same_everywhere() -> None:
    """sha256 of "str:patches", "str:t1->t2" and "int:0" joined by 0x1f, its first 63 bits."""
    assert seed_of("patches", "t1->t2", 0) == 7104389445914516837
    assert generator("patches", "t1->t2", 0).initial_seed() == 7104389445914516837


axes = st.lists(
    st.one_of(st.integers(-5, 50), st.text("ab->1 .", max_size=4), st.booleans(), st.none()),
    max_size=4,
)


@examples(300)
@given(one=axes, other=axes)
def test_other_axes_give_other_seeds(one: list[Any], other: list[Any]) -> None:
    assert 0 <= seed_of(*one) < 2**63 and seed_of(*one) == seed_of(*one)
    alike = [(type(a), a) for a in one] == [(type(a), a) for a in other]
    assert (seed_of(*one) == seed_of(*other)) == alike


def test_names_are_not_run_together() -> None:
    tuples = [
        ("ab",),
        ("a", "b"),
        ("a", "b", ""),
        ("a", "", "b"),
        (1, 11),
        (11, 1),
        (111,),
        ("1", "11"),
        (),
        ("",),
    ]
    assert len({seed_of(*axes) for axes in tuples}) == len(tuples)


def test_generators_are_independent_of_the_global_one() -> None:
    torch.manual_seed(0)
    once = torch.rand(3, generator=generator("a", 0))
    torch.manual_seed(1)
    assert torch.equal(once, torch.rand(3, generator=generator("a", 0)))
    assert not torch.equal(once, torch.rand(3, generator=generator("a", 1)))
