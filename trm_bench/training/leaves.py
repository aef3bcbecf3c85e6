"""Everything that a method, its network and its context hold, leaf by leaf: what is compared to see
whether a training goes on with all that it had.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from trm_bench.data.patches import PatchSampler, SubjectStore
from trm_bench.methods import Context, Method

# what does not change while a network trains, and need not be looked into
FIXED = (BaseModel, PatchSampler, SubjectStore, type, ModuleType)
CODE = (FunctionType, MethodType, BuiltinFunctionType)
_UNKNOWN = itertools.count()


@dataclass(frozen=True)
class Link:
    """A second way to something that changes: the first way to it."""

    path: str


def leaves(run: Context, method: Method) -> dict[str, object]:
    """What a training holds beside its network's state and its optimiser, by the way to it.

    That is, the attributes of the method, of the network's modules, and of the context where a
    method has put some; what these hold, down to tensors, numbers and texts; and a `Link` for what
    has been met before. Data and the source network are left out.
    """
    own = {field.name for field in fields(Context)}
    walk = _Walk()
    walk.seen |= {id(t): "network" for t in run.network.state_dict(keep_vars=True).values()}
    walk.seen |= {id(one): "run" for one in (run, run.source)}
    walk.look("network", run.network)
    walk.look("run", {key: value for key, value in vars(run).items() if key not in own})
    walk.look("diagnostics", run.diagnostics)
    walk.look("method", method)
    return walk.found


class _Walk:
    def __init__(self) -> None:
        self.found: dict[str, object] = {}
        self.seen: dict[int, str] = {}

    def look(self, path: str, value: object) -> None:
        """Notes the leaves of a value."""
        if value is None or isinstance(value, (*FIXED, *CODE)):
            return
        if isinstance(value, bool | int | float | complex | str | bytes | np.generic):
            self.found[path] = value
            return
        if id(value) in self.seen:
            self.found[path] = Link(self.seen[id(value)])
            return
        if not isinstance(value, tuple | frozenset):  # of which a copy is as good
            self.seen[id(value)] = path
        inside = list(_inside(value))
        if not inside:
            self.found[path] = value
            return
        for name, inner in inside:
            self.look(f"{path}.{name}", inner)


def _inside(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case Tensor() | np.ndarray() | torch.Generator() | random.Random():
            return
        case np.random.Generator() | np.random.RandomState():
            return
        case nn.Module():
            plain = {k: v for k, v in vars(value).items() if not k.startswith("_")}
            inner = (value._parameters, value._buffers, value._modules)
            yield from sorted({k: v for named in (plain, *inner) for k, v in named.items()}.items())
        case Mapping():
            for i, (key, inner) in enumerate(value.items()):
                yield str(key) if isinstance(key, str | int) else f"{type(key).__name__}{i}", inner
        case list() | tuple() | deque():
            yield from ((str(i), inner) for i, inner in enumerate(value))
        case set() | frozenset():
            yield from ((text, text) for text in sorted(map(repr, value)))
        case _ if hasattr(value, "__dict__"):
            yield from sorted(vars(value).items())


def mark(leaf: object) -> object:
    """What differs once a leaf has changed; for a tensor, without reading it.

    The tensor must be kept as long as its mark, since another one could get its identity.
    """
    if isinstance(leaf, Tensor) and not leaf.is_inference():
        return id(leaf), leaf._version, leaf.requires_grad
    return checksum(leaf)


def checksum(leaf: object) -> str:
    """Equal for leaves of equal content, in every process."""
    if isinstance(leaf, Link):
        return f"is {leaf.path}"
    if isinstance(leaf, Tensor | np.ndarray):
        array = leaf if isinstance(leaf, Tensor) else torch.from_numpy(np.ascontiguousarray(leaf))
        flat = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        about = f"{array.dtype} {tuple(array.shape)} {array.requires_grad}"
        return f"{about} {hashlib.sha256(flat.numpy().data).hexdigest()}"
    if isinstance(leaf, torch.Generator):
        return checksum(leaf.get_state())
    if isinstance(leaf, random.Random):
        return _digest(leaf.getstate())
    if isinstance(leaf, np.random.Generator):
        return _digest(leaf.bit_generator.state)
    if isinstance(leaf, np.random.RandomState):
        return _digest(leaf.get_state(legacy=False))
    if hasattr(leaf, "__next__"):  # nobody can see how far it has come
        return f"unknown {next(_UNKNOWN)}"
    kind = type(leaf)
    plain = isinstance(leaf, bool | int | float | complex | str | bytes | np.generic)
    return f"{kind.__qualname__} {leaf!r}" if plain else kind.__qualname__


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()
