"""readings.md, readings.csv and a forest plot: the effects that `readings` finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trm_bench.files import write_text
from trm_bench.report.drawing import BLUE, GREY, PALE, STYLE, Drawing, panels, write
from trm_bench.report.evidence import PHANTOM
from trm_bench.sweep.pages import markdown_table
from trm_bench.sweep.readings import Dataset, balance, collect, over_datasets, references

if TYPE_CHECKING:
    import pandas as pd

HOW = (
    "Effects in Dice points on validation subjects, from an additive model of each dataset's "
    "trials; those of an option sum to 0 over its values. Interactions are not modelled. A sampler "
    "that seeks good scores draws bad values seldom: for this question sweep with "
    "`--set sweep.sampler=random`, and with many trials. Effects that the trials cannot tell apart "
    "are not estimable (-)."
)
FEW = (
    "**No effect is estimable: the model has about as many effects as there are values to choose "
    "from, and needs more finished trials than that.**"
)


def write_readings(paths: Sequence[Path], method: str, output: Path) -> list[Path]:
    """Writes readings.md, readings.csv, readings.png and readings.svg.

    Args:
        paths: Folders of results, or of protocols, with sweeps.
        method: Label of the method whose options are judged.
        output: The folder to write to.

    Returns:
        The files written.

    Raises:
        UserError: See `readings.collect`.
    """
    import matplotlib as mpl

    datasets = collect(paths, method)
    table = over_datasets(datasets)
    png, svg, markdown, csv = (output / f"readings.{end}" for end in ("png", "svg", "md", "csv"))
    with mpl.rc_context(STYLE):
        write(_forest(table, datasets, method), "readings", png, svg, _phantom(datasets))
    write_text(markdown, _markdown(table, datasets, method))
    write_text(csv, table.to_csv(index=False, lineterminator="\n"))
    return [markdown, csv, png, svg]


def _phantom(datasets: Sequence[Dataset]) -> bool:
    return datasets[0].data == "phantom"


def _forest(table: pd.DataFrame, datasets: Sequence[Dataset], method: str) -> Drawing:
    """A row a value: dots of the datasets, their mean, its interval."""
    shown = table[table.datasets > 0].reset_index(drop=True)
    figure, (ax,) = panels(1, 5.6, 0.2 * len(shown) + 1.0)
    ax.axvline(0, color=GREY, linewidth=0.9)
    for y, (_, row) in enumerate(shown.iterrows()):
        for dataset in datasets:
            ax.plot([row[dataset.name]], [y], "o", color=PALE, markersize=4, zorder=1)
        if math.isfinite(row.low):
            ax.plot([row.low, row.high], [y, y], color=BLUE, linewidth=1.6, zorder=2)
        clear = math.isfinite(row.low) and (row.low > 0 or row.high < 0)
        ax.plot([row.effect], [y], "D", color=BLUE, markersize=5, zorder=3,
                markerfacecolor=BLUE if clear else "white")  # fmt: skip
    names = [f"{row.option}: {row.value}" for row in shown.itertuples()]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    changes = [i for i in range(1, len(shown)) if shown.option[i] != shown.option[i - 1]]
    for place in changes:
        ax.axhline(place - 0.5, color=PALE, linewidth=0.6)
    ax.set_xlabel("effect on validation Dice [points]")
    listed = ", ".join(f"{n} {e:+.2f}" for n, e in zip(names, shown.effect, strict=True))
    return Drawing(
        figure,
        f"Readings of {method}",
        "Effect of each value; pale: single datasets; filled: an interval without 0.",
        f"Forest plot of effects in Dice points: {listed}.",
    )


def _markdown(table: pd.DataFrame, datasets: Sequence[Dataset], method: str) -> str:
    names = [d.name for d in datasets]
    stand_in = [f"**{PHANTOM}**", ""] if _phantom(datasets) else []
    trials = ", ".join(
        f"{d.name} ({d.finding.entry.finished} finished trials, {d.finding.entry.failed} failed)"
        for d in datasets
    )
    header = ("option", "value", "effect", "interval", "what it is", "mean rank", "best in", *names)
    rows = [
        (
            row.option,
            row.value,
            _points(row.effect),
            f"[{_points(row.low)}, {_points(row.high)}]" if math.isfinite(row.low) else "-",
            row.interval,
            "-" if math.isnan(row["rank"]) else f"{row['rank']:.1f}",
            f"{row.best} of {row.datasets}",
            *(_points(row[name]) for name in names),
        )
        for _, row in table.iterrows()
    ]
    scores = (
        (name, label, *("-" if s is None else f"{100 * s:.2f}" for s in (default, best)))
        for name, label, default, best in references(datasets)
    )
    shares = ((value, f"{share:.2f}") for value, share in balance(datasets, "denominator").items())
    return "\n".join(
        [
            f"# Readings of {method}",
            "",
            *stand_in,
            f"Datasets: {trials}.",
            "",
            HOW,
            *(["", FEW] if table.effect.isna().all() else []),
            "",
            *markdown_table(header, rows),
            "",
            "Validation Dice [%] of the searched reading and of the fixed ones:",
            "",
            *markdown_table(("dataset", "method", "defaults", "best trial"), scores),
            "",
            "Share of the voxel-wise term in the norm of the gradient, mean over trials:",
            "",
            *markdown_table(("denominator", "share"), shares),
            "",
        ]
    )


def _points(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:+.2f}"
