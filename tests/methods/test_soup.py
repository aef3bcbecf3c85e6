"""Soups: their ingredients, trained one by one, and their mean, computed independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from harness import CPU, context, same, state, trained
from torch import Tensor, nn
from trm_bench.baselines.finetune import Finetune
from trm_bench.baselines.soup import mean

from trm_bench.data.patches import PatchSampler
from trm_bench.methods import Context, Parameters
from trm_bench.methods.registry import create
from trm_bench.seeds import deterministic
from trm_bench.training.loop import Curves, train

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def alone(i: int, **settings: Any) -> State:
    """The network of a fine-tuning that sees the patches of an ingredient over seeds."""
    run = context(**settings)
    if i:
        run.patches = PatchSampler(run.training_set, run.config, "patches", "soup", i)
    train(run, create("finetune", {}), Curves())
    return state(run.network)


def assert_mean(found: State, of: list[State]) -> None:
    for name, tensor in found.items():
        several = [one[name].double().numpy() for one in of]
        if tensor.is_floating_point():
            expected = np.sum(several, axis=0) / len(several)
            assert np.allclose(tensor.double().numpy(), expected, rtol=1e-5, atol=1e-7), name
        else:
            assert tensor.numpy() == several[0], name


@pytest.mark.parametrize("same_task", [False, True], ids=["new_head", "same_task"])
def test_over_seeds_it_is_the_mean_of_whole_trainings(same_task: bool) -> None:
    several = [alone(i, same_task=same_task) for i in range(3)]
    assert not any(same(several[i], several[i - 1]) for i in range(3))
    found = trained("soup", {"ingredients": 3}, same_task=same_task)
    assert_mean(found.after, several)
    assert found.curves.passes == 3 * 6 and found.run.diagnostics["ingredients"] == 3
    assert found.run.patches.axes == ("patches",), "the run's own patches are put back"


class Watched(Finetune):
    """Fine-tuning that remembers its weights after every step."""

    def __init__(self) -> None:
        super().__init__(Parameters())
        self.seen: list[State] = []

    def after_update(self, run: Context) -> None:
        self.seen.append(state(run.network))


@pytest.mark.parametrize(
    ("ingredients", "steps", "taken"),
    [(3, 12, [8, 10, 12]), (4, 8, [5, 6, 7, 8]), (1, 6, [6]), (5, 3, [2, 3])],
)
def test_over_checkpoints_it_is_the_mean_of_the_last_half(
    ingredients: int, steps: int, taken: list[int]
) -> None:
    watched = Watched()
    train(context(steps=steps), watched, Curves())
    found = trained("soup", {"over": "checkpoints", "ingredients": ingredients}, steps=steps)
    assert_mean(found.after, [watched.seen[step - 1] for step in taken])
    assert found.curves.passes == steps and found.run.diagnostics["ingredients"] == len(taken)


def test_its_cost_is_that_of_its_trainings() -> None:
    assert create("soup", {"ingredients": 5}).passes() == 5
    assert create("greedy_soup", {"over": "checkpoints", "ingredients": 5}).passes() == 1


@pytest.mark.parametrize("name", ["soup", "greedy_soup"])
def test_a_soup_of_one_ends_with_the_best_weights_too(name: str) -> None:
    best: dict[str, Any] = {"select": "best", "validate_every": 2, "same_task": True}
    one = trained(name, {"over": "checkpoints", "ingredients": 1}, **best)
    assert same(one.after, trained("finetune", **best).after)


class Scored:
    """Gives the scores in their order, and notes the networks that were validated."""

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.networks = iter(scores), list[State]()

    def __call__(self, network: nn.Module) -> float:
        self.networks.append(state(network))
        return next(self.scores)


@pytest.mark.parametrize(
    ("scores", "kept", "mixed"),
    [
        # ingredients 0, 1, 2; then what joins the best, in the order of the scores
        ([0.5, 0.7, 0.6, 0.69, 0.7], [1, 0], 0.7),  # no worse is good enough
        ([0.5, 0.7, 0.6, 0.71, 0.72], [1, 2, 0], 0.72),
        ([0.7, 0.7, 0.7, 0.6, 0.6], [0], 0.7),  # of equals the first
        ([0.5, 0.7, 0.6, 0.8, 0.75], [1, 2], 0.8),
    ],
)
def test_a_greedy_soup_keeps_what_does_not_harm(
    scores: list[float], kept: list[int], mixed: float
) -> None:
    run = context()
    scored = run.validate = Scored(scores)
    train(run, create("greedy_soup", {"ingredients": 3}), Curves())
    ingredients, tried = scored.networks[:3], scored.networks[3:]
    assert same(ingredients[0], alone(0)) and same(ingredients[2], alone(2))
    second, third = sorted(range(3), key=lambda i: (-scores[i], i))[1:]
    assert_mean(tried[0], [ingredients[i] for i in (kept[0], second)])
    base = kept[:2] if second in kept else kept[:1]
    assert_mean(tried[1], [ingredients[i] for i in (*base, third)])
    assert_mean(state(run.network), [ingredients[i] for i in kept])
    assert run.diagnostics == {
        "ingredients": 3,
        "kept": kept,
        "validation_dice": scores[:3],
        "validation_dice_mixed": mixed,
    }


def test_the_mean_of_one_is_itself() -> None:
    one = {"weight": torch.tensor([0.1, 1e-30, 3.0]), "number": torch.tensor(7)}
    assert same(mean([one]), one)
