"""Methods that project weights toward the source's: their steps by hand, and what always holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, Result, context, trained
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from trm_bench.baselines import ftp, spd

from trm_bench.methods.registry import create
from trm_bench.networks import Parts
from trm_bench.seeds import deterministic
from trm_bench.training.loop import learning_rate_factor

TASKS = pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.01}
STEPS = 8
Arrays = dict[str, np.ndarray]
After = Callable[[int, str, np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Step, name, gradient, weights before, weights after the optimiser, source -> weights."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def by_hand(after: After, same_task: bool) -> Arrays:
    """A training whose updates are NumPy's, in float64; only gradients are PyTorch's."""
    run = context(same_task=same_task, steps=STEPS, optimizer=SGD, clip=None)
    plain = create("finetune", {})
    layers = dict(run.network.named_parameters())
    weights = {n: p.detach().double().numpy().copy() for n, p in layers.items()}
    source = {n: w.copy() for n, w in weights.items()}
    run.network.train()
    for step in range(STEPS):
        run.network.zero_grad()
        plain.loss(run, run.patches.batch(step)).backward()
        rate = 0.5 * learning_rate_factor("poly", step, STEPS)
        for name, layer in layers.items():
            assert layer.grad is not None
            g, w = layer.grad.double().numpy(), weights[name]
            moved = w - rate * (g + 0.01 * w)
            if same_task or not run.parts.in_head(name):
                moved = after(step, name, g, w, moved, source[name])
            weights[name] = moved
            layer.data.copy_(torch.from_numpy(moved))
    return weights


def assert_same(found: Result, wanted: Arrays) -> None:
    for name, weights in wanted.items():
        if not name.endswith("conv.bias"):  # before a normalisation: its gradient is rounding alone
            assert np.allclose(found.after[name].numpy(), weights, atol=2e-5), name


def settings(same_task: bool, **more: Any) -> dict[str, Any]:
    return {"same_task": same_task, "steps": STEPS, "optimizer": SGD, "clip": None, **more}


# ---------------------------------------------------------------------------------------------- SPD


@TASKS
@pytest.mark.parametrize("strength", [0.5, 1.0, 3.0])
def test_spd_by_hand(same_task: bool, strength: float) -> None:
    chosen: list[bool] = []

    def after(step: int, name: str, g: Any, w: Any, moved: Any, source: Any) -> Any:
        condition = -np.sum(g * (w - source))
        far, near = np.linalg.norm(moved - source), np.linalg.norm(w - source)
        ratio = max(0.0, far - near) / far
        held = bool(condition < 0 and ratio > 0)
        if not name.endswith("conv.bias"):
            chosen.append(held)
        return moved - held * min(1.0, strength * ratio) * (moved - source)

    wanted = by_hand(after, same_task)
    assert 0 < sum(chosen) < len(chosen), "some layers are held, and some are not"
    found = trained("spd", {"strength": strength}, **settings(same_task))
    assert_same(found, wanted)
    assert 0 < found.run.diagnostics["held_share"] < 1


def lone(name: str, start: Tensor, **parameters: Any) -> tuple[Any, Any, nn.Parameter]:
    """A method, prepared on a network of one tensor, and that tensor."""
    network = nn.Module()
    network.weight = nn.Parameter(start.clone())
    run: Any = SimpleNamespace(
        network=network,
        parts=Parts("head", (), ("weight",)),
        same_task=False,
        device=CPU,
        step=0,
        diagnostics={},
    )
    method = create(name, parameters)
    method.prepare(run)
    return method, run, network.weight  # type: ignore[return-value]


@st.composite
def tensors(draw: st.DrawFn, number: int) -> list[Tensor]:
    """So many float64 tensors of one shape, some of them equal."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    numbers = st.floats(-3, 3, width=32) | st.just(0.0)
    size = math.prod(shape)
    many = draw(st.lists(numbers, min_size=number * size, max_size=number * size))
    return list(torch.tensor(many, dtype=torch.float64).reshape(number, *shape))


@examples(60)
@given(given_tensors=tensors(4), strength=st.floats(0, 5))
def test_spd_never_takes_a_layer_farther_away(given_tensors: list[Tensor], strength: float) -> None:
    source, way, step, gradient = given_tensors
    method, run, layer = lone("spd", source, strength=strength)
    layer.data.add_(way)
    layer.grad = gradient.clone()
    method.before_update(run)
    layer.data.add_(step)
    moved = layer.detach().clone()
    method.after_update(run)
    before, free = float(way.norm()), float((moved - source).norm())
    found = float((layer.detach() - source).norm())
    assert found <= free + 1e-9
    if float((gradient * (moved - step - source)).sum()) <= -1e-9:
        assert torch.equal(layer.detach(), moved), "the gradient goes on in the layer's own way"
    if float((gradient * way).sum()) > 1e-9 and strength == 1:
        assert found == pytest.approx(min(before, free), abs=1e-9)


