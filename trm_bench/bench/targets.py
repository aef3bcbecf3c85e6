"""The figures that are to be reached, from what was timed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trm_bench.bench.bare import COMPILED, PLAIN
from trm_bench.bench.inference import BARE, WITH_DICE
from trm_bench.bench.occupancy import AT_HAND, TRAINING
from trm_bench.bench.timing import Ratio, Row, Section, ratio


@dataclass(frozen=True)
class Target:
    """A figure.

    Attributes:
        figure: What by what, so that more is better.
        reach: Least value.
        value: Round by round; None where it was not measured.
    """

    figure: str
    reach: float
    value: Ratio | None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches it; None where it was not measured."""
        return None if self.value is None else self.value.median >= self.reach


def targets(sections: Mapping[str, Section], on_gpu: bool) -> list[Target]:
    """All figures, measured or not; of what is compiled those that were.

    Args:
        sections: What was timed, by the names of `suite.SECTIONS`.
        on_gpu: Whether the figures for a GPU are to be reached.
    """
    found = [
        Target(figure, of_gpu if on_gpu else of_cpu, ratio(one, other) if one and other else None)
        for figure, of_cpu, of_gpu, one, other in _figures(sections)
    ]
    return [target for target in found if target.value or not target.figure.endswith(COMPILED)]


def _figures(
    sections: Mapping[str, Section],
) -> Iterator[tuple[str, float, float, Row | None, Row | None]]:
    """Figure, least value on a CPU and on a GPU, and the two rows whose ratio it is."""

    def row(section: str, name: str) -> Row | None:
        return sections[section].row(name) if section in sections else None

    reference = sections["loop"].reference if "loop" in sections else ""
    plain, tutorial = row("steps", PLAIN), row("loop", reference)
    ways = [(kind, end) for end in ("", COMPILED) for kind in ("fp32", "bf16")]
    for kind, end in ways:
        of_cpu, of_gpu = {"fp32": (1.25, 1.5), "bf16": (1.65, 2.5)}[kind]
        ours = row("steps", f"finetune {kind}{end}")
        yield f"plain bare step / finetune {kind}{end}", of_cpu, of_gpu, plain, ours
    for kind, end in ways:
        ours, tuned = row("steps", f"finetune {kind}{end}"), tuned_row(sections, kind, end)
        yield f"tuned bare step / finetune, {kind}{end}", 0.95, 0.90, tuned, ours
    for kind in ("fp32", "bf16"):
        ours, trm = row("steps", f"finetune {kind}"), row("steps", f"trm {kind}")
        yield f"finetune / trm, {kind}", 0.99, 0.99, ours, trm
    for kind, end in ways:
        of_cpu, of_gpu = {"fp32": (1.4, 5.0), "bf16": (1.8, 5.0)}[kind]
        ours = row("loop", f"finetune {kind}{end}")
        yield f"MONAI's loop / ours, {kind}{end}", of_cpu, of_gpu, tutorial, ours
    yield (
        "bare inference / with Dice",
        0.8,
        0.8,
        row("inference", BARE),
        row("inference", WITH_DICE),
    )
    yield "busy with training", 0.90, 0.85, row("protocol", TRAINING), row("protocol", AT_HAND)


def tuned_row(sections: Mapping[str, Section], precision: str, end: str = "") -> Row | None:
    """The best bare step of a precision, whatever the order in memory; `COMPILED` or not."""
    rows = sections["steps"].rows if "steps" in sections else ()
    chosen = [
        row
        for row in rows
        if row.name.startswith(f"bare {precision}")
        and row.name.endswith(COMPILED) == (end == COMPILED)
    ]
    return min(chosen, key=lambda row: row.median, default=None)
