"""What a person sees while a benchmark works.

Bars on a terminal, one line per finished step elsewhere.
"""

from __future__ import annotations

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
)

from trm_bench.runs.executors import Event

LINES = 20  # at most about so many progress lines for a stage without a terminal


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
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.live,
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
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """A stage of the work with a bar of its own."""
        stage = Stage(self, name, total)
        try:
            yield stage
        finally:
            stage.close()


class Stage:
    """One stage: so many things to do, and the bars of those being done."""

    def __init__(self, display: Display, name: str, total: int) -> None:
        self.display, self.name, self.total, self.done = display, name, total, 0
        self.bar = display.bars.add_task(name, total=total, note="")
        self.running: dict[str, TaskID] = {}

    def advance(self, done: int | None = None) -> None:
        """One more thing is done, or `done` things are."""
        self.done = self.done + 1 if done is None else done
        self.display.bars.update(self.bar, completed=self.done)
        if not self.display.live and (
            self.done % max(1, self.total // LINES) == 0 or self.done == self.total
        ):
            self.display.say(f"{self.name}: {self.done} of {self.total}")

    def hear(self, event: Event, title: str) -> None:
        """Shows what happens to a task of this stage."""
        bars = self.display.bars
        if event.kind == "started":
            self.running[event.task] = bars.add_task(f"  {title}", total=None, note="")
        elif event.kind == "progress":
            step, steps, loss = event.value
            note = "" if loss is None else f"loss {loss:.3f}"
            bars.update(self.running[event.task], completed=step, total=steps, note=note)
        else:
            if (bar := self.running.pop(event.task, None)) is not None:
                bars.remove_task(bar)
            self.done += 1
            bars.update(self.bar, completed=self.done)
            state = event.value if event.kind == "done" else f"failed: {event.value}"
            if not self.display.live:
                self.display.say(f"{self.name}: {self.done} of {self.total}  {title}  {state}")
            elif state != "finished":
                self.display.warn(f"{title}: {state}")

    def close(self) -> None:
        """Removes the bars of tasks that never ended."""
        for bar in self.running.values():
            self.display.bars.remove_task(bar)
