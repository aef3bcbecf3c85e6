"""Negative transfer, measured: how much better training from scratch would have been, per subject and per voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench import statistics

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

SCRATCH = "scratch"
REFERENCE = "finetune"  # whose lost voxels a risk map should find
ALL_CLASSES = "mean"  # the rows over all classes
ALL_VOXELS = "all voxels"
LOST_OR_WON = "lost against won"  # of the voxels that transfer changed, does the map tell harm from help?
FALSE_POSITIVE_RATES = np.linspace(0, 1, 101)  # where a ROC curve is kept
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
        rows = statistics.bootstrap_gain(of_class, metric, pairs, relative=False)
        found.append(
            rows.rename(columns={"versus": "method", "method": "better", "gain": "gap"}).assign(**{"class": name})
        )
    gathered = pd.concat(found, ignore_index=True).assign(metric=metric)
    return gathered.assign(negative_transfer=gathered["low"] > 0)[COLUMNS]


# --------------------------------------------------------------------------------------------------------- voxel level


def lost(label: NDArray[Any], scratch: NDArray[Any], transfer: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels of negative transfer: right when trained from scratch, wrong after transfer."""
    return (scratch == label) & (transfer != label)


def outcomes(label: NDArray[Any], scratch: NDArray[Any], transfer: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Counts what transfer did to the voxels of each class.

    Args:
        label: Class indices, any shape.
        scratch: Prediction of the network trained from scratch, same shape.
        transfer: Prediction of the method, same shape.
        classes: Number of classes, background included.

    Returns:
        Shape (classes, 3): voxels of the class; of those, lost (right from scratch, wrong after transfer) and won
        (wrong from scratch, right after transfer).
    """
    truth = label.astype(np.int64)
    kind = np.where(lost(label, scratch, transfer), 1, np.where(lost(label, transfer, scratch), 2, 0))
    counts = np.bincount((truth * 3 + kind).ravel(), minlength=3 * classes).reshape(classes, 3)
    return np.stack([counts.sum(axis=1), counts[:, 1], counts[:, 2]], axis=1)


def roc(risk: NDArray[Any], lost: NDArray[np.bool_]) -> tuple[float, NDArray[np.float64]] | None:
    """How well a risk map finds the voxels of actual negative transfer.

    Args:
        risk: Of each voxel.
        lost: Whether the voxel was lost; same shape.

    Returns:
        The area under the ROC curve (0.5: the map knows nothing) and the true positive rate at each of
        `FALSE_POSITIVE_RATES`; None where all voxels are lost, or none.
    """
    from sklearn import metrics

    if lost.all() or not lost.any():
        return None
    false, true, _ = metrics.roc_curve(lost.ravel(), risk.ravel())
    return float(metrics.auc(false, true)), np.interp(FALSE_POSITIVE_RATES, false, true)


RATES = ["transfer", "method", "class", "negative_rate", "positive_rate", "net", "low", "high", "n_subjects", "n_seeds"]
FOUND = ["transfer", "map", "class", "auroc", "over_prior", "low", "high", "n_subjects", "n_seeds"]


def rates(audits: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Negative and positive transfer rates: the share of a class's voxels that a method loses, and that it wins.

    A subject's rates are means over seeds, the rates here means over subjects. `net` is positive minus negative rate,
    with its 95 % interval over subjects and seeds (`statistics.bootstrap_gain`): below 0, transfer costs voxels.

    Args:
        audits: What `trm_bench.audit` wrote, of one protocol.

    Returns:
        One row per transfer, method and class (and "all voxels"), and with a transfer "mean" over all transfers.
    """
    import pandas as pd

    rows = [
        ("", a["transfer"], method, a["seed"], subject, name, "share", *counted)
        for a in audits
        for method, subjects in a["outcomes"].items()
        for subject, counts in subjects.items()
        for name, counted in [
            *zip(a["classes"], counts, strict=True),
            (ALL_VOXELS, map(sum, zip(*counts, strict=True))),
        ]
    ]
    table = pd.DataFrame(rows, columns=[*statistics.KEYS, "voxels", "negative", "positive"])
    table = table[table["voxels"] > 0]
    made = []
    for name, part in table.groupby("class", sort=False):
        methods = part["method"].unique()
        sides = [
            part.assign(method=part["method"] + f" {side}", value=part[side] / part["voxels"])
            for side in ("negative", "positive")
        ]
        both = pd.concat(sides, ignore_index=True)
        pairs = [(f"{m} positive", f"{m} negative") for m in methods]
        net = statistics.bootstrap_gain(both, "share", pairs, relative=False)
        for method, found in net.groupby("versus", sort=False):
            negative, positive = (
                found["transfer"].map(_means(both[both["method"] == side]))
                for side in (method, found["method"].iloc[0])
            )
            found = found.assign(negative_rate=negative, positive_rate=positive, net=found["gain"])
            made.append(found.assign(**{"method": str(method).removesuffix(" negative"), "class": str(name)}))
    return _ordered(made, RATES)


def findings(audits: Sequence[dict[str, Any]], prior: str = "trm_prior") -> pd.DataFrame:
    """How well each map finds the voxels that plain fine-tuning lost, and how much better than the class prior does.

    The area under the ROC curve of a subject, mean over seeds, then over subjects. Within a class the prior is
    constant, so that its area is 0.5 there by construction: what a map adds to the class label shows within classes.
    A map may also just mark what is hard for any network, such as outlines. So "lost against won" takes only the voxels
    that exactly one of scratch and fine-tuning has right: at 0.5 the map marks won voxels as much as lost ones, and
    knows nothing of the direction of transfer.

    Args:
        audits: What `trm_bench.audit` wrote, of one protocol.
        prior: The map of the class prior.

    Returns:
        One row per transfer, map and class (and "all voxels", "lost against won"), and with a transfer "mean";
        `over_prior` with its 95 % interval over subjects and seeds.
    """
    import pandas as pd

    rows = [
        ("", a["transfer"], name, a["seed"], subject, place, "auroc", area)
        for a in audits
        for name, subjects in a["auroc"].items()
        for subject, places in subjects.items()
        for place, area in places.items()
    ]
    table = pd.DataFrame(rows, columns=[*statistics.KEYS, "value"])
    made = []
    for place, part in table.groupby("class", sort=False):
        for name in part["method"].unique():
            own = part[part["method"] == name]
            versus = prior if prior in set(part["method"]) else name
            over = statistics.bootstrap_gain(part, "auroc", [(name, versus)], relative=False)
            if name == versus:
                over[["gain", "low", "high"]] = np.nan
            areas = over["transfer"].map(_means(own))
            over = over.rename(columns={"gain": "over_prior"})
            made.append(over.assign(**{"class": str(place), "map": name, "auroc": areas}))
    return _ordered(made, FOUND)


def _means(table: pd.DataFrame) -> dict[str, float]:
    """Transfer to the mean over subjects of the mean over seeds; the mean over transfers under "mean"."""
    by_subject = table.groupby(["transfer", "subject"])["value"].mean()
    by_transfer = by_subject.groupby("transfer").mean()
    return {**{str(k): float(v) for k, v in by_transfer.items()}, statistics.OVERALL: float(by_transfer.mean())}


def _ordered(parts: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    if not parts:
        return pd.DataFrame(columns=columns)
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)
