"""The moving average of the weights, against one that is counted step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import CPU, context, same, state, trained
from test_resuming import ADAMW, assert_resumes
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from trm_bench.methods import Context, Method
from trm_bench.methods.registry import create
from trm_bench.protocol.schema import TrainingConfig
from trm_bench.seeds import deterministic
from trm_bench.training import compiling
from trm_bench.training.loop import Curves, train

State = dict[str, Tensor]
DECAY = 0.75  # from step 27 on the largest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


def watched(name: str, parameters: dict[str, Any], **training: Any) -> tuple[Context, list[State]]:
    """A training without an average, and its state at the beginning and after every step."""
    run, method = context(**training), create(name, parameters)
    states, after = [state(run.network)], method.after_update

    def remember(run: Context) -> None:
        after(run)
        states.append(state(run.network))

    method.after_update = remember  # type: ignore[method-assign]
    train(run, method, Curves())
    return run, states


def average(states: list[State], decay: float = DECAY) -> list[State]:
    """The average after every step, in double precision; counters are the last."""
    mean = {k: v.double() if v.is_floating_point() else v for k, v in states[0].items()}
    means = [mean]
    for t, now in enumerate(states[1:]):
        d = min(decay, (1 + t) / (10 + t))
        mean = {
            k: d * mean[k] + (1 - d) * v.double() if v.is_floating_point() else v
            for k, v in now.items()
        }
        means.append(mean)
    return means


def assert_close(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value.double(), other[name].double(), rtol=1e-5, atol=1e-6)


def test_a_training_ends_with_the_average_of_weights_and_moving_statistics() -> None:
    run, states = watched("finetune", {}, steps=40)
    result = trained("finetune", steps=40, ema=DECAY)
    assert_close(result.after, average(states)[-1])
    buffers = [n for n, b in run.network.named_buffers() if b.is_floating_point()]
    assert buffers and not any(torch.equal(result.after[n], states[-1][n]) for n in buffers)
    plain = trained("finetune", steps=40)
    assert plain.curves == result.curves, "the steps themselves are the same"
    assert same(plain.after, states[-1])


def test_the_averages_are_validated_and_the_best_is_kept() -> None:
    _, states = watched("finetune", {}, steps=12)
    means = average(states)
    run = context(steps=12, ema=DECAY, select="best", validate_every=3)
    scores, seen = iter([0.1, 0.9, 0.3, 0.2]), list[State]()

    def validate(network: nn.Module) -> float:
        seen.append(state(network))
        return next(scores)

    run.validate = validate
    train(run, create("finetune", {}), Curves())
    for shown, step in zip(seen, (3, 6, 9, 12), strict=True):
        assert_close(shown, means[step])
    assert same(state(run.network), seen[1])


def test_every_fit_of_a_method_ends_with_its_own_average() -> None:
    """LP-FT fine-tunes from the averaged head, and its second average begins there."""
    run, method = context(steps=10, ema=DECAY), create("lp_ft", {"share": 0.5})
    fits: list[list[State]] = []
    after, trains = method.after_update, method.train

    def remember(run: Context) -> None:
        after(run)
        fits[-1].append(state(run.network))

    def in_fits(run: Context, fit: Any) -> None:
        def watch(first: int, last: int) -> None:
            fits.append([state(run.network)])
            fit(first, last)
            ends.append(state(run.network))

        trains(run, watch)

    ends: list[State] = []
    method.after_update, method.train = remember, in_fits  # type: ignore[method-assign]
    train(run, method, Curves())
    assert len(fits) == 2 and same(fits[1][0], ends[0])
    for states, end in zip(fits, ends, strict=True):
        assert_close(end, average(states)[-1])


@pytest.mark.parametrize("name", ["finetune", "lp_ft", "forkmerge", "stochnorm"])
def test_a_training_with_an_average_goes_on(name: str) -> None:
    assert_resumes(lambda: create(name, {}), [3, 8], optimizer=ADAMW, ema=DECAY)


def test_what_was_averaged_is_not_lost_at_a_cut() -> None:
    """It would be, were only the network saved: the average begins long before."""
    assert_resumes(lambda: create("finetune", {}), [8], select="last", ema=0.99)


def test_compiled_steps_are_averaged_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", counter := CompileCounterWithBackend("eager"))
    settings: Any = {"steps": 12, "ema": DECAY, "select": "best", "validate_every": 4}
    plain = trained("finetune", **settings)
    compiled = trained("finetune", compile=True, **settings)
    assert counter.frame_count and same(plain.after, compiled.after)
    assert plain.curves == compiled.curves


def test_a_method_may_put_weights_back_after_a_step() -> None:
    """The average is of what the method leaves."""

    class Still(Method):
        name = "still"

        def prepare(self, run: Context) -> None:
            self.start = [p.detach().clone() for p in run.network.parameters()]

        def after_update(self, run: Context) -> None:
            torch._foreach_copy_([p.detach() for p in run.network.parameters()], self.start)

    run = context(steps=5, ema=DECAY)
    before = dict(run.network.named_parameters())
    held = {name: p.detach().clone() for name, p in before.items()}
    train(run, Still(Method.Parameters()), Curves())
    assert all(torch.equal(p, held[n]) for n, p in run.network.named_parameters())


def test_nothing_is_averaged_unless_asked_for() -> None:
    assert TrainingConfig(steps=1, patch=(8, 8)).ema is None
