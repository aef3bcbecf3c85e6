"""Do the tests bite? Breaks the numeric core in one named place at a time and runs its tests.

    make mutants                                    # all of them, and a summary
    python tests/mutation/run.py --jobs 2 trm       # those whose name holds a word

A mutant that its tests pass has survived; each survivor is either a test that is missing or is
listed in mutants.py with the reason why nothing can tell it from the original.

Nothing on disk is changed: each mutant runs in a forked process that imports the module from its
changed text. Heavy libraries are imported once, before the forks.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from mutants import EQUIVALENT, MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 300  # seconds; a mutant that loops for ever is killed, which counts
WANTED = 0.95  # share of the mutants that must be killed
PASSED, FAILED = 0, 1  # pytest's exit codes


class Changed(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds one module, and loads it from its changed text."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.path = mutant, mutant.path(ROOT)

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.mutant.module:
            return None
        folder = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(
            name, self.path, loader=self, submodule_search_locations=folder
        )
        assert spec is not None
        return spec

    def get_source(self, name: str) -> str:
        return self.mutant.changed(ROOT)


def warm() -> None:
    """Imports what all tests need and no mutant changes, so that forks share it."""
    import hypothesis
    import matplotlib.figure
    import mlflow.tracking
    import monai.inferers
    import monai.losses
    import monai.metrics
    import monai.networks.nets
    import nibabel
    import pandas
    import pytest
    import scipy.stats
    import sklearn.metrics
    import statsmodels.formula.api
    import torch

    torch.set_num_threads(1)
    assert all((hypothesis, matplotlib, mlflow, monai, nibabel, pandas, pytest, scipy, sklearn))
    assert statsmodels


def child(mutant: Mutant, log: Path) -> None:
    """Runs a mutant's tests in this process, which ends with pytest's exit code."""
    import hypothesis
    import pytest

    signal.alarm(LONGEST)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # any failure will do: none is shrunk, nor kept
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    sys.meta_path.insert(0, Changed(mutant))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header"]
    code = pytest.main([*options, *mutant.tests])
    sys.stdout.flush()
    os._exit(int(code))


def run(mutants: Sequence[Mutant], jobs: int) -> dict[str, str]:
    """Name of each mutant to `killed`, `survived`, or what went wrong."""
    results: dict[str, str] = {}
    running: dict[int, tuple[Mutant, Path, float]] = {}
    waiting = list(mutants)
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop(0)
                log = Path(folder) / f"{len(waiting)}.txt"
                pid = os.fork()
                if pid == 0:
                    try:
                        child(mutant, log)
                    finally:
                        os._exit(99)
                running[pid] = (mutant, log, time.monotonic())
            pid, status = os.wait()
            mutant, log, began = running.pop(pid)
            results[mutant.name] = verdict(status, log)
            took = time.monotonic() - began
            done = f"{len(results)} of {len(mutants)}"
            print(f"{done:>10}  {results[mutant.name]:9} {took:5.0f} s  {mutant.name}", flush=True)
            if mutant.new == mutant.old and results[mutant.name] != "survived":
                print(log.read_text(errors="replace")[-4000:], flush=True)  # why tests fail anyway
    return results


def verdict(status: int, log: Path) -> str:
    """What the end of a mutant's process says."""
    if os.WIFSIGNALED(status):
        return "killed"
    code = os.WEXITSTATUS(status)
    if code == FAILED:
        return "killed"
    if code == PASSED:
        return "survived"
    text = log.read_text(errors="replace")
    # a mutant that cannot even be imported ends pytest's collection
    broken = "rror" in text and ("collecting" in text or "conftest" in text)
    return "killed" if broken else f"broken: exit {code}: {text[-300:]}"


def main() -> int:
    """Runs mutants and says whether enough were killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run mutants whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    chosen = [m for m in MUTANTS if not given.words or any(w in m.name for w in given.words)]
    for mutant in chosen:
        mutant.changed(ROOT)  # each must still fit the code, before anything runs
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    warm()
    # The tests must pass with nothing changed, or what fails them would count as a killed mutant.
    plain = {m.tests: replace(m, name=f"nothing, for {m.tests[0]}", new=m.old) for m in chosen}
    spoilt = [
        name for name, said in run([*plain.values()], given.jobs).items() if said != "survived"
    ]
    if spoilt:
        print(f"tests that fail anyway: {', '.join(spoilt)}")
        return 1
    results = run(chosen, given.jobs)
    survivors = [name for name, result in results.items() if result == "survived"]
    broken = {name: result for name, result in results.items() if result.startswith("broken")}
    unexplained = [name for name in survivors if name not in EQUIVALENT]
    killed = sum(result == "killed" for result in results.values())
    print(f"\n{killed} of {len(results)} mutants killed ({100 * killed / len(results):.1f} %)")
    for name in survivors:
        print(f"survived: {name}: {EQUIVALENT.get(name, 'a test is missing')}")
    for name, result in broken.items():
        print(f"{name}: {result}")
    return int(bool(broken or unexplained) or killed < WANTED * len(results))


if __name__ == "__main__":
    sys.exit(main())
