"""Where numbers come from: what a results folder's records say of protocol, data, code and machine, in one file."""

from __future__ import annotations

from typing import Any

from trm_bench.results import Results


def provenance(results: Results) -> dict[str, Any]:
    """provenance.json: enough to run the same again and to see that the data and the code were the same.

    Returns:
        `protocol` as resolved; `data`; `environments` that runs were made in; `code`, by method the hashes of the
        modules that compute; `files`, subject to file to [bytes, sha256]; `split`, the subjects of each part by seed;
        `runs`, the id behind every cell; `training_seconds` in all.
    """
    environments: list[Any] = []
    code: dict[str, list[str]] = {}
    files: dict[str, dict[str, list[Any]]] = {}
    splits: dict[str, dict[str, list[str]]] = {}
    seconds: dict[str, float] = {}
    for cell, record in results.finished():
        if record.get("environment") not in environments:
            environments.append(record.get("environment"))
        hashes = code.setdefault(cell["method"], [])
        if (code_hash := record["config"].get("code", "")) not in hashes:
            hashes.append(code_hash)
        for part, subjects in record.get("manifest", {}).items():
            files |= subjects
            splits.setdefault(f"seed {cell['seed']}", {}).setdefault(part, sorted(subjects))
        seconds[record["id"]] = record.get("seconds", {}).get("train", 0.0)
    return {
        "protocol": {k: v for k, v in results.plan["protocol"].items() if k != "data"}
        | {"data": {k: v for k, v in results.plan["protocol"]["data"].items() if k != "root"}},
        "data": results.plan["data"],
        "environments": environments,
        "code": code,
        "training_seconds": round(sum(seconds.values())),
        "split": splits,
        "files": dict(sorted(files.items())),
        "runs": {f"{c['transfer']} | {c['method']} | seed {c['seed']}": c["run"] for c in results.cells},
    }
