"""readings.md, readings.csv and a forest plot: the effects that `readings` finds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trm_bench.files import write_text
from trm_bench.report import sheets
from trm_bench.report.drawing import Drawing, label_below, legend, panels, write
from trm_bench.report.evidence import PHANTOM
from trm_bench.report.marks import INTERVAL, ROW, Interval, explained, intervals, rows
from trm_bench.report.style import BLUE, LINE, SMALL, SOFT, WIDE
from trm_bench.report.svg import tag
from trm_bench.report.tables import md
from trm_bench.sweep.pages import markdown_table
from trm_bench.sweep.readings import (
    Dataset,
    balance,
    collect,
    observations,
    over_datasets,
    references,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

HOW = (
    "Effects in Dice points on validation subjects, from an additive model of each dataset's "
    "trials: against the mean of the option's values, or for each factor e of a number. "
    "Interactions are not modelled. Trials that failed have no score, so a value that often fails "
    "looks better than it is. A sampler that seeks good scores draws bad values seldom: for this "
    "question sweep with `--set sweep.sampler=random`, and with many trials. Effects that the "
    "trials cannot tell apart are not estimable (-)."
)
OVER = {
    1: "One dataset: an interval is about these trials of it, and says nothing of other data.",
    2: "Two datasets: the ends are the two datasets' effects, not an interval.",
}
INTERVALS = (
    "Intervals are 95 % t intervals over datasets, each for its value alone: of twenty values "
    "without an effect, one leaves out 0 by chance."
)
FEW = (
    "**No effect is estimable: the model has about as many effects as there are values to choose "
    "from, and needs more finished trials than that.**"
)


def write_readings(paths: Sequence[Path], method: str, output: Path) -> list[Path]:
    """Writes readings.md, readings.csv and the chart of readings.

    Args:
        paths: Folders of results, or of protocols, with sweeps.
        method: Label of the method whose options are judged.
        output: The folder to write to.

    Returns:
        The files written.

    Raises:
        UserError: See `readings.collect`.
    """
    datasets = collect(paths, method)
    table = over_datasets(datasets)
    markdown, csv = (output / f"readings.{end}" for end in ("md", "csv"))
    chart = write(partial(_forest, table, datasets, method), "readings", output, _phantom(datasets))
    write_text(markdown, _markdown(table, datasets, method))
    write_text(csv, sheets.of_frame(table))
    return [markdown, csv, *chart.files]


def _phantom(datasets: Sequence[Dataset]) -> bool:
    return datasets[0].data == "phantom"


def _forest(
    table: pd.DataFrame, datasets: Sequence[Dataset], method: str, width: float = WIDE
) -> Drawing:
    """A row a value: dots of the datasets, their mean, its interval."""
    names = [f"{row.option}: {row.value}" for row in table.itertuples()]
    figure, (ax,), _ = panels(1, width, ROW * len(table) + 0.4, least=1)
    rows(ax, names, 36)
    for y, (_, row) in enumerate(table.iterrows()):
        _mark(ax, y, row, datasets)
    changes = [i for i in range(1, len(table)) if table.option[i] != table.option[i - 1]]
    for place in changes:
        ax.axhline(place - 0.5, color=LINE, linewidth=0.8)
    label_below(figure, "effect on validation Dice [points], better to the right")
    if table.datasets.any():
        shown = table[table.datasets > 0]
        noun = "range of two" if len(datasets) == 2 else INTERVAL
        legend(figure, [ax], explained(list(zip(shown.low, shown.high, strict=True)), noun))
    listed = ", ".join(f"{n} {_points(e)}" for n, e in zip(names, table.effect, strict=True))
    return Drawing(
        figure,
        f"Readings of {method}",
        "Effect of each value; small grey dots: single datasets; a filled mark has an interval "
        "that does not hold 0.",
        f"Forest plot of effects in Dice points: {listed}.",
    )


def _mark(ax: Axes, y: float, row: pd.Series, datasets: Sequence[Dataset]) -> None:
    if not row.datasets:
        ax.text(0, y, " not estimable", fontsize=SMALL, color=SOFT, va="center")
        return
    single = {d.name: row[d.name] for d in datasets if len(datasets) > 1}
    known = {name: effect for name, effect in single.items() if math.isfinite(effect)}
    if known:
        values = list(known.values())
        (dots,) = ax.plot(values, [y + 0.33] * len(values), "o", color=SOFT, label="a dataset")
        dots.set(markersize=2.8, zorder=1)
        tag(dots, "", *(f"{name}: {_points(effect)}" for name, effect in known.items()))
    alone = len(single) > 1 and len(known) == 1  # among intervals over datasets, another thing
    ends, title = (row.low, row.high), f"{row.option} {row.value}: {_points(row.effect)}"
    intervals(ax, [Interval(y, row.effect, ends, SOFT if alone else BLUE, "", title)])


def _markdown(table: pd.DataFrame, datasets: Sequence[Dataset], method: str) -> str:
    stand_in = [f"**{PHANTOM}**", ""] if _phantom(datasets) else []
    scores = (
        (name, label, *("-" if s is None else f"{100 * s:.2f}" for s in (default, best)))
        for name, label, default, best in references(datasets)
    )
    return "\n".join(
        [
            f"# Readings of {md(method)}",
            "",
            *stand_in,
            f"Datasets: {', '.join(map(_counted, datasets))}.",
            "",
            HOW,
            "",
            OVER.get(len(datasets), INTERVALS),
            *(line for note in _notes(table, datasets) for line in ("", note)),
            "",
            *_effects(table, datasets),
            "",
            "Validation Dice [%] of the searched reading and of the fixed ones:",
            "",
            *markdown_table(("dataset", "method", "defaults", "best trial"), scores),
            *_shares(datasets),
            "",
        ]
    )


def _counted(dataset: Dataset) -> str:
    entry, used = dataset.finding.entry, len(observations(dataset.finding))
    shared = entry.finished - used
    told = f"{entry.finished} finished trials, {entry.failed} failed"
    return f"{md(dataset.name)} ({told}{f', {shared} with the run of another' if shared else ''})"


def _notes(table: pd.DataFrame, datasets: Sequence[Dataset]) -> Iterator[str]:
    """What must be known of these datasets."""
    if table.effect.isna().all():
        yield FEW
    for dimension in datasets[0].finding.dimensions:
        own = table[table.option == dimension.name]
        against = own.against.iloc[0]
        if against and against != ", ".join(own["value"]):
            yield md(f"Effects of {dimension.name} are against the mean of {against}.")
    for subjects in dict.fromkeys(d.subjects for d in datasets if d.subjects):
        same = [d.name for d in datasets if d.subjects == subjects]
        if len(same) > 1:
            yield (
                f"The same subjects: {md(', '.join(same))}. These are not independent, so that an "
                "interval over datasets is too narrow."
            )


def _effects(table: pd.DataFrame, datasets: Sequence[Dataset]) -> list[str]:
    names = [d.name for d in datasets]
    header = (
        "option", "value", "effect", "interval", "what it is", "mean rank", "best in", "trials",
        "failed", *names,
    )  # fmt: skip
    rows = [
        (
            row.option,
            row.value,
            _points(row.effect),
            f"[{_points(row.low)}, {_points(row.high)}]" if math.isfinite(row.low) else "-",
            row.interval,
            f"{row['rank']:.1f}" if row.ranked else "-",
            f"{row.best} of {row.ranked}" if row.ranked else "-",
            row.trials,
            row.failed,
            *(_points(row[name]) for name in names),
        )
        for _, row in table.iterrows()
    ]
    return markdown_table(header, rows)


def _shares(datasets: Sequence[Dataset]) -> list[str]:
    shares = balance(datasets, "denominator")
    if not shares:
        return []
    names = [d.name for d in datasets]
    rows = (
        (value, *(f"{own[name]:.2f}" if name in own else "-" for name in names))
        for value, own in shares.items()
    )
    title = "Share of the voxel-wise term in the norm of the gradient, plain mean over trials:"
    return ["", title, "", *markdown_table(("denominator", *names), rows)]


def _points(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "-"
