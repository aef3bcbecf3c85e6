"""Results side by side, and whether two of one protocol agree.

Two estimates a and b with intervals [a1, a2] and [b1, b2] agree where the interval of their
difference holds 0, which is made of theirs as of independent estimates (Zou and Donner 2008,
doi:10.1002/sim.3095):

    b - a - sqrt((b - b1)^2 + (a2 - a)^2)   to   b - a + sqrt((b2 - b)^2 + (a - a1)^2)

What is judged is the mean of the method that gains are over, and the gains of all others: together
they are all means, and gains are paired, so that their intervals are the shorter ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from trm_bench.analysis.table import HIGHER_IS_BETTER
from trm_bench.analysis.transferability import empty
from trm_bench.errors import UserError
from trm_bench.report import sheets, tables, transferability, words
from trm_bench.report.compared import Compared, Ends, Numbers, of_evidence, read, reference_of
from trm_bench.report.evidence import NAMES, PHANTOM, Evidence, direction
from trm_bench.report.tables import MISSING, Cell, Table
from trm_bench.runs.folders import ProtocolFolder, distinct_names

if TYPE_CHECKING:
    import pandas as pd

NONE = "no verdict: "
ALONE = "stated by one alone"
DESIGN = ("split.design", "split.per_seed")  # which summary.json names
AGREE, DIFFER, OPEN = "agree", "differ", "open"
RULE = (
    f"'{AGREE}': the 95 % interval of the difference holds 0. It is made of the intervals of the "
    "two results, over subjects and seeds, as of independent ones; where both tested the same "
    "subjects it is wider than need be. To agree is not to be equal: what the interval holds is "
    "not excluded. Of twenty such intervals one misses by chance."
)
COLUMNS = (
    *("metric", "method", "what", "first", "first_value", "first_low", "first_high"),
    *("second", "second_value", "second_low", "second_high", "difference", "low", "high"),
    "agreement",
)


class Estimate(NamedTuple):
    """A number with its 95 % interval; each None where it is not known."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float | None, ends: Ends) -> Estimate:
        """A value and the ends of its interval."""
        return cls(value, *ends)

    def shown(self, signed: bool) -> str:
        """For people."""
        if self.value is None:
            return MISSING
        text = f"{self.value:{'+' if signed else ''}.2f}"
        if self.low is None or self.high is None:
            return text
        sign = "+" if signed else ""
        return f"{text} [{self.low:{sign}.2f}, {self.high:{sign}.2f}]"


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The second minus the first, with the interval of the module."""
    if first.value is None or second.value is None:
        return Estimate(None, None, None)
    value = second.value - first.value
    if None in (*first, *second):
        return Estimate(value, None, None)
    a, a1, a2, b, b1, b2 = (float(x) for x in (*first, *second) if x is not None)
    return Estimate(value, value - math.hypot(b - b1, a2 - a), value + math.hypot(b2 - b, a - a1))


@dataclass(frozen=True)
class Agreement:
    """A quantity of a method in two results.

    Attributes:
        metric: Its name.
        method: Its label.
        what: `mean`, over transfers; or `gain`, over the reference.
        first: In the one.
        second: In the other.
        comparable: Whether both are of the same transfers, unit and reference.
    """

    metric: str
    method: str
    what: str
    first: Estimate
    second: Estimate
    comparable: bool = True

    @property
    def difference(self) -> Estimate:
        """The second minus the first; unknown where it would mean nothing."""
        return difference(self.first, self.second) if self.comparable else Estimate(*[None] * 3)

    @property
    def word(self) -> str:
        """`AGREE`, `DIFFER`, or `OPEN` where that cannot be told."""
        _, low, high = self.difference
        if low is None or high is None:
            return OPEN
        return AGREE if low <= 0 <= high else DIFFER


@dataclass(frozen=True)
class Beside:
    """Two results of one protocol, side by side.

    Attributes:
        names: Of the two, the reference's first.
        first: The one.
        second: The other.
        rows: What is judged, by metric.
        everything: All quantities that both have.
        settings: Key, and its value in each, where they differ.
        rule: When two numbers agree.
    """

    names: tuple[str, str]
    first: Compared
    second: Compared
    rows: dict[str, list[Agreement]]
    everything: list[Agreement]
    settings: list[tuple[str, str, str]]
    rule: ClassVar[str] = RULE

    @property
    def sentence(self) -> str:
        """What became of it."""
        judged = [row for rows in self.rows.values() for row in rows]
        counts = {word: sum(r.word == word for r in judged) for word in (AGREE, DIFFER, OPEN)}
        first, second = self.names
        found = f"{counts[AGREE]} of {len(judged)} numbers of {second} agree with {first}, "
        found += f"{counts[DIFFER]} {'differs' if counts[DIFFER] == 1 else 'differ'}"
        found += f", {counts[OPEN]} cannot be told." if counts[OPEN] else "."
        if not self.first.settings or not self.second.settings:
            return f"{found} Not all settings are known."
        number = sum(key != ALONE for key, *_ in self.settings)
        if not number:
            return f"{found} The settings that both state are the same."
        noun = "setting differs" if number == 1 else "settings differ"
        return f"{found} {number} {noun}, so a difference may come from there."

    def table(self, metric: str) -> tuple[str, list[str], list[tuple[str, ...]]]:
        """Title, head and rows of what is judged under a metric."""
        unit, reference = self.first.unit(metric), self.first.summary.reference
        of_gains = self.first.unit(metric, difference=True)
        rows: list[tuple[str, ...]] = []
        for row in self.rows[metric]:
            gained = row.what == "gain"
            label = row.method if gained else f"{row.method}, its mean [{unit}]"
            both = row.first.shown(gained), row.second.shown(gained)
            rows.append((label, row.word, row.difference.shown(True), *both))
        title = f"{NAMES[metric]}, gain over {reference} [{of_gains}] and its 95 % interval"
        return title, ["method", "agreement", "difference", *self.names], rows


def beside(names: tuple[str, str], first: Compared, second: Compared) -> Beside:
    """Holds a result against another of the same protocol."""
    metrics = [m for m in first.summary.metrics if m in second.summary.metrics]
    everything = [row for metric in metrics for row in _agreements(first, second, metric)]
    reference = first.summary.reference
    judged = {
        metric: [
            row
            for what in ("mean", "gain")
            for row in everything
            if (row.metric, row.what) == (metric, what)
            and (row.method == reference) == (what == "mean")
        ]
        for metric in metrics
    }
    return Beside(names, first, second, judged, everything, _differences(first, second))


def beside_reference(evidence: Evidence) -> Beside | None:
    """A report's results beside the reference results of its protocol, where there are some."""
    known = reference_of(evidence.name)
    if known is None or known.summary.data != evidence.results.plan.data:
        return None
    return beside(("the reference", "these results"), known, of_evidence(evidence))


