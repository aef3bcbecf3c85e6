"""The study's tables in README.md and docs/, made of the files in results/reference/study.

    python study/tables.py            say which blocks do not fit the files
    python study/tables.py --write    write them anew

A block stands between `<!-- study: NAME -->` and `<!-- study: end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference" / "study"
ON_GPU = REFERENCE / "gpu"
PAGES = ("README.md", "docs/findings.md", "docs/study.md")
BLOCK = re.compile(r"(<!-- study: (?!end)(.+?) -->\n)(.*?)(<!-- study: end -->)", re.DOTALL)
UNMEASURED = {"4.37", "1.81", "2.9", "0.8"}  # claimed %, and the power of what could be found
MEAN, METRIC = "mean", "dice"
SHOWN = ("scratch", "finetune", "trm", "trm_prior")  # in the table of transfers
NEAR = 3  # points: what is further below fine-tuning is another matter
BEST = 5  # methods of a table of the largest gains

# Folder to what tables call it, in their order: part, what is transferred.
RUNS = {
    "study_hippocampus_family": "F: hippocampus, 5 subjects",
    "study_hippocampus_shots": "F: the same, 1 to 10 subjects",
    "study_brats_family": "A: BraTS-2018, six pairs",
    "study_brats_family_fixed": "A: the same, one split",
    "study_brats_family_fixed_shared": "A: one split, all as fine-tuning is tuned",
    "study_brats_long": "A: two pairs, four times the steps",
    "study_neonatal_family": "D: newborns, T1, T2",
    "study_neonatal_family_shared": "D: the same, all as fine-tuning is tuned",
    "study_brats_shots": "C: BraTS-2018, few shots",
    "study_brats_regions": "C: BraTS-2018, to regions",
    "study_cardiac": "E: heart, vendor to vendor",
    "study_lgg": "G: LGG, three pairs",
    "study_datasets": "H: between data sets",
}
# Trained on an Intel Xeon with AMX, and what of it was trained again on an AMD EPYC: with tuned
# values a run is the same where these are the defaults.
AGAIN = {
    "study_hippocampus_family": "study_hippocampus_gamma",
    "study_brats_family_fixed": "study_brats_family_fixed_tuned",
    "study_neonatal_family": "study_neonatal_family_tuned",
    "study_cardiac": "study_cardiac_tuned",
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
        """One of its CSV files."""
        return pd.read_csv(self.folder / name)

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


def gains_of(several: list[Part]) -> pd.DataFrame:
    """Gain over fine-tuning, a row a method and a column a part."""
    scores = [part.summary["metrics"][METRIC] for part in several]
    gains = pd.DataFrame([{m: row["gain"] for m, row in s.items()} for s in scores]).T
    return gains.drop(index="finetune").astype(float)


def between(value: float, low: float, high: float) -> str:
    """A difference with its interval."""
    if pd.isna(low):
        return f"{value:+.2f}"
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def parts(names: dict[str, str]) -> Iterator[tuple[str, Part]]:
    """Those that are there, defaults before tuned values."""
    for folder, title in names.items():
        for suffix, values in (("", ""), ("_tuned", ", tuned")):
            if (REFERENCE / f"{folder}{suffix}" / "summary.json").is_file():
                yield title + values, Part(REFERENCE / f"{folder}{suffix}")


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """A table, numbers to the right."""
    line = "|".join(["---", *["---:"] * (len(columns) - 1)])
    return (
        "".join(f"| {' | '.join(row)} |\n" for row in [columns])
        + f"|{line}|\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    )


def family() -> str:
    """The declared comparisons of all parts."""
    columns = [
        "part",
        "seeds",
        "scratch",
        "`trm`",
        "`trm`, over prior",
        "`trm`, over shuffled",
        "minmax",
        "found",
    ]
    rows = [
        [
            title,
            str(len(part.summary["seeds"])),
            part.gap(),
            part.gain("trm"),
            part.gain("trm", "trm_prior"),
            part.gain("trm", "trm_shuffled"),
            part.gain("trm_minmax_power"),
            part.detectable(),
        ]
        for title, part in parts(RUNS)
    ]
    return markdown(columns, rows)


def verdicts() -> str:
    """On the counterparts of the paper's claims."""
    rows = []
    for title, part in parts(RUNS):
        claim = part.provenance["protocol"].get("claim") or {}
        if claim.get("gain") is None:
            continue
        words = part.summary["verdict"]["words"]
        relative = part.compared("trm", "finetune")
        assert relative is not None
        rows.append(
            [
                title,
                f"+{claim['gain']:g} %",
                part.gain("trm"),
                f"{relative.relative:+.2f}",
                ", ".join(dict.fromkeys(words)) or part.summary["verdict"]["none_because"],
            ]
        )
    return markdown(
        ["part", "claimed", "measured, points", "measured, relative %", "verdict"], rows
    )


