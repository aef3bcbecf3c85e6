"""The paper-style table, one source for Markdown, CSV, LaTeX and HTML; and summary.json."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trm_bench.analysis.table import HIGHER_IS_BETTER, OVERALL
from trm_bench.analysis.voxels import ALL_VOXELS
from trm_bench.report.evidence import ALPHA, GAIN_UNITS, NAMES, PHANTOM, UNITS, Evidence, Scores
from trm_bench.runs.store import read_trials, read_tuned
from trm_bench.training.evaluation import EMPTY_RULE

if TYPE_CHECKING:
    import pandas as pd

    from trm_bench.runs.folders import ProtocolFolder
    from trm_bench.runs.records import TunedNote

MISSING = "\N{EN DASH}"
BETTER, WORSE = "*", "\N{DAGGER}"


@dataclass(frozen=True)
class Cell:
    """A number as it stands in a table.

    Attributes:
        value: None where there is none.
        spread: Standard deviation over seeds.
        low: Lower end of the interval, with `high`.
        high: Upper end.
        rank: 1 for the best of a column, 2 for the second, 0 for the others.
        p: Adjusted p-value against the reference.
        mark: Significantly better or worse than the reference.
        lacks: What is missing from it; such a number takes no rank.
        signed: A gain, shown with its sign.
    """

    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    rank: int = 0
    p: float | None = None
    mark: str = ""
    lacks: str = ""
    signed: bool = False

    @property
    def number(self) -> str:
        """The value alone; empty where there is none."""
        if self.value is None:
            return ""
        return f"{self.value:+.2f}" if self.signed else f"{self.value:.2f}"

    @property
    def rest(self) -> str:
        """Spread, interval, and what is missing."""
        spread = f" ± {self.spread:.2f}" if self.spread is not None else ""
        interval = f" [{self.low:+.2f}, {self.high:+.2f}]" if self.low is not None else ""
        return spread + interval + (f" ({self.lacks})" if self.lacks else "")


@dataclass(frozen=True)
class Table:
    """Rows of named cells, and the notes below them."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]
    corner: str = "method"

    def markdown(self) -> str:
        """GitHub Markdown; best in bold, second underlined."""
        around = {0: ("", ""), 1: ("**", "**"), 2: ("<u>", "</u>")}

        def text(cell: Cell) -> str:
            left, right = around[cell.rank]
            mark = cell.mark.replace("*", r"\*")
            number = f"{left}{cell.number}{right}{mark}" if cell.number else MISSING
            return number + cell.rest

        header = f"| {self.corner} | {' | '.join(map(_md, self.columns))} |"
        lines = [f"### {_md(self.title)}", "", header, "|---|" + "---:|" * len(self.columns)]
        lines += [f"| {_md(name)} | {' | '.join(map(text, cells))} |" for name, cells in self.rows]
        return "\n".join([*lines, "", *[f"{_md(note)}  " for note in self.notes]]) + "\n"

    def csv(self) -> str:
        """All digits; a column of its own for each spread, interval end and p-value there is."""
        import csv

        parts = {
            "value": "",
            "spread": " sd",
            "low": " low",
            "high": " high",
            "p": " p_holm",
            "lacks": " lacks",
        }

        def is_used(i: int, part: str) -> bool:
            return part == "value" or any(getattr(cells[i], part) for _, cells in self.rows)

        columns = range(len(self.columns))
        kept = [(i, part) for i in columns for part in parts if is_used(i, part)]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self.corner, *(self.columns[i] + parts[part] for i, part in kept)])
        for name, cells in self.rows:
            writer.writerow([name, *(getattr(cells[i], part) for i, part in kept)])
        return out.getvalue()

    def latex(self) -> str:
        """A booktabs table; one of many columns is scaled to the text's width."""
        around = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}

        def text(cell: Cell) -> str:
            mark = {"": "", BETTER: r"$^{*}$", WORSE: r"$^{\dagger}$"}[cell.mark]
            number = around[cell.rank].format(cell.number) + mark if cell.number else "--"
            return number + _tex(cell.rest)

        wide = len(self.columns) > 5
        lines = ["% needs \\usepackage{booktabs}" + (" and \\usepackage{graphicx}" if wide else "")]
        lines += [r"\begin{table*}" if wide else r"\begin{table}", r"\centering"]
        lines.append(rf"\caption{{{_tex(self.title)}. {_tex(' '.join(self.notes))}}}")
        lines += [r"\resizebox{\textwidth}{!}{%"] if wide else []
        lines += [rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule"]
        lines += [" & ".join([self.corner, *map(_tex, self.columns)]) + r" \\", r"\midrule"]
        lines += [" & ".join([_tex(name), *map(text, cells)]) + r" \\" for name, cells in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}" + ("}" if wide else "")]
        return "\n".join([*lines, r"\end{table*}" if wide else r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    escapes = {c: rf"\{c}" for c in "&%$#_{}"}
    escapes |= {
        "\\": r"\textbackslash{}",
        "^": r"\^{}",
        "~": r"\~{}",
        "±": r"$\pm$",
        ">": r"$>$",
        "<": r"$<$",
    }
    escapes |= {"\N{DAGGER}": r"$\dagger$", "\N{EN DASH}": "--", "…": r"\ldots{}"}
    return "".join(escapes.get(c, c) for c in text.replace("->", "\0")).replace("\0", r"$\to$")


def _md(text: str) -> str:
    """Text in which nothing acts as Markdown or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", r"\|").replace("*", r"\*")
    return text.replace("\n", " ")


def build(evidence: Evidence, metric: str = "") -> Table:
    """The table of one metric (the protocol's first where not given)."""
    scores = evidence.scores[metric] if metric else evidence.main
    metric = scores.metric
    columns = [
        [_value(evidence, scores, transfer, m) for m in evidence.methods]
        for transfer in evidence.transfers
    ]
    columns.append([_mean(evidence, scores, m) for m in evidence.methods])
    ranked = [_ranked(column, HIGHER_IS_BETTER[metric]) for column in columns]
    for names in (("gain", "low", "high"), ("relative", "relative_low", "relative_high")):
        ranked.append([_gain(scores.gain(m), names) for m in evidence.methods])
    return Table(
        title=f"{evidence.name}: {NAMES[metric]} [{UNITS[metric]}]",
        columns=[*evidence.transfers, "mean", f"gain [{GAIN_UNITS[metric]}]", "gain [% rel.]"],
        rows=[(m, [column[i] for column in ranked]) for i, m in enumerate(evidence.methods)],
        notes=caption(evidence, scores),
    )


def _value(evidence: Evidence, scores: Scores, transfer: str, method: str) -> Cell:
    lacks = scores.incomplete.get((transfer, method), "")
    cell = replace(_over_seeds(scores.by_seed(transfer, method)), lacks=lacks)
    row = scores.comparison(transfer, method, evidence.reference)
    if cell.value is None or row is None or not np.isfinite(row["p_holm"]):
        return cell
    mark = (BETTER if row["rank_biserial"] > 0 else WORSE) if row["p_holm"] < ALPHA else ""
    return replace(cell, p=float(row["p_holm"]), mark=mark)


def _mean(evidence: Evidence, scores: Scores, method: str) -> Cell:
    """Over transfers, of methods that have all of them: else it would compare different things."""
    if scores.grid is None or any((t, method) in scores.incomplete for t in evidence.transfers):
        return Cell(None)
    return _over_seeds(np.mean([scores.by_seed(t, method) for t in evidence.transfers], axis=0))


def _over_seeds(values: np.ndarray) -> Cell:
    values = values[np.isfinite(values)]
    if not len(values):
        return Cell(None)
    return Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def _gain(gain: dict[str, float] | None, names: tuple[str, str, str]) -> Cell:
    if gain is None or not np.isfinite(gain[names[0]]):
        return Cell(None)
    value, low, high = (gain[name] for name in names)
    known = np.isfinite(low) and np.isfinite(high)
    return Cell(value, low=low if known else None, high=high if known else None, signed=True)


def _ranked(column: list[Cell], higher_is_better: bool) -> list[Cell]:
    """Ranks what a reader sees: values that are printed alike share a rank."""
    shown = {round(c.value, 2) for c in column if c.value is not None and not c.lacks}
    order = sorted(shown, reverse=higher_is_better)[:2]

    def rank(cell: Cell) -> int:
        if cell.value is None or cell.lacks or round(cell.value, 2) not in order:
            return 0
        return order.index(round(cell.value, 2)) + 1

    return [replace(cell, rank=rank(cell)) for cell in column]


def caption(evidence: Evidence, scores: Scores) -> list[str]:
    """What a reader must know of a table: data, n, seeds, spread, tests, split, what is missing."""
    split, target = evidence.protocol.split, evidence.protocol.training.target
    notes = [PHANTOM] if evidence.phantom else []
    if scores.fault:
        notes.append(f"No numbers: {scores.fault}.")
    else:
        notes += [_what_is_shown(evidence, scores), *_how_it_is_tested(evidence, scores)]
    kept = "last step" if target.select == "last" else "best validation Dice"
    drawn = "drawn again for each seed" if split.per_seed else f"seed {split.seed}"
    sizes = split.target
    parts = f"target train {sizes.train}, validation {sizes.val}, test {sizes.test}"
    both, one = EMPTY_RULE[scores.metric]
    where_one = one if isinstance(one, str) else f"{one:g}"
    notes += [
        f"Weights: those of the {kept} of {target.steps} steps; test subjects were read once, at "
        "the end.",
        f"Split by patient, {drawn}: source {split.source:g}, {parts}. "
        f"Empty masks: {both:g} where both are empty, {where_one} where one is.",
    ]
    if tuned := evidence.results.plan.tuned:
        notes.append(_how_it_was_tuned(tuned, evidence.results.folder))
    if left_out := evidence.results.plan.left_out:
        notes.append(f"Left out: {_some([x.subject for x in left_out])}.")
    if unfinished := evidence.results.unfinished():
        cells = [
            f"{c.transfer} {c.method} seed {c.seed} ({_first_line(why)})" for c, why in unfinished
        ]
        notes.append(f"Without numbers: {_some(cells)}.")
    return notes


def _how_it_was_tuned(tuned: TunedNote, folder: ProtocolFolder) -> str:
    """The budget and what it took; the time, where the sweep lies beside the results."""
    b = tuned.budget
    took = f"{tuned.passes} forward-backward passes in all"
    if folder.tuned.is_file() and read_tuned(folder.tuned).note.digest == tuned.digest:
        hours = sum(method.seconds for method in read_trials(folder).methods) / 3600
        took += f", {hours:.1f} hours of training"
    each = "each method and transfer" if b.per == "transfer" else "each method"
    return (
        f"Tuned on the validation subjects, with the same budget for {each}: {b.trials} trials of "
        f"{b.steps} steps on {len(b.seeds)} seed{'' if len(b.seeds) == 1 else 's'} of "
        f"{_some(list(b.transfers))} ({b.sampler}; {took}; tuned.yaml {tuned.digest})."
    )


def _what_is_shown(evidence: Evidence, scores: Scores) -> str:
    assert scores.grid is not None
    n = sorted({int(cells.any(axis=1).sum()) for cells in scores.grid.cells})
    classes = evidence.long[evidence.long.metric == scores.metric]["class"].nunique()
    seeds = len(evidence.seeds)
    spread = f"{seeds} seeds; ± is the standard deviation over the seeds of the mean over subjects"
    if seeds == 1:
        spread = "one seed, so no spread is given"
    subjects = f"{n[0]}" if len(n) == 1 else f"{n[0]}-{n[-1]}"
    return (
        f"Mean over {subjects} test subjects and {classes} class{'' if classes == 1 else 'es'}; "
        f"{spread}. Bold: best of a column; underlined: second."
    )


def _how_it_is_tested(evidence: Evidence, scores: Scores) -> list[str]:
    reference = evidence.reference
    if scores.gains.empty:
        return [
            f"No method '{reference}' beside others with numbers, so there are no gains and no "
            "tests."
        ]
    tests = int(scores.comparisons["p_holm"].notna().sum())
    left_out = int(scores.gains.loc[scores.gains.transfer == OVERALL, "left_out"].max())
    notes = [
        f"{BETTER} better, {WORSE} worse than {reference}: p < {ALPHA:g}, two-sided Wilcoxon "
        "signed-rank test over subjects (means over seeds), Holm-corrected over the "
        f"{tests} comparisons in comparisons.csv.",
        f"Gain: over {reference}, paired by transfer, subject and seed, positive is better; in "
        "brackets its 95 % bootstrap interval (subjects and seeds resampled; not corrected for "
        "their number).",
    ]
    if left_out:
        notes.append(f"Gains leave out up to {left_out} scans that one of the two methods lacks.")
    return notes


def _some(items: list[str], most: int = 10) -> str:
    return "; ".join(items[:most]) + (f"; … {len(items) - most} more" if len(items) > most else "")


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0].rstrip(": ")[:100]


def compare(several: dict[str, Evidence], metric: str) -> Table:
    """Several results side by side: for each, mean over transfers, and gain with its interval.

    Args:
        several: Label to evidence; those without the metric have no columns.
        metric: Which metric.
    """
    several = {label: e for label, e in several.items() if metric in e.scores}
    methods = list(dict.fromkeys(m for e in several.values() for m in e.methods))
    columns: dict[str, list[Cell]] = {}
    for label, e in several.items():
        scores = e.scores[metric]
        means = [_mean(e, scores, m) if m in e.methods else Cell(None) for m in methods]
        columns[f"{label}: mean"] = _ranked(means, HIGHER_IS_BETTER[metric])
        gains = [_gain(scores.gain(m), ("gain", "low", "high")) for m in methods]
        columns[f"{label}: gain over {e.reference}"] = gains
    notes = [PHANTOM] if any(e.phantom for e in several.values()) else []
    notes += [
        "Mean over transfers, of methods that have all of them; ± is the standard deviation over "
        "seeds of the mean over subjects. Bold: best of a column; underlined: second.",
        f"Gain in {GAIN_UNITS[metric]}, positive is better; in brackets its 95 % bootstrap "
        "interval (subjects and seeds resampled; not corrected for their number). Results are not "
        "pooled: each column stands for itself.",
    ]
    if len({e.results.plan.settings for e in several.values()}) > 1:
        notes.append(
            "The results differ in their settings (see each report), so compare gains, not means."
        )
    return Table(
        title=f"{NAMES[metric]} [{UNITS[metric]}]",
        columns=list(columns),
        rows=[(m, [column[i] for column in columns.values()]) for i, m in enumerate(methods)],
        notes=notes,
    )


def comparisons_csv(evidence: Evidence) -> str:
    """Every test that was made, for every metric; gains in the metric's own unit."""
    import pandas as pd

    scores = evidence.scores.items()
    parts = [s.comparisons.assign(metric=m) for m, s in scores if len(s.comparisons)]
    if not parts:
        return "metric,transfer,method,versus\n"
    table = pd.concat(parts, ignore_index=True)
    columns = ["metric", *table.columns.drop("metric")]
    return str(table[columns].to_csv(index=False, lineterminator="\n"))


# ------------------------------------------------------------------------------------------ summary


def summary(evidence: Evidence) -> dict[str, Any]:
    """summary.json: per metric and method mean, deviation over seeds, gain and n; the verdict."""
    gaps, metric = evidence.gaps, evidence.main.metric
    overall = gaps[(gaps["transfer"] == OVERALL) & (gaps["metric"] == metric)]
    scores = evidence.scores.items()
    return {
        "protocol": evidence.name,
        "data": evidence.results.plan.data,
        "units": {m: UNITS[m] for m in evidence.scores},
        "seeds": evidence.seeds,
        "states": evidence.states(),
        "verdict": {"words": evidence.words, "none_because": evidence.no_verdict},
        "problems": evidence.problems,
        "left_out": [subject.model_dump() for subject in evidence.results.plan.left_out],
        "negative_transfer": {
            row["method"]: {
                "gap": _finite(row["gap"]),
                "interval": [_finite(row["low"]), _finite(row["high"])],
                "present": bool(row["negative_transfer"]),
            }
            # the rows over all classes come first
            for row in overall.drop_duplicates("method").to_dict("records")
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
    mean, gain = _mean(evidence, scores, method), scores.gain(method) or {}
    transfers = evidence.transfers
    subjects = {s for t in transfers for s in scores.by_subject(t, method)}
    is_reference = method == evidence.reference
    return {
        "mean": mean.value,
        "sd_over_seeds": mean.spread,
        "gain_points": 0.0 if is_reference else _finite(gain.get("gain")),
        "gain_interval": [_finite(gain.get("low")), _finite(gain.get("high"))],
        "gain_relative_percent": 0.0 if is_reference else _finite(gain.get("relative")),
        "n_subjects": len(subjects),
        "per_transfer": {t: _over_seeds(scores.by_seed(t, method)).value for t in transfers},
    }


def _overall(table: pd.DataFrame, name: str, value: str) -> dict[str, float | None]:
    """Of all voxels and the mean over transfers."""
    rows = table[(table["transfer"] == OVERALL) & (table["class"] == ALL_VOXELS)]
    return {str(k): _finite(v) for k, v in zip(rows[name], rows[value], strict=True)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
