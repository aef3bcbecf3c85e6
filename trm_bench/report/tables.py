"""The paper-style tables, one source for Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trm_bench.analysis import family
from trm_bench.analysis.table import HIGHER_IS_BETTER
from trm_bench.report import sheets
from trm_bench.report.captions import BETTER, WORSE, caption, family_notes
from trm_bench.report.evidence import NAMES, RELATIVE, Evidence, Scores, direction

MISSING = "\N{EN DASH}"
USED = {
    "uses_validation": "validation labels",
    "uses_source_data": "source data",
    "validation_in_training_set": "trains on validation",
}
MARKS = {"": "", family.BETTER: BETTER, family.WORSE: WORSE}


@dataclass(frozen=True)
class Cell:
    """A number as it stands in a table.

    Attributes:
        value: None where there is none.
        spread: Standard deviation over seeds.
        low: Lower end of the interval, with `high`.
        high: Upper end.
        rank: 1 for the best of a column, 2 for the second, 0 for the others.
        mark: The method is better or worse, by the family's test.
        lacks: What is missing from it; such a number takes no rank.
        signed: A gain, shown with its sign.
        digits: After the point.
    """

    value: float | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    rank: int = 0
    mark: str = ""
    lacks: str = ""
    signed: bool = False
    digits: int = 2

    @property
    def number(self) -> str:
        """The value alone; empty where there is none."""
        if self.value is None:
            return ""
        least = 10.0**-self.digits
        if not self.signed and 0 < self.value < least / 2:  # a p-value is never 0
            return f"<{least:g}"
        return f"{self.value:{'+' if self.signed else ''}.{self.digits}f}"

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

        header = f"| {self.corner} | {' | '.join(map(md, self.columns))} |"
        lines = [f"### {md(self.title)}", "", header, "|---|" + "---:|" * len(self.columns)]
        lines += [f"| {md(name)} | {' | '.join(map(text, cells))} |" for name, cells in self.rows]
        return "\n".join([*lines, "", *[f"{md(note)}  " for note in self.notes]]) + "\n"

    def csv(self) -> str:
        """All digits; a column of its own for each spread, and interval end there is."""
        parts = {
            "value": "",
            "spread": " sd",
            "low": " low",
            "high": " high",
            "lacks": " lacks",
        }

        def is_used(i: int, part: str) -> bool:
            return part == "value" or any(getattr(cells[i], part) for _, cells in self.rows)

        columns = range(len(self.columns))
        kept = [(i, part) for i in columns for part in parts if is_used(i, part)]
        head = [self.corner, *(self.columns[i] + parts[part] for i, part in kept)]
        rows = ([name, *(getattr(cells[i], p) for i, p in kept)] for name, cells in self.rows)
        return sheets.of_rows([head, *rows])

    def latex(self) -> str:
        """A booktabs table; one of many columns is scaled to the text's width."""
        around = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}

        def text(cell: Cell) -> str:
            mark = {"": "", BETTER: r"$^{*}$", WORSE: r"$^{\dagger}$"}[cell.mark]
            number = around[cell.rank].format(_tex(cell.number)) + mark if cell.number else "--"
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
    text = " ".join(text.split()).replace("->", "\0")  # an empty line ends a caption
    # below a line that ends in \\, these two would be read as its options
    start = "{}" if text.startswith(("[", "*")) else ""
    return start + "".join(escapes.get(c, c) for c in text).replace("\0", r"$\to$")


def md(text: str) -> str:
    """Text in which nothing acts as Markdown or HTML."""
    escapes = {"&": "&amp;", "<": "&lt;", "\\": r"\\", "|": r"\|", "*": r"\*", "\n": " ", "\r": " "}
    escaped = "".join(escapes.get(c, c) for c in text)
    return escaped.replace("](", r"]\(").replace("]:", r"]\:")  # a link


def build(evidence: Evidence, metric: str = "") -> Table:
    """The table of one metric (the protocol's first where not given)."""
    scores = evidence.scores[metric] if metric else evidence.main
    metric = scores.metric
    columns = [
        [_value(scores, transfer, m) for m in evidence.methods] for transfer in evidence.transfers
    ]
    columns.append([overall(evidence, scores, m) for m in evidence.methods])
    shown = [ranked(column, HIGHER_IS_BETTER[metric]) for column in columns]
    for names in (["gain", "low", "high"], RELATIVE):
        shown.append([_gain(scores.gain(m), names) for m in evidence.methods])
    shown += [_costs(evidence), _trained(evidence)]
    unit, mixed = evidence.gain_unit(metric), evidence.is_mixed(metric)
    return Table(
        title=f"{evidence.name}: {NAMES[metric]} [{evidence.unit(metric)}], {direction(metric)}",
        columns=[
            *(f"{t} [{evidence.unit(metric, t)}]" if mixed else t for t in evidence.transfers),
            "mean",
            f"gain [{unit}]",
            "gain [% rel.]",
            f"passes / {evidence.unit_of_cost}",
            "trained parameters",
        ],
        rows=[(m, [column[i] for column in shown]) for i, m in enumerate(evidence.methods)],
        notes=caption(evidence, scores),
    )


