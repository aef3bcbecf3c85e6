"""Which network a checkpoint may belong to, and which names its tensors should get.

A guess and no more: networks of usual arguments are tried, and tensors are paired by name, else by
their order and shapes. What fits is counted with the very rules that are proposed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor

from trm_bench import networks
from trm_bench.checkpoints.fitting import COARSE_HEADS, MOST_RULES, renamed
from trm_bench.checkpoints.foreign import Foreign
from trm_bench.errors import UserError
from trm_bench.protocol.domains import LONGEST_RULE
from trm_bench.protocol.schema import NetworkConfig

Rules = list[tuple[str, str]]

MOST_COMPARED = 20_000  # tensors


@dataclass(frozen=True)
class Guess:
    """A network, and how much of a checkpoint fits into it.

    Attributes:
        network: The network.
        spatial_dims: 2 or 3.
        channels: Of its input.
        rename: Rules for `rename`.
        fits: Tensors of the file that fit with them.
        of_file: Tensors of the file.
        initial: Tensors of the network that nothing comes for.
        partial: Whether `partial: true` is needed.
    """

    network: NetworkConfig
    spatial_dims: int
    channels: int
    rename: Rules
    fits: int
    of_file: int
    initial: int
    partial: bool


def guess(foreign: Foreign, network: NetworkConfig | None = None) -> Guess | None:
    """The network that most tensors fit into; None where no more than half of them fit
    anywhere.

    Args:
        foreign: The checkpoint.
        network: To be tried alone; by default the one that the file names, else usual ones. Its
            guess is returned however little fits.

    Raises:
        UserError: The network cannot be built, or the file has too many tensors to be paired.
    """
    if len(foreign.tensors) > MOST_COMPARED:
        what = f"has {len(foreign.tensors)} tensors, too many for a guess"
        raise UserError(what, "checkpoint", "give the file of one network")
    first = next((t for t in foreign.tensors.values() if t.ndim in (4, 5)), None)
    if first is None:
        return None
    dims = foreign.spatial_dims or first.ndim - 2
    channels = foreign.channels or first.shape[1]
    chosen = network or foreign.network
    found = []
    for config in [chosen] if chosen else _usual(first):
        try:
            found.append(_tried(foreign.tensors, config, channels, dims))
        except UserError:
            if chosen:
                raise
    best = max(found, key=lambda g: (g.fits, -g.initial), default=None)
    return best if best and (network or 2 * best.fits > best.of_file) else None


def _usual(first: Tensor) -> Iterator[NetworkConfig]:
    """Networks that begin with such a convolution, in the arguments that most people give them."""
    width, kernel = first.shape[0], first.shape[-1]
    five = [width * 2**n for n in range(5)]
    plain: dict[str, Any] = {"channels": five, "strides": [2, 2, 2, 2]}
    stages = {"strides": [1, *[2] * 5], "features_per_stage": [min(w, 320) for w in [*five, 320]]}
    three, two = [3] * 3, [2] * 3
    if kernel == 2:
        yield NetworkConfig(name="SwinUNETR", feature_size=width, depths=[2] * 4)
    if kernel == 3 and width <= 64:
        for units in (2, 0):
            for norm in ("batch", "instance"):
                yield NetworkConfig(name="UNet", **plain, num_res_units=units, norm=norm)
        yield NetworkConfig(name="SegResNet", init_filters=width, blocks_down=[1, 2, 2, 4])
        features = [width, width, *five[1:4], width]
        yield NetworkConfig(name="BasicUNet", features=features)
        yield NetworkConfig(name="AttentionUnet", **plain)
        yield NetworkConfig(
            name="DynUNet",
            kernel_size=[three] * 6,
            strides=[[1] * 3, *[two] * 5],
            upsample_kernel_size=[two] * 5,
            filters=stages["features_per_stage"],
        )
        yield NetworkConfig(name="PlainConvUNet", **stages)
        blocks = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6]}
        yield NetworkConfig(name="ResidualEncoderUNet", **stages, **blocks)


def _tried(tensors: Mapping[str, Tensor], config: NetworkConfig, channels: int, dims: int) -> Guess:
    last = list(tensors.values())[-1]
    classes = min(max(last.shape[0] if last.ndim else 2, 1), 1000)
    own = networks.build(config, channels, classes, dims, seed=0).state_dict()
    once = {(t.data_ptr(), t.shape): name for name, t in reversed(own.items())}
    shapes = {name: own[name].shape for name in reversed(once.values())}
    theirs = {name: tensor.shape for name, tensor in tensors.items()}

    def fits(rules: Rules) -> int:
        try:
            new = renamed(list(theirs), rules)
        except UserError:
            return -1
        return sum(own[new[n]].shape == shape for n, shape in theirs.items() if new[n] in own)

    best = max(_proposals(theirs, shapes), key=fits)
    new = renamed(list(theirs), best)
    fit = {n for n, shape in theirs.items() if new[n] in own and own[new[n]].shape == shape}
    reached = {(own[new[n]].data_ptr(), own[new[n]].shape) for n in fit}
    initial = len(once.keys() - reached)
    partial = initial > 0 or any(not COARSE_HEADS.match(new[n]) for n in theirs.keys() - fit)
    return Guess(config, dims, channels, best, len(fit), len(theirs), initial, partial)


def _proposals(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[Rules]:
    """Rules, from the simplest."""
    yield []
    start = next(iter(own))
    for prefix in {name.removesuffix(start) for name in theirs if name.endswith("." + start)}:
        yield [("^" + re.escape(prefix), "")]
    for least in (1, 2):  # all tensors; then, where one side has no normalisation, the large ones
        yield _by_order(
            {n: s for n, s in theirs.items() if len(s) >= least},
            {n: s for n, s in own.items() if len(s) >= least},
        )


def _by_order(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> Rules:
    """Rules for the modules whose tensors have the same shapes in the same order."""
    left, right = list(theirs), list(own)
    matcher = SequenceMatcher(
        None, [tuple(theirs[n]) for n in left], [tuple(own[n]) for n in right], autojunk=False
    )
    rules: dict[str, str] = {}
    for block in matcher.get_matching_blocks():
        if block.size == 1 and len(theirs[left[block.a]]) == 1:
            continue  # a bias that happens to be as long
        for k in range(block.size):
            old, new = _modules(left[block.a + k], right[block.b + k])
            if old != new:
                rules.setdefault("^" + re.escape(old), new)
    short = [(p, r) for p, r in rules.items() if max(len(p), len(r)) <= LONGEST_RULE]
    return short[:MOST_RULES]


def _modules(old: str, new: str) -> Sequence[str]:
    """Two names without the last part that they share, such as `weight`."""
    if old.rpartition(".")[2] == new.rpartition(".")[2] and "." in old and "." in new:
        return old.rpartition(".")[0] + ".", new.rpartition(".")[0] + "."
    return old, new
