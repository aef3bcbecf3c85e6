"""What methods that keep the source head or source data in training share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trm_bench.methods import Context, Method, Tree


class SourceHeadMethod(Method):
    """A method with a second head, a copy of the source's that is trained on the network's
    penultimate features.
    """

    def needs_head(self) -> bool:
        return True

    def prepare(self, run: Context) -> None:
        assert run.source is not None
        head = run.source.get_submodule(run.parts.head)
        self.source_head = copy.deepcopy(head).requires_grad_(True).train()

    def trains_head(self, run: Context) -> bool:
        """Whether the second head is used; where source and target share the label map, the
        network's own may stand for it.
        """
        return True

    def head_of_source(self, run: Context) -> nn.Module:
        """What scores source batches: the second head, or the network's own in its place."""
        return (
            self.source_head if self.trains_head(run) else run.network.get_submodule(run.parts.head)
        )

    def parameters(self, run: Context) -> Iterable[Any]:
        own = self.source_head.parameters() if self.trains_head(run) else []
        return [*super().parameters(run), *own]

    def state(self, run: Context) -> Tree:
        return {"source_head": self.source_head.state_dict()}

    def restore(self, run: Context, state: Tree) -> None:
        self.source_head.load_state_dict(state["source_head"])


@contextmanager
def head_replaced(run: Context, head: nn.Module) -> Iterator[None]:
    """Gives the network another head while it is open, so that no pass computes logits that nobody
    needs.
    """
    own = run.network.get_submodule(run.parts.head)
    run.network.set_submodule(run.parts.head, head)
    try:
        yield
    finally:
        run.network.set_submodule(run.parts.head, own)


@contextmanager
def head_input(run: Context) -> Iterator[list[Tensor]]:
    """Collects the penultimate features, (B, C, *spatial), one entry a forward pass of the network
    while it is open.
    """
    seen: list[Tensor] = []
    head = run.network.get_submodule(run.parts.head)
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def target_statistics(network: nn.Module) -> Iterator[None]:
    """Leaves the moving statistics of the batch normalisation that is in the network on entry alone
    while it is open.

    Source patches are normalised by their own batch; the statistics used in evaluation stay those
    of the target.
    """
    norms = [(m, m.momentum) for m in network.modules() if isinstance(m, _NormBase)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
