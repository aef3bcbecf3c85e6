"""summary.json: what a script wants of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench.analysis.generalised import half_width
from trm_bench.analysis.intervals import LEVEL, mean_squares, trimmed
from trm_bench.analysis.table import OVERALL
from trm_bench.analysis.voxels import ALL_VOXELS
from trm_bench.report import tables, words
from trm_bench.report.evidence import Evidence, Scores

if TYPE_CHECKING:
    import pandas as pd


def summary(evidence: Evidence) -> dict[str, Any]:
    """summary.json: per metric and method mean, deviation over seeds, gain and n; the verdict."""
    gaps = words.overall_classes(evidence)
    scores = evidence.scores.items()
    return {
        "protocol": evidence.name,
        "description": evidence.protocol.description,
        "data": evidence.results.plan.data,
        "units": {m: evidence.unit(m) for m in evidence.scores},
        "reference": evidence.reference,
        "seeds": evidence.seeds,
        "states": evidence.states(),
        "design": {"name": evidence.design.name, "ratio": evidence.design.ratio},
        "verdict": {
            "words": evidence.words,
            "none_because": evidence.no_verdict,
            "holds": evidence.holds,
            "fails": evidence.judgement.fails if evidence.judgement else "",
        },
        "finding": words.finding(evidence),
        "problems": evidence.problems,
        "left_out": [subject.model_dump() for subject in evidence.results.plan.left_out],
        "negative_transfer": {
            row["method"]: {
                "gap": _finite(row["gap"]),
                "interval": [_finite(row["low"]), _finite(row["high"])],
                "present": row["negative_transfer"],
            }
            for row in gaps[gaps["transfer"] == OVERALL].to_dict("records")
        },
        "voxel_level": {
            "net_transfer_rate": _overall(evidence.rates, "method", "net"),
            "auroc_of_lost_voxels": _overall(evidence.findings, "map", "auroc"),
        },
        "metrics": {
            m: {method: _summary_of(evidence, s, method) for method in evidence.methods}
            for m, s in scores
        },
    }


def _summary_of(evidence: Evidence, scores: Scores, method: str) -> dict[str, Any]:
    """One method under one metric."""
    mean, gain = tables.overall(evidence, scores, method), scores.gain(method) or {}
    transfers = evidence.transfers
    subjects = {s for t in transfers for s in scores.by_subject(t, method)}
    is_reference = method == evidence.reference
    return {
        "mean": mean.value,
        "mean_interval": _mean_interval(evidence, scores, method, mean.value),
        "sd_over_seeds": mean.spread,
        "gain": 0.0 if is_reference else _finite(gain.get("gain")),
        "gain_interval": [_finite(gain.get("low")), _finite(gain.get("high"))],
        "gain_relative_percent": 0.0 if is_reference else _finite(gain.get("relative")),
        "n_subjects": len(subjects),
        "per_transfer": {t: tables.over_seeds(scores.by_seed(t, method)).value for t in transfers},
    }


def _mean_interval(
    evidence: Evidence, scores: Scores, method: str, mean: float | None
) -> list[float | None]:
    """The 95 % interval of a mean over transfers, over subjects and seeds as that of a gain."""
    if mean is None or scores.grid is None:
        return [None, None]
    squares = mean_squares(trimmed(scores.grid.of(method)), evidence.design)
    if squares is None:
        return [None, None]
    half = float(half_width(squares, LEVEL))
    return [mean - half, mean + half]


def _overall(table: pd.DataFrame, name: str, value: str) -> dict[str, float | None]:
    """Of all voxels and the mean over transfers."""
    rows = table[(table["transfer"] == OVERALL) & (table["class"] == ALL_VOXELS)]
    return {str(k): _finite(v) for k, v in zip(rows[name], rows[value], strict=True)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
