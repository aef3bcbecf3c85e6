"""Where numbers come from: protocol, data, code and machine behind a folder's records."""

from __future__ import annotations

from typing import Any

from trm_bench.runs.store import Results


def provenance(results: Results) -> dict[str, Any]:
    """provenance.json: enough to run the same again, and to see that data and code were the same.

    Returns:
        `protocol` as resolved, without the data's folder; `data`; `devices`, the kinds that runs
        were made on, and `environments` likewise; `code`, by method the hashes of the modules that
        compute; `files`, subject to file to [bytes, sha256]; `split`, the subjects of each part by
        seed; `runs`, the id behind every cell; `training_seconds` in all.
    """
    environments: list[dict[str, Any]] = []
    devices: list[str] = []
    code: dict[str, list[str]] = {}
    files: dict[str, dict[str, tuple[int, str]]] = {}
    splits: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for cell, record in results.finished():
        _add(environments, record.environment.model_dump(mode="json"))
        _add(devices, record.config.device)
        _add(code.setdefault(cell.method, []), record.config.code)
        for part, subjects in record.manifest.items():
            files |= subjects
            splits.setdefault(f"seed {cell.seed}", {}).setdefault(part, sorted(subjects))
        seconds[record.id] = record.seconds.get("train", 0.0)
    return {
        "protocol": results.plan.protocol.model_dump(mode="json", exclude={"data": {"root"}}),
        "data": results.plan.data,
        "devices": devices,
        "environments": environments,
        "code": code,
        "training_seconds": round(sum(seconds.values())),
        "split": splits,
        "files": dict(sorted(files.items())),
        "runs": {f"{c.transfer} | {c.method} | seed {c.seed}": c.run for c in results.cells},
    }


def _add(values: list[Any], value: Any) -> None:
    """Adds what is not there yet; the order is that of the cells."""
    if value not in values:
        values.append(value)
