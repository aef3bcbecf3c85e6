"""The study's tables in README.md and docs/, made of the files in results/reference.

    python study/tables.py            say which blocks do not fit the files
    python study/tables.py --write    write them anew

A block stands between `<!-- study: NAME -->` and `<!-- study: end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from parts import (
    AGAIN,
    BUNDLED,
    FOLDED,
    MEAN,
    METRIC,
    OF_ALL,
    ONCE,
    OVER_GAMMA,
    REFERENCE,
    RESULTS,
    ROOT,
    RUNS,
    SWEEPS,
    TITLES,
    TUNED,
    Part,
    between,
    gains_of,
    of_all,
    parts,
)

from trm_bench.analysis.intervals import gains

ON_GPU = REFERENCE / "gpu"
PAGES = ("README.md", "docs/findings.md", "docs/study.md")
BLOCK = re.compile(r"(<!-- study: (?!end)(.+?) -->\n)(.*?)(<!-- study: end -->)", re.DOTALL)
UNMEASURED = {"4.37", "1.81", "2.9", "0.8", "4.0"}  # claimed %, power of what is found, a licence
SHOWN = ("scratch", "finetune", "trm", "trm_prior")  # in the table of transfers
MAPS = ("trm", "trm_prior")  # of which the second knows the class alone
NEAR = 3  # points: what is further below fine-tuning is another matter
ERROR = 0.05
FAMILY = ("scratch", "finetune", "trm", "trm_prior", "trm_shuffled", "trm_minmax_power")
BEST = 5  # methods of a table of the largest gains


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
    """The largest gains among all methods, where all were run; exploratory.

    Bold, and shown also where others are larger, if the p-value times the number of methods is
    below 0.05 (Bonferroni).
    """
    rows = []
    for title, part in parts(OF_ALL):
        scores = part.summary["metrics"][METRIC]
        others = {m: row["gain"] for m, row in scores.items() if m != "finetune"}
        for rank, method in enumerate(sorted(others, key=lambda m: -others[m])):
            own, row = scores[method], part.compared(method, "finetune")
            assert row is not None
            told = others[method] > 0 and row.p * len(others) < ERROR
            if rank < BEST or told:
                gain = between(own["gain"], *_interval(own))
                shown = f"**{gain}**" if told else gain
                rows.append([title, f"`{method}`", f"{own['mean']:.1f}", shown])
    return markdown(["part", "method", "Dice", "gain over fine-tuning"], rows)


def everywhere(values: str) -> str:
    """Every method's gain over fine-tuning in each part that ran them all with such values."""
    gains = gains_of(of_all(values)).dropna()
    rows = []
    for method in gains.mean(axis=1).sort_values(ascending=False).index:
        own = gains.loc[method]
        values = (*own, own.mean(), own.min())
        rows.append([f"`{method}`", *(f"{value:+.2f}" for value in values)])
    return markdown(["method", *gains.columns, "mean", "least"], rows)


def carried(values: str) -> str:
    """Whether the methods that gain in one part gain in another, for each pair of parts."""
    gains = gains_of(of_all(values))
    rows = []
    for one, other in combinations(gains.columns, 2):
        known = gains[[one, other]].dropna()
        near = known[(known > -NEAR).all(axis=1)]
        values = [f"{k[one].corr(k[other], method='spearman'):+.2f}" for k in (known, near)]
        counts = str(len(known)), str(len(near))
        name = f"{one[0]} and {other[0]}"
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


def swept(folder: Path) -> dict[str, tuple[float, float, int]]:
    """Validation Dice [%] of each method's defaults (its first trial) and best trial, and which."""
    found = {}
    for method in json.loads((folder / "sweep" / "trials.json").read_text("utf-8"))["methods"]:
        scores = [trial["validation_dice"] for trial in method["trials"]]
        best = max(score for score in scores if score is not None)
        found[method["method"]] = 100 * scores[0], 100 * best, scores.index(best)
    return found


def tuning() -> str:
    """Validation Dice of defaults and of the best trial of the family, where it was swept."""
    rows = []
    for path in sorted(REFERENCE.glob("*/sweep/trials.json")):
        folder = path.parents[1]
        title = TITLES[folder.name]
        for method, (first, best, trial) in swept(folder).items():
            if method in FAMILY:
                values = f"{first:.1f}", f"{best:.1f}", f"{best - first:+.1f}"
                rows.append([title, f"`{method}`", *values, str(trial)])
    return markdown(["part", "method", "defaults", "best trial", "gain", "which of 0 to 15"], rows)


def kept() -> str:
    """What best trials had over the defaults on validation subjects, and have on test subjects."""
    rows = []
    for folder, sweep in SWEEPS.items():
        both = [part for _, part in parts({folder: ""}, suffixes=TUNED)]
        dice = [
            pd.Series({m: row["mean"] for m, row in part.summary["metrics"][METRIC].items()})
            for part in both
        ]
        trials = swept(REFERENCE / sweep)
        promised = pd.Series({m: best - first for m, (first, best, _) in trials.items()})
        change = pd.DataFrame({"promised": promised, "kept": dice[1] - dice[0]}).dropna()
        change = change[change.promised > 0]  # else the defaults were the best
        split = Part(REFERENCE / sweep).provenance["protocol"]["split"]
        rows.append(
            [
                OF_ALL[folder],
                TITLES[sweep][0],
                str(split["target"]["val"]),
                str(len(change)),
                f"{change.promised.median():+.1f}",
                f"{change.kept.median():+.1f}",
                str((change.kept > 0).sum()),
                f"{change.promised.corr(change.kept, method='spearman'):+.2f}",
            ]
        )
    columns = ["part", "swept on", "validation subjects", "methods that found better values"]
    columns += ["median gain on validation", "on test", "better on test", "rank correlation"]
    return markdown(columns, rows)


