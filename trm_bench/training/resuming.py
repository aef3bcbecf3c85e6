"""What a training holds between two steps, so that it goes on elsewhere as if nothing had been.

A method's `train` may call `fit` several times, and do anything in between. So a training goes on
by being played again: the method is prepared anew and its `train` called from its start; each `fit`
that had ended takes the state that it had ended with, without training, and the one that was cut
off goes on at its step. A savepoint holds as many networks as `fit`s have ended, and one more.

Nothing is silently wrong: beside the state that a method gives (`Method.state`) stand checksums of
all that changed since the `fit` began, wherever the method, the network's modules or the context
hold it. They are compared after the state was put back; what a method forgot is an `Unfit`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from trm_bench.methods import Context, Method, Tree
from trm_bench.training.leaves import Link, checksum, leaves, mark

MOST_NAMES = 3  # of what a method forgot that a message lists


class Unfit(Exception):
    """A training cannot go on from what was saved, or what it holds cannot be saved."""


class Savepoint:
    """Where a training saves what it holds. This one saves nothing; see `runs.savepoints`."""

    saves = False

    def load(self) -> Tree:
        """What was saved last; None where there is nothing."""
        return None

    def steps(self) -> AbstractContextManager[object]:
        """Entered while steps are made."""
        return nullcontext()

    def look(self, step: int, state: Callable[[], Tree]) -> None:
        """Called after each step: saves where it is time to.

        Args:
            step: Number of steps done.
            state: Gives what is to be saved, on the CPU; raises `Unfit` where that is impossible.
        """


class Held:
    """What a run and its method hold beside the optimiser; made when a `fit` begins."""

    def __init__(self, run: Context, method: Method) -> None:
        self.run, self.method = run, method
        self.diagnostics = copy.deepcopy(run.diagnostics)
        self.before = leaves(run, method)  # kept, so that no other tensor has their identity
        self.marks = {path: mark(leaf) for path, leaf in self.before.items()}

    def state(self) -> Tree:
        """All that may differ from the start of the `fit`.

        Raises:
            Unfit: The method changes, and does not say what.
        """
        run, network = self.run, self.run.network
        changed, links = self._changed()
        own = [path for path in changed if path.startswith("method.")]
        if own and type(self.method).state is Method.state:
            what = f"{self.method.name} changes {_few(own)} while it trains, and gives no state"
            raise Unfit(f"{what}: see Method.state")
        try:
            of_method = self.method.state(run)
        except Exception as error:  # a plug-in's fault must not end a training that goes well
            raise Unfit(f"{self.method.name}.state: {type(error).__name__}: {error}") from error
        generators = {"cpu": torch.get_rng_state()}
        if run.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(run.device)
        return {
            "network": dict(network.state_dict()),
            "trained": [name for name, p in network.named_parameters() if p.requires_grad],
            "training": [name for name, m in network.named_modules() if m.training],
            "method": of_method,
            "diagnostics": {
                key: value
                for key, value in run.diagnostics.items()
                if key not in self.diagnostics or self.diagnostics[key] != value
            },
            "generators": generators,
            "changed": changed | links,
        }

    def restore(self, state: Tree) -> None:
        """Puts a state back.

        Raises:
            Unfit: Not all is as it was.
        """
        run, network = self.run, self.run.network
        network.load_state_dict(state["network"])
        trained, training = set(state["trained"]), set(state["training"])
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)
        for name, module in network.named_modules():
            module.training = name in training
        self.method.restore(run, moved(state["method"], run.device))
        run.diagnostics.update(state["diagnostics"])
        now = leaves(run, self.method)
        sums = {path: checksum(now[path]) for path in state["changed"] if path in now}
        lost = [path for path, was in state["changed"].items() if sums.get(path, "") != was]
        if lost:
            raise Unfit(f"{self.method.name} does not put back {_few(lost)}: see Method.restore")
        torch.set_rng_state(state["generators"]["cpu"])
        if run.device.type == "cuda":
            torch.cuda.set_rng_state(state["generators"]["cuda"], run.device)

    def _changed(self) -> tuple[dict[str, str], dict[str, str]]:
        """Checksums of what is not as at the start, "" where it is gone; and of all links."""
        now = leaves(self.run, self.method)
        links = {path: checksum(leaf) for path, leaf in now.items() if isinstance(leaf, Link)}
        changed = {
            path: checksum(leaf) for path, leaf in now.items() if self.marks.get(path) != mark(leaf)
        }
        return changed | dict.fromkeys(self.marks.keys() - now.keys(), ""), links


class Replay:
    """The `fit`s of a training: those that had ended when it was cut off, and the one it was in."""

    def __init__(self, run: Context, method: Method, savepoint: Savepoint) -> None:
        self.run, self.method, self.savepoint = run, method, savepoint
        earlier = savepoint.load()
        self.waiting: list[Tree] = list(earlier["ended"]) if earlier else []
        self.under_way: Tree = earlier["under way"] if earlier else None
        self.ended: list[Tree] = []
        self.held: Held | None = None
        self.unfit: Unfit | None = None

    def begin(self, restore: Callable[[Tree], None]) -> bool:
        """A `fit` begins, with its optimiser made.

        Args:
            restore: Takes what it gave as `state` to `look`.

        Returns:
            Whether it had ended, and is as it ended now.

        Raises:
            Unfit: It cannot go on.
        """
        if not self.savepoint.saves:
            return False
        self.held = Held(self.run, self.method)
        had_ended = bool(self.waiting)
        state, own = self.waiting.pop(0) if had_ended else None, None
        if not had_ended and self.under_way is not None:
            (state, own), self.under_way = self.under_way, None
        if state is not None:
            try:
                if own is not None:
                    restore(own)
                self.held.restore(state)
            except Unfit:
                raise
            except Exception as error:  # of PyTorch or a method: what does not fit
                raise Unfit(f"{type(error).__name__}: {error}") from error
        if had_ended:
            self.ended.append(state)
        return had_ended

    def look(self, step: int, state: Callable[[], Tree]) -> None:
        """A step was made; see `Savepoint.look`."""

        def whole() -> Tree:
            if self.unfit is not None:
                raise self.unfit
            assert self.held is not None
            now = copied((self.held.state(), state()))
            return {"ended": self.ended, "under way": now}

        self.savepoint.look(step, whole)

    def end(self) -> None:
        """A `fit` has ended."""
        if self.held is not None:
            try:
                self.ended.append(copied(self.held.state()))
            except Unfit as error:
                self.unfit = error


def copied(tree: Tree) -> Tree:
    """The tree on the CPU, sharing no tensor with what goes on changing."""
    return _mapped(tree, lambda tensor: tensor.detach().cpu().clone())


def moved(tree: Tree, device: torch.device) -> Tree:
    """A copy of the tree on a device."""
    return _mapped(tree, lambda tensor: tensor.to(device, copy=True))


def _mapped(tree: Tree, change: Callable[[Tensor], Tensor]) -> Tree:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    if isinstance(tree, tuple):
        return tuple(_mapped(value, change) for value in tree)
    return tree


def _few(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:MOST_NAMES]) + (" and more" if len(first) > MOST_NAMES else "")