def transfers() -> str:
    """Each transfer: Dice from scratch, fine-tuned, with trm, and the gap."""
    rows = []
    for title, part in parts(RUNS):
        scores = part.summary["metrics"][METRIC]
        for name in scores["finetune"]["per_transfer"]:
            values = [f"{scores[m]['per_transfer'][name]:.1f}" for m in SHOWN]
            rows.append([title, name, *values, part.gap(name)])
    return markdown(["part", "transfer", *SHOWN, "scratch - finetune"], rows)


def harmed() -> str:
    """What training from scratch is better by than each method, where fine-tuning does harm."""
    rows = []
    for title, part in parts(RUNS):
        if part.gap_values()[1] <= 0:
            continue
        scores = part.summary["metrics"][METRIC]
        worst = max(scores["finetune"]["per_transfer"], key=lambda t: part.gap_values(t)[0])
        for method in sorted(set(scores) - {"scratch"}, key=lambda m: part.gap_values(MEAN, m)[0]):
            rows.append([title, f"`{method}`", part.gap(MEAN, method), part.gap(worst, method)])
    return markdown(["part", "method", "scratch - method", "in the worst transfer"], rows)


def best() -> str:
    """The largest gains among all methods, where all were run; exploratory."""
    rows = []
    for title, part in parts(OF_ALL):
        scores = part.summary["metrics"][METRIC]
        others = {m: row["gain"] for m, row in scores.items() if m != "finetune"}
        for method in sorted(others, key=lambda m: -others[m])[:BEST]:
            own = scores[method]
            rows.append(
                [title, f"`{method}`", f"{own['mean']:.1f}", between(own["gain"], *_interval(own))]
            )
    return markdown(["part", "method", "Dice", "gain over fine-tuning"], rows)


def everywhere() -> str:
    """Every method's gain over fine-tuning in each part that ran them all."""
    titles, several = zip(*parts(OF_ALL), strict=True)
    gains = gains_of(list(several)).dropna()
    rows = []
    for method in gains.mean(axis=1).sort_values(ascending=False).index:
        own = gains.loc[method]
        values = (*own, own.mean(), own.min())
        rows.append([f"`{method}`", *(f"{value:+.2f}" for value in values)])
    return markdown(["method", *titles, "mean", "least"], rows)


def carried() -> str:
    """Whether the methods that gain in one part gain in another, for each pair of parts."""
    titles, several = zip(*parts(OF_ALL), strict=True)
    gains = gains_of(list(several))
    rows = []
    for one, other in combinations(range(len(titles)), 2):
        known = gains[[one, other]].dropna()
        near = known[(known > -NEAR).all(axis=1)]
        values = [f"{k[one].corr(k[other], method='spearman'):+.2f}" for k in (known, near)]
        counts = str(len(known)), str(len(near))
        name = f"{titles[one][0]} and {titles[other][0]}"
        rows.append([name, counts[0], values[0], counts[1], values[1]])
    near_by = f"lose less than {NEAR} in both"
    columns = ["parts", "methods", "rank correlation", near_by, "rank correlation of these"]
    return markdown(columns, rows)


def direction() -> str:
    """What emphasis within a class brings, beside class weights alone (gamma = 0)."""
    rows = []
    for title, part in parts(OVER_GAMMA):
        scores = part.summary["metrics"][METRIC]
        chosen = part.provenance["protocol"]["methods"]
        gammas = {"trm_prior": 0.0} | {m["label"]: m["gamma"] for m in chosen if "gamma" in m}
        for method, gamma in sorted(gammas.items(), key=lambda item: item[1]):
            over = "-" if method == "trm_prior" else part.gain(method, "trm_prior")
            values = [f"{scores[method]['mean']:.1f}", part.gain(method), over]
            rows.append([title, f"{gamma:+g}" if gamma else "0, `trm_prior`", *values])
    return markdown(["part", "gamma", "Dice", "over fine-tuning", "over class weights alone"], rows)


def leep() -> str:
    """Whether LEEP says what a transfer gains."""
    rows = [
        [title, str(len(part.cells())), f"{part.leep():+.2f}"]
        for title, part in parts(RUNS)
        if part.folder.name.endswith(ONCE)
    ]
    return markdown(["part", "transfers and seeds", "rank correlation"], rows)


