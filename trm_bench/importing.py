"""Networks that were trained elsewhere, read into source networks like those trained here."""

from __future__ import annotations

from trm_bench.display import Display
from trm_bench.protocol import Protocol
from trm_bench.protocol.domains import CheckpointConfig
from trm_bench.runs.config import Imported
from trm_bench.runs.folders import ResultsFolder


def read_all(
    protocol: Protocol, results: ResultsFolder, display: Display
) -> dict[CheckpointConfig, Imported]:
    return {}
