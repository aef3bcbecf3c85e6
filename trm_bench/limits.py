"""Limits of memory and time on code of others that is given a person's numbers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only


class Exceeded(Exception):
    """More than a limit allows was about to be made, or took longer."""


@contextmanager
def limits(numbers: int, seconds: float) -> Iterator[None]:
    """Ends what runs inside when it makes too many numbers on a device, or takes too long.

    What is computed stays the same to the last bit, random draws included.

    Args:
        numbers: That tensors may have in all, counted before they are allocated; those on
            PyTorch's meta device are free.
        seconds: Of wall time; not watched outside the main thread, which alone gets signals.

    Raises:
        Exceeded: One of the two is exceeded.
    """
    graded = torch.is_grad_enabled()
    try:
        with _Counted(numbers), _time_limit(seconds):
            yield
    finally:  # the alarm may have met the end of a `no_grad`, as when weights are drawn
        torch.set_grad_enabled(graded)


class _Counted(TorchDispatchMode):
    """Adds up the sizes of new tensors, each known from a rehearsal on the meta device."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.made = most, 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not (func._schema.is_mutable or func.is_view):
            self.made += _made(func, args, kwargs)
            if self.made > self.most:
                raise Exceeded(f"more than {self.most} numbers")
        return func(*args, **kwargs)


def _made(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Numbers in the tensors that an operation makes; 0 where only running it would tell."""
    given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    device = torch.device(kwargs.get("device") or "cpu")
    if device.type == "meta" or any(tensor.is_meta for tensor in given):
        return 0
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    elif not given:
        return 0
    try:
        meta = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (tuple(args), dict(kwargs)))
        made = func(*meta[0], **meta[1])
    except Exception:  # operations whose result depends on values have no such rehearsal
        return 0
    return sum(leaf.numel() for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises Exceeded in what runs inside after so many seconds, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    started, done = time.monotonic(), False

    def stop(*signalled: Any) -> None:
        if not done:
            raise Exceeded(f"more than {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    # again every second, should the first one be swallowed
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        try:
            yield
        finally:
            done = True
    finally:
        done = True  # where the alarm came just before the first one
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left:  # an earlier timer goes on, or fires at once where its time has come
            rest = max(left - (time.monotonic() - started), 1e-6)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)
