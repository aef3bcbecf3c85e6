"""The study's parts as their reports left them in results/reference, for its tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "reference"
REFERENCE = RESULTS / "study"
MEAN, METRIC = "mean", "dice"

# Folder to what tables call it, in their order: part, what is transferred.
RUNS = {
    "study_hippocampus_family": "F: hippocampus, 5 subjects",
    "study_hippocampus_shots": "F: the same, 1 to 10 subjects",
    "study_brats_family": "A: BraTS-2018, six pairs",
    "study_brats_family_fixed": "A: the same, one split",
    "study_brats_long": "A: two pairs, four times the steps",
    "study_neonatal_family": "D: newborns, T1, T2",
    "study_brats_shots": "C: BraTS-2018, few shots",
    "study_brats_shots_fixed": "C: the same, one split",
    "study_brats_regions": "C: BraTS-2018, to regions",
    "study_cardiac": "E: heart, vendor to vendor",
    "study_lgg": "G: LGG, three pairs",
    "study_datasets": "H: between data sets",
    "study_datasets_long": "H: the same, twice the steps",
}
# Trained on an Intel Xeon with AMX, and what of it was trained again on an AMD EPYC.
AGAIN = {
    "study_hippocampus_family": "study_hippocampus_gamma",
    "study_brats_family_fixed": "study_brats",
    "study_neonatal_family": "study_neonatal",
    "study_cardiac": "study_cardiac_all",
    "study_lgg": "study_lgg_all",
}
ONCE = ("_family", "_regions", "cardiac", "lgg", "datasets")  # each cell once, with defaults
OVER_GAMMA = {"study_hippocampus_gamma": "F: hippocampus, over gamma"}
OF_ALL = {
    "study_hippocampus": "F: hippocampus",
    "study_brats": "B: BraTS-2018",
    "study_neonatal": "D: newborns",
    "study_cardiac_all": "E: heart",
    "study_lgg_all": "G: LGG",
}
FOLDED = {"study_brats_folds": "B: the family, swept by folds"}
TITLES = {**RUNS, **OVER_GAMMA, **OF_ALL, **FOLDED}
# Where all methods were run with tuned values, and the folder of the sweep that found them.
SWEEPS = {
    "study_hippocampus": "study_hippocampus",
    "study_brats": "study_brats",
    "study_lgg_all": "study_lgg",
    "study_neonatal": "study_brats",
    "study_cardiac_all": "study_hippocampus",
}
TUNED = {"": "", "_tuned": ", tuned"}  # end of a folder's name to that of its title
VALUES = {**TUNED, "_shared": ", fine-tuning's training"}
# Protocols of the package, run as they are.
BUNDLED = {
    "hippocampus_cross_task": "hippocampus, whole to parts",
    "lgg_cross_modality": "LGG, between sequences",
}


@cache
def _read(path: Path) -> pd.DataFrame:
    """A file that many cells of a table are taken from."""
    return pd.read_csv(path)


class Part:
    """What a report left of a protocol's results.

    Args:
        folder: Where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
        self.provenance: dict[str, Any] = json.loads(
            (folder / "provenance.json").read_text("utf-8")
        )

    def table(self, name: str) -> pd.DataFrame:
        """One of its CSV files, not to be changed."""
        return _read(self.folder / name)

    def compared(self, method: str, versus: str) -> pd.Series | None:
        """The comparison of two methods on the mean over transfers; None where there is none."""
        rows = self.table("comparisons.csv")
        rows = rows[(rows.transfer == MEAN) & (rows.metric == METRIC)]
        rows = rows[(rows.method == method) & (rows.versus == versus)]
        return None if rows.empty else rows.iloc[0]

    def gain_values(
        self, method: str, versus: str = "finetune"
    ) -> tuple[float, float, float] | None:
        """Gain and interval in points: the family's interval where the comparison is declared."""
        row = self.compared(method, versus)
        if row is None:
            return None
        if pd.isna(row.family_low):
            return row.gain, row.low, row.high
        return row.gain, row.family_low, row.family_high

    def gain(self, method: str, versus: str = "finetune") -> str:
        """The same in words, with the mark."""
        known, row = self.gain_values(method, versus), self.compared(method, versus)
        if known is None or row is None:
            return "-"
        return between(*known) + {"better": " ▲", "worse": " ▼"}.get(row.mark, "")

    def gap_values(
        self, transfer: str = MEAN, method: str = "finetune"
    ) -> tuple[float, float, float]:
        """Training from scratch minus a method, with its interval."""
        rows = self.table("negative_transfer.csv")
        rows = rows[(rows.transfer == transfer) & (rows.metric == METRIC)]
        rows = rows[rows.method == method]
        # a task of one class has it in the place of the mean over classes
        rows = rows[rows["class"] == MEAN] if (rows["class"] == MEAN).any() else rows
        return rows.iloc[0].gap, rows.iloc[0].low, rows.iloc[0].high

    def gap(self, transfer: str = MEAN, method: str = "finetune") -> str:
        """The same in words; bold where the interval lies above 0: negative transfer."""
        known = self.gap_values(transfer, method)
        return f"**{between(*known)}**" if known[1] > 0 else between(*known)

    def cells(self) -> pd.DataFrame:
        """LEEP and what fine-tuning gains over training from scratch, by transfer and seed."""
        return self.table("transferability.csv").dropna(subset=["leep", "gain"])

    def leep(self) -> float:
        """Spearman's rank correlation of the two over all cells."""
        return float(self.cells().leep.corr(self.cells().gain, method="spearman"))

    def dice_of_runs(self) -> pd.Series:
        """Mean Dice over subjects and classes of each run, by its name in `provenance`."""
        rows = self.table("metrics.csv.gz")
        rows = rows[rows.metric == METRIC]
        name = rows.transfer + " | " + rows.method + " | seed " + rows.seed.astype(str)
        return rows.value.groupby(name).mean()

    def machine(self) -> str:
        """Kind of device, GPU and version of PyTorch of all runs."""
        (of_all,) = self.provenance["environments"]
        gpu = of_all["device_name"] if of_all["device"] != "cpu" else "CPU"
        return f"{gpu}, PyTorch {of_all['packages']['torch']}"

    def detectable(self) -> str:
        """The smallest gain of trm that would be found with a probability of 0.8, points."""
        rows = self.table("sensitivity.csv")
        rows = rows[(rows.transfer == MEAN) & (rows.method == "trm")]
        return f"{rows.iloc[0].smallest_gain:.2f}"


def gains_of(several: dict[str, Part]) -> pd.DataFrame:
    """Gain over fine-tuning, a row a method and a column a part, by its title."""
    scores = {title: part.summary["metrics"][METRIC] for title, part in several.items()}
    gains = pd.DataFrame({t: {m: row["gain"] for m, row in s.items()} for t, s in scores.items()})
    return gains.drop(index="finetune").astype(float)


def between(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    if pd.isna(low):
        return f"{value:+.2f}"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def parts(
    names: dict[str, str], root: Path = REFERENCE, suffixes: dict[str, str] = VALUES
) -> Iterator[tuple[str, Part]]:
    """Those that are there, defaults before tuned values."""
    for folder, title in names.items():
        for suffix, values in suffixes.items():
            if (root / f"{folder}{suffix}" / "summary.json").is_file():
                yield title + values, Part(root / f"{folder}{suffix}")


def of_all(values: str) -> dict[str, Part]:
    """The parts that ran every method, by title.

    Args:
        values: "" for the defaults, `_tuned` for those that were found.
    """
    return dict(parts(OF_ALL, suffixes={values: ""}))
