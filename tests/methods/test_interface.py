"""What every method starts from: the plain loss, by hand, and the order of the hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, random
from pydantic import ValidationError
from torch import Tensor

from trm_bench.data.patches import Batch
from trm_bench.errors import UserError
from trm_bench.methods import Context, Fit, Method, Parameters, hyper
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import LossConfig
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


@pytest.mark.parametrize("cross_entropy, dice", [(1, 1), (1, 0), (0, 1), (0.5, 2)])
def test_the_plain_loss_is_cross_entropy_plus_soft_dice(cross_entropy: float, dice: float) -> None:
    """Mean cross-entropy, and 1 - 2 sum p y / (sum p + sum y) over batch and voxels, per class."""
    logits = random(2, 3, 5, 4, 3)
    label = torch.randint(0, 3, (2, 5, 4, 3), generator=torch.Generator().manual_seed(1))
    batch = Batch(random(2, 1, 5, 4, 3), label, torch.ones_like(label, dtype=torch.bool), {})
    z, y = logits.double().numpy(), np.eye(3)[label.numpy()].transpose(0, 4, 1, 2, 3)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    ce = -(np.log(p) * y).sum(1).mean()
    axes = (0, 2, 3, 4)
    overlap = 1 - 2 * (p * y).sum(axes) / (p.sum(axes) + y.sum(axes))
    run = context(loss=LossConfig(cross_entropy=cross_entropy, dice=dice))
    wanted = cross_entropy * ce + dice * overlap[1:].mean()
    loss = create("finetune", {}).segmentation_loss(run, logits, batch)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


class Spy(Method):
    """Writes down which hook is called when, and in which mode the network is."""

    name = "spy"

    def __init__(self) -> None:
        super().__init__(Parameters())
        self.calls: list[str] = []

    def check(self, network: Any, parts: Any) -> None:
        self.calls.append("check")

    def prepare(self, run: Context) -> None:
        self.calls.append("prepare")

    def train(self, run: Context, fit: Fit) -> None:
        self.calls.append("train")
        fit(0, 1)
        fit(1, 3)

    def parameters(self, run: Context) -> Any:
        self.calls.append("parameters")
        return super().parameters(run)

    def training_mode(self, run: Context) -> None:
        self.calls.append("training_mode")
        super().training_mode(run)

    def loss(self, run: Context, batch: Batch) -> Tensor:
        assert run.network.training
        self.calls.append(f"loss {run.step}")
        return super().loss(run, batch)

    def penalty(self, run: Context) -> Tensor | float:
        self.calls.append("penalty")
        return 0.0

    def before_update(self, run: Context) -> None:
        assert all(p.grad is not None for p in run.network.parameters())
        self.calls.append("before_update")

    def after_update(self, run: Context) -> None:
        self.calls.append("after_update")

    def finish(self, run: Context) -> None:
        self.calls.append("finish")


def test_hooks_are_called_in_the_order_that_the_interface_states() -> None:
    method = Spy()
    run = context(steps=3)
    train(run, method, Curves())
    steps = [["loss", "penalty", "before_update", "after_update"] for _ in range(3)]
    for i, step in enumerate(steps):
        step[0] = f"loss {i}"
    begin = ["parameters", "training_mode"]
    pieces = [*begin, *steps[0], *begin, *steps[1], *steps[2]]
    expected = ["check", "prepare", "training_mode", "train", *pieces, "finish"]
    assert method.calls == expected
    assert not run.network.training


def test_only_parameters_that_want_a_gradient_are_trained() -> None:
    run = context()
    first, *others = run.network.parameters()
    first.requires_grad_(False)
    assert [id(p) for p in create("finetune", {}).parameters(run)] == [id(p) for p in others]


class Odd(Parameters):
    """As an installed package may declare them."""

    strength: float = hyper(1.0, "of it")
    times: int = hyper(1, "that it is done")
    alphas: tuple[float, ...] = hyper((0.0,), "tried")
    fast: bool = hyper(False, "or not")


@pytest.mark.parametrize(
    "given",
    [
        {"strength": float("nan")},
        {"strength": "inf"},
        {"strength": True},
        {"times": 10**30},
        {"times": False},
        {"alphas": [0.1, float("inf")]},
        {"alphas": [True]},
        {"more": 1},
    ],
)
def test_parameters_of_any_method_are_finite_numbers(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Odd.model_validate(given)
    assert Odd.model_validate({"fast": True, "strength": "1e-3"}).strength == 1e-3


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("trm", {"base": float("nan")}, "base: Input should be a finite number"),
        ("trm", {"base": True}, "base: true is not a number"),
        ("delta", {"batches": 10**12}, "batches: Input should be less"),
        ("finetune_longer", {"times": 10**12}, "times: Input should be less"),
        ("forkmerge", {"rounds": 10**12}, "rounds: Input should be less"),
        ("focal", {"gamma": 1e300}, "gamma: Input should be less"),
    ],
)
def test_parameters_that_are_no_use_are_one_message(
    name: str, parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        create(name, parameters)