def tuning() -> str:
    """Validation Dice of defaults and of the best trial of every method that was swept."""
    rows = []
    for path in sorted(REFERENCE.glob("*/sweep/trials.json")):
        for method in json.loads(path.read_text("utf-8"))["methods"]:
            scores = [trial["validation_dice"] for trial in method["trials"]]
            known = [score for score in scores if score is not None]
            best, first = max(known), scores[0]  # the first trial has the defaults
            title = {**RUNS, **OF_ALL}[path.parents[1].name]
            values = [f"{100 * first:.1f}", f"{100 * best:.1f}", f"{100 * (best - first):+.1f}"]
            rows.append([title, f"`{method['method']}`", *values, str(scores.index(best))])
    return markdown(["part", "method", "defaults", "best trial", "gain", "which of 0 to 15"], rows)


def devices() -> str:
    """Part F with all methods, trained on a CPU and once more on a GPU."""
    both = [Part(folder / "study_hippocampus") for folder in (REFERENCE, ON_GPU)]
    machines = [part.machine() for part in both]
    rows = [["`scratch` over `finetune`", *(part.gap() for part in both)]]
    for versus in ("finetune", "trm_prior", "trm_shuffled"):
        rows.append([f"`trm` over `{versus}`", *(part.gain("trm", versus) for part in both)])
    gains = gains_of(both)
    alike = gains[0].corr(gains[1], method="spearman")
    rows.append([f"rank correlation of {len(gains)} methods' gains", "", f"{alike:.2f}"])
    between_them = (gains[0] - gains[1]).abs().median()
    rows.append(["median difference of a gain, points", "", f"{between_them:.2f}"])
    return markdown(["part F, 5 seeds", *machines], rows)


def repeated() -> str:
    """Runs that two folders have with the same id, trained for each on a machine of its own."""
    rows = []
    for folder, other in AGAIN.items():
        both = [Part(REFERENCE / name) for name in (folder, other)]
        ids = [part.provenance["runs"] for part in both]
        shared = [run for run, own in ids[0].items() if ids[1].get(run) == own]
        dice = [part.dice_of_runs() for part in both]
        change = (dice[1] - dice[0])[shared]
        size = change.abs()
        values = f"{change.mean():+.3f}", f"{size.median():.2f}", f"{size.max():.2f}"
        rows.append([RUNS[folder], str(len(shared)), *values])
    columns = ["part", "runs trained on both", "mean difference", "median size", "largest"]
    return markdown(columns, rows)


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    low, high = (float("nan") if end is None else end for end in row["gain_interval"])
    return low, high


def cost() -> str:
    """Seconds of a run's training, and hours of all of them, without those of the sources."""
    rows = []
    for title, part in parts({**RUNS, **OVER_GAMMA, **OF_ALL}):
        runs = len(set(part.provenance["runs"].values()))
        seconds = part.provenance["training_seconds"]
        rows.append([title, str(runs), f"{seconds / runs:.0f}", f"{seconds / 3600:.1f}"])
    for folder in sorted(REFERENCE.glob("*/sweep/trials.json")):
        methods = json.loads(folder.read_text("utf-8"))["methods"]
        trials = sum(len(m["trials"]) for m in methods)
        seconds = sum(m["seconds"] for m in methods)
        title = f"sweep of {folder.parents[1].name}: {len(methods)} methods"
        rows.append([title, str(trials), f"{seconds / trials:.0f}", f"{seconds / 3600:.1f}"])
    return markdown(["part", "runs or trials", "seconds each", "hours of a core"], rows)


BLOCKS = {
    "family": family,
    "verdicts": verdicts,
    "transfers": transfers,
    "harmed": harmed,
    "best": best,
    "everywhere": everywhere,
    "carried": carried,
    "direction": direction,
    "leep": leep,
    "tuning": tuning,
    "devices": devices,
    "repeated": repeated,
    "cost": cost,
}


def written(text: str) -> str:
    """A page with its blocks made anew."""
    return BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]]() + m[4], text)


def main() -> int:
    """Runs the command line."""
    differ = []
    for name in PAGES:
        page = ROOT / name
        before = page.read_text("utf-8")
        after = written(before)
        if before != after:
            differ.append(name)
            if "--write" in sys.argv[1:]:
                page.write_text(after, "utf-8")
    print("\n".join(differ) or "all as the files have it")
    return 0 if not differ or "--write" in sys.argv[1:] else 1


if __name__ == "__main__":
    sys.exit(main())