def _agreements(first: Compared, second: Compared, metric: str) -> Iterator[Agreement]:
    same = first.unit(metric) == second.unit(metric)
    of_gains = same and first.summary.reference == second.summary.reference
    for method, one in first.summary.metrics[metric].items():
        other = second.numbers(metric, method)
        if other is None:
            continue
        alike = one.per_transfer.keys() == other.per_transfer.keys()
        a, b = (Estimate.of(n.mean, n.mean_interval) for n in (one, other))
        yield Agreement(metric, method, "mean", a, b, same and alike)
        if method not in (first.summary.reference, second.summary.reference):
            a, b = (Estimate.of(n.gain, n.gain_interval) for n in (one, other))
            yield Agreement(metric, method, "gain", a, b, of_gains and alike)


def _differences(first: Compared, second: Compared) -> list[tuple[str, str, str]]:
    """Settings that differ: design, seeds, and what both state of themselves and their methods.

    Keys that one of them alone states come in one row: they are of another version of the protocol,
    or were left at what is empty or off.
    """
    rows: list[tuple[str, object, object]] = [
        ("seeds", [*first.summary.seeds], [*second.summary.seeds]),
        ("split.design", first.summary.design.name, second.summary.design.name),
    ]
    ours, theirs = first.settings, second.settings
    rows += [(key, ours[key], theirs[key]) for key in ours if key in theirs and key not in DESIGN]
    shared = {m for m in first.methods if m in second.methods}

    def alone(one: Mapping[str, object], other: Mapping[str, object]) -> str:
        keys = [key for key in one if key not in other and key not in DESIGN]
        own = [k for k in keys if not k.startswith("methods.") or k.split(".")[1] in shared]
        return ", ".join(own) or MISSING

    if ours and theirs:
        rows.append((ALONE, alone(ours, theirs), alone(theirs, ours)))
    return [(key, str(one), str(other)) for key, one, other in rows if one != other]


# ------------------------------------------------------------------------------------ side by side


def read_all(several: Iterable[Path]) -> dict[str, Compared]:
    """Results by label, each folder once.

    Args:
        several: Folders of results or of protocols, with records or with a report alone.

    Raises:
        UserError: There are no results, fewer than two, or phantom beside real data.
    """
    several = list(several)
    found = {c.path.resolve(): c for path in several for c in read(path)}
    results = list(found.values())
    if len(results) < 2:
        raise UserError("there is only one result here", several[0], "name two folders or more")
    if len({c.summary.data for c in results}) > 1:
        listed = ", ".join(f"{c.path} ({c.summary.data})" for c in results)
        what = f"phantom and real data never stand in one table: {listed}"
        raise UserError(what, fix="compare each kind by itself")
    labels = distinct_names([(c.summary.protocol, ProtocolFolder(c.path)) for c in results])
    return dict(zip(labels, results, strict=True))


