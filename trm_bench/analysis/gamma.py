"""The gain against gamma: does spatial emphasis pay, in which direction, and does the map matter?

`trm_decomposed` weighs a voxel by its class and, to the power gamma, by its risk within the class.
A curve joins those methods of a table that differ in gamma alone. `trm_oracle` is one more curve,
whose map are the voxels that transfer did lose: what a map is made to find. `trm_prior` is the
class term alone and stands at gamma = 0.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

if TYPE_CHECKING:
    from trm_bench.runs.records import Record
    from trm_bench.runs.store import Results

DECOMPOSED, ORACLE, PRIOR = "trm_decomposed", "trm_oracle", "trm_prior"
OF_ORACLE, OF_PRIOR = "oracle", "prior"  # how their curves are called
COLUMNS = ["protocol", "transfer", "curve", "method", "gamma", "gain", "low", "high"]


class Place(NamedTuple):
    """Where a method stands.

    Attributes:
        curve: The evidence of its map, `oracle`, or `prior`; with the first label of the curve
            where several would have the same name.
        gamma: Exponent of the risk within a class.
    """

    curve: str
    gamma: float


def gains(results: Results, gained: pd.DataFrame) -> pd.DataFrame:
    """The gains of all methods that stand on a curve, a row a transfer and method.

    Args:
        results: The records.
        gained: Rows of `intervals.gains` over one method.

    Returns:
        The `COLUMNS`, with a transfer "mean" over all; empty where no two methods differ in gamma
        alone.
    """
    known = places(results)
    if gained.empty or not known:
        return pd.DataFrame(columns=COLUMNS)
    rows = gained[gained["method"].isin(known) & gained["gain"].notna()]
    found = rows.assign(
        protocol=results.plan.protocol.name,
        curve=[known[method].curve for method in rows["method"]],
        gamma=[known[method].gamma for method in rows["method"]],
    )[COLUMNS]
    return found.sort_values(["transfer", "curve", "gamma"], kind="stable", ignore_index=True)


def places(results: Results) -> dict[str, Place]:
    """Label to its place; none where no two methods differ in gamma alone.

    What is told from the records: no method needs to be installed. One whose parameters or training
    differ between transfers, as tuned ones may, has no place. Of equal methods the first counts.
    """
    seen: dict[str, set[_Arm | None]] = {}
    for cell, record in results.finished():
        if record.config.method.name in (DECOMPOSED, ORACLE, PRIOR):
            seen.setdefault(cell.method, set()).add(_arm(record))
    by_curve: dict[_Curve, dict[float, str]] = {}
    for label, several in seen.items():
        arm = several.pop()
        if arm is not None and not several:
            by_curve.setdefault(arm.curve, {}).setdefault(arm.gamma, label)
    if all(len(labels) < 2 for labels in by_curve.values()):
        return {}
    names = Counter(curve.name for curve in by_curve)
    found: dict[str, Place] = {}
    for curve, labels in by_curve.items():
        first = next(iter(labels.values()))
        name = curve.name if names[curve.name] == 1 else f"{curve.name}: {first}"
        found |= {label: Place(name, gamma) for gamma, label in labels.items()}
    return found


class _Curve(NamedTuple):
    """What the methods of a curve share: name, parameters but gamma, training."""

    name: str
    others: str
    training: str


class _Arm(NamedTuple):
    curve: _Curve
    gamma: float


def _arm(record: Record) -> _Arm | None:
    """What was trained; None where its gamma is no number."""
    method, others = record.config.method, dict(record.config.method.parameters)
    gamma = others.pop("gamma", 0.0)
    if not isinstance(gamma, int | float):
        return None
    own = {ORACLE: OF_ORACLE, PRIOR: OF_PRIOR}
    name = own.get(method.name) or str(others.get("evidence", "map"))
    training = record.config.training.model_dump_json()
    return _Arm(_Curve(name, json.dumps(others, sort_keys=True), training), float(gamma))
