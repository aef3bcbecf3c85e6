"""Protocols: the YAML schema, loading with overrides, and the choices that a command makes."""

from trm_bench.protocol.load import bundled, load_protocol, parse
from trm_bench.protocol.schema import Protocol

__all__ = ["Protocol", "bundled", "load_protocol", "parse"]
