"""The only training loop: source pre-training and every method go through it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from trm_bench.data.patches import Batch
from trm_bench.formats import autocast
from trm_bench.methods import Context, Fit, Method, Tree
from trm_bench.training.compiling import compile_steps
from trm_bench.training.resuming import Replay, Savepoint, moved
from trm_bench.training.upcoming import upcoming
from trm_bench.transfer_risk import DICE, VOXELS

if TYPE_CHECKING:
    from trm_bench.protocol.schema import TrainingConfig

Progress = Callable[[int, float], None]

BALANCE_LOOKS = 5  # in a training: each costs two more backward passes
LOG_EVERY = 10  # steps between looks at the loss: a look makes the host wait for the device


class Diverged(Exception):
    """The loss is no longer finite."""


@dataclass
class Curves:
    """What is logged while training.

    Attributes:
        loss: Step numbers and values, thinned to every LOG_EVERY-th step.
        validation: Likewise, where the protocol selects by it.
        voxel_share: Likewise, of a few steps: the share of the voxel-wise term in the gradient,
            ||g_voxels|| / (||g_voxels|| + ||g_dice||), norms over all trained parameters; where
            the loss has both terms.
        passes: Forward passes of the trained network so far that a gradient goes back through:
            one a step, and of all branches and source batches of a method.
        trained: Number of parameters that the optimiser moves, of a method's own modules too; the
            largest over the `fit`s of a method.
        looks: At the gradients, spread over the steps.
    """

    loss: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    voxel_share: list[tuple[int, float]] = field(default_factory=list)
    passes: int = 0
    trained: int = 0
    looks: int = BALANCE_LOOKS

    def logged(self) -> dict[str, list[tuple[int, float]]]:
        """The curves by name."""
        return {"loss": self.loss, "validation": self.validation, "voxel_share": self.voxel_share}


def train(
    run: Context,
    method: Method,
    curves: Curves,
    progress: Progress = lambda step, loss: None,
    savepoint: Savepoint | None = None,
) -> None:
    """Runs a method from preparation to finish; `run.network` ends with the weights to be tested.

    Args:
        run: With `network` at its initial weights.
        method: Whose hooks are called.
        curves: Filled on the way, so that they survive a divergence.
        progress: Called with the step and the loss at every look at it.
        savepoint: Where the training saves what it holds, and goes on from.

    Raises:
        Diverged: The loss became NaN or infinite.
        Unfit: The training cannot go on from its savepoint; `curves` are as they were.
        UserError: The method cannot train this network, or needs what the source does not have.
    """
    method.check(run.network, run.parts)
    if run.source is not None:
        method.check_source(run.source_has_head, run.source_has_data)
    method.prepare(run)
    method.training_mode(run)
    method.train(run, fitting(run, method, curves, progress, savepoint))
    method.finish(run)
    run.network.eval()
    if not all(bool(tensor.isfinite().all()) for tensor in run.network.state_dict().values()):
        # the last update, which no loss has seen
        raise Diverged("weights are no longer finite after the last step")


def fitting(
    run: Context,
    method: Method,
    curves: Curves,
    progress: Progress = lambda step, loss: None,
    savepoint: Savepoint | None = None,
) -> Fit:
    """The `fit` that a method's `train` gets."""
    replay = Replay(run, method, savepoint or Savepoint())
    if run.config.compile:
        compile_steps(run.network)

    def fit(first: int, last: int) -> None:
        pace = _Pace(run, method, curves, first)
        method.training_mode(run)
        if replay.begin(pace.restore):
            return
        steps = range(pace.step, last)
        with (
            replay.savepoint.steps(),
            _counted(run.network, curves),
            closing(upcoming(run.patches, steps, run.device)) as batches,
        ):
            for step, batch in zip(steps, batches, strict=True):
                pace.advance(step, batch, last, progress)
                replay.look(pace.step, pace.state)
        pace.average.keep()
        pace.best.restore()
        replay.end()

    return fit


