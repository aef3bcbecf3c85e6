"""The paper-style table and the summary: one source, three formats."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trm_bench.evaluation import EMPTY_RULE, HIGHER_IS_BETTER
from trm_bench.results import Results

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "finetune"
PER_CENT = {"dice": 100.0, "surface_dice": 100.0, "hd95": 1.0}
UNITS = {"dice": "%", "surface_dice": "%", "hd95": "mm"}
MISSING = "\N{EN DASH}"
PHANTOM = "STAND-IN DATA (phantom): these numbers say nothing about the paper's claim."


@dataclass(frozen=True)
class Cell:
    """A value with its spread; `rank` 1 is the best of its column, 2 the second, 0 neither."""

    mean: float | None
    spread: float | None = None
    rank: int = 0
    signed: bool = False

    def text(self, plus_minus: str, missing: str) -> str:
        """As a person reads it."""
        if self.mean is None:
            return missing
        text = f"{self.mean:+.2f}" if self.signed else f"{self.mean:.2f}"
        return text if self.spread is None else f"{text}{plus_minus}{self.spread:.2f}"


@dataclass(frozen=True)
class Table:
    """Rows are methods, columns transfers, their mean, and the gain over fine-tuning."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]
    notes: list[str]

    def markdown(self) -> str:
        """GitHub Markdown; best in bold, second underlined."""
        marks = {0: ("", ""), 1: ("**", "**"), 2: ("<u>", "</u>")}
        lines = [f"### {self.title}", "", f"| method | {' | '.join(self.columns)} |"]
        lines.append("|---|" + "---:|" * len(self.columns))
        for method, cells in self.rows:
            texts = [f"{marks[c.rank][0]}{c.text(' ± ', MISSING)}{marks[c.rank][1]}" for c in cells]
            lines.append(f"| {method} | {' | '.join(texts)} |")
        return "\n".join([*lines, "", *[f"{note}  " for note in self.notes]]) + "\n"

    def csv(self) -> str:
        """One column for every mean and one for every spread, all digits."""
        import csv

        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        spread = [any(cells[i].spread is not None for _, cells in self.rows) for i in range(len(self.columns))]
        header = ["method"]
        for name, has_spread in zip(self.columns, spread, strict=True):
            header += [name, f"{name} sd"] if has_spread else [name]
        writer.writerow(header)
        for method, cells in self.rows:
            row: list[Any] = [method]
            for cell, has_spread in zip(cells, spread, strict=True):
                row += [cell.mean, cell.spread] if has_spread else [cell.mean]
            writer.writerow(row)
        return out.getvalue()

    def latex(self) -> str:
        """A booktabs table that compiles with \\usepackage{booktabs}."""
        marks = {0: "{}", 1: r"\textbf{{{}}}", 2: r"\underline{{{}}}"}
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(self.title)} {_tex(' '.join(self.notes))}}}"]
        lines += [rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule"]
        lines += [" & ".join(["method", *map(_tex, self.columns)]) + r" \\", r"\midrule"]
        for method, cells in self.rows:
            texts = [marks[c.rank].format(c.text(r" $\pm$ ", "--")) for c in cells]
            lines.append(" & ".join([_tex(method), *texts]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _tex(text: str) -> str:
    for plain, escaped in (("\\", r"\textbackslash "), *((c, rf"\{c}") for c in "&%$#_{}")):
        text = text.replace(plain, escaped)
    for plain, escaped in (("->", r"$\to$"), ("±", r"$\pm$"), ("^", r"\^{}"), (">", r"$>$"), ("<", r"$<$")):
        text = text.replace(plain, escaped)
    return text


def build(results: Results, long: pd.DataFrame, metric: str = "") -> Table:
    """The table of one metric (the protocol's first where not given)."""
    metric = metric or results.plan["protocol"]["metrics"][0]
    values = by_seed(long, metric)
    methods = list(dict.fromkeys(c["method"] for c in results.cells))
    transfers = list(dict.fromkeys(c["transfer"] for c in results.cells))
    complete = _complete(results)
    columns: list[list[Cell]] = []
    for transfer in transfers:
        part = values[values.transfer == transfer]
        columns.append([_cell(part[part.method == m].value) for m in methods])
    # A mean over transfers is of methods that have all of them; else it would compare different things.
    whole = values.groupby(["method", "seed"], sort=False).value.mean().reset_index()
    columns.append([_cell(whole[whole.method == m].value) if m in complete else Cell(None) for m in methods])
    ranked = [_ranked(column, HIGHER_IS_BETTER[metric]) for column in columns]
    gains = {m: gain(long, metric, m) for m in methods}
    for key in ("points", "relative"):
        ranked.append([Cell(gains[m][key] if m != REFERENCE else None, signed=True) for m in methods])
    names = {"dice": "Dice", "hd95": "HD95", "surface_dice": "Surface Dice"}
    unit = UNITS[metric]
    return Table(
        title=f"{results.plan['protocol']['name']}: {names[metric]} [{unit}]",
        columns=[*transfers, "mean", f"gain [{'points' if unit == '%' else unit}]", "gain [% rel.]"],
        rows=[(m, [column[i] for column in ranked]) for i, m in enumerate(methods)],
        notes=_notes(results, long, metric),
    )


def _notes(results: Results, long: pd.DataFrame, metric: str) -> list[str]:
    protocol = results.plan["protocol"]
    split, target = protocol["split"], protocol["training"]["target"]
    both, one = EMPTY_RULE[metric]
    subjects = long.groupby("transfer").subject.nunique()
    n = (
        f"{subjects.min()}"
        if subjects.nunique() == 1
        else f"{subjects.min()}-{subjects.max()}"
        if len(subjects)
        else "0"
    )
    seeds = sorted({c["seed"] for c in results.cells})
    notes = [PHANTOM] if results.plan["data"] == "phantom" else []
    spread = f"± is the standard deviation over the {len(seeds)} seeds of the mean over subjects"
    notes += [
        f"Mean over {n} test subjects and {long['class'].nunique()} class(es); "
        f"{spread if len(seeds) > 1 else 'one seed, so no spread is given'}.",
        f"Gain over {REFERENCE}, paired by transfer, seed and subject. Weights: {target['select']} of "
        f"{target['steps']} steps; test subjects were read once, at the end.",
        f"Split by patient, seed {split['seed']}: source {split['source']:g}, target train {split['target']['train']}, "
        f"validation {split['target']['val']}, test {split['target']['test']}. "
        f"Empty masks: {both:g} where both are empty, {one if isinstance(one, str) else f'{one:g}'} where one is.",
    ]
    if results.plan["left_out"]:
        notes.append(f"Left out: {', '.join(x['subject'] for x in results.plan['left_out'])}.")
    if unfinished := results.unfinished():
        cells = [
            f"{c['transfer']} {c['method']} seed {c['seed']} ({why.splitlines()[0][:80]})" for c, why in unfinished
        ]
        notes.append(f"Without numbers: {'; '.join(cells[:10])}{' …' if len(cells) > 10 else ''}.")
    return notes


def by_seed(long: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over classes, then subjects, in the metric's printed unit: transfer, method, seed, value."""
    part = long[long.metric == metric]
    subjects = part.groupby(["transfer", "method", "seed", "subject"], sort=False).value.mean()
    mean = subjects.groupby(["transfer", "method", "seed"], sort=False).mean() * PER_CENT[metric]
    return mean.reset_index()


def gain(long: pd.DataFrame, metric: str, method: str) -> dict[str, Any]:
    """Mean gain over the reference on the (transfer, seed, subject) that both have; positive is better.

    Returns:
        `points` (percentage points, or mm), `relative` (% of the reference's mean), and `n`, the number of pairs.
    """
    part = long[(long.metric == metric) & long.method.isin([method, REFERENCE])]
    wide = part.pivot_table(index=["transfer", "seed", "subject"], columns="method", values="value", aggfunc="mean")
    if REFERENCE not in wide or method not in wide:
        return {"points": None, "relative": None, "n": 0}
    wide = wide.dropna(subset=list({method, REFERENCE}))
    if wide.empty:
        return {"points": None, "relative": None, "n": 0}
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    reference = float(wide[REFERENCE].mean())
    difference = sign * (float(wide[method].mean()) - reference)
    relative = 100 * difference / abs(reference) if reference else None
    return {"points": difference * PER_CENT[metric], "relative": relative, "n": len(wide)}


def summary(results: Results, long: pd.DataFrame) -> dict[str, Any]:
    """summary.json: per metric and method mean, deviation over seeds, gain over fine-tuning, and n."""
    methods = list(dict.fromkeys(c["method"] for c in results.cells))
    metrics: dict[str, Any] = {}
    for metric in results.plan["protocol"]["metrics"]:
        values = by_seed(long, metric)
        metrics[metric] = {}
        for method in methods:
            part = values[values.method == method]
            per_seed = part.groupby("seed").value.mean()
            gained = gain(long, metric, method)
            metrics[metric][method] = {
                "mean": float(per_seed.mean()) if len(per_seed) else None,
                "sd_over_seeds": float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None,
                "gain_points": gained["points"],
                "gain_relative_percent": gained["relative"],
                "n_subjects": int(long[(long.method == method) & (long.metric == metric)].subject.nunique()),
                "n_pairs": gained["n"],
                "per_transfer": {t: float(v) for t, v in part.groupby("transfer", sort=False).value.mean().items()},
            }
    states: dict[str, int] = {}
    for cell in results.cells:
        record = results.record(cell)
        state = record["state"] if record else "not run"
        states[state] = states.get(state, 0) + 1
    return {
        "protocol": results.plan["protocol"]["name"],
        "data": results.plan["data"],
        "units": {m: UNITS[m] for m in metrics},
        "seeds": sorted({c["seed"] for c in results.cells}),
        "states": states,
        "left_out": results.plan["left_out"],
        "metrics": metrics,
    }


def _complete(results: Results) -> set[str]:
    """Methods of which every cell is finished."""
    incomplete = {cell["method"] for cell, _ in results.unfinished()}
    return {c["method"] for c in results.cells} - incomplete


def _cell(values: pd.Series) -> Cell:
    if values.empty:
        return Cell(None)
    return Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def _ranked(column: list[Cell], higher_is_better: bool) -> list[Cell]:
    values = sorted({c.mean for c in column if c.mean is not None}, reverse=higher_is_better)
    return [Cell(c.mean, c.spread, values.index(c.mean) + 1 if c.mean in values[:2] else 0) for c in column]
