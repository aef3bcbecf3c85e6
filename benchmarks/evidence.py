"""The risk maps of three source variables side by side, on the same source networks.

    .venv/bin/python benchmarks/evidence.py PROTOCOL [KEY.PATH=VALUE ...]

Trains the source networks of a protocol's first seed in a temporary folder, makes the risk map of
`trm` (R = -log p) from each, and from the same network with its initial weights, under every
`evidence`. Tells LEEP, the share of the map that the class explains, the rank correlation with the
map of the classes, over all voxels and within the labelled ones, and the seconds that it took.
Wrote the table of docs/evidence.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import spearmanr

from trm_bench import pipeline
from trm_bench.display import Display
from trm_bench.methods.evidence import Evidence
from trm_bench.methods.registry import create
from trm_bench.methods.trm import FIELD
from trm_bench.runs import arrays, compute, execute
from trm_bench.runs.executors import LocalPool
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.plan import Job

CPU = torch.device("cpu")


def jobs(protocol: Any, out: Path) -> Iterator[Job]:
    """The runs of the protocol, their source networks trained."""
    with Display(quiet=True) as display:
        folder = ResultsFolder(out).protocol(protocol.name)
        _, plan = pipeline.planned(protocol, folder, False, (), LocalPool(CPU), None, display)
        for source in plan.sources:
            execute.do(source, CPU, lambda *at: None)
        yield from plan.runs


def compared(job: Job, trained: bool) -> Iterator[tuple[Any, ...]]:
    """A row for each source variable."""
    assert job.config.source is not None
    about, state = arrays.read_source(job.folder.results, job.config.source.id)
    if not trained:
        state = compute.build(about.config, CPU).state_dict()
    maps: dict[str, np.ndarray] = {}
    for evidence in get_args(Evidence):
        source = compute.frozen(about.config, state, CPU)
        run, _ = compute.start(job.config, source, partial(execute.load_part, job, CPU), CPU)
        method = create("trm", {"risk": "neg_log", "weight": "risk", "evidence": evidence})
        start = time.perf_counter()
        method.prepare(run)
        took = time.perf_counter() - start
        own = run.training_set
        maps[evidence] = np.concatenate([weights.flatten() for weights in own.fields[FIELD]])
        labelled = np.concatenate([raw.flatten() for raw in own.labels]) > 0
        places = (np.ones_like(labelled), labelled)
        ranks = [spearmanr(maps["classes"][at], maps[evidence][at]).statistic for at in places]
        d = run.diagnostics
        yield evidence, d["leep"], d["class_explained"], *ranks, took, d.get("evidence", "")


if __name__ == "__main__":
    settings = ["tracking=off", "methods=[trm]", *sys.argv[2:]]
    protocol = pipeline.load(sys.argv[1], settings, methods=["trm"], seeds=["0"])
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs(protocol, Path(folder)):
            for trained in (True, False):
                print(job.title, "trained" if trained else "initial weights", flush=True)
                for name, *numbers, took, about in compared(job, trained):
                    shown = "  ".join(f"{x:8.4f}" for x in numbers)
                    print(f"  {name:9} {shown}  {took:5.1f} s  {about}", flush=True)