class _Pace:
    """What a `fit` has beside the method: its optimiser, its schedule, and how far it is."""

    def __init__(self, run: Context, method: Method, curves: Curves, first: int) -> None:
        self.run, self.method, self.curves, self.step = run, method, curves, first
        config = run.config
        self.optimizer = _optimizer(list(method.parameters(run)), config)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        number = sum(p.numel() for p in self.trained if p.requires_grad)
        curves.trained = max(curves.trained, number)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda t: learning_rate_factor(config.schedule, first + t, config.steps, config.warmup),
        )
        self.average = _Average(run.network, self.trained, config.ema)
        self.best = _Best(run, config, curves, self.average)
        self.recent: list[Tensor] = []

    def advance(self, step: int, batch: Batch, last: int, progress: Progress) -> None:
        """Makes a step."""
        run, method, curves, config = self.run, self.method, self.curves, self.run.config
        run.step = step
        self.optimizer.zero_grad(set_to_none=True)
        # Without the cache: the thread that makes batches would empty it at any time, so that of a
        # method with several passes a gradient's last bits were a matter of chance.
        with autocast(run.device, config.precision, cache=False):
            loss = method.loss(run, batch)
        if curves.looks and step % max(1, config.steps // curves.looks) == 0:
            _look_at_gradients(run, step, self.trained, curves)
        run.terms = {}
        loss.backward()
        method.before_update(run)
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, config.clip)
        self.optimizer.step()
        self.schedule.step()
        method.after_update(run)
        self.average.update()
        self.recent.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0 or step + 1 == last:
            mean = float(torch.stack(self.recent).float().mean())
            self.recent.clear()
            if not math.isfinite(mean):
                raise Diverged(f"the loss became {mean} before step {step + 1}")
            curves.loss.append((step + 1, mean))
            progress(step + 1, mean)
        self.best.after(step + 1)
        self.step = step + 1

    def state(self) -> Tree:
        """All that the next step depends on, and the curves so far."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "recent": self.recent,
            "average": (self.average.updates, self.average.mean),
            "best": (self.best.score, self.best.state),
            "curves": vars(self.curves),
        }

    def restore(self, state: Tree) -> None:
        """Takes back what `state` gave."""
        groups = self.optimizer.param_groups
        self.optimizer.load_state_dict(state["optimizer"])
        # a method may hold the groups that it gave, to change their learning rates
        for group, loaded in zip(groups, self.optimizer.param_groups, strict=True):
            group.update(loaded)
        self.optimizer.param_groups = groups
        for parameter, held in self.optimizer.state.items():
            for name, value in held.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # a fused optimiser goes through memory as it lies, and files hold one order
                    held[name] = torch.empty_like(parameter).copy_(value)
        self.schedule.load_state_dict(state["schedule"])
        self.recent = moved(state["recent"], self.run.device)
        self.average.restore(*state["average"])
        self.best.score, self.best.state = moved(state["best"], self.run.device)
        vars(self.curves).update(state["curves"])
        self.step = state["step"]


@contextmanager
def _counted(network: nn.Module, curves: Curves) -> Iterator[None]:
    """Counts the forward passes inside that a gradient can go back through."""

    def count(*call: object) -> None:
        curves.passes += torch.is_grad_enabled()

    hook = network.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _look_at_gradients(run: Context, step: int, trained: Sequence[Tensor], curves: Curves) -> None:
    """Logs `Curves.voxel_share`; the gradients that the optimiser gets are not touched."""
    if run.terms.keys() != {VOXELS, DICE}:
        return
    norms = {
        name: nn.utils.get_total_norm(
            [
                g.float()
                for g in torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True)
                if g is not None
            ]
        ).item()
        for name, term in run.terms.items()
    }
    total = sum(norms.values())
    if math.isfinite(total) and total > 0:
        curves.voxel_share.append((step + 1, norms[VOXELS] / total))


class _Average:
    """The moving average of what a `fit` trains, where the protocol says so: `TrainingConfig.ema`.

    Beside the trained parameters it holds the network's floating-point buffers, the moving
    statistics of batch normalisation: they belong to the weights that they were counted under, so
    they are averaged alike, which costs no passes as counting them anew would.
    """

    def __init__(self, network: nn.Module, trained: Sequence[Tensor], decay: float | None) -> None:
        buffers = [b for b in network.buffers() if b.is_floating_point()]
        self.decay, self.updates = decay, 0
        self.now = [t.detach() for t in (*trained, *buffers)] if decay else []
        self.mean = [t.clone() for t in self.now]

    def update(self) -> None:
        """Takes in what a step has made."""
        if self.decay:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(decay)(self.mean, self.now, self.updates)
            self.updates += 1

    def keep(self) -> None:
        """Puts the average into the network, to stay."""
        if self.now:
            torch._foreach_copy_(self.now, self.mean)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the average inside, and what it had before again afterwards."""
        before = [t.clone() for t in self.now]
        self.keep()
        yield
        if self.now:
            torch._foreach_copy_(self.now, before)

    def restore(self, updates: int, mean: Sequence[Tensor]) -> None:
        """Takes back both, into memory as it lies."""
        self.updates = updates
        for own, given in zip(self.mean, mean, strict=True):
            own.copy_(given)


class _Best:
    """Keeps the weights with the best validation Dice, where the protocol selects by it."""

    def __init__(
        self, run: Context, config: TrainingConfig, curves: Curves, average: _Average
    ) -> None:
        self.run, self.curves, self.average = run, curves, average
        self.every = (
            0 if config.select == "last" else config.validate_every or max(1, config.steps // 10)
        )
        self.score, self.steps = -math.inf, config.steps
        self.state: dict[str, Tensor] = {}

    def after(self, step: int) -> None:
        if not self.every or (step % self.every and step != self.steps):
            return
        with self.average.shown():
            score = self.run.validate(self.run.network)
            self.curves.validation.append((step, score))
            if score > self.score:
                state = self.run.network.state_dict()
                self.score, self.state = score, {k: v.clone() for k, v in state.items()}

    def restore(self) -> None:
        if self.state:
            self.run.network.load_state_dict(self.state)


def _optimizer(groups: list[Any], config: TrainingConfig) -> torch.optim.Optimizer:
    o = config.optimizer
    if o.name == "adamw":
        return torch.optim.AdamW(groups, lr=o.lr, weight_decay=o.weight_decay, fused=True)
    # a fused SGD fails where a parameter gets its first gradient later than others
    return torch.optim.SGD(
        groups, lr=o.lr, weight_decay=o.weight_decay, momentum=o.momentum, nesterov=o.momentum > 0
    )


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: float = 0.0) -> float:
    """The learning rate of a step, as a factor of the configured one.

    poly: (1 - t)^0.9; cosine: (1 + cos(pi t)) / 2; one_cycle: half a cosine up from 1/25 over the
    first 30 %, then down to 1e-4 (Smith & Topin 2019, arXiv:1708.07120); with t = step / steps.
    While t < warmup, times t / warmup.
    """
    t = step / steps
    rise = t / warmup if t < warmup else 1.0
    return rise * _scheduled(schedule, t)


def _scheduled(schedule: str, t: float) -> float:
    if schedule == "poly":
        return max(0.0, 1 - t) ** 0.9
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, t))) / 2
    if schedule == "one_cycle":
        low, share = (1 / 25, t / 0.3) if t < 0.3 else (1e-4, (1 - t) / 0.7)
        return low + (1 - low) * (1 - math.cos(math.pi * max(0.0, share))) / 2
    return 1.0
