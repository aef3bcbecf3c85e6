"""Does transferability predict? LEEP and the mean risk beside the gains: a chart and a table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from trm_bench.analysis.transferability import (
    CLASSES,
    FEWEST_TRANSFERS,
    MEASURES,
    shared_variable,
    source_variables,
)
from trm_bench.report import sides, words
from trm_bench.report.drawing import (
    DoesNotApply,
    Drawing,
    label_beside,
    legend,
    panels,
    plain,
    signed,
    wrapped,
)
from trm_bench.report.evidence import NAMES, Evidence
from trm_bench.report.style import COLOURS, SOFT, WIDE
from trm_bench.report.svg import tag
from trm_bench.report.tables import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST_CELLS = 3  # for a chart
MARKERS = ("o", "^", "s")
VARIABLES = {
    CLASSES: "the source's classes",
    "clusters": "clusters of the source's features",
    "probe": "a probe of the source's features",
}
TITLES = {"leep": "LEEP", "risk_mean": "mean risk"}


# ---------------------------------------------------------------------------------------- in words


@dataclass(frozen=True)
class Section:
    """What a page shows of `analysis.transferability.predicts`; no rows where there is no cell."""

    title: str
    columns: list[str]
    rows: list[tuple[object, ...]]
    notes: list[str]


def section(found: pd.DataFrame, reference: str, also: Sequence[str] = ()) -> Section:
    """The table and its notes.

    Args:
        found: Of `predicts`.
        reference: The method whose gain over scratch is foreseen.
        also: What else is to be noted.
    """
    rows = found.to_dict("records")
    notes = [
        f"A cell is a transfer under a seed, its gain that of {reference} over scratch. Weighted "
        "tau (Vigna 2015) counts most the transfers that look best and those that gain most; a "
        "measure is of use where its interval lies on the side of the expected sign.",
        "The interval resamples transfers with all their seeds, since seeds of one transfer are "
        "not independent. It takes transfers that share a domain as independent: read it as "
        "somewhat too narrow.",
    ]
    return Section(
        f"Rank correlation with the gain of {reference} over scratch",
        ["measure", "of use if", "weighted tau", "95 % interval", "tau", "cells", "transfers"],
        [_row(row) for row in rows if row["n_cells"]],
        [*notes, *also]
        + [f"{TITLES[row['measure']]}: {row['note']}." for row in rows if row["note"]],
    )


def _row(row: Mapping[Hashable, Any]) -> tuple[object, ...]:
    return (
        TITLES[row["measure"]],
        "above 0" if MEASURES[row["measure"]] > 0 else "below 0",
        words.signed(row["tau"]),
        words.interval(row["low"], row["high"]),
        words.signed(row["tau_plain"]),
        row["n_cells"],
        row["n_transfers"],
    )


def pooled(several: Mapping[str, Evidence]) -> pd.DataFrame:
    """The cells of several results, with the label of each as the first column.

    Results of one protocol keep its name, so that the same transfer is one cluster.
    """
    parts = [e.transferability.assign(results=label) for label, e in several.items()]
    rows = pd.concat(parts, ignore_index=True)
    return rows[["results", *rows.columns.drop("results")]]


def what_counts(evidence: Evidence) -> list[str]:
    """Of which source variable LEEP is, where it is not the source's classes, and what has none."""
    known = source_variables(evidence.results, evidence.focus)
    shared = shared_variable(known)
    headless = {
        transfer: way.names[-2]
        for (transfer, _), way in sides.ways(evidence.results).items()
        if not way.configs[-2].has_head
    }
    notes = []
    if shared != CLASSES:
        notes.append(f"LEEP and risks are of {_named(shared)}, not of the source's classes.")
    if others := {t: m.variable for (t, _), m in known.items() if m.variable != shared}:
        listed = ", ".join(f"{t} ({_named(v)})" for t, v in others.items())
        notes.append(f"Left out, since LEEP of another source variable does not compare: {listed}.")
    if absent := [t for t in headless if not any(key[0] == t for key in known)]:
        notes.append(
            f"Left out, since the source has no head and no method made a map without one: "
            f"{', '.join(absent)}."
        )
    return notes


def _named(variable: str) -> str:
    return VARIABLES.get(variable, variable)


# ------------------------------------------------------------------------------------------- chart


def chart(evidence: Evidence, width: float = WIDE) -> Drawing:
    """Gain of the reference over scratch against LEEP and against the mean risk."""
    cells = evidence.transferability
    if len(cells) < FEWEST_CELLS:
        raise DoesNotApply(
            f"needs {FEWEST_CELLS} transfers or seeds with scratch, {evidence.reference} and a "
            f"risk map, has {len(cells)}"
            + "".join(f". {note.removesuffix('.')}" for note in what_counts(evidence))
        )
    figure, axes, own = panels(len(MEASURES), width, 3.0, least=2.6, most=3.6, sharey=True)
    listed = []
    for ax, row in zip(axes, evidence.predicts.to_dict("records"), strict=True):
        measure = row["measure"]
        interval = words.interval(row["low"], row["high"]).replace(MISSING, "")
        listed.append(f"{TITLES[measure]}: tau {words.signed(row['tau'])} {interval}".strip())
        _scatter(ax, cells, measure, evidence.transfers)
        ax.set_title(listed[-1])
        best = "highest" if MEASURES[measure] > 0 else "lowest"
        ax.set_xlabel(wrapped(f"{TITLES[measure]} ({best} should gain most)", own - 0.5))
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(labelleft=True)
    unit = evidence.gain_unit(evidence.main.metric)
    label_beside(figure, f"gain of {evidence.reference} over scratch [{unit}]")
    legend(figure, axes)
    return Drawing(
        figure,
        "Does transferability predict?",
        f"A mark a transfer and seed: the gain of {evidence.reference} in "
        f"{NAMES[evidence.main.metric]} over scratch against what was known before training on "
        "the target. Below 0 is negative transfer. Titles: weighted Kendall's tau, and its 95 % "
        f"interval from {FEWEST_TRANSFERS} transfers on, of a bootstrap of whole transfers."
        + "".join(f" {note}" for note in what_counts(evidence)),
        f"Gain of {evidence.reference} over scratch in {len(cells)} cells against two measures. "
        f"{'; '.join(listed)}.",
    )


def _scatter(ax: Axes, cells: pd.DataFrame, measure: str, transfers: Sequence[str]) -> None:
    """One panel: a colour and marker a transfer, or one colour for all where they are many."""
    ax.axhline(0, color=SOFT, linewidth=0.9)
    ax.grid()
    present = [t for t in transfers if t in set(cells["transfer"])]
    if len(present) > len(COLOURS) * len(MARKERS):
        groups = [(f"{len(present)} transfers", cells, COLOURS[3], "o")]
    else:
        groups = [
            (
                t,
                cells[cells["transfer"] == t],
                COLOURS[i % len(COLOURS)],
                MARKERS[i // len(COLOURS)],
            )
            for i, t in enumerate(present)
        ]
    for name, part, colour, marker in groups:
        style: Any = {"color": colour, "marker": marker, "label": plain(name)}
        marks = ax.scatter(part[measure], part["gain"], s=22, alpha=0.85, linewidths=0, **style)
        said = zip(part["transfer"], part["seed"], part[measure], part["gain"], strict=True)
        tag(marks, "", *(f"{plain(t)}, seed {s}: {TITLES[measure]} {x:.3g}, gain {signed(y)}"
                         for t, s, x, y in said))  # fmt: skip
