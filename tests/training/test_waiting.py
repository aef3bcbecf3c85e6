"""On a GPU the host must not wait for the device in every step."""

from __future__ import annotations

from typing import Any

import pytest
from harness import context
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trm_bench.methods.registry import BUILTIN, create
from trm_bench.training.loop import LOG_EVERY, Curves, train

# what makes a number of Python, or a tensor of unknown size, of a tensor on the device
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
STEPS = 4 * LOG_EVERY


class Waiting(TorchDispatchMode):
    """Notes the steps in which the host would have waited for the device.

    Random numbers are drawn on the CPU whatever the device, and are at hand.
    """

    def __init__(self, run: Any) -> None:
        self.run, self.steps, self.drawn = run, list[int](), list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        result = func(*args, **(kwargs or {}))
        if name.startswith("aten::rand"):
            self.drawn.append(result)
        elif name in WAITS and not any(same_memory(args[0], one) for one in self.drawn):
            self.steps.append(self.run.step)
        return result


def same_memory(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr()


@pytest.mark.parametrize("name", BUILTIN)
def test_no_step_waits_but_where_the_loss_is_looked_at(name: str) -> None:
    method = create(name, {})
    run = context(method=method, steps=STEPS)
    run.config = method.adjusted(run.config)
    waiting, trains = Waiting(run), method.train

    def watched(run: Any, fit: Any) -> None:
        def watch(first: int, last: int) -> None:
            with waiting:
                fit(first, last)

        trains(run, watch)

    method.train = watched  # type: ignore[method-assign]
    train(run, method, Curves(looks=0))
    waited = set(waiting.steps)
    assert waited, "the loss was never looked at"
    assert len(waited) <= 0.3 * STEPS, sorted(waited)
