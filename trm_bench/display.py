"""What a person sees while a benchmark works.

Bars on a terminal, with the time that is left; elsewhere a few lines a stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trm_bench.runs.executors import Event

LINES = 20  # of progress for a stage without a terminal, at most; failures have lines of their own
PAUSE = 1.0  # seconds between two such lines, at least
WINDOW = 1800.0  # seconds over which the speed is taken that says what is left


class Display:
    """Progress on a console.

    Args:
        quiet: Show nothing.
        console: Where to; standard error by default, so that standard output holds results alone.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)
        self.live = self.console.is_terminal and not quiet
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.live,
            speed_estimate_period=WINDOW,
        )

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        """A message."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """A message that should not be missed."""
        self.console.print(
            f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """A part of the work of which nobody can say how much is done."""
        if not self.live:
            self.say(text)
        bar = self.bars.add_task(text, total=None, note="")
        try:
            yield
        finally:
            self.bars.remove_task(bar)

    @contextmanager
    def stage(self, name: str, total: int, then: str = "") -> Iterator[Stage]:
        """A stage of the work with a bar of its own.

        Args:
            name: Of the stage.
            total: How many things there are to do.
            then: What a thing does that tells of progress without a loss, such as `testing`.
        """
        stage = Stage(self, name, total, then)
        try:
            yield stage
        finally:
            stage.close()


class Stage:
    """One stage: so many things to do, and the bars of those being done."""

    def __init__(self, display: Display, name: str, total: int, then: str = "") -> None:
        self.display, self.name, self.total, self.then = display, name, total, then
        self.done, self.started = 0, time.monotonic()
        self.said = self.started
        self.bar = display.bars.add_task(name, total=total, note="")
        self.running: dict[str, TaskID] = {}
        self.parts: dict[str, float] = {}  # of a thing that is being done, which share is done

    def advance(self, done: int | None = None) -> None:
        """One more thing is done, or `done` things are."""
        before, self.done = self.done, self.done + 1 if done is None else done
        self._update()
        self._line(before)

    def hear(self, event: Event, title: str) -> None:
        """Shows what happens to a task of this stage."""
        bars = self.display.bars
        if event.kind == "started":
            if not self.done and not self.running:  # what came before it is no measure
                self.started = time.monotonic()
            self.running[event.task] = bars.add_task(f"  {title}", total=None, note="")
        elif event.kind == "progress":
            step, steps, loss = event.value
            note = self.then if loss is None else f"loss {loss:.3f}"
            bars.update(self.running[event.task], completed=step, total=steps, note=note)
            if loss is not None:
                self.parts[event.task] = step / steps
                self._update()
        else:
            self._ended(event, title)

    def _ended(self, event: Event, title: str) -> None:
        self.parts.pop(event.task, None)
        if (bar := self.running.pop(event.task, None)) is not None:
            self.display.bars.remove_task(bar)
        self.done += 1
        self._update()
        state = event.value if event.kind == "done" else f"failed: {event.value}"
        if isinstance(state, str) and state.startswith(("failed", "diverged")):
            self.display.warn(f"{title}: {state}")
        self._line(self.done - 1)

    def _update(self) -> None:
        """The bar counts what is half done too, so that the time left is known early."""
        self.display.bars.update(self.bar, completed=self.done + sum(self.parts.values()))

    def _line(self, before: int) -> None:
        """Without a terminal, a line for every twentieth of the stage that ends."""
        now, last = time.monotonic(), self.done == self.total
        passed = self.done * LINES // self.total > before * LINES // self.total
        if self.display.live or not passed or (now < self.said + PAUSE and not last):
            return
        self.said = now
        left = (self.total - self.done) * (now - self.started) / self.done
        text = f", about {duration(left)} left" if not last else ""
        self.display.say(f"{self.name}: {self.done} of {self.total}{text}")

    def close(self) -> None:
        """Removes the bars of tasks that never ended."""
        for bar in self.running.values():
            self.display.bars.remove_task(bar)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3 h 20 min, 2.5 days."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = seconds / 3600
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours / 24:.1f} days"