def pairs(labelled: Mapping[str, Compared]) -> list[Beside]:
    """The first result of each protocol beside every other one of it."""
    firsts: dict[str, str] = {}
    found = []
    for label, result in labelled.items():
        first = firsts.setdefault(result.summary.protocol, label)
        if first != label:
            found.append(beside((first, label), labelled[first], result))
    return found


def texts(labelled: Mapping[str, Compared], several: Sequence[Beside]) -> dict[str, str]:
    """File to content: compare.{md,csv,tex}, agreement.csv and transferability.csv.

    Args:
        labelled: Of `read_all`.
        several: Of `pairs`.
    """
    by_metric = [table for table, _ in by_metrics(labelled)]
    told = [pair.sentence for pair in several]
    return {
        "compare.md": "\n".join([*told, "", *(t.markdown() for t in by_metric)]),
        "compare.csv": by_metric[0].csv(),
        "compare.tex": "\n".join(t.latex() for t in by_metric),
        "agreement.csv": sheets.of_rows([COLUMNS, *(r for b in several for r in _rows(b))]),
        "transferability.csv": sheets.of_frame(foreseen(labelled)),
    }


def foreseen(labelled: Mapping[str, Compared]) -> pd.DataFrame:
    """The cells of `transferability.pooled`, of the results with records."""
    known = {label: c.evidence for label, c in labelled.items() if c.evidence is not None}
    if known:
        return transferability.pooled(known)
    cells = empty()
    cells.insert(0, "results", "")
    return cells


def by_metrics(labelled: Mapping[str, Compared]) -> list[tuple[Table, bool]]:
    """The table of each metric, and whether lower is better in it."""
    metrics = dict.fromkeys(m for c in labelled.values() for m in c.summary.metrics)
    return [(side_by_side(labelled, m), not HIGHER_IS_BETTER[m]) for m in metrics]


def _rows(pair: Beside) -> Iterator[tuple[object, ...]]:
    for row in pair.everything:
        values = [
            *(row.metric, row.method, row.what, pair.names[0], *row.first),
            *(pair.names[1], *row.second, *row.difference),
        ]
        yield (*("" if value is None else value for value in values), row.word)


def side_by_side(several: Mapping[str, Compared], metric: str) -> Table:
    """For each result the mean over transfers, and the gain with its interval.

    Args:
        several: Label to result; those without the metric have no columns.
        metric: Which metric.
    """
    several = {label: c for label, c in several.items() if metric in c.summary.metrics}
    methods = list(dict.fromkeys(m for c in several.values() for m in c.summary.metrics[metric]))
    columns: dict[str, list[Cell]] = {}
    for label, c in several.items():
        numbers = [c.numbers(metric, m) or Numbers(per_transfer={}) for m in methods]
        reference = c.summary.reference
        means = [Cell(n.mean, n.sd_over_seeds) for n in numbers]
        columns[f"{label}: mean"] = tables.ranked(means, HIGHER_IS_BETTER[metric])
        columns[f"{label}: gain over {reference}"] = [
            Cell(None) if m == reference or n.gain is None else _gain(n)
            for m, n in zip(methods, numbers, strict=True)
        ]
    unit = " or ".join(dict.fromkeys(c.unit(metric, difference=True) for c in several.values()))
    units = dict.fromkeys(c.unit(metric) for c in several.values())
    return Table(
        title=f"{NAMES[metric]} [{' or '.join(units)}], {direction(metric)}",
        columns=list(columns),
        rows=[(m, [column[i] for column in columns.values()]) for i, m in enumerate(methods)],
        notes=_notes(several, unit),
    )


def _gain(numbers: Numbers) -> Cell:
    low, high = numbers.gain_interval
    known = low is not None and high is not None
    ends = (low, high) if known else (None, None)
    return Cell(numbers.gain, low=ends[0], high=ends[1], signed=True)


def _notes(several: Mapping[str, Compared], unit: str) -> list[str]:
    notes = [PHANTOM] if any(c.summary.data == "phantom" for c in several.values()) else []
    notes += [
        "Mean over transfers, of methods that have all of them; ± is the standard deviation over "
        "seeds of the mean over subjects. Bold: best of a column; underlined: second.",
        f"Gain in {unit}, positive is better; in brackets its 95 % interval over subjects and "
        "seeds, each on its own. Results are not pooled: each column stands for itself.",
    ]
    first, *others = several.values()
    if any(_differences(first, c) for c in others):
        notes.append(
            "The results differ in their settings (see each report), so compare gains, not means."
        )
    return notes


def verdicts(labelled: Mapping[str, Compared]) -> Iterator[tuple[str, str, str, str]]:
    """Label, folder, verdict and why."""
    for label, c in labelled.items():
        verdict = c.summary.verdict
        why = (
            " ".join(words.reasons(c.evidence))
            if c.evidence
            else verdict.none_because.removeprefix(NONE)
        )
        yield label, os.path.relpath(c.path), " / ".join(verdict.words) or "no verdict", why
