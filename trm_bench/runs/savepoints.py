"""Savepoints: what a training that was cut off goes on from, in a file of the results folder.

Saved every `EVERY` seconds, or less often where saving takes more than `SHARE` of the time; and at
once when the process is asked to stop, which the training then does. The file has the name of the
run, and so of its code and all that it computes, and is removed once the run has ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_bench import signals
from trm_bench.errors import Damaged
from trm_bench.methods import Tree
from trm_bench.runs import arrays, health
from trm_bench.runs.records import Saved
from trm_bench.training.resuming import Savepoint, Unfit

EVERY = 180.0  # seconds between savepoints
VARIABLE = "TRM_BENCH_SAVE_EVERY"  # of the environment: other seconds
SHARE = 0.01  # of the time that is spent on saving, at most

log = logging.getLogger(__name__)


class SavepointFile(Savepoint):
    """The savepoint of one training.

    Attributes:
        resumed: How often the training was taken up again.
        seconds: What it took in earlier sittings, up to the savepoint.
    """

    saves = True

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.last = path, steps
        self.resumed, self.seconds, self.pause = 0, 0.0, _every()
        self.gave_up = self.refused = self.warned = False
        self.begin()

    def begin(self) -> None:
        """A sitting begins."""
        self.began = time.monotonic()
        self.due = self.began + self.pause

    def load(self) -> Tree:
        """What was saved last; what is damaged, or of another PyTorch, is put out of the way."""
        if self.refused:
            return None
        try:
            saved, tensors = arrays.read_savepoint(self.path)
        except FileNotFoundError:
            return None
        except Damaged as error:
            health.set_aside([error], log.warning)
            return None
        if saved.torch != torch.__version__:
            self.refuse(f"was made with PyTorch {saved.torch}")
            return None
        self.resumed, self.seconds = saved.resumed + 1, saved.seconds
        return unpacked(saved.state, tensors)

    def steps(self) -> AbstractContextManager[object]:
        """While steps are made, a signal waits for the end of one."""
        return signals.at_ends_of_steps()

    def look(self, step: int, state: Callable[[], Tree]) -> None:
        """Saves where it is time to.

        Raises:
            Stopped: The process was asked to stop.
        """
        asked = signals.asked()
        if not self.gave_up and (asked or time.monotonic() >= self.due):
            self._save(step, state)
        if asked:
            raise signals.Stopped

    def _save(self, step: int, state: Callable[[], Tree]) -> None:
        start = time.monotonic()
        try:
            content, tensors = packed(state())
            about = Saved(
                id=self.path.stem,
                step=step,
                steps=self.last,
                seconds=self.spent,
                resumed=self.resumed,
                torch=torch.__version__,
                state=content,
            )
            arrays.write_savepoint(self.path, about, tensors)
        except (OSError, Unfit) as error:  # a full disk, say: the training is worth more
            self.gave_up = isinstance(error, Unfit)
            self._warn(f"cannot save a training that is under way: {error}")
        now = time.monotonic()
        self.due = now + max(self.pause, (now - start) * (1 - SHARE) / SHARE)

    @property
    def spent(self) -> float:
        """Seconds of all sittings."""
        return self.seconds + time.monotonic() - self.began

    def refuse(self, why: str) -> None:
        """Puts away what the training cannot go on from; it begins anew."""
        self._warn(f"{self.path.name}: {why}; the training begins anew")
        self.resumed, self.seconds, self.refused = 0, 0.0, True
        self.remove()

    def remove(self) -> None:
        """The training has ended, or begins anew."""
        forget([self.path])

    def _warn(self, text: str) -> None:
        """Once of a training."""
        if not self.warned:
            log.warning(text)
        self.warned = True


def _every() -> float:
    """Seconds between savepoints, which the environment may say."""
    try:
        given = float(os.environ.get(VARIABLE, EVERY))
    except ValueError:
        return EVERY
    return given if given >= 0 else EVERY


def forget(paths: Iterable[Path]) -> None:
    """Removes savepoints that nothing goes on from any more."""
    for path in paths:
        with contextlib.suppress(OSError):  # it does no harm
            path.unlink(missing_ok=True)


def packed(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """A tree as JSON, and its tensors by name.

    Raises:
        Unfit: Something in it is neither a tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Tree) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[pack(key), pack(inner)] for key, inner in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [pack(inner) for inner in value]}
        if isinstance(value, list):
            return [pack(inner) for inner in value]
        raise Unfit(f"a {type(value).__name__} is no number, text or tensor")

    return pack(tree), tensors


def unpacked(content: Any, tensors: dict[str, Tensor]) -> Tree:
    """The other way round."""
    if isinstance(content, list):
        return [unpacked(inner, tensors) for inner in content]
    if not isinstance(content, dict):
        return content
    ((kind, value),) = content.items()
    if kind == "float":
        return float(value)
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(unpacked(inner, tensors) for inner in value)
    return {unpacked(key, tensors): unpacked(inner, tensors) for key, inner in value}
