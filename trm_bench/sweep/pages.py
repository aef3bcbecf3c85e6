"""The report of a sweep, written from tuned.yaml and trials.json alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from trm_bench.analysis.table import SCALE
from trm_bench.files import write_text
from trm_bench.report import sheets
from trm_bench.report.drawing import Chart, Drawing, write
from trm_bench.report.evidence import PHANTOM
from trm_bench.report.pages import page, picture
from trm_bench.report.particulars import duration
from trm_bench.report.tables import MISSING, md
from trm_bench.runs.folders import ProtocolFolder, slug
from trm_bench.runs.records import Budget, Tuned
from trm_bench.sweep.charts import history, slices
from trm_bench.sweep.findings import ENOUGH, Finding, read_findings
from trm_bench.sweep.tuned import shown

OPTIMISM = (
    "The best of many trials is chosen on the validation subjects that it is scored on, so its "
    "score is too good by what noise adds to the best of them: the more trials and the fewer "
    "subjects, the more. A gain here is a hope, not a result; run --tuned measures it on test "
    "subjects, which no trial has."
)
EQUALITY = (
    "Every method has the same number of trials and of steps in each. Trials that draw the same "
    "values share their run. Passes are forward passes that a gradient went back through: a method "
    "with branches or source batches makes more of them in a step."
)
IMPORTANCE = (
    f"Below {ENOUGH} finished trials only the first parameter is named: among fewer, a parameter "
    "of no effect often comes before one of a weak effect."
)


def write_sweep(folder: ProtocolFolder) -> list[Path]:
    """Writes report.html, summary.md, trials.csv and the charts beside tuned.yaml.

    Args:
        folder: Of a protocol with a sweep.

    Returns:
        The files written.

    Raises:
        UserError: There is no tuned.yaml that can be read.
    """
    tuned, findings = read_findings(folder)
    if not findings:
        return []

    def written(make: Callable[[float], Drawing], name: str) -> Chart:
        return write(make, name, folder.sweep / "figures", tuned.data == "phantom")

    first = written(partial(history, findings), "history")
    others = [written(partial(slices, f), slug(f.title)) for f in findings]
    texts = {
        "report.html": _html(tuned, findings, first, others),
        "summary.md": _markdown(tuned, findings),
        "trials.csv": _csv(findings),
    }
    for name, text in texts.items():
        write_text(folder.sweep / name, text)
    charts = [path for chart in (first, *others) for path in chart.files]
    return [*(folder.sweep / name for name in texts), *charts]


def _html(tuned: Tuned, findings: Sequence[Finding], first: Chart, others: Sequence[Chart]) -> str:
    return page(
        "sweep.html",
        name=tuned.protocol,
        budget=f"{described(tuned.budget)}; {tuned.data} data.",
        stand_in=PHANTOM if tuned.data == "phantom" else "",
        optimism=OPTIMISM,
        rows=list(_rows(findings)),
        edges=[f"{f.title}: {line}" for f in findings for line in f.edges()],
        balance=list(_balance(findings)),
        history=picture(first),
        equality=EQUALITY,
        costs=list(_costs(findings)),
        importance_note=IMPORTANCE,
        importances=list(_importances(findings)),
        slices=[picture(chart) for chart in others],
        trials=[(f.title, list(_trials(f))) for f in findings],
    )


def described(budget: Budget) -> str:
    """A budget in words."""
    seeds = ", ".join(map(str, budget.seeds))
    scored = f"{budget.folds}-fold cross-validation" if budget.folds else "validation subjects"
    space = "" if budget.tune_training == "otherwise" else "; every method tunes the training too"
    values = "one set of values" if budget.per == "protocol" else "values for each transfer"
    return (
        f"{budget.trials} trials of each method, {budget.steps} steps each, seeds {seeds}, scored "
        f"by {scored} over {', '.join(budget.transfers)}; {values}{space}; sampler "
        f"{budget.sampler}, {budget.batch} trials proposed at a time, seed {budget.seed}"
    )


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{SCALE['dice'] * value:.2f}"


def _rows(findings: Sequence[Finding]) -> Iterator[tuple[object, ...]]:
    for f in findings:
        e = f.entry
        yield (
            f.title,
            _percent(e.default_validation_dice),
            _percent(e.validation_dice),
            MISSING if f.gain is None else f"{f.gain:+.2f}",
            MISSING if e.trial is None else e.trial,
            f"{e.finished} of {e.finished + e.failed}",
            shown(e.values),
        )


def _balance(findings: Sequence[Finding]) -> Iterator[tuple[object, ...]]:
    for f in findings:
        shares = (None if t is None else t.voxel_share for t in (f.trials[0], f.best))
        yield f.title, *(MISSING if share is None else f"{share:.2f}" for share in shares)


def _costs(findings: Sequence[Finding]) -> Iterator[tuple[object, ...]]:
    for f in findings:
        e = f.entry
        yield f.title, len(f.trials), e.runs, e.steps, e.passes, duration(f.seconds)
    sums = (sum(getattr(f.entry, name) for f in findings) for name in ("runs", "steps", "passes"))
    seconds = duration(sum(f.seconds for f in findings))
    yield "in all", sum(len(f.trials) for f in findings), *sums, seconds


def _importances(findings: Sequence[Finding]) -> Iterator[tuple[object, ...]]:
    for f in findings:
        found, note = f.importances()
        listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.items())
        yield f.title, listed or "not said", note


def _trials(finding: Finding) -> Iterator[tuple[object, ...]]:
    for t in finding.trials:
        share = MISSING if t.voxel_share is None else f"{t.voxel_share:.2f}"
        score, time = _percent(t.validation_dice), duration(t.seconds)
        yield t.number, score, share, time, shown(t.values), t.reason


def _markdown(tuned: Tuned, findings: Sequence[Finding]) -> str:
    stand_in = [f"**{PHANTOM}**", ""] if tuned.data == "phantom" else []
    methods = ("method", "defaults", "best trial", "gain", "trial", "finished", "best values")
    costs = ("method", "trials", "runs", "steps", "passes", "time")
    lines = [
        f"# Sweep of {tuned.protocol}",
        "",
        *stand_in,
        f"{described(tuned.budget)}. Mean Dice on validation [%].",
        "",
        *markdown_table(methods, _rows(findings)),
        "",
        OPTIMISM,
        "",
        *(f"- {md(f'{f.title}: {line}')}" for f in findings for line in f.edges()),
        "",
        *markdown_table(costs, _costs(findings)),
        "",
        EQUALITY,
    ]
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table."""
    shown_rows = ([md(str(cell)) for cell in row] for row in (header, *rows))
    first, *others = ["| " + " | ".join(row) + " |" for row in shown_rows]
    return [first, "| " + " | ".join(["---"] * len(header)) + " |", *others]


def _csv(findings: Sequence[Finding]) -> str:
    rows: list[Sequence[object]] = [
        ["method", "transfer", "trial", "validation_dice", "voxel_share", "seconds", "values",
         "reason", "runs"]
    ]  # fmt: skip
    for f in findings:
        for t in f.trials:
            values, runs = json.dumps(t.values), " ".join(t.runs)
            dice = None if t.validation_dice is None else SCALE["dice"] * t.validation_dice
            row = [t.number, dice, t.voxel_share, round(t.seconds, 1)]
            rows.append([f.entry.method, f.entry.transfer, *row, values, t.reason, runs])
    return sheets.of_rows(rows)
