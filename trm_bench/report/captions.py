"""What a reader must know of a table, in sentences below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trm_bench.analysis import family
from trm_bench.analysis.intervals import MIN_SEEDS
from trm_bench.analysis.table import OVERALL
from trm_bench.report import sides
from trm_bench.report.evidence import PHANTOM, Evidence, Scores
from trm_bench.runs.config import RunConfig
from trm_bench.runs.store import read_trials, tuned_here
from trm_bench.training.evaluation import EMPTY_RULE

if TYPE_CHECKING:
    from trm_bench.runs.folders import ProtocolFolder
    from trm_bench.runs.records import TunedNote

BETTER, WORSE = "*", "\N{DAGGER}"
# what seeds share by the design of the split, and so what a result holds for
DESIGNS = {
    "fixed": "one split{each} (seed {seed}): the result holds for this training set",
    "disjoint": "one test set{each}, a training set of its own for every seed (split seed {seed})",
    "resampled": "drawn again for each seed (split seed {seed})",
}
# what an interval over seeds is about
CHANGES = {
    "fixed": "initial weights and patches: it holds for this training set",
    "disjoint": "initial weights, patches and the target training set, another for each seed",
    "resampled": "the whole split; inflated, since splits of the same patients overlap",
}
# from docs/statistics.md
SKEWED = (
    "The test takes seeds' effects as symmetric. Were they all one-sided with a skewness of 2, the "
    "error of a family of 4 would be about 19 % instead of 5 %, of a family of 17 about 32 % (with "
    "a skewness of 1: 5 and 7 %)."
)
MANY_SEEDS = 10
FEW = (
    "Splits of fewer than about 25 patients under ten seeds or more: were all that a seed changes "
    "due to who is in the source, the family's error could reach 8 %."
)


def caption(evidence: Evidence, scores: Scores) -> list[str]:
    """What a reader must know of a table: data, n, seeds, spread, tests, split, what is missing."""
    target = evidence.protocol.training.target
    notes = [PHANTOM] if evidence.phantom else []
    if scores.fault:
        notes.append(f"No numbers: {scores.fault}.")
    else:
        notes.append(_what_is_shown(evidence, scores))
        if evidence.is_mixed(scores.metric):
            notes.append(
                "Distances are in mm in some transfers and in voxels in others, whose files do not "
                "state the voxel size: there is no mean, gain or test over transfers."
            )
        notes += _how_it_is_tested(evidence, scores)
    kept = "last step" if target.select == "last" else "best validation Dice"
    both, one = EMPTY_RULE[scores.metric]
    where_one = one if isinstance(one, str) else f"{one:g}"
    notes += [
        *sides.notes(evidence.results),
        f"Weights: those of the {kept} of {target.steps} steps; test subjects were read once, at "
        "the end.",
        f"{_how_it_is_split(evidence)} "
        f"Empty masks: {both:g} where both are empty, {where_one} where one is.",
    ]
    if tuned := evidence.results.plan.tuned:
        notes.append(how_it_was_tuned(tuned, evidence.results.folder))
    if left_out := evidence.results.plan.left_out:
        notes.append(f"Left out: {_some([x.subject for x in left_out])}.")
    if unfinished := evidence.results.unfinished():
        cells = [
            f"{c.transfer} {c.method} seed {c.seed} ({_first_line(why)})" for c, why in unfinished
        ]
        notes.append(f"Without numbers: {_some(cells)}.")
    return notes


def _how_it_is_split(evidence: Evidence) -> str:
    """Design and sizes, and which sources have subjects of their own."""
    split, known = evidence.protocol.split, sides.ways(evidence.results).values()
    each = "" if sides.is_one_data_set(evidence.results) else " of each target"
    drawn = DESIGNS[split.design].format(seed=split.seed, each=each)
    sizes = split.target
    parts = f"target train {sizes.train}, validation {sizes.val}, test {sizes.test}"
    trained_here = [c for way in known for c in way.configs[:-1] if isinstance(c, RunConfig)]
    if trained_here or not known:
        parts = f"source {split.source:g}, {parts}"
    own = sides.patients_note(evidence.results)
    return f"Split by patient: {drawn}. {parts[0].upper()}{parts[1:]}." + (f" {own}" if own else "")


def how_it_was_tuned(tuned: TunedNote, folder: ProtocolFolder) -> str:
    """The budget and what it took; the time, where the sweep lies beside the results."""
    b = tuned.budget
    took = f"{tuned.passes} forward-backward passes in all"
    here = tuned_here(folder)
    if here is not None and here.digest == tuned.digest:
        methods = read_trials(folder).methods
        seconds = sum(m.seconds for m in methods if tuned.training_of in ("", m.method))
        took += f", {seconds / 3600:.1f} hours of training"
    each = "each method and transfer" if b.per == "transfer" else "each method"
    where = ""
    if tuned.borrowed_from is not None:
        where = f" of another protocol, {tuned.borrowed_from}"
        where += f" (which differs in {_some(list(tuned.differs))})" if tuned.differs else ""
    if tuned.training_of:
        said = f"All methods train with the values that {tuned.training_of} was tuned to"
        said += f" on the validation subjects{where}: the best of"
    else:
        said = f"Tuned on the validation subjects{where}, with the same budget for {each}:"
    return (
        f"{said} {b.trials} trials of {b.steps} steps on {len(b.seeds)} "
        f"seed{'' if len(b.seeds) == 1 else 's'} of {_some(list(b.transfers))} "
        f"({b.sampler}; {took}; tuned.yaml {tuned.digest})."
    )


def _what_is_shown(evidence: Evidence, scores: Scores) -> str:
    assert scores.grid is not None
    n = sorted({int(cells.any(axis=1).sum()) for cells in scores.grid.cells})
    rows = evidence.long[evidence.long.metric == scores.metric]
    classes = sorted({*rows.groupby("transfer")["class"].nunique()})
    seeds = len(evidence.seeds)
    spread = f"{seeds} seeds; ± is the standard deviation over the seeds of the mean over subjects"
    if seeds == 1:
        spread = "one seed, so no spread is given"
    several = "class" if classes == [1] else "classes"
    return (
        f"Mean over {_range(n)} test subjects and {_range(classes)} {several}; "
        f"{spread}. Bold: best of a column; underlined: second."
    )


def _tested(scores: Scores, transfer: str) -> int:
    """Number of subjects of a transfer."""
    grid = scores.grid
    if grid is None or transfer not in grid.transfers:
        return 0
    return int(grid.cells[grid.transfers.index(transfer)].any(axis=1).sum())


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _how_it_is_tested(evidence: Evidence, scores: Scores) -> list[str]:
    reference = evidence.reference
    if scores.gains.empty:
        return [
            f"No method '{reference}' beside others with numbers, so there are no gains and no "
            "tests."
        ]
    at = scores.gains[scores.gains.transfer == OVERALL]
    left_out = int(at["left_out"].max()) if len(at) else 0
    notes = [
        f"Gain: over {reference}, paired by transfer, subject and seed, positive is better. In "
        f"brackets its 95 % interval over subjects and seeds ({CHANGES[evidence.design.name]}), "
        "each on its own: exploratory, without marks. Marks stand in the declared comparisons.",
    ]
    if len(evidence.seeds) < MIN_SEEDS:
        notes.append(f"Below {MIN_SEEDS} seeds nothing is said over seeds: no intervals.")
    elif few := [t for t in evidence.transfers if _tested(scores, t) == 1]:
        notes.append(
            f"With one test subject ({_some(few)}) nothing is said over subjects: no interval "
            "there, and none over all transfers."
        )
    best = evidence.best if scores is evidence.main else None
    if best and best.looked > 1 and np.isfinite(best.low):
        clear = len(best.clear)
        notes.append(
            f"The largest of {best.looked} gains is {best.method}'s, {best.gain:+.2f}; corrected "
            f"for having looked at {best.looked}: [{best.low:+.2f}, {best.high:+.2f}]. So "
            f"corrected, {clear or 'none'} of the {best.looked} intervals "
            f"{'excludes' if clear in (0, 1) else 'exclude'} 0."
        )
    if left_out:
        notes.append(f"Gains leave out up to {left_out} scans that one of the two methods lacks.")
    return notes


def family_notes(evidence: Evidence, scores: Scores) -> list[str]:
    """How the declared comparisons are tested."""
    rows = scores.family
    k, seeds = int(rows["k"].iloc[0]), int(rows["n_seeds"].min())
    needed = family.seeds_for_marks(k)
    if seeds < MIN_SEEDS:
        return [
            f"Below {MIN_SEEDS} seeds nothing is said over seeds: no p-values, no intervals and no "
            f"marks, which need {needed}."
        ]
    return [
        f"{BETTER} better, {WORSE} worse: the methods differ, not only these trained networks. "
        "Generalised p-value over subjects and seeds, Holm-corrected for a family of "
        f"{k} (5 %); over all transfers. Intervals are at the family's level: "
        + (
            f"no marks with {seeds} seeds, they need {needed}."
            if seeds < needed
            else "they hold 0 exactly where there is no mark."
        ),
        f"Design: {evidence.design.name}; what varies is {CHANGES[evidence.design.name]}.",
        SKEWED,
        *([FEW] if evidence.design.name == "resampled" and seeds >= MANY_SEEDS else []),
    ]


def _some(items: list[str], most: int = 10) -> str:
    return "; ".join(items[:most]) + (f"; … {len(items) - most} more" if len(items) > most else "")


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].rstrip(": ")[:100]