def family_table(evidence: Evidence, metric: str = "") -> Table | None:
    """The declared comparisons of one metric, with marks; None where there are none."""
    scores = evidence.scores[metric] if metric else evidence.main
    if scores.family.empty:
        return None
    place = {method: i for i, method in enumerate(evidence.methods)}
    ordered = scores.family.sort_values(["method", "versus"], key=lambda names: names.map(place))
    rows = []
    for _, row in ordered.iterrows():
        gain = {k: float(row[k]) for k in ("gain", "family_low", "family_high")}
        cell = replace(_gain(gain, [*gain]), mark=MARKS[row["mark"]])
        p = Cell(float(row["p_holm"]), digits=4) if np.isfinite(row["p_holm"]) else Cell(None)
        seeds = Cell(float(row["n_seeds"]), digits=0)
        rows.append((f"{row['method']} over {row['versus']}", [cell, p, seeds]))
    unit = evidence.gain_unit(scores.metric)
    return Table(
        title=f"{evidence.name}: the declared comparisons, {NAMES[scores.metric]}",
        columns=[f"gain [{unit}]", "p (Holm)", "seeds"],
        rows=rows,
        notes=family_notes(evidence, scores),
        corner="comparison",
    )


def _value(scores: Scores, transfer: str, method: str) -> Cell:
    lacks = scores.incomplete.get((transfer, method), "")
    return replace(over_seeds(scores.by_seed(transfer, method)), lacks=lacks)


def _costs(evidence: Evidence) -> list[Cell]:
    """Passes over fine-tuning's, and what else a method used."""
    known = evidence.costs.set_index("method")
    cells = []
    for method in evidence.methods:
        row = known.loc[method].to_dict()
        used = [sign for key, sign in USED.items() if row[key]]
        times = row["times_finetune"]
        cells.append(Cell(times if np.isfinite(times) else None, digits=1, lacks=", ".join(used)))
    return cells


def _trained(evidence: Evidence) -> list[Cell]:
    """How many parameters a method trains."""
    known = evidence.costs.set_index("method")["trained"]
    numbers = [float(known[method]) for method in evidence.methods]
    return [Cell(n if np.isfinite(n) else None, digits=0) for n in numbers]


def overall(evidence: Evidence, scores: Scores, method: str) -> Cell:
    """Over transfers, of methods that have all of them: else it would compare different things.

    None where transfers differ in their unit.
    """
    if scores.grid is None or any((t, method) in scores.incomplete for t in evidence.transfers):
        return Cell(None)
    if evidence.is_mixed(scores.metric):
        return Cell(None)
    return over_seeds(np.mean([scores.by_seed(t, method) for t in evidence.transfers], axis=0))


def over_seeds(values: np.ndarray) -> Cell:
    values = values[np.isfinite(values)]
    if not len(values):
        return Cell(None)
    return Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def _gain(gain: dict[str, float] | None, names: list[str]) -> Cell:
    if gain is None or not np.isfinite(gain[names[0]]):
        return Cell(None)
    value, low, high = (gain[name] for name in names)
    known = np.isfinite(low) and np.isfinite(high)
    return Cell(value, low=low if known else None, high=high if known else None, signed=True)


def ranked(column: list[Cell], higher_is_better: bool) -> list[Cell]:
    """Ranks what a reader sees: values that are printed alike share a rank."""
    shown = {round(c.value, 2) for c in column if c.value is not None and not c.lacks}
    order = sorted(shown, reverse=higher_is_better)[:2]

    def rank(cell: Cell) -> int:
        if cell.value is None or cell.lacks or round(cell.value, 2) not in order:
            return 0
        return order.index(round(cell.value, 2)) + 1

    return [replace(cell, rank=rank(cell)) for cell in column]


def comparisons_csv(evidence: Evidence) -> str:
    """Every comparison that was made, for every metric; see docs/results.md."""
    import pandas as pd

    scores = evidence.scores.items()
    parts = [s.comparisons.assign(metric=m) for m, s in scores if len(s.comparisons)]
    if not parts:
        return "metric,transfer,method,versus\n"
    table = pd.concat(parts, ignore_index=True)
    columns = ["metric", *table.columns.drop("metric")]
    return sheets.of_frame(table[columns])