def folds() -> str:
    """What trials promise that were scored on two patients, and by cross-validation over five."""
    columns, gained = ["method"], []
    for folder in ("study_brats", *FOLDED):
        val = Part(REFERENCE / folder).provenance["protocol"]["split"]["target"]["val"]
        how = "folds" if folder in FOLDED else f"{val} patients"
        columns += [f"{how}: gain of the best trial", "on test"]
        gained.append((swept(REFERENCE / folder), _gains_of_tuning(folder)))
    rows = []
    for method in FAMILY:
        row = [f"`{method}`"]
        for trials, tests in gained:
            first, best, _ = trials[method]
            row += [f"{best - first:+.1f}", tests[method]]
        rows.append(row)
    return markdown(columns, rows)


def _gains_of_tuning(folder: str) -> dict[str, str]:
    """Of each method of the family what its tuned values gain over its defaults, on test subjects.

    Exploratory: each interval on its own.
    """
    tables = []
    for suffix in TUNED:
        table = Part(REFERENCE / f"{folder}{suffix}").table("metrics.csv.gz")
        tables.append(table.assign(protocol=folder, method=table.method + suffix))
    pairs = [(f"{method}_tuned", method) for method in FAMILY]
    rows = gains(pd.concat(tables), METRIC, pairs, relative=False, each=False)
    return {row.versus: between(row.gain, row.low, row.high) for row in rows.itertuples()}


def devices() -> str:
    """Part F with all methods, trained on a CPU and once more on a GPU."""
    both = [Part(folder / "study_hippocampus") for folder in (REFERENCE, ON_GPU)]
    machines = [part.machine() for part in both]
    rows = [["`scratch` over `finetune`", *(part.gap() for part in both)]]
    for versus in ("finetune", "trm_prior", "trm_shuffled"):
        rows.append([f"`trm` over `{versus}`", *(part.gain("trm", versus) for part in both)])
    gains = gains_of(dict(zip(machines, both, strict=True)))
    cpu, gpu = (gains[machine] for machine in machines)
    alike = cpu.corr(gpu, method="spearman")
    rows.append([f"rank correlation of {len(gains)} methods' gains", "", f"{alike:.2f}"])
    between_them = (cpu - gpu).abs().median()
    rows.append(["median difference of a gain, points", "", f"{between_them:.2f}"])
    return markdown(["part F, 5 seeds", *machines], rows)


def repeated() -> str:
    """Runs that two folders have alike, trained for each on a machine of its own."""
    rows = []
    for folder, other in AGAIN.items():
        both = [Part(REFERENCE / name) for name in (folder, other)]
        # with defaults a run of one name is the same, though later code has another id for it
        shared = [run for run in both[0].provenance["runs"] if run in both[1].provenance["runs"]]
        dice = [part.dice_of_runs() for part in both]
        change = (dice[1] - dice[0])[shared]
        size = change.abs()
        values = f"{change.mean():+.3f}", f"{size.median():.2f}", f"{size.max():.2f}"
        rows.append([RUNS[folder], str(len(shared)), *values])
    columns = ["part", "runs trained on both", "mean difference", "median size", "largest"]
    return markdown(columns, rows)


def bundled() -> str:
    """The declared comparisons of the bundled protocols."""
    controls = ("trm_prior", "trm_uniform", "trm_shuffled")
    rows = []
    for title, part in parts(BUNDLED, RESULTS):
        dice = f"{part.summary['metrics'][METRIC]['finetune']['mean']:.1f}"
        gains = [part.gain("trm", versus) for versus in ("finetune", *controls)]
        rows.append([title, dice, part.gap(), *gains, part.detectable()])
    over = [f"`trm`, over {name.removeprefix('trm_')}" for name in controls]
    return markdown(["protocol", "`finetune`", "scratch", "`trm`", *over, "found"], rows)


def voxels() -> str:
    """What the map says of voxels that fine-tuning loses and wins against training from scratch."""
    rows = []
    for title, part in parts(BUNDLED, RESULTS):
        areas = part.table("voxel_auroc.csv")
        area = areas[areas.transfer == MEAN].set_index(["class", "map"]).auroc
        rates = part.table("voxel_rates.csv")
        rates = rates[(rates.transfer == MEAN) & (rates["class"] == "all voxels")]
        lost = rates.set_index("method").negative_rate
        seen = [area[which, of] for which in ("all voxels", "lost against won") for of in MAPS]
        shown = [f"{value:.2f}" for value in (*seen, lost["finetune"], lost["trm"])]
        rows.append([title, *shown])
    areas = [f"{which}: {of}" for which in ("all", "lost against won") for of in ("map", "class")]
    columns = ["protocol", *areas, "lost by `finetune`, %", "lost by `trm`, %"]
    return markdown(columns, rows)


def _interval(row: dict[str, Any]) -> tuple[float, float]:
    low, high = (float("nan") if end is None else end for end in row["gain_interval"])
    return low, high


def cost() -> str:
    """Seconds of a run's training, and hours of all of them, without those of the sources."""
    rows = []
    for title, part in parts(TITLES):
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
    "everywhere": partial(everywhere, ""),
    "everywhere, tuned": partial(everywhere, "_tuned"),
    "carried": partial(carried, ""),
    "carried, tuned": partial(carried, "_tuned"),
    "direction": direction,
    "leep": leep,
    "tuning": tuning,
    "kept": kept,
    "folds": folds,
    "devices": devices,
    "repeated": repeated,
    "bundled": bundled,
    "voxels": voxels,
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
