"""Negative transfer, measured: how much better training from scratch would have been."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trm_bench import statistics

if TYPE_CHECKING:
    import pandas as pd

SCRATCH = "scratch"
ALL_CLASSES = "mean"  # the rows over all classes
COLUMNS = ["transfer", "method", "class", "metric", "gap", "low", "high", "n_subjects", "n_seeds", "negative_transfer"]


def gaps(table: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """The negative transfer gap of every method that transfers, per transfer and class, with its interval.

    NTG = metric(scratch) - metric(transfer) for a metric of which more is better, with the other sign for a distance,
    paired by subject and seed (after Wang et al., CVPR 2019, arXiv:1811.09751). Positive is bad: negative transfer
    holds where the whole 95 % interval (`statistics.bootstrap_gain`) lies above 0.

    Args:
        table: The long table of one protocol.
        metric: Which metric.

    Returns:
        One row per transfer, method and class, with a class "mean" over all classes and a transfer "mean" over all
        transfers; `gap`, `low` and `high` in the metric's own unit; no rows where nothing was trained from scratch.
    """
    import pandas as pd

    part = table[table["metric"] == metric]
    names = list(dict.fromkeys(part["method"]))
    pairs = [(SCRATCH, name) for name in names if name != SCRATCH]
    if SCRATCH not in names or not pairs:
        return pd.DataFrame(columns=COLUMNS)
    found = []
    classes = sorted(part["class"].unique())
    for name in [ALL_CLASSES, *classes] if len(classes) > 1 else classes:
        of_class = part if name == ALL_CLASSES else part[part["class"] == name]
        rows = statistics.bootstrap_gain(of_class, metric, pairs)
        found.append(
            rows.rename(columns={"versus": "method", "method": "better", "gain": "gap"}).assign(**{"class": name})
        )
    gathered = pd.concat(found, ignore_index=True).assign(metric=metric)
    return gathered.assign(negative_transfer=gathered["low"] > 0)[COLUMNS]