def test_spd_of_strength_1_keeps_a_selected_layer_at_its_distance() -> None:
    source = torch.tensor([0.0, 0.0])
    for gradient, distance in ((1.0, 1.0), (-1.0, 3.0)):
        method, run, layer = lone("spd", source, strength=1.0)
        layer.data[0] = 1.0
        layer.grad = torch.tensor([gradient, 0.0])
        method.before_update(run)
        layer.data[0] = 3.0
        method.after_update(run)
        assert layer.tolist() == pytest.approx([distance, 0.0])
        assert method.held.tolist() == [float(gradient > 0)]
    assert spd.deviation_ratio(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 1.0])).tolist() == [
        0,
        0,
    ]


# ---------------------------------------------------------------------------------------------- FTP


def rows(difference: np.ndarray) -> np.ndarray:
    """||.||_1 of each row, as a column that broadcasts; a vector is one row."""
    matrix = difference.reshape(len(difference), -1) if difference.ndim > 1 else difference[None]
    sums = np.abs(matrix).sum(1) + 1e-8
    return sums.reshape(-1, *[1] * (difference.ndim - 1))


@TASKS
@pytest.mark.parametrize(
    "parameters",
    [
        {"rate": 0.1},
        {"rate": 1.0, "kappa": 0.0},
        {"rate": 0.3, "kappa": 0.25, "radius": 0.5},
    ],
)
def test_ftp_by_hand(same_task: bool, parameters: dict[str, float]) -> None:
    held: dict[str, Any] = {}
    clamped: list[bool] = []
    rate, kappa = parameters["rate"], parameters.get("kappa", 1.0)

    def after(step: int, name: str, g: Any, w: Any, moved: Any, source: Any) -> Any:
        gamma, m, v, way = held.get(name, (parameters.get("radius", 1e-8), 0.0, 0.0, 0.0))
        if step:
            slope = np.sum(g * way)
            slope *= kappa if slope > 0 else 1
            m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            t = step + 1
            gamma -= rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        n = rows(moved - source)
        gamma = min(max(gamma, 1e-8), n.max())
        held[name] = gamma, m, v, (moved - source) / n
        clamped.append(bool((gamma < n).any()))
        return source + np.minimum(1, gamma / n) * (moved - source)

    wanted = by_hand(after, same_task)
    assert any(clamped)
    found = trained("ftp", parameters, **settings(same_task))
    assert_same(found, wanted)
    radii = found.run.diagnostics["radii"]
    assert radii.keys() == held.keys()
    for name, radius in radii.items():
        if not name.endswith("conv.bias"):
            assert radius == pytest.approx(held[name][0], rel=1e-3, abs=1e-6), name


@TASKS
def test_ftp_holds_all_but_a_new_head(same_task: bool) -> None:
    result = trained("ftp", {"rate": 0.0}, same_task=same_task)
    for name, _ in result.run.network.named_parameters():
        moved = float((result.after[name] - result.before[name]).abs().max())
        assert (moved > 1e-4) == (result.run.parts.in_head(name) and not same_task), name


@examples(60)
@given(given_tensors=tensors(2), radius=st.floats(1e-8, 20))
def test_a_projection_never_goes_away_and_is_one(
    given_tensors: list[Tensor], radius: float
) -> None:
    source, way = given_tensors
    weight, limit = source + way, torch.tensor(radius, dtype=torch.float64)
    once = ftp.projected(weight, source, limit)
    before, after = ftp.row_sums(weight - source), ftp.row_sums(once - source)
    assert bool((after <= before + 1e-12).all()) and bool((after <= radius + 2e-8).all())
    assert torch.allclose(ftp.projected(once, source, limit), once, atol=1e-7)
    inside = (before <= radius).expand_as(weight)
    assert torch.equal(once[inside], weight[inside]), "what is near enough stays, bit for bit"


def test_a_row_is_a_channel_and_a_vector_is_one_row() -> None:
    difference = torch.tensor([[[1.0, -2.0]], [[0.0, 4.0]]])
    assert ftp.row_sums(difference).flatten().tolist() == pytest.approx([3.0, 4.0])
    assert ftp.row_sums(torch.tensor([1.0, -2.0])).tolist() == pytest.approx([3.0])
    weight = ftp.projected(difference, torch.zeros(2, 1, 2), torch.tensor(3.5))
    assert weight[0].tolist() == [[1.0, -2.0]] and weight[1, 0, 1] == pytest.approx(3.5)
