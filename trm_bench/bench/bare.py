"""A training step without this package: what a plain script does, and the best of its kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trm_bench.bench.timing import Work, busy
from trm_bench.formats import autocast
from trm_bench.methods import Context
from trm_bench.methods.registry import create


@dataclass(frozen=True)
class Kind:
    """One way to make the same step.

    Attributes:
        precision: fp32; tf32, which a GPU takes for the inner products of fp32; or bf16.
        channels_last: The order of the numbers in memory; else contiguous.
        compiled: The network through torch.compile.
        plain: PyTorch's own choice of the optimiser's kernels; else the fused ones.
    """

    precision: str
    channels_last: bool = False
    compiled: bool = False
    plain: bool = False

    @property
    def name(self) -> str:
        """As tables have it; all that are not plain begin with `bare` and their precision."""
        if self.plain:
            return PLAIN
        layout = " channels-last" if self.channels_last else ""
        return f"bare {self.precision}{layout}{COMPILED if self.compiled else ''}"


PLAIN = "bare plain"
COMPILED = " compiled"  # ends the names of what goes through torch.compile


def kinds(device: torch.device, precisions: list[str], compiled: bool) -> list[Kind]:
    """The plain step, and every combination that the machine has."""
    chosen = [*precisions, *(["tf32"] if device.type == "cuda" else [])]
    eager_and_compiled = [False, True] if compiled else [False]
    kinds = product(eager_and_compiled, (False, True), chosen)
    return [Kind("fp32", plain=True), *(Kind(name, last, c) for c, last, name in kinds)]


@contextmanager
def as_a_script(kind: Kind) -> Iterator[None]:
    """PyTorch as a script finds it, free to choose kernels that do not repeat themselves.

    Where it is not the plain step, cuDNN tries its kernels and takes the fastest.
    """
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    tf32 = kind.precision == "tf32"
    try:
        with cudnn.flags(
            enabled=cudnn.enabled, benchmark=not kind.plain, deterministic=False, allow_tf32=tf32
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Bare:
    """Forward, loss, backward, clipping and update on one batch: no sampling, no logging.

    Args:
        run: Whose network is trained, with our plain loss.
        kind: How.
    """

    def __init__(self, run: Context, kind: Kind) -> None:
        self.run, self.kind = run, kind
        self.batch = run.patches.batch(0)
        axes = self.batch.image.ndim - 2
        last = torch.channels_last if axes == 2 else torch.channels_last_3d
        layout: Any = last if kind.channels_last else torch.contiguous_format
        self.image = self.batch.image.contiguous(memory_format=layout)
        self.network: nn.Module = run.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.trained = list(self.network.parameters())
        self.forward: Callable[..., Any] = self.network
        if kind.compiled:
            self.forward = torch.compile(self.network)
        self.loss = partial(create("finetune", {}).segmentation_loss, run)

    def seconds(self) -> float:
        """Of a step."""
        with as_a_script(self.kind):
            if self.kind.compiled:  # our own compiled steps have made PyTorch forget it
                self._steps()
            return busy(self.run.device, self._steps) / self.run.config.steps

    def flops(self) -> int:
        """Floating-point operations of a step; 0 where it is compiled, which is done here."""
        with as_a_script(self.kind):
            if self.kind.compiled:
                self._steps()
                return 0
            return operations(self._steps) // self.run.config.steps

    def _steps(self) -> None:
        run, precision = self.run, "bf16" if self.kind.precision == "bf16" else "fp32"
        fused = {} if self.kind.plain else {"fused": True}
        optimizer = torch.optim.AdamW(self.trained, lr=run.config.optimizer.lr, **fused)  # type: ignore[arg-type]
        self.network.train()
        for _ in range(run.config.steps):
            optimizer.zero_grad(set_to_none=True)
            with autocast(run.device, precision):  # type: ignore[arg-type]
                loss = self.loss(self.forward(self.image), self.batch)
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained, run.config.clip or float("inf"))
            optimizer.step()


def operations(work: Work) -> int:
    """Floating-point operations of a work: its matrix products and convolutions, both ways."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
