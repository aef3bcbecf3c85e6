"""The long fault suite.

    make faults                                     # all of it; writes docs/faults.md
    PYTHONPATH=tests python -m faults --only results --number 20 --seed 7

Exit code 1 where anything was found.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from faults import EVERY, report
from faults.base import Base, build, warm
from faults.case import Case, Scene, sample
from faults.runner import ROOT, Runner

FLIPPED = re.compile(r"flip \d+(, made again)?")
PLANTS = ("faults.plants:no_pictures",)


@dataclass
class Played:
    """What the suite has done so far.

    Attributes:
        report: Writes the report of these scenes.
        scenes: Each case that has played, with its scene and its seconds.
    """

    report: Callable[[Sequence[tuple[Case, Scene, float]]], None]
    scenes: list[tuple[Case, Scene, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, case: Case, scene: Scene, seconds: float, of: int) -> None:
        """Notes a case, prints what it found, and reports now and then: a long run may be ended."""
        with self.lock:
            self.scenes.append((case, scene, seconds))
            for fault in scene.faults:
                print(f"--- {case.kind} | {case.name} | {fault.what}\n{fault.detail}", flush=True)
            if len(self.scenes) % 100 == 0 or case.slow:
                found = sum(len(s.faults) for _, s, _ in self.scenes)
                print(f"{len(self.scenes)} of {of} cases, {found} faults", flush=True)
                self.report(self.scenes)


def play(
    cases: Sequence[Case], base: Base, runners: Sequence[tuple[Runner, Path]], played: Played
) -> None:
    """Plays cases, as many at a time as there are runners.

    All runners but the last begin with the slow ones, so that no one waits for them at the end.
    """
    waiting = deque(sorted(cases, key=lambda case: not case.slow))
    lock = threading.Lock()

    def work(number: int) -> None:
        runner, scratch = runners[number]
        while True:
            with lock:
                if not waiting:
                    return
                slow_first = number < max(1, len(runners) - 1)
                case = waiting.popleft() if slow_first else waiting.pop()
            start = time.monotonic()
            scene = case.run(base, runner, scratch)
            played.add(case, scene, time.monotonic() - start, len(cases))

    with ThreadPoolExecutor(len(runners)) as pool:
        list(pool.map(work, range(len(runners))))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--only", default="", help="Kinds and names that hold this word.")
    parser.add_argument("--seed", type=int, default=0)
    of_each = "Of each kind, beside all flipped bytes that are made again; all where not given."
    parser.add_argument("--number", type=int, help=of_each)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--report", type=Path, help="Where to write the report.")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        places = [Path(folder) / f"runner{i}" for i in range(given.jobs)]
        for place in places:
            place.mkdir()
        runners = [(Runner(place, PLANTS), place) for place in places]
        base = build(Path(folder) / "base", runners[0][0])
        for runner, place in runners[1:]:
            warm(runner, base.data, place)
        every = [case for cases in EVERY for case in cases(base, given.seed)]
        cases = [case for case in every if given.only in f"{case.kind}: {case.name}"]
        if given.number:
            flips = [case for case in cases if FLIPPED.fullmatch(case.name)]
            rest = [case for case in cases if case not in flips]
            cases = flips + sample(rest, given.number, given.seed)
        kinds = Counter(case.kind for case in cases)
        print(", ".join(f"{n} {kind}" for kind, n in kinds.items()), flush=True)

        def text_of(scenes: Sequence[tuple[Case, Scene, float]]) -> str:
            passed = time.monotonic() - start
            return report.text(scenes, given.seed, passed, len(scenes) < len(every))

        def write(scenes: Sequence[tuple[Case, Scene, float]]) -> None:
            if given.report:
                (ROOT / given.report).write_text(text_of(scenes), encoding="utf-8")

        played = Played(write)
        play(cases, base, runners, played)
        for runner, _ in runners:
            runner.__exit__(None, None, None)
    write(played.scenes)
    print(text_of(played.scenes))
    return 1 if any(scene.faults for _, scene, _ in played.scenes) else 0


if __name__ == "__main__":
    sys.exit(main())
