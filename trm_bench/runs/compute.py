"""From a configuration, its subjects and its source network to trained weights and their scores.

All that can change a number of a run is done here or in what this module imports, and nothing else
is: no path, no record, no picture. So the fingerprint of the code starts from this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trm_bench import formats, networks
from trm_bench.data.patches import PatchSampler, SubjectStore
from trm_bench.methods import Context, Method
from trm_bench.methods.registry import create, has_own_modules
from trm_bench.seeds import seed_of
from trm_bench.training import evaluation, loop

if TYPE_CHECKING:
    from trm_bench.runs.config import Imported, RunConfig
    from trm_bench.training.resuming import Savepoint

HEADLESS = 2  # classes that a network without a head of its own is built with
Part = Callable[[str], SubjectStore]
"""Loads the subjects of a part: `train`, `val`, `test`, or `source`, the source's own training
subjects in the source's own domain."""


def build(config: RunConfig, device: torch.device, bare: bool = False) -> nn.Module:
    """A configuration's network with its initial weights.

    Args:
        config: Of its training.
        device: Where it goes.
        bare: Whether it comes without the modules of the method's own.
    """
    seed = seed_of("initial weights", config.kind, config.seed)
    channels, classes = len(config.domain.images), len(config.domain.classes)
    network = networks.build(config.network, channels, classes, config.spatial_dims, seed)
    if not bare and has_own_modules(config.method.name):
        method = create(config.method.name, config.method.parameters)
        parts = networks.parts(config.network, channels, config.spatial_dims)
        image = torch.empty(1, channels, *config.training.patch, device="meta")
        own_seed = seed_of("modules of the method", config.kind, config.seed)
        network = with_modules(method, network, parts, image, own_seed)
    layout = formats.memory_format(config.network, config.training, device)
    # mypy: the argument is missing in PyTorch's stubs
    network.to(memory_format=layout)  # type: ignore[call-overload]
    return network.to(device)


def with_modules(
    method: Method, network: nn.Module, parts: networks.Parts, image: Tensor, seed: int
) -> nn.Module:
    """The network with the method's own modules, their initial weights drawn from the seed.

    Raises:
        UserError: The method cannot train this network.
    """
    method.check(network, parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.architecture(network, parts, image)


@dataclass(frozen=True)
class Source:
    """A source network as a target sees it: with as many channels as the target has.

    Attributes:
        network: Frozen, in eval mode. What its file did not hold has initial values.
        state: The weights that its file held.
        adapted: Names of those that were adapted to the target's channels.
    """

    network: nn.Module
    state: Mapping[str, Tensor]
    adapted: tuple[str, ...] = ()


def frozen(
    config: RunConfig | Imported, state: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """A network with its weights, in eval mode.

    Args:
        config: Of its training or its import.
        state: Its weights; of an import, maybe not all of them.
        device: Where it goes.
    """
    if config.kind == "checkpoint":
        channels, classes = len(config.domain.images), len(config.domain.classes) or HEADLESS
        network = networks.build(config.network, channels, classes, config.spatial_dims, seed=0)
        network = network.to(device)
        network.load_state_dict({**network.state_dict(), **state})
    else:
        network = build(config, device)
        network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def source_of(config: RunConfig, state: Mapping[str, Tensor], device: torch.device) -> Source:
    """The source network of a training.

    Args:
        config: Of the training that starts from it.
        state: The source's weights.
        device: Where it goes.
    """
    source, channels = config.source, len(config.domain.images)
    assert source is not None
    if config.channels is None:
        return Source(frozen(source, state, device), state)
    before = len(source.domain.images)
    adapted, names = networks.adapt_channels(
        state, before, channels, source.network, source.spatial_dims, config.channels
    )
    seen = tuple(f"channel {i}" for i in range(channels))  # names of the right number
    domain = source.domain.model_copy(update={"images": seen})
    network = frozen(source.model_copy(update={"domain": domain}), adapted, device)
    return Source(network, adapted, names)


def context(
    config: RunConfig,
    network: nn.Module,
    source: nn.Module | None,
    part: Part,
    device: torch.device,
) -> Context:
    """What a method gets to see of a training.

    Args:
        config: Of the training.
        network: To be trained.
        source: The frozen source network.
        part: Loads subjects; the source's, only when a method asks for them.
        device: Where everything lives.
    """
    training, windows = config.training, config.evaluation
    training_set, validation_set = part("train"), part("val")
    # Named by the target alone, so that all methods, and scratch for all sources, see the same
    # patches.
    domain = (*config.domain.images, config.domain.labels)
    axes = (config.kind, config.dataset, *domain, len(training_set), config.seed)
    return Context(
        network=network,
        parts=networks.parts(config.network, len(config.domain.images), config.spatial_dims),
        source=source,
        same_task=config.same_task,
        training_set=training_set,
        patches=PatchSampler(training_set, training, "patches", *axes),
        source_patches=lambda: PatchSampler(part("source"), training, "source patches", *axes),
        validate=lambda net: evaluation.mean_dice(net, validation_set, training, windows),
        predict=lambda net, image: evaluation.predict(net, image, training, windows),
        outputs=lambda net, image: evaluation.outputs(net, image, training, windows),
        fresh=lambda: build(config, device, bare=True),
        config=training,
        seed_axes=axes,
        device=device,
        source_has_head=config.source is None or config.source.has_head,
        source_has_data=has_data(config),
    )


def has_data(config: RunConfig) -> bool:
    """Whether a method may train on the subjects that the source was trained on.

    Not on those of a network from elsewhere, nor with another number of channels.
    """
    source = config.source_training
    return source is not None and len(source.domain.images) == len(config.domain.images)


def start(
    config: RunConfig, source: Source | None, part: Part, device: torch.device
) -> tuple[Context, dict[str, Any] | None]:
    """A training before its first step: initial weights, then the source's over them.

    Returns:
        The context, and the audit of the source weights; see `networks.load_source`.
    """
    network = source.network if source else None
    run = context(config, build(config, device), network, part, device)
    if source is None:
        return run, None
    partial = config.source is not None and config.source.kind == "checkpoint"
    loading = networks.load_source(
        run.network, source.state, run.parts, run.same_task, partial, source.adapted
    )
    return run, loading


def train(
    run: Context,
    method: Method,
    curves: loop.Curves,
    progress: loop.Progress = lambda *at: None,
    savepoint: Savepoint | None = None,
) -> None:
    """Trains `run.network`; dropout draws alike for every method.

    Raises:
        Diverged: See `loop.train`.
        Unfit: Likewise.
    """
    torch.manual_seed(seed_of("training", *run.seed_axes))
    loop.train(run, method, curves, progress, savepoint)


def test(
    config: RunConfig,
    run: Context,
    test_set: SubjectStore,
    keep: Callable[[Any, Tensor], None] | None = None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Test subject to region to metric to value; see `evaluation.score_subjects`."""
    return evaluation.score_subjects(
        run.network, test_set, config.metrics, config.training, config.evaluation, keep
    )
