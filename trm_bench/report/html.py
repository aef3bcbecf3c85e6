"""Self-contained HTML pages: of one protocol, of a comparison, and the index of a results folder.

Jinja2 escapes every text; scripts run by their hash alone, so that nothing in a record can act.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from trm_bench import __version__, statistics
from trm_bench.report import tables, words
from trm_bench.report.charts import Chart
from trm_bench.report.evidence import GAIN_UNITS, PHANTOM, Evidence
from trm_bench.results import slug

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
DASH = tables.MISSING
TONES = {"reproduced": "good", "direction reproduced": "good", "contradicted": "bad", "not reproduced": "bad"}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["version"] = __version__
    for name, file in (("style", "style.css"), ("script", "sort.js")):
        text = (TEMPLATES / file).read_text(encoding="utf-8")
        made.globals[name] = Markup(text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        made.globals[f"{name}_hash"] = Markup(f"sha256-{digest}")
    return made


def _page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


# ------------------------------------------------------------------------------------------------------ one protocol


def report(evidence: Evidence, charts: Sequence[Chart], absent: Sequence[str], overlays: Sequence[Path]) -> str:
    """The page of one protocol."""
    import yaml

    plan = evidence.results.plan
    return _page(
        "report.html",
        e=evidence,
        description=plan["protocol"].get("description", ""),
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
        tables=[(tables.build(evidence, m), not statistics.HIGHER_IS_BETTER[m]) for m in evidence.scores],
        pictures=[*map(_chart, charts), *(_overlay(path, evidence) for path in overlays)],
        absent=absent,
        sensitivity=list(words.sensitivity(evidence)),
        mixed_model=list(words.mixed_model(evidence)),
        unit=GAIN_UNITS[evidence.main.metric],
        rates=list(words.rates(evidence)),
        findings=list(words.findings(evidence)),
        diagnostics=list(_diagnostics(evidence)),
        matrices=list(_matrices(evidence)),
        unfinished=[(c["transfer"], c["method"], c["seed"], why) for c, why in evidence.results.unfinished()],
        left_out=[(x["subject"], x.get("file", ""), x.get("reason", "")) for x in plan["left_out"]],
        spent=list(_spent(evidence)),
        data=list(_data(evidence)),
        environments=list(_environments(evidence)),
        config=yaml.safe_dump(plan["protocol"], sort_keys=False, allow_unicode=True),
    )


def _size(evidence: Evidence) -> str:
    counts = [(len(evidence.transfers), "transfer"), (len(evidence.methods), "method"), (len(evidence.seeds), "seed")]
    states = ", ".join(f"{n} {state}" for state, n in sorted(evidence.states().items()))
    text = ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts)
    return f"{text}; {evidence.results.plan['data']} data; runs: {states or 'none'}."


def _tone(words: Sequence[str]) -> str:
    tones = {TONES.get(word, "open") for word in words}
    return tones.pop() if len(tones) == 1 else "open" if tones else ""


# --------------------------------------------------------------------------------------------------------- pictures


def _chart(chart: Chart) -> dict[str, str]:
    return {"title": chart.title, "caption": chart.caption, "alt": chart.alt, "source": _embedded(chart.svg)}


def _overlay(path: Path, evidence: Evidence) -> dict[str, str]:
    names = {f"risk_{slug(t)}": t for t in evidence.transfers}
    transfer = names.get(path.stem, path.stem)
    return {
        "title": f"Transfer risk map, {transfer}",
        "caption": "Test subjects of the first seed: image with its label (outline), prediction of the source network, "
        "risk map, the voxels that fine-tuning lost and won against training from scratch, and errors.",
        "alt": f"Slices of test subjects of {transfer}: image, source prediction, risk map, lost and won voxels",
        "source": _embedded(path),
    }


def _embedded(path: Path) -> str:
    kind = {".svg": "svg+xml", ".png": "png"}[path.suffix]
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# ------------------------------------------------------------------------------------------ diagnostics and provenance


def _of_runs(evidence: Evidence) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Diagnostics of the runs that made a risk map, by transfer and method."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        about = record.get("diagnostics") or {}
        if "leep" in about:
            found.setdefault((cell["transfer"], cell["method"]), []).append(about)
    return found


def _diagnostics(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for (transfer, method), runs in _of_runs(evidence).items():
        leep, explained, risk = (
            np.mean([r.get(k, np.nan) for r in runs]) for k in ("leep", "class_explained", "risk_mean")
        )
        per_class = np.mean([r.get("risk_per_class", [np.nan]) for r in runs], axis=0)
        shown = ", ".join(f"{x:.4g}" for x in per_class)
        yield transfer, method, f"{leep:.4f}", f"{100 * explained:.2f} %", f"{risk:.4g}", shown, len(runs)


def _matrices(evidence: Evidence) -> Iterator[tuple[str, list[str], list[list[object]]]]:
    for (transfer, method), runs in _of_runs(evidence).items():
        several = [np.array(r["conditional"], float) for r in runs if r.get("conditional")]
        if method != evidence.focus or not several:
            continue
        matrix = np.mean([m for m in several if m.shape == several[0].shape], axis=0)
        header = ["target class", *[f"source {c}" for c in range(matrix.shape[1])]]
        yield f"{transfer}, {method}", header, [[k, *[f"{x:.4f}" for x in row]] for k, row in enumerate(matrix)]


def _spent(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    for method in evidence.methods:
        runs = [r for c, r in evidence.results.finished() if c["method"] == method]
        seconds = [r.get("seconds", {}) for r in runs]
        train, test = ([s.get(k, np.nan) for s in seconds] for k in ("train", "test"))
        memory = max((r.get("peak_memory_bytes") or 0 for r in runs), default=0)
        if not runs:
            yield method, 0, *([DASH] * 4)
            continue
        total = float(np.nansum([sum(s.values()) for s in seconds]))
        mean = (f"{np.nanmean(x):.1f} s" if np.isfinite(x).any() else DASH for x in (train, test))
        yield method, len(runs), *mean, _duration(total), f"{memory / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _data(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, record in evidence.results.finished():
        parts = found.setdefault(cell["transfer"], {})
        for part, subjects in record.get("manifest", {}).items():
            parts.setdefault(part, {}).update(subjects)
    for transfer, parts in found.items():
        files = {name: size for part in parts.values() for f in part.values() for name, (size, _) in f.items()}
        counts = [len(parts.get(part, ())) for part in ("train", "val", "test")]
        yield transfer, *counts, len(files), f"{sum(files.values()) / 2**20:.1f} MiB"


def _environments(evidence: Evidence) -> Iterator[tuple[object, ...]]:
    counts: dict[tuple[str, ...], int] = {}
    for cell in evidence.results.cells:
        about = (evidence.results.record(cell) or {}).get("environment")
        if about:
            packages = ", ".join(f"{k} {v}" for k, v in about.get("packages", {}).items())
            device = f"{about.get('device', '')} ({about.get('device_name', '')})"
            version = f"trm-bench {about.get('trm-bench', '')}, {packages}"
            key = (device, str(about.get("python", "")), version, str(about.get("platform", "")))
            counts[key] = counts.get(key, 0) + 1
    for described, n in counts.items():
        yield n, *described


# -------------------------------------------------------------------------------------------------- several protocols


def index(pages: Iterable[tuple[str, Evidence]]) -> str:
    """The index of a results folder, from links and what they lead to."""
    rows = []
    for link, e in pages:
        found = e.main.gain(e.focus)
        unit = GAIN_UNITS[e.main.metric]
        gain = (
            f"{e.focus} {words.signed(found['gain'])} {unit} {words.interval(found['low'], found['high'])}"
            if found
            else DASH
        )
        rows.append(
            {
                "link": quote(link),
                "name": e.name,
                "description": e.results.plan["protocol"].get("description", ""),
                "data": e.results.plan["data"],
                "verdict": " / ".join(e.words) or e.no_verdict,
                "gain": gain,
                "runs": ", ".join(f"{n} {state}" for state, n in sorted(e.states().items())),
            }
        )
    return _page("index.html", rows=rows)


def compare(found: dict[str, Evidence], made: Sequence[tables.Table], lower: Sequence[bool]) -> str:
    """The page of several results side by side.

    Args:
        found: Label to evidence.
        made: The tables, one a metric.
        lower: Whether lower is better in each.
    """
    rows = [
        (label, os.path.relpath(e.results.folder), " / ".join(e.words) or "no verdict", " ".join(words.reasons(e)))
        for label, e in found.items()
    ]
    stand_in = PHANTOM if any(e.phantom for e in found.values()) else ""
    return _page("compare.html", rows=rows, tables=list(zip(made, lower, strict=True)), stand_in=stand_in)
