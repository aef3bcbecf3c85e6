"""What a person sees of the work: few lines without a terminal, what is left of it with one."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from trm_bench import display
from trm_bench.display import LINES, PAUSE, Display, duration
from trm_bench.runs.executors import Event


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def said(terminal: bool = False) -> tuple[Display, io.StringIO]:
    """A display, and what it writes to."""
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=terminal, color_system=None)
    return Display(console=console), file


@pytest.mark.parametrize("total", [1, 3, 20, 28, 39, 400])
def test_without_a_terminal_a_stage_has_few_lines_and_the_last_one(
    total: int, clock: Clock
) -> None:
    shown, file = said()
    with shown, shown.stage("runs", total, then="testing") as stage:
        for i in range(total):
            clock.now += 2 * PAUSE
            stage.hear(Event(str(i), "started"), "a run")
            stage.hear(Event(str(i), "progress", (1, 2, 0.5)), "a run")
            stage.hear(Event(str(i), "done", "finished"), "a run")
    lines = file.getvalue().splitlines()
    assert 1 <= len(lines) <= LINES and lines[-1] == f"runs: {total} of {total}"
    assert len(lines) == min(total, LINES)


def test_the_lines_say_what_is_left(clock: Clock) -> None:
    shown, file = said()
    with shown, shown.stage("runs", 4) as stage:
        clock.now = 120.0
        stage.advance()
    assert file.getvalue() == "runs: 1 of 4, about 6 min left\n"


def test_what_is_quick_says_only_that_it_is_done(clock: Clock) -> None:
    shown, file = said()
    with shown, shown.stage("volumes", 400) as stage:
        for _ in range(400):
            stage.advance()
    assert file.getvalue() == "volumes: 400 of 400\n"


def test_each_failure_is_told(clock: Clock) -> None:
    shown, file = said()
    with shown, shown.stage("runs", 400) as stage:
        for i in range(3):
            stage.hear(Event(str(i), "failed", "no memory"), f"run {i}")
        stage.hear(Event("3", "done", "diverged"), "run 3")
    assert file.getvalue().splitlines() == [
        *(f"warning: run {i}: failed: no memory" for i in range(3)),
        "warning: run 3: diverged",
    ]


def test_a_terminal_shows_half_a_run_as_half_and_the_test_as_such(clock: Clock) -> None:
    shown, _ = said(terminal=True)
    with shown, shown.stage("runs", 2, then="testing") as stage:
        (bar,) = shown.bars.tasks
        stage.hear(Event("a", "started"), "a run")
        stage.hear(Event("a", "progress", (30, 60, 0.25)), "a run")
        assert bar.completed == 0.5 and shown.bars.tasks[1].fields["note"] == "loss 0.250"
        stage.hear(Event("a", "progress", (60, 60, 0.2)), "a run")
        stage.hear(Event("a", "progress", (1, 8, None)), "a run")
        running = shown.bars.tasks[1]
        assert (running.completed, running.total, running.fields["note"]) == (1, 8, "testing")
        assert bar.completed == 1.0, "the test takes nothing away"
        stage.hear(Event("a", "done", "finished"), "a run")
        assert bar.completed == 1.0 and len(shown.bars.tasks) == 1


def test_a_terminal_says_how_long_it_takes_still() -> None:
    shown, file = said(terminal=True)
    with shown, shown.stage("runs", 2) as stage:
        stage.hear(Event("a", "started"), "a run")
        for step in range(1, 4):
            stage.hear(Event("a", "progress", (step, 8, 0.25)), "a run")
        shown.bars.refresh()
    assert re.search(r"runs.*0/2 +0:00:00 +\d:\d\d:\d\d", file.getvalue())


def test_a_phase_without_a_length_is_named_while_it_lasts() -> None:
    shown, file = said()
    with shown, shown.phase("writing pages"):
        assert file.getvalue() == "writing pages\n" and len(shown.bars.tasks) == 1
    assert not shown.bars.tasks
    assert Display(quiet=True).console.quiet


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (95, "2 min"),
        (3600, "60 min"),
        (12_000, "3 h 20 min"),
        (5 * 3600 + 61, "5 h 1 min"),
        (200 * 3600, "8.3 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
