"""A training that is cut off and goes on ends like one that never was, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from harness import CPU, TWO, context, same, state, store
from helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trm_bench.methods import Context, Fit, Method, Parameters, Tree
from trm_bench.methods.registry import BUILTIN, REGISTRY, create
from trm_bench.protocol.schema import LossConfig, NetworkConfig
from trm_bench.runs.savepoints import packed, unpacked
from trm_bench.seeds import deterministic
from trm_bench.training import leaves
from trm_bench.training.loop import Curves, train
from trm_bench.training.resuming import Savepoint, Unfit

DROPOUT = NetworkConfig.model_validate(
    {"name": "UNet", "channels": (4, 8), "strides": (2,), "norm": "batch", "dropout": 0.3}
)
MOMENTUM = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
ONE_TERM = LossConfig(cross_entropy=1, dice=0)
NEVER = 10**9


@pytest.fixture(autouse=True)
def one_thread() -> None:
    deterministic(CPU)


class Cut(BaseException):
    """What ends a training here, as a signal does."""


class Memory(Savepoint):
    """Keeps what is saved, as a file would, and cuts the training off there."""

    saves = True

    def __init__(self, at: int) -> None:
        self.at, self.looks = at, 0
        self.kept: Any = None

    def load(self) -> Tree:
        return None if self.kept is None else unpacked(*self.kept)

    def look(self, step: int, state: Callable[[], Tree]) -> None:
        self.looks += 1
        if self.looks == self.at:
            tree, tensors = packed(state())
            self.kept = tree, {name: tensor.contiguous() for name, tensor in tensors.items()}
            raise Cut


def trained(
    method: Callable[[], Method], savepoint: Savepoint | None = None, **training: Any
) -> tuple[Context, Curves]:
    made = method()
    settings = {"network": DROPOUT, "steps": 12, "select": "best", "validate_every": 4}
    run = context(method=made, **{**settings, **training})
    run.config, curves = made.adjusted(run.config), Curves()
    torch.manual_seed(0)
    train(run, made, curves, savepoint=savepoint)
    return run, curves


def cut(method: Callable[[], Method], at: int, **training: Any) -> Memory:
    """The savepoint of a training that was cut off after so many steps."""
    savepoint = Memory(at)
    with pytest.raises(Cut):
        trained(method, savepoint, **training)
    savepoint.at, savepoint.looks = NEVER, 0
    torch.rand(7)  # another process would draw other numbers
    return savepoint


def steps_of(method: Callable[[], Method], **training: Any) -> int:
    counted = Memory(NEVER)
    trained(method, counted, **training)
    return counted.looks


def assert_same(one: tuple[Context, Curves], other: tuple[Context, Curves]) -> None:
    assert same(state(one[0].network), state(other[0].network))
    assert one[1] == other[1]
    assert one[0].diagnostics == other[0].diagnostics


def assert_resumes(method: Callable[[], Method], at: Iterable[int], **training: Any) -> None:
    whole = trained(method, **training)
    steps = steps_of(method, **training)
    for place in at:
        savepoint = cut(method, min(place, steps), **training)
        assert_same(trained(method, savepoint, **training), whole)
        assert savepoint.looks == steps - min(place, steps), "it went on where it was cut off"


def test_the_optimisers_state_lies_as_the_weights_do() -> None:
    """A fused optimiser goes through memory as it lies, whatever the axes."""
    weights = context(network=DROPOUT).network.state_dict().values()
    assert any(not w.is_contiguous() for w in weights), "channels are last here"
    assert_resumes(lambda: create("finetune", {}), [5], optimizer=ADAMW)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_goes_on(name: str) -> None:
    assert_resumes(lambda: create(name, {}), [5, 11], optimizer=MOMENTUM)


@pytest.mark.parametrize(
    ("name", "steps"), [("lp_ft", 12), ("forkmerge", 24), ("soup", 36), ("trm_oracle", 60)]
)
@examples(4)
@given(data=st.data())
def test_a_method_of_several_fits_goes_on_anywhere(
    name: str, steps: int, data: st.DataObject
) -> None:
    deterministic(CPU)
    at = data.draw(st.integers(1, steps))
    assert_resumes(lambda: create(name, {}), [at], optimizer=ADAMW)


def test_a_soup_of_checkpoints_has_those_of_before() -> None:
    """They are taken after 8 and 10 of 12 steps."""
    kind = {"over": "checkpoints", "ingredients": 3}
    assert_resumes(lambda: create("soup", kind), [7, 9, 11])


@pytest.mark.parametrize("optimizer", [ADAMW, MOMENTUM], ids=["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "poly", "cosine", "one_cycle"])
def test_every_optimiser_and_schedule_goes_on(optimizer: Any, schedule: str) -> None:
    settings: Any = {"schedule": schedule, "optimizer": optimizer, "warmup": 0.3}
    assert_resumes(lambda: create("finetune", {}), [2, 7], steps=13, **settings)


def test_the_best_weights_so_far_are_kept() -> None:
    """They were before the cut; later ones are worse."""

    def best_first(savepoint: Savepoint | None = None) -> Context:
        run = context(network=DROPOUT, steps=12, select="best", validate_every=3)
        scores = iter([0.5, 0.9, 0.2, 0.1] if savepoint is None or not kept else [0.2, 0.1])
        run.validate = lambda network: next(scores)
        torch.manual_seed(0)
        train(run, create("finetune", {}), Curves(), savepoint=savepoint)
        return run

    kept = False
    whole, savepoint = best_first(), Memory(7)
    with pytest.raises(Cut):
        best_first(savepoint)
    kept = True
    assert same(state(best_first(savepoint).network), state(whole.network))


def test_a_training_may_be_cut_off_again_and_again() -> None:
    for name in ("forkmerge", "auto_rgn"):
        whole = trained(lambda n=name: create(n, {}))  # type: ignore[misc]
        savepoint = Memory(5)
        for _ in range({"forkmerge": 4, "auto_rgn": 2}[name]):
            savepoint.looks = 0
            with pytest.raises(Cut):
                trained(lambda n=name: create(n, {}), savepoint)  # type: ignore[misc]
        savepoint.looks = 0
        assert_same(trained(lambda n=name: create(n, {}), savepoint), whole)  # type: ignore[misc]


def test_saving_changes_nothing() -> None:
    class Saving(Memory):
        def look(self, step: int, state: Callable[[], Tree]) -> None:
            packed(state())

    for name in ("forkmerge", "disagreement"):
        method = lambda n=name: create(n, {})  # noqa: E731
        assert_same(trained(method, Saving(NEVER)), trained(method))


def test_progress_goes_on_where_it_was() -> None:
    savepoint, heard = cut(lambda: create("finetune", {}), 15, steps=25), []
    run = context(network=DROPOUT, steps=25, select="best", validate_every=4)
    torch.manual_seed(0)
    curves = Curves()
    train(run, create("finetune", {}), curves, lambda *at: heard.append(at[0]), savepoint)
    assert heard == [20, 25] and [step for step, _ in curves.loss] == [10, 20, 25]
    assert curves.passes == 25


# What a method holds


class Averaging(Method):
    """Ends with the mean of its weights over the steps; `given` and `taken` say how well it tells
    of it.
    """

    name = "averaging"

    def __init__(self) -> None:
        super().__init__(Parameters())

    def prepare(self, run: Context) -> None:
        self.mean = [torch.zeros_like(p) for p in run.network.parameters()]
        self.draws = torch.Generator().manual_seed(1)
        self.seen = 0

    def after_update(self, run: Context) -> None:
        self.seen += 1
        share = float(torch.rand((), generator=self.draws))
        for mean, parameter in zip(self.mean, run.network.parameters(), strict=True):
            mean.lerp_(parameter.detach(), share / self.seen)

    def finish(self, run: Context) -> None:
        for mean, parameter in zip(self.mean, run.network.parameters(), strict=True):
            parameter.data.copy_(mean)


class Telling(Averaging):
    def state(self, run: Context) -> Tree:
        return {"mean": self.mean, "draws": self.draws.get_state(), "seen": self.seen}

    def restore(self, run: Context, state: Tree) -> None:
        self.mean, self.seen = state["mean"], state["seen"]
        self.draws.set_state(state["draws"])


def test_a_method_that_tells_what_it_holds_goes_on() -> None:
    assert_resumes(Telling, [1, 6])


def test_a_method_that_tells_nothing_is_not_saved() -> None:
    with pytest.raises(Unfit, match=r"averaging changes method\.draws, .*Method\.state"):
        trained(Averaging, Memory(3))


@pytest.mark.parametrize("forgotten", ["mean", "draws", "seen"])
def test_what_a_method_forgets_is_noticed(forgotten: str) -> None:
    class Forgetting(Telling):
        def restore(self, run: Context, state: Tree) -> None:
            fresh = {"mean": self.mean, "draws": self.draws.get_state(), "seen": self.seen}
            super().restore(run, {**state, forgotten: fresh[forgotten]})

    with pytest.raises(Unfit, match=rf"averaging does not put back method\.{forgotten}"):
        trained(Forgetting, cut(Forgetting, 3))


class Thawing(Method):
    """Trains the head alone at first; drops `momentum`, where it is to be noticed."""

    name = "thawing"
    hidden = False

    def __init__(self) -> None:
        super().__init__(Parameters())

    def prepare(self, run: Context) -> None:
        for name, parameter in run.network.named_parameters():
            parameter.requires_grad_(run.parts.in_head(name))

    def parameters(self, run: Context) -> Iterable[Any]:
        return run.network.parameters()

    def before_update(self, run: Context) -> None:
        if run.step == 4:
            run.network.requires_grad_(True)
            next(m for m in run.network.modules() if isinstance(m, nn.BatchNorm3d)).eval()
            run.diagnostics["thawed"] = run.step
            if self.hidden:
                next(m for m in run.network.modules() if hasattr(m, "momentum")).momentum = 0.5


def test_what_is_trained_and_in_which_mode_is_put_back() -> None:
    assert_resumes(Thawing, [3, 8], loss=ONE_TERM)


def test_what_changes_in_a_module_is_noticed() -> None:
    class Hiding(Thawing):
        hidden = True

    with pytest.raises(Unfit, match=r"network\..*\.momentum"):
        trained(Hiding, cut(Hiding, 8, loss=ONE_TERM), loss=ONE_TERM)


def test_what_is_drawn_between_fits_is_drawn_again() -> None:
    class Rounds(Method):
        name = "rounds"

        def __init__(self) -> None:
            super().__init__(Parameters())

        def train(self, run: Context, fit: Fit) -> None:
            for first in range(0, 12, 4):
                fit(first, first + 4)
                with torch.no_grad():
                    for parameter in run.network.parameters():
                        parameter.add_(0.01 * torch.randn_like(parameter))
                run.diagnostics.setdefault("drawn", []).append(float(torch.rand(())))

    assert_resumes(Rounds, [2, 4, 7, 12])


def test_a_network_that_does_not_fit_is_noticed() -> None:
    savepoint = cut(lambda: create("finetune", {}), 3)
    other = NetworkConfig.model_validate({**DROPOUT.model_dump(), "channels": (4, 6)})
    with pytest.raises(Unfit, match="size mismatch"):
        trained(lambda: create("finetune", {}), savepoint, network=other)


class Holder:
    def __init__(self, inner: object) -> None:
        self.inner = inner


def held(value: object) -> dict[str, str]:
    method = create("finetune", {})
    method.held = value  # type: ignore[attr-defined]
    found = leaves.leaves(context(), method)
    return {k: leaves.checksum(v) for k, v in found.items() if k.startswith("method.")}


def test_leaves_are_found_wherever_they_are() -> None:
    shared = [1.0]
    values: list[Callable[[], object]] = [
        lambda: 1,
        lambda: True,
        lambda: 1.0,
        lambda: "1",
        lambda: [1],
        lambda: {"a": [Holder({"b": (torch.ones(2),)})]},
        lambda: {"a": [Holder({"b": (torch.zeros(2),)})]},
        lambda: torch.ones(2, dtype=torch.int64),
        lambda: torch.ones(2, 1),
        lambda: torch.ones(2).numpy(),
        lambda: torch.Generator().manual_seed(3),
        lambda: torch.Generator().manual_seed(4),
        lambda: random.Random(3),
        lambda: random.Random(4),
        lambda: {1, 2},
        lambda: nn.Linear(1, 1).requires_grad_(False) and nn.ParameterList([torch.ones(1)]),
        lambda: [shared, shared],
        lambda: [[1.0], [1.0]],
    ]
    sums = [held(value()) for value in values]
    assert all(sums), "something is not looked into"
    assert sums == [held(value()) for value in values]
    assert len({str(sorted(one.items())) for one in sums}) == len(values)


def test_nobody_knows_how_far_an_iterator_has_come() -> None:
    method = create("finetune", {})
    method.held = iter([1])  # type: ignore[attr-defined]
    (leaf,) = (v for k, v in leaves.leaves(context(), method).items() if k == "method.held")
    assert leaves.mark(leaf) != leaves.mark(leaf)


def test_the_marks_of_tensors_see_every_change() -> None:
    tensor = torch.ones(3)
    before = leaves.mark(tensor)
    assert before == leaves.mark(tensor) != leaves.mark(tensor.clone())
    tensor[0] = 2
    assert before != leaves.mark(tensor)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_the_marks_see_what_an_optimiser_does(optimizer: Any) -> None:
    head = nn.Linear(2, 2)
    before = [leaves.mark(p) for p in head.parameters()]
    head(torch.ones(1, 2)).sum().backward()
    optimizer(head.parameters(), lr=0.1).step()
    assert all(a != leaves.mark(p) for a, p in zip(before, head.parameters(), strict=True))


def test_data_and_source_are_left_out() -> None:
    method = create("disagreement", {})
    run = context()
    method.prepare(run)
    method.store = store(1, TWO, 3)  # type: ignore[attr-defined]
    method.again = run.source  # type: ignore[attr-defined]
    found = leaves.leaves(run, method)
    assert not [k for k in found if k.startswith(("method.store", "method.source_patches"))]
    assert isinstance(found["method.again"], leaves.Link)
    assert any(k.startswith("method.source_head.") for k in found)
    assert REGISTRY.get("disagreement").state is not Method.state
