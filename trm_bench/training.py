"""The only training loop: source pre-training and every method go through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trm_bench.methods import Context, Method
from trm_bench.protocol import TrainingConfig

LOG_EVERY = 10  # steps between looks at the loss: a look makes the host wait for the device


class Diverged(Exception):
    """The loss is no longer finite."""


@dataclass
class Curves:
    """What is logged while training: step numbers and values, thinned to every LOG_EVERY-th step."""

    loss: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)


def train(
    run: Context, method: Method, curves: Curves, progress: Callable[[int, float], None] = lambda step, loss: None
) -> None:
    """Runs a method from preparation to finish; `run.network` ends with the weights to be tested.

    Args:
        run: With `network` at its initial weights; its `fit` is set here.
        method: Whose hooks are called.
        curves: Filled on the way, so that they survive a divergence.
        progress: Called with the step and the loss at every look at it.

    Raises:
        Diverged: The loss became NaN or infinite.
        UserError: The method cannot train this network.
    """
    run.fit = lambda chosen, first, last: _fit(run, chosen, first, last, curves, progress)
    method.check(run.network, run.parts)
    method.prepare(run)
    run.network.train()
    method.train(run)
    method.finish(run)
    run.network.eval()
    if not all(bool(tensor.isfinite().all()) for tensor in run.network.state_dict().values()):
        raise Diverged("weights are no longer finite after the last step")  # which no loss has seen


def _fit(
    run: Context,
    method: Method,
    first: int,
    last: int,
    curves: Curves,
    progress: Callable[[int, float], None],
) -> None:
    config = run.config
    groups = list(method.parameters(run))
    optimizer = _optimizer(groups, config)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: learning_rate_factor(config.schedule, first + t, config.steps)
    )
    keep = _Best(run, config, curves)
    recent: list[Tensor] = []
    run.network.train()
    for step in range(first, last):
        run.step = step
        batch = run.patches.batch(step)
        optimizer.zero_grad(set_to_none=True)
        with autocast(run.device, config.precision):
            loss = method.loss(run, batch)
        loss.backward()
        method.before_update(run)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        schedule.step()
        method.after_update(run)
        recent.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == last:
            mean = float(torch.stack(recent).float().mean())
            recent.clear()
            if not math.isfinite(mean):
                raise Diverged(f"the loss became {mean} before step {step + 1}")
            curves.loss.append((step + 1, mean))
            progress(step + 1, mean)
        keep.after(step + 1)
    keep.restore()


class _Best:
    """Keeps the weights with the best validation Dice, where the protocol selects by it."""

    def __init__(self, run: Context, config: TrainingConfig, curves: Curves) -> None:
        self.run, self.curves = run, curves
        self.every = 0 if config.select == "last" else config.validate_every or max(1, config.steps // 10)
        self.score, self.steps = -math.inf, config.steps
        self.state: dict[str, Tensor] = {}

    def after(self, step: int) -> None:
        if not self.every or (step % self.every and step != self.steps):
            return
        score = self.run.validate(self.run.network)
        self.curves.validation.append((step, score))
        if score > self.score:
            self.score = score
            self.state = {k: v.detach().clone() for k, v in self.run.network.state_dict().items()}

    def restore(self) -> None:
        if self.state:
            self.run.network.load_state_dict(self.state)


def _optimizer(groups: list[Any], config: TrainingConfig) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name == "adamw":
        return torch.optim.AdamW(groups, lr=o.lr, weight_decay=o.weight_decay)
    return torch.optim.SGD(groups, lr=o.lr, weight_decay=o.weight_decay, momentum=o.momentum, nesterov=o.momentum > 0)


def learning_rate_factor(schedule: str, step: int, steps: int) -> float:
    """The learning rate of a step, as a factor of the configured one.

    poly: (1 - t)^0.9; cosine: (1 + cos(pi t)) / 2; one_cycle: half a cosine up from 1/25 over the first 30 %, then down
    to 1e-4 (Smith & Topin 2019, arXiv:1708.07120); with t = step / steps.
    """
    t = step / steps
    if schedule == "poly":
        return max(0.0, 1 - t) ** 0.9
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, t))) / 2
    if schedule == "one_cycle":
        low, share = (1 / 25, t / 0.3) if t < 0.3 else (1e-4, (1 - t) / 0.7)
        return low + (1 - low) * (1 - math.cos(math.pi * max(0.0, share))) / 2
    return 1.0


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts the network into eval mode, and every module back into the mode it had: a frozen layer stays frozen."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def uses_bf16(device: torch.device, precision: str) -> bool:
    """Whether a precision setting means bf16 on this device; `auto` means so on GPUs that have it."""
    return precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision setting; losses are computed in float32 all the same."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))
