"""Networks that were trained elsewhere, made into source networks like those trained here."""

from __future__ import annotations

import torch

from trm_bench import checkpoints, environment, networks
from trm_bench.display import Display
from trm_bench.errors import UserError
from trm_bench.fingerprint import code_fingerprint
from trm_bench.protocol import Protocol
from trm_bench.protocol.domains import CheckpointConfig
from trm_bench.protocol.load import resolved
from trm_bench.runs import arrays, compute, health
from trm_bench.runs.config import Imported, RunDomain
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.records import Checkpoint

KEYS = frozenset(CheckpointConfig.model_fields)
CODE = ("trm_bench.checkpoints.foreign", "trm_bench.checkpoints.fitting")


def read_all(protocol: Protocol, results: ResultsFolder, display: Display) -> dict[str, Imported]:
    """Reads a protocol's checkpoints and writes those that are not among the sources yet.

    Returns:
        By the name of the domain.

    Raises:
        UserError: One is not there, is not what the protocol says, or does not fit its network.
    """
    imported = {}
    for name, config in protocol.domains.items():
        if isinstance(config, CheckpointConfig):
            try:
                imported[name] = _read(protocol, name, config, results, display)
            except UserError as error:
                where, key = error.where, error.where
                if isinstance(key, str) and key.partition(".")[0] in KEYS:
                    where = f"domains.{name}.{key}"
                raise UserError(error.what, where, error.fix) from error
    return imported


def _read(
    protocol: Protocol,
    name: str,
    config: CheckpointConfig,
    results: ResultsFolder,
    display: Display,
) -> Imported:
    if config.network is not None and config.network != protocol.network:
        fix = "let the protocol's `network` be that of the checkpoint: weights go from one to other"
        raise UserError("is another network than the protocol's", "network", fix)
    path = resolved(config.checkpoint, f"domains.{name}.checkpoint")
    foreign = checkpoints.read(path, config.sha256)
    domain = RunDomain(
        images=config.channels, labels="", classes=config.classes or (), values={}, regions={}
    )
    imported = Imported(
        sha256=foreign.sha256,
        network=protocol.network,
        spatial_dims=protocol.spatial_dims,
        domain=domain,
        rename=config.rename,
        partial=config.partial,
        code=code_fingerprint(*CODE),
    )
    file = results.source(imported.id)
    found = health.of_source(file)
    if found.done:
        return imported
    health.set_aside(found.damaged, display.warn)
    network = compute.frozen(imported, {}, torch.device("cpu"))
    parts = networks.parts(protocol.network, len(config.channels), protocol.spatial_dims)
    state, account = checkpoints.fit(
        foreign.tensors, network, parts, config.rename, config.partial, imported.has_head
    )
    about = Checkpoint(
        id=imported.id,
        config=imported,
        environment=environment.describe(torch.device("cpu")),
        account=account.model_dump(mode="json"),
    )
    initial = set(account.initial)
    arrays.write_checkpoint(file, about, {n: t for n, t in state.items() if n not in initial})
    left = f", {len(account.left_out)} left out" if account.left_out else ""
    kept = sum(not parts.in_head(n) for n in initial)
    without = "keep their initial values, and its features and scores mean little"
    rest = f", {kept} of the network {without}" if kept else ""
    display.say(f"{name}: {len(account.loaded)} tensors of {path.name} loaded{left}{rest}")
    return imported
