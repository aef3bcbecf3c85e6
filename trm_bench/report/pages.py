"""Self-contained HTML pages: of one protocol, of a comparison, and the index of a results folder.

Jinja2 escapes every text; scripts run by their hash alone, so that nothing in a record can act.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from trm_bench import __version__
from trm_bench.analysis.table import HIGHER_IS_BETTER
from trm_bench.analysis.transferability import CLASSES, predicts, variable_of
from trm_bench.analysis.verdict import RULES
from trm_bench.report import sides, tables, transferability, words
from trm_bench.report.drawing import Chart
from trm_bench.report.evidence import PHANTOM, Evidence

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
DASH = tables.MISSING
TONES = {
    "reproduced": "good",
    "smaller than claimed": "open",
    "contradicted": "bad",
    "not reproduced": "bad",
}


# what the columns of a conditional matrix are, by LEEP's source variable, and the head of one
CONDITIONS = {
    CLASSES: ("source class", "source"),
    "clusters": ("cluster", "cluster"),
    "probe": ("class of the probe", "probe"),
}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["version"] = __version__
    for name, file in (("style", "style.css"), ("script", "sort.js")):
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        environment.globals[name] = Markup(text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        environment.globals[f"{name}_hash"] = Markup(f"sha256-{digest}")
    return environment


def page(template: str, **values: Any) -> str:
    """A template, filled."""
    return _environment().get_template(template).render(**values)


# ----------------------------------------------------------------------------------- one protocol


def report(
    evidence: Evidence,
    charts: Sequence[Chart],
    absent: Sequence[str],
) -> str:
    """The page of one protocol.

    Args:
        evidence: What to show.
        charts: Written, pictures of subjects among them.
        absent: Lines on the charts that do not apply.
    """
    import yaml

    plan, unfinished = evidence.results.plan, evidence.results.unfinished()
    protocol = plan.protocol.model_dump(mode="json")
    return page(
        "report.html",
        e=evidence,
        description=plan.protocol.description,
        size=_size(evidence),
        phantom=PHANTOM,
        problems=evidence.problems,
        tone=_tone(evidence.words),
        verdict_lines=words.reasons(evidence),
        verdict_rows=list(words.gains(evidence)),
        controls=list(words.controls(evidence)),
        gaps=list(words.gaps(evidence)),
        gap_columns=["transfer", "method", "gap", "95 % interval", "present"],
        gone=words.gone(evidence),
        judge_notes=words.notes(evidence),
        tables=[(tables.build(evidence, m), not HIGHER_IS_BETTER[m]) for m in evidence.scores],
        pictures=[*map(picture, charts)],
        absent=absent,
        sensitivity=list(words.sensitivity(evidence)),
        over_transfers=words.over_transfers(evidence),
        family=tables.family_table(evidence),
        costs=list(words.costs(evidence)),
        confusion=list(words.confusion(evidence)),
        confusion_columns=["noise", "seeds", "true gain", *RULES, "half is shown"],
        unit=evidence.gain_unit(evidence.main.metric),
        rates=list(words.rates(evidence)),
        findings=list(words.findings(evidence)),
        diagnostics=list(_diagnostics(evidence)),
        matrices=list(_matrices(evidence)),
        transferability=transferability.section(
            evidence.predicts, evidence.reference, transferability.what_counts(evidence)
        ),
        unfinished=[(c.transfer, c.method, c.seed, why) for c, why in unfinished],
        left_out=[(x.subject, x.file, x.reason) for x in plan.left_out],
        spent=list(_spent(evidence)),
        balance=list(_balance(evidence)),
        data=list(_data(evidence)),
        data_sets=list(_data_sets(evidence)),
        networks=list(_networks(evidence)),
        environments=list(_environments(evidence)),
        config=yaml.safe_dump(protocol, sort_keys=False, allow_unicode=True),
    )


def _size(evidence: Evidence) -> str:
    counts = {
        "transfer": len(evidence.transfers),
        "method": len(evidence.methods),
        "seed": len(evidence.seeds),
    }
    text = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items())
    return f"{text}; {evidence.results.plan.data} data; runs: {_states(evidence) or 'none'}."


def _states(evidence: Evidence) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(evidence.states().items()))


def _tone(words: Sequence[str]) -> str:
    tones = {TONES.get(word, "open") for word in words}
    return tones.pop() if len(tones) == 1 else "open" if tones else ""


# --------------------------------------------------------------------------------------- pictures


def picture(chart: Chart) -> dict[str, str]:
    """A chart as templates take it."""
    return {
        "title": chart.title,
        "caption": chart.caption,
        "alt": chart.alt,
        "source": _embedded(chart.svg or chart.png),
    }


def _embedded(path: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --------------------------------------------------------------------- diagnostics and provenance


def _of_runs(evidence: Evidence) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Diagnostics of the runs that made a risk map, by transfer and method."""
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        if "leep" in record.diagnostics:
            by_cell.setdefault((cell.transfer, cell.method), []).append(record.diagnostics)
    return by_cell


