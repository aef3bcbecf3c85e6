"""A foreign checkpoint's tensors into a network, every one of them accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from trm_bench.errors import UserError
from trm_bench.limits import Exceeded, limits
from trm_bench.networks import Parts
from trm_bench.protocol.domains import LONGEST_RULE
from trm_bench.protocol.strict import Strict

Rename = Sequence[tuple[str, str]]
"""Pairs of a regular expression and what takes its place."""

MOST_RULES, LONGEST_NAME = 1000, 500
MOST_SECONDS = 10.0  # for renaming: some patterns take for ever on some names

COARSE_HEADS = re.compile(r"(.*\.)?(deep_supervision_heads|super_head|seg_layers)\.")
"""Heads for deep supervision, as MONAI's DynUNet and nnU-Net's networks name them."""

OTHER_CLASSES = "the head of other classes"
COARSE_HEAD = "a head for deep supervision, which has no use here"
UNKNOWN = "not in the network"
CLASSES = "give the classes that it was trained with, or null to leave its head out"


class Account(Strict):
    """What became of every tensor, of the file and of the network.

    Attributes:
        loaded: The file's name to the network's.
        left_out: The file's name to the reason.
        initial: The network's names that nothing came for: they keep their initial values.
    """

    loaded: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    initial: tuple[str, ...] = ()


def renamed(names: Sequence[str], rename: Rename) -> dict[str, str]:
    """Each name, and what it is after all rules, one after the other.

    Raises:
        UserError: A rule is none, takes too long, or leaves two tensors under one name.
    """
    if len(rename) > MOST_RULES:
        raise UserError(f"has more than {MOST_RULES} rules", "rename", "use fewer, wider ones")
    new = {name: name for name in names}
    for at, (pattern, replacement) in enumerate(rename):
        where = f"rename.{at}"
        if max(len(pattern), len(replacement)) > LONGEST_RULE:
            what = f"is longer than {LONGEST_RULE} characters"
            raise UserError(what, where, "use a shorter expression")
        try:
            with limits(0, MOST_SECONDS):
                rule = re.compile(pattern)
                new = {name: rule.sub(replacement, now) for name, now in new.items()}
        except Exceeded as error:
            what = f"'{pattern}' takes too long: {error}"
            raise UserError(what, where, "write it without repetitions in repetitions") from error
        except (re.error, IndexError, OverflowError, RecursionError, MemoryError) as error:
            what = f"'{pattern}' to '{replacement}' is no rule: {error}"
            raise UserError(what, where, "give a regular expression and its replacement") from error
        if any(len(name) > LONGEST_NAME for name in new.values()):
            raise UserError(f"makes names of over {LONGEST_NAME} characters", where, "correct it")
    taken: dict[str, str] = {}
    for name, now in new.items():
        if now in taken:
            what = f"'{taken[now]}' and '{name}' both become '{now}'"
            raise UserError(what, "rename", "make the expressions narrower")
        taken[now] = name
    return new


def fit(
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    parts: Parts,
    rename: Rename = (),
    partial: bool = False,
    with_head: bool = False,
) -> tuple[dict[str, Tensor], Account]:
    """Puts a checkpoint's tensors in the place of a network's initial values.

    Args:
        tensors: Of the checkpoint.
        network: With its initial values, which stay as they are.
        parts: Of the network.
        rename: From the checkpoint's names to the network's.
        partial: Whether tensors may be left out, and the network's keep their initial values.
        with_head: Whether the checkpoint's head comes along; it must then be whole.

    Returns:
        The network's complete state, and what became of every tensor.

    Raises:
        UserError: They do not fit.
    """
    own = network.state_dict()
    places = _places(own)
    new = renamed(list(tensors), rename)
    state = {name: tensor.clone() for name, tensor in own.items()}
    loaded, left_out, reached = dict[str, str](), dict[str, str](), set[str]()
    for name, tensor in tensors.items():
        now = new[name]
        reason = _reason(tensor, own.get(now), now, parts, with_head)
        if reason and with_head and parts.in_head(now):
            raise UserError(f"'{name}' of the head is {reason}", "classes", CLASSES)
        if reason:
            left_out[name] = reason
            continue
        value = tensor.to(own[now].dtype)
        for alias in places[_place(own[now])]:
            if alias in reached and not torch.equal(state[alias], value):
                what = f"'{name}' is another value for '{now}', which the network lists twice"
                raise UserError(what, "rename", "correct it")
            state[alias] = value.clone()
            reached.add(alias)
        loaded[name] = now
    initial = tuple(name for name in own if name not in reached)
    account = Account(loaded=loaded, left_out=left_out, initial=initial)
    _require(account, parts, partial, with_head)
    return state, account


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _places(own: Mapping[str, Tensor]) -> dict[tuple[object, ...], list[str]]:
    """The names of each tensor: some networks list a module twice."""
    places: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in own.items():
        places.setdefault(_place(tensor), []).append(name)
    return places


def _reason(tensor: Tensor, place: Tensor | None, now: str, parts: Parts, with_head: bool) -> str:
    """Why a tensor is left out; "" where it is not."""
    if parts.in_head(now) and not with_head:
        return OTHER_CLASSES
    if place is None:
        return COARSE_HEAD if COARSE_HEADS.match(now) else UNKNOWN
    if tensor.shape != place.shape:
        return f"of shape {list(tensor.shape)} where {list(place.shape)} is wanted"
    if tensor.is_floating_point() != place.is_floating_point():
        return f"of {tensor.dtype} where {place.dtype} is wanted"
    if not bool(tensor.isfinite().all()):
        raise UserError(f"'{now}' holds NaN or infinity", "checkpoint", "get another one")
    return ""


def _require(account: Account, parts: Parts, partial: bool, with_head: bool) -> None:
    """Raises UserError where more is left over than may be."""
    head = [name for name in account.initial if parts.in_head(name)]
    if with_head and head:
        what = f"the checkpoint has no head: nothing comes for '{head[0]}'"
        raise UserError(what, "classes", CLASSES)
    odd = {n: r for n, r in account.left_out.items() if r not in (OTHER_CLASSES, COARSE_HEAD)}
    missing = [name for name in account.initial if not parts.in_head(name)]
    if not account.loaded or ((odd or missing) and not partial):
        found = [f"'{name}' is {reason}" for name, reason in odd.items()]
        found += [f"nothing comes for '{name}'" for name in missing]
        few = "; ".join(found[:5]) or "nothing fits"
        raise UserError(
            f"checkpoint and network do not fit: {few} ({len(found)} in all; "
            f"{len(account.loaded)} tensors fit)",
            "checkpoint",
            "`trm-bench sources inspect FILE` shows its tensors; `rename` gives them the network's "
            "names, `partial: true` leaves out what does not fit",
        )
