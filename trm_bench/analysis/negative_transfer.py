"""Negative transfer, measured: how much better training from scratch would have been.

Per subject, from scores, and per voxel, from the audits of predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trm_bench.analysis.intervals import (
    FIXED,
    Design,
    above_zero,
    gains,
    mean_gains,
    several_mean_gains,
)
from trm_bench.analysis.table import COLUMNS, KEYS, OVERALL, Grid, framed, grid, mean_over
from trm_bench.analysis.voxels import ALL_VOXELS, SCRATCH

if TYPE_CHECKING:
    from trm_bench.runs.records import VoxelAudit

ALL_CLASSES = "mean"  # the rows over all classes
GAPS = [
    "transfer",
    "method",
    "class",
    "metric",
    "gap",
    "low",
    "high",
    "n_subjects",
    "n_seeds",
    "negative_transfer",
]
RATES = [
    "transfer",
    "method",
    "class",
    "negative_rate",
    "positive_rate",
    "net",
    "low",
    "high",
    "n_subjects",
    "n_seeds",
]
FINDINGS = [
    "transfer",
    "map",
    "class",
    "auroc",
    "over_prior",
    "low",
    "high",
    "n_subjects",
    "n_seeds",
]


def gaps(table: pd.DataFrame, metric: str = "dice", *, design: Design = FIXED) -> pd.DataFrame:
    """The negative transfer gap of every method that transfers, per transfer and class.

    NTG = metric(scratch) - metric(transfer) for a metric of which more is better, with the other
    sign for a distance, paired by subject and seed (after Wang et al., CVPR 2019,
    arXiv:1811.09751). Positive is bad: negative transfer holds where the whole 95 % interval
    (`intervals.gains`, each on its own) lies above 0.

    Args:
        table: The long table of one protocol.
        metric: Which metric.
        design: Of the splits.

    Returns:
        One row per transfer, method and class, with a class "mean" over all classes and a transfer
        "mean" over all transfers; `gap`, `low` and `high` in points, or the metric's unit;
        `negative_transfer` is None without an interval; no rows where nothing was trained from
        scratch.
    """
    rows = table[table["metric"] == metric]
    methods = list(dict.fromkeys(rows["method"]))
    pairs = [(SCRATCH, method) for method in methods if method != SCRATCH]
    if SCRATCH not in methods or not pairs:
        return pd.DataFrame(columns=GAPS)
    classes = sorted(rows["class"].unique())
    parts = []
    for name in [ALL_CLASSES, *classes] if len(classes) > 1 else classes:
        of_class = rows if name == ALL_CLASSES else rows[rows["class"] == name]
        over = gains(of_class, metric, pairs, design=design, relative=False)
        parts.append(over.assign(**{"method": over["versus"], "gap": over["gain"], "class": name}))
    joined = pd.concat(parts, ignore_index=True).assign(metric=metric)
    return joined.assign(negative_transfer=above_zero(joined["low"]))[GAPS]


# ------------------------------------------------------------------------------------ voxel level


def rates(audits: Sequence[VoxelAudit], *, design: Design = FIXED) -> pd.DataFrame:
    """Negative and positive transfer rates: how much of a class's voxels a method loses and wins.

    A subject's rates are means over seeds, the rates here means over subjects. `net` is positive
    minus negative rate, with its 95 % interval over subjects and seeds (`intervals.mean_gains`):
    below 0, transfer costs voxels.

    Args:
        audits: Of one protocol.
        design: Of the splits.

    Returns:
        One row per transfer, method and class (and "all voxels"), and with a transfer "mean" over
        all transfers; a class without voxels has none. Per cent of the voxels, `net` in points.
    """
    columns: dict[str, list[Any]] = {key: [] for key in KEYS}
    counts = [np.zeros((0, 3), np.int64)]  # voxels, and those lost and won
    for audit in audits:
        places = [*audit.classes, ALL_VOXELS]
        for method, by_subject in audit.outcomes.items():
            of_classes = np.array([*by_subject.values()], np.int64).reshape(len(by_subject), -1, 3)
            with_all = [of_classes, of_classes.sum(axis=1, keepdims=True)]
            counts.append(np.concatenate(with_all, axis=1).reshape(-1, 3))
            same = {"transfer": audit.transfer, "method": method, "seed": audit.seed}
            same |= {"protocol": "", "metric": "share"}
            for key, value in same.items():
                columns[key] += [value] * len(counts[-1])
            columns["subject"] += [subject for subject in by_subject for _ in places]
            columns["class"] += places * len(by_subject)
    numbers = dict(zip(("voxels", "lost", "won"), np.concatenate(counts).T, strict=True))
    table = framed(columns | numbers)
    table = table[table["voxels"] > 0]
    parts = []
    for place, part in table.groupby("class", sort=False):
        lost, won = (
            part.assign(value=100 * part[side] / part["voxels"]) for side in ("lost", "won")
        )
        lost_cells, won_cells = grid(lost, "share"), grid(won, "share")
        methods = list(part["method"].unique())
        several = [won_cells.of(method) - lost_cells.of(method) for method in methods]
        net = several_mean_gains(several, won_cells.transfers, won_cells.cells, design=design)
        negative, positive = (
            [mean for method in methods for mean in _means(side, method).values()]
            for side in (lost_cells, won_cells)
        )
        net = net.assign(negative_rate=negative, positive_rate=positive, net=net["gain"])
        of_each = np.repeat(methods, len(won_cells.transfers) + 1)
        parts.append(net.assign(**{"method": of_each, "class": place}))
    return _joined(parts, RATES)


def findings(
    audits: Sequence[VoxelAudit], prior: str = "trm_prior", *, design: Design = FIXED
) -> pd.DataFrame:
    """How well each map finds the voxels that plain fine-tuning lost, and how much above the prior.

    The area under the ROC curve of a subject, mean over seeds, then over subjects. Within a class
    the prior is constant, so that its area is 0.5 there by construction: what a map adds to the
    class label shows within classes. A map may also just mark what is hard for any network, such
    as outlines. So "lost against won" takes only the voxels that exactly one of scratch and
    fine-tuning has right: at 0.5 the map marks won voxels as much as lost ones, and knows nothing
    of the direction of transfer.

    Args:
        audits: Of one protocol.
        prior: The map of the class prior.
        design: Of the splits.

    Returns:
        One row per transfer, map and class (and "all voxels", "lost against won"), and with a
        transfer "mean"; `over_prior` with its 95 % interval over subjects and seeds.
    """
    rows = [
        ("", a.transfer, name, a.seed, subject, place, "auroc", area)
        for a in audits
        for name, subjects in a.auroc.items()
        for subject, places in subjects.items()
        for place, area in places.items()
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    parts = []
    for place, part in table.groupby("class", sort=False):
        areas = grid(part, "auroc")
        for name in part["method"].unique():
            versus = prior if prior in areas.methods else name
            gain = areas.gain(name, versus)
            over = mean_gains(gain, areas.transfers, areas.cells, design=design)
            over = over.rename(columns={"gain": "over_prior"})
            if name == versus:  # no other map to be above
                over[["over_prior", "low", "high"]] = np.nan
            area = over["transfer"].map(_means(areas, name))
            parts.append(over.assign(**{"map": name, "class": place, "auroc": area}))
    return _joined(parts, FINDINGS)


def _means(cells: Grid, method: str) -> dict[str, float]:
    """Transfer to the mean over subjects of the mean over seeds; all transfers' mean as "mean"."""
    by_transfer = mean_over(mean_over(cells.of(method), 2), 1)
    return {
        **dict(zip(cells.transfers, by_transfer, strict=True)),
        OVERALL: float(mean_over(by_transfer, 0)),
    }


def _joined(parts: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)
