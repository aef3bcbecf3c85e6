"""A case: what is done to a folder, which commands are called there, and what must not come out."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from faults.runner import Answer, Runner

if TYPE_CHECKING:
    from faults.base import Base

# what a fault can be, worst first
SILENT = "silent difference"
LOST = "lost or doubled record"
TRACEBACK = "traceback"
UNEXPECTED = "unexpected (exit code 3)"
HANG = "hang"
DIED = "died of a signal"
SURVIVORS = "processes left behind"
CODE = "wrong exit code"
WORDS = "no message, or not the right one"
KINDS_OF_FAULT = (SILENT, LOST, TRACEBACK, UNEXPECTED, HANG, DIED, SURVIVORS, CODE, WORDS)

LONGEST_MESSAGE = 20_000  # characters


@dataclass(frozen=True)
class Fault:
    """Something that a case found.

    Attributes:
        what: One of `KINDS_OF_FAULT`.
        detail: The command, and what came out.
    """

    what: str
    detail: str


def shown(answer: Answer) -> str:
    """The command and the end of what it printed."""
    words = " ".join(repr(a[:120]) for a in answer.arguments)
    return f"trm-bench {words}: exit code {answer.code}\n{answer.output[-1500:].rstrip()}"


@dataclass
class Scene:
    """Where a case plays: a folder of its own, the commands that it called, the faults it found.

    Attributes:
        folder: Its own; gone afterwards.
        base: What all cases share.
        runner: Calls commands.
        faults: Found so far.
        counts: Of what a case did, where it is not known before: kills, say.
    """

    folder: Path
    base: Base
    runner: Runner
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def fault(self, what: str, detail: str) -> None:
        """Notes one."""
        self.faults.append(Fault(what, detail))

    def call(
        self,
        *arguments: object,
        codes: Iterable[int] = (0, 1, 2),
        names: Iterable[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Calls a command and notes what no command may do.

        Args:
            arguments: Of the command.
            codes: Exit codes that are right here.
            names: What the message of an exit code 2 must name: one of these is enough.
            environment: Variables that are set for it.
        """
        answer = self.runner.call(self.folder, *arguments, environment=environment)
        self.judge(answer, codes, names)
        return answer

    def judge(self, answer: Answer, codes: Iterable[int], names: Iterable[str] = ()) -> None:
        """Notes what is wrong with how a command ended; see `call`."""
        names = list(names)
        if answer.hung:
            self.fault(HANG, shown(answer))
        elif "Traceback (most recent call last)" in answer.output:
            self.fault(TRACEBACK, shown(answer))
        elif answer.code < 0:
            self.fault(DIED, shown(answer))
        elif answer.code == 3:
            self.fault(UNEXPECTED, shown(answer))
        elif answer.code not in set(codes):
            self.fault(CODE, f"not one of {sorted(set(codes))}: {shown(answer)}")
        elif answer.code == 2:
            self._judge_message(answer, names)
        if answer.survivors:
            self.fault(SURVIVORS, shown(answer))

    def _judge_message(self, answer: Answer, names: list[str]) -> None:
        if not answer.output.strip() or answer.output.strip() == "Aborted.":
            self.fault(WORDS, f"none: {shown(answer)}")
        elif len(answer.output) > LONGEST_MESSAGE:
            self.fault(WORDS, f"{len(answer.output)} characters: {shown(answer)}")
        elif names and not any(name in answer.output for name in names):
            self.fault(WORDS, f"does not name {' or '.join(names)}: {shown(answer)}")


@dataclass(frozen=True)
class Case:
    """Something bad, and what must come of it.

    Attributes:
        kind: Of cases; the report counts by it.
        name: Says what is bad; with the kind, unique.
        play: Does it, calls commands, and notes faults.
        slow: Takes seconds, since it starts processes of its own.
    """

    kind: str
    name: str
    play: Callable[[Scene], None]
    slow: bool = False

    def run(self, base: Base, runner: Runner, scratch: Path) -> Scene:
        """Plays in a new folder under `scratch`; the scene says what was found."""
        folder = scratch / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        scene = Scene(folder, base, runner)
        try:
            self.play(scene)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return scene


def sample(cases: Iterable[Case], number: int, seed: int) -> list[Case]:
    """So many of each kind, drawn from the seed; all where a kind has no more."""
    by_kind: dict[str, list[Case]] = {}
    for case in cases:
        by_kind.setdefault(case.kind, []).append(case)
    return [
        case
        for kind, several in by_kind.items()
        for case in random.Random(f"{seed} {kind}").sample(several, min(number, len(several)))
    ]
