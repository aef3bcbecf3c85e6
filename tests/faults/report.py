"""The report of the fault suite: counts by kind, what was found, how long it took, with what."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from faults.case import KINDS_OF_FAULT, Case, Scene

LIBRARIES = ("torch", "monai", "pydantic", "typer", "mlflow", "nibabel", "safetensors", "pyyaml")
LISTED = 100
INTRODUCTION = """# Faults

What `make faults` found when it was run last. It makes bad inputs, damages results, kills and
interrupts commands and fills disks, all from a seed, and calls the command line on each: see
`tests/faults/`. A case is bad when a command shows a traceback or ends with exit code 3, takes
more than 60 seconds, dies of a signal, ends with a wrong exit code or without a message that names
the file or the key, gives other numbers without a word, or loses or doubles a record.
"""


def text(
    played: Sequence[tuple[Case, Scene, float]], seed: int, seconds: float, sampled: bool
) -> str:
    """The report as Markdown; `sampled` where not all cases have played."""
    kinds: dict[str, list[tuple[Case, Scene, float]]] = {}
    for one in played:
        kinds.setdefault(one[0].kind, []).append(one)
    found = Counter(fault.what for _, scene, _ in played for fault in scene.faults)
    counts = sum((scene.counts for _, scene, _ in played), Counter[str]())
    rows = [
        f"| {kind} | {len(several)} | {sum(len(s.faults) for _, s, _ in several)} | "
        f"{sum(t for _, _, t in several):.0f} | {max(t for _, _, t in several):.1f} |"
        for kind, several in sorted(kinds.items())
    ]
    faults = sum(found.values())
    also = "".join(f", {n} {what}" for what, n in sorted(counts.items()))
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    parts = [
        INTRODUCTION,
        f"{'A sample: ' if sampled else ''}{len(played)} cases{also}: {faults} faults. "
        f"Seed {seed}, {seconds / 60:.0f} minutes.",
        f"trm-bench {version('trm-bench')}, Python {platform.python_version()}, {libraries}.\n",
        "| kind of case | cases | faults | seconds | longest |\n|---|---:|---:|---:|---:|",
        "\n".join(rows),
        f"| all | {len(played)} | {faults} | | |\n",
        "| kind of fault | found |\n|---|---:|",
        "\n".join(f"| {what} | {found[what]} |" for what in KINDS_OF_FAULT),
    ]
    if faults:
        named = [f"{c.kind}: {c.name}: {f.what}" for c, s, _ in played for f in s.faults]
        parts += ["\n## Found\n", "\n".join(f"- `{one}`" for one in sorted(named)[:LISTED])]
    return "\n".join(parts) + "\n"
