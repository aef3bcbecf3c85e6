"""Where numbers come from: protocol, data, code and machine behind a folder's records."""

from __future__ import annotations

from typing import Any

from trm_bench.report.sides import data_sets, imported, is_one_data_set
from trm_bench.runs.store import Results


def provenance(results: Results) -> dict[str, Any]:
    """provenance.json: enough to run the same again, and to see that data and code were the same.

    Returns:
        `protocol` as resolved, without the folders of data and checkpoints; `data`; `data_sets`
        with licence and citation; `networks` from elsewhere; `devices`, the kinds that runs were
        made on, and `environments` likewise; `code`, by method the hashes of the modules that
        compute; `files`, subject to file to [bytes, sha256]; `split`, the subjects of each part by
        seed, and by transfer where these differ in their subjects; `runs`, the id behind every
        cell; `training_seconds` in all.
    """
    environments: list[dict[str, Any]] = []
    devices: list[str] = []
    code: dict[str, list[str]] = {}
    files: dict[str, dict[str, tuple[int, str]]] = {}
    splits: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    one_data_set = is_one_data_set(results)
    for cell, record in results.finished():
        _add(environments, record.environment.model_dump(mode="json"))
        _add(devices, record.config.device)
        _add(code.setdefault(cell.method, []), record.config.code)
        split = f"seed {cell.seed}" if one_data_set else f"{cell.transfer} | seed {cell.seed}"
        for part, subjects in record.manifest.items():
            for subject, contents in subjects.items():
                if files.setdefault(subject, contents) != contents:  # of another data set
                    files[f"{subject} | {cell.transfer} | {part}"] = contents
            splits.setdefault(split, {}).setdefault(part, sorted(subjects))
        seconds[record.id] = record.seconds.get("train", 0.0)
    protocol = results.plan.protocol
    places = {name: {"root", "checkpoint"} for name in protocol.domains}
    return {
        "protocol": protocol.model_dump(mode="json", exclude={"data": {"root"}, "domains": places}),
        "data": results.plan.data,
        "data_sets": data_sets(results),
        "networks": {
            name: {"sha256": c.sha256, "network": c.network.name, "source": c.id}
            for name, c in imported(results).items()
        },
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