def _diagnostics(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for (transfer, method), runs in _of_runs(evidence).items():
        leep, explained, risk = (
            np.mean([r.get(k, np.nan) for r in runs])
            for k in ("leep", "class_explained", "risk_mean")
        )
        per_class = np.mean([r.get("risk_per_class", [np.nan]) for r in runs], axis=0)
        listed = ", ".join(f"{x:.4g}" for x in per_class)
        share = f"{100 * explained:.2f} %"
        variable = variable_of(runs[0])
        method = method if variable == CLASSES else f"{method}, {variable}"
        yield transfer, method, f"{leep:.4f}", share, f"{risk:.4g}", listed, len(runs)


def _matrices(evidence: Evidence) -> Iterator[tuple[str, str, list[str], list[list[object]]]]:
    """Title, what it conditions on, head and rows."""
    for (transfer, method), runs in _of_runs(evidence).items():
        several = [np.array(r["conditional"], float) for r in runs if r.get("conditional")]
        if method != evidence.focus or not several:
            continue
        matrix = np.mean([m for m in several if m.shape == several[0].shape], axis=0)
        on, noun = CONDITIONS.get(variable_of(runs[0]), CONDITIONS[CLASSES])
        header = ["target class", *[f"{noun} {c}" for c in range(matrix.shape[1])]]
        rows = [[k, *[f"{x:.4f}" for x in row]] for k, row in enumerate(matrix)]
        yield f"{transfer}, {method}", on, header, rows


def _spent(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for method in evidence.methods:
        runs = [r for c, r in evidence.results.finished() if c.method == method]
        if not runs:
            yield method, 0, *([DASH] * 4)
            continue
        train, test = ([r.seconds.get(k, np.nan) for r in runs] for k in ("train", "test"))
        memory = max(r.peak_memory_bytes or 0 for r in runs)
        total = float(np.nansum([sum(r.seconds.values()) for r in runs]))
        mean = (f"{np.nanmean(x):.1f} s" if np.isfinite(x).any() else DASH for x in (train, test))
        yield method, len(runs), *mean, duration(total), f"{memory / 2**30:.2f} GiB"


def _balance(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    """Each method's share of the voxel-wise term in the gradient; see `training.loop.Curves`."""
    for method in evidence.methods:
        runs = [r for c, r in evidence.results.finished() if c.method == method]
        curves = [[y for _, y in r.curves.get("voxel_share", [])] for r in runs]
        if logged := [curve for curve in curves if curve]:
            ends = ([curve[i] for curve in logged] for i in (0, -1))
            first, last = (f"{np.mean(values):.2f}" for values in ends)
            yield method, len(logged), first, f"{np.mean(np.concatenate(logged)):.2f}", last


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _data(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    by_transfer: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        parts = by_transfer.setdefault(cell.transfer, {})
        for part, subjects in record.manifest.items():
            parts.setdefault(part, {}).update(subjects)
    for transfer, parts in by_transfer.items():
        files = {  # files of two data sets may have one name
            (name, digest): size
            for part in parts.values()
            for of_subject in part.values()
            for name, (size, digest) in of_subject.items()
        }
        counts = [len(parts.get(part, ())) for part in ("train", "val", "test")]
        yield transfer, *counts, len(files), f"{sum(files.values()) / 2**20:.1f} MiB"


def _data_sets(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for about in sides.data_sets(evidence.results):
        yield tuple(about[key] or DASH for key in ("name", "title", "licence", "citation"))


def _networks(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    results = evidence.results
    for name, config in sides.imported(results).items():
        channels = ", ".join(config.domain.images)
        head, took = sides.classes_of(config), sides.account(results, config)
        yield name, config.sha256, config.network.name, channels, head, took


def _environments(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    records = filter(None, map(evidence.results.record, evidence.results.cells))
    counts = Counter(
        (
            f"{about.device} ({about.device_name})",
            about.python,
            f"trm-bench {about.trm_bench}, "
            + ", ".join(f"{k} {v}" for k, v in about.packages.items()),
            about.platform,
        )
        for about in (record.environment for record in records)
    )
    for described, n in counts.items():
        yield n, *described


# ------------------------------------------------------------------------------- several protocols


def index(pages: Iterable[tuple[str, Evidence]]) -> str:
    """The index of a results folder, from links and what they lead to."""
    rows = [
        {
            "link": quote(link),
            "name": e.name,
            "description": e.protocol.description,
            "data": e.results.plan.data,
            "verdict": " / ".join(e.words) or e.no_verdict,
            "gain": _gain(e),
            "runs": _states(e),
        }
        for link, e in pages
    ]
    return page("index.html", rows=rows)


def _gain(evidence: Evidence) -> str:
    gain, unit = evidence.main.gain(evidence.focus), evidence.gain_unit(evidence.main.metric)
    if not gain:
        return DASH
    interval = words.interval(gain["low"], gain["high"])
    return f"{evidence.focus} {words.signed(gain['gain'])} {unit} {interval}"


def compare(
    several: Mapping[str, Evidence],
    by_metric: Sequence[tables.Table],
    lower: Sequence[bool],
    cells: pd.DataFrame,
) -> str:
    """The page of several results side by side.

    Args:
        several: Label to evidence.
        by_metric: The tables, one a metric.
        lower: Whether lower is better in each.
        cells: Of `transferability.pooled`.
    """
    rows = [
        (
            label,
            os.path.relpath(e.results.folder.path),
            " / ".join(e.words) or "no verdict",
            " ".join(words.reasons(e)),
        )
        for label, e in several.items()
    ]
    stand_in = PHANTOM if any(e.phantom for e in several.values()) else ""
    pairs = list(zip(by_metric, lower, strict=True))
    references = dict.fromkeys(e.reference for e in several.values())
    foreseen = transferability.section(predicts(cells), " or ".join(references))
    return page(
        "compare.html", rows=rows, tables=pairs, stand_in=stand_in, transferability=foreseen
    )
