"""What a benchmark costs as it grows: in subjects, size of volumes, methods, seeds and jobs.

    .venv/bin/python benchmarks/scaling.py [--results scaling.json] [--curves subjects jobs]
                                           [--most 400] [--estimate]

Each piece is one `pipeline.run` of the demo protocol on its phantom, in a process of its own, with
a network so small that all else is seen. Told are wall time, processor time of all processes, and
the most private memory (what is not a mapped file, which can be dropped) of driver and worker; the
exponent of a curve is its slope between its larger half, on logarithmic axes. Pieces stand in the
results, and are not measured again; beside them the figure is written.

With `--estimate`, a training step and a test subject of PROTOCOL as it is are timed on one core,
and what its full matrix would take is added.

Exit code 1 where a time grows faster than with the power MOST, or memory grows where it should not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

# in the place of this folder, whose statistics.py is not the standard library's
sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
import torch

from trm_bench import networks, pipeline
from trm_bench.bench import workload
from trm_bench.data.patches import SubjectStore
from trm_bench.data.prepared import open_prepared
from trm_bench.datasets.base import Scan
from trm_bench.environment import processor
from trm_bench.files import write_json
from trm_bench.methods.registry import create, trainable
from trm_bench.protocol import Protocol, load_protocol
from trm_bench.runs.executors import LocalPool
from trm_bench.seeds import deterministic
from trm_bench.training.evaluation import score_subjects
from trm_bench.training.loop import Curves, fitting

MOST, FLAT = 1.15, 1.25  # power of a time; largest over smallest memory
LOOK_EVERY = 0.05  # seconds between looks at the processes
BASE = {"subjects": 24, "spacing": 4.0, "methods": 2, "seeds": 1, "jobs": 2}
CURVES: dict[str, tuple[float, ...]] = {
    "subjects": (12, 25, 50, 100, 200, 400),
    "spacing": (6.0, 4.5, 3.0, 2.0, 1.5),
    "methods": (2, 4, 8, 16),
    "seeds": (1, 2, 4, 8),
    "jobs": (1, 2, 4),
}
# along these memory must not grow; along `jobs` time must not either, and it is shown alone
FLAT_ALONG = ("subjects", "methods", "seeds", "jobs")
SMALL = {
    "network": '{"name": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 0}',
    "training.source.steps": "10",
    "training.target.steps": "10",
    "training.source.patch": "[16, 16, 16]",
    "training.target.patch": "[16, 16, 16]",
    "split.design": "fixed",
    "transfers.pairs": '[["T2", "T1"]]',
    "tracking": "off",
}
METHODS = ("scratch", "finetune", "trm", "trm_prior", "trm_uniform", "trm_shuffled", "focal")
METHODS += ("topk", "l2_sp", "lp_ft", "frozen_encoder", "wise_ft", "bss", "delta", "co_tuning")
METHODS += ("auto_rgn",)
PROTOCOL = "fets_cross_modality"
FULL = {"subjects": 341, "test": 91, "seeds": 3, "spacing": 1.0}
# Volumes of BraTS after the crop to the brain, at 1 mm
SHAPE = (140, 170, 140)
VOXELS = math.prod(SHAPE)
STEPS = 4
# An assumption, not a measurement: steps a second of one H100-class GPU in bf16 over those of one
# core in fp32, for a 3D U-Net of this size.
GPU_OVER_CORE = 100.0
Line = dict[str, Any]


def run(piece: Mapping[str, float], output: Path) -> None:
    """One benchmark of a size."""
    settings = {
        **SMALL,
        "phantom.subjects": f"{piece['subjects']:.0f}",
        "phantom.spacing": f"{piece['spacing']}",
    }
    methods = METHODS[: int(piece["methods"])]
    seeds = [str(seed) for seed in range(int(piece["seeds"]))]
    chosen = [f"{key}={value}" for key, value in settings.items()]
    protocol = pipeline.load("demo", chosen, True, methods, seeds)
    with LocalPool(torch.device("cpu"), int(piece["jobs"])) as pool:
        jobs = int(piece["jobs"])
        outcome = pipeline.run(
            protocol, output, stand_in=True, jobs=jobs, executor=pool, pages=False
        )
    assert set(outcome.states) == {"finished"}, outcome.states
    files = outcome.folder.results.path.glob("prepared/**/*.safetensors")
    sizes = [np.prod(prepared.shape) for file in files if (prepared := open_prepared(file))]
    print(json.dumps({"voxels": float(np.mean(sizes))}))


def measured(piece: Mapping[str, float]) -> Line:
    """A piece, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--piece", json.dumps(piece), "--folder", folder]
        environment = {**os.environ, "PYTHONPATH": sys.path[0]}
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
        )
        processor: dict[int, float] = {}
        driver = worker = 0.0
        while process.poll() is None:
            for pid, seconds, private in processes(process.pid):
                processor[pid] = seconds
                if pid == process.pid:
                    driver = max(driver, private)
                else:
                    worker = max(worker, private)
            time.sleep(LOOK_EVERY)
        wall = time.perf_counter() - begin
        said = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"{piece}: exit code {process.returncode}")
    return {
        **piece,
        **json.loads(said.splitlines()[-1]),
        "wall": wall,
        "processor": sum(processor.values()),
        "driver MB": driver,
        "worker MB": worker,
    }


def processes(session: int) -> Iterator[tuple[int, float, float]]:
    """Of each process of a session its number, processor seconds and private memory in MB."""
    tick = os.sysconf("SC_CLK_TCK")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            status = (folder / "status").read_text(encoding="utf-8")
        except (OSError, IndexError):  # it has ended
            continue
        private = status.partition("RssAnon:")[2].split()
        memory = int(private[0]) / 1024 if private else 0.0
        yield int(folder.name), (int(fields[11]) + int(fields[12])) / tick, memory


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the larger half of a curve, three points at least, on logarithmic axes."""
    order = np.argsort(x)[-max(3, (len(x) + 1) // 2) :]
    return float(np.polyfit(np.log(np.array(x)[order]), np.log(np.array(y)[order]), 1)[0])


def along(name: str) -> str:
    """What a curve is drawn against."""
    return "voxels" if name == "spacing" else name


def curve(pieces: Sequence[Line], name: str) -> list[Line]:
    """The pieces that differ from the base in this alone, small ones first."""
    others = {key: value for key, value in BASE.items() if key != name}
    found = [piece for piece in pieces if others.items() <= piece.items()]
    return sorted(found, key=lambda piece: float(piece[along(name)]))


def fitted(pieces: Sequence[Line], names: Sequence[str]) -> tuple[list[Line], list[str]]:
    """The exponents, and a sentence on each that is not as it should be."""
    rows, faults = [], []
    for name in names:
        points = curve(pieces, name)
        if len(points) < 2:
            continue
        x = [float(p[along(name)]) for p in points]
        row: Line = {"along": along(name), "points": len(points)}
        for what in ("wall", "processor"):
            row[what] = exponent(x, [float(p[what]) for p in points])
            if name != "jobs" and row[what] > MOST:
                faults.append(f"{what} time grows with {along(name)}^{row[what]:.2f}")
        for what in ("driver MB", "worker MB"):
            known = [float(p[what]) for p in points if p["jobs"] > 1]
            row[what] = max(known) / min(known)
            if name in FLAT_ALONG and row[what] > FLAT:
                faults.append(f"{what} grow {row[what]:.2f}-fold with {along(name)}")
        rows.append(row)
    return rows, faults


def timed() -> tuple[float, float]:
    """Seconds of a training step and of a test subject of PROTOCOL, on one core in fp32.

    On random volumes as large as BRATS's at 1 mm; the network says background everywhere, as
    scoring masks like those of an untrained network would take far longer than a trained one's.
    """
    cpu, protocol = torch.device("cpu"), load_protocol(PROTOCOL)
    training = protocol.training.target.model_copy(update={"steps": STEPS, "precision": "fp32"})
    deterministic(cpu)
    draws = np.random.default_rng(0)
    label = (workload.radii(SHAPE) < 0.4).astype(np.uint8)
    image = draws.normal(size=(1, *SHAPE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        scan = Scan(image, label, np.eye(4), ("image",))
        prepared = workload.save(Path(folder) / "0.safetensors", scan, workload.WHOLE)
        subjects = SubjectStore([prepared], ("image",), workload.LABELS, cpu)
        run = workload.context(subjects, training, cpu, network=protocol.network)
        method = create("finetune", {})
        fit = fitting(run, method, Curves(looks=0))
        fit(0, 1)
        begin = time.process_time()
        fit(1, STEPS)
        step = (time.process_time() - begin) / (STEPS - 1)
        head = run.network.get_submodule(run.parts.head)
        with torch.no_grad():
            [*head.parameters()][-1][0] = 100.0
        begin = time.process_time()
        score_subjects(run.network, subjects, protocol.metrics, training, protocol.evaluation)
        return step, time.process_time() - begin


def estimate(step: float, subject: float) -> Line:
    """Hours and memory of the full matrix of PROTOCOL, all methods.

    Args:
        step: Seconds of a training step of fine-tuning, on one core.
        subject: Seconds of a test subject at 1 mm, on one core.
    """
    protocol = load_protocol(PROTOCOL)
    images, source = 4, protocol.training.source
    runs, steps = 0, float(images * FULL["seeds"] * source.steps)
    for name in dict.fromkeys([*(m.name for m in protocol.methods), *trainable(protocol)]):
        method = create(name, {})
        cells = images * (images - 1 if method.transfers else 1) * FULL["seeds"]
        training = method.adjusted(protocol.training.target)
        runs += int(cells)
        steps += cells * training.steps * method.passes()
    seconds = steps * step + runs * FULL["test"] * subject
    stored = VOXELS * (2 * images + 2) * FULL["subjects"] / 2**30
    return {
        "runs": runs,
        "steps": steps,
        "core hours": seconds / 3600,
        "hours on two cores": seconds / 3600 / 2,
        "hours on one GPU (assumed)": seconds / 3600 / GPU_OVER_CORE,
        "GPU over core (assumption)": GPU_OVER_CORE,
        "GiB of prepared volumes, shared by workers": stored,
        "GiB of a training's network and features, fp32": network_memory(protocol),
        "from": {"step s": step, "subject s": subject, "protocol": PROTOCOL, **FULL},
    }


def network_memory(protocol: Protocol) -> float:
    """GiB that a training step takes; see `networks.training_bytes`."""
    return networks.training_bytes(protocol.network, protocol.training.target, 1, 2) / 2**30


def draw(pieces: Sequence[Line], names: Sequence[str], path: Path) -> None:
    """One panel a curve: seconds above, on logarithmic axes, memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(names), 5.5), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    for column, name in enumerate(names):
        points = curve(pieces, name)
        for row, kinds in enumerate((("wall", "processor"), ("driver MB", "worker MB"))):
            panel = axes[row][column]
            for kind in kinds:
                shown = [p for p in points if p[kind] > 0]
                x = [p[along(name)] for p in shown]
                panel.plot(x, [p[kind] for p in shown], marker="o", label=kind)
            if points:  # a logarithmic axis wants a number
                panel.set_xscale("log", base=2)
                values = [float(p[along(name)]) for p in points]
                apart = [n for n, m in pairwise([*values, math.inf]) if m / n > 1.5]
                written = [f"{n:.0f}" if n < 1000 else f"{n / 1000:.0f}k" for n in apart]
                panel.set_xticks(apart, written, fontsize="small")
                panel.set_xlabel(along(name) if row else "")
        axes[0][column].set_yscale("log", base=2)
        axes[0][column].set_ylim(8, 256)
        axes[0][column].set_yticks([2**n for n in range(3, 9)], [str(2**n) for n in range(3, 9)])
        axes[1][column].set_ylim(bottom=0)
        axes[0][0].set_ylabel("seconds")
        axes[1][0].set_ylabel("private memory, MB")
    for row in axes:
        row[0].legend(fontsize="small")
    figure.savefig(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("scaling.json"))
    parser.add_argument("--curves", nargs="+", choices=[*CURVES], default=[*CURVES])
    parser.add_argument("--most", type=int, default=400, help="subjects")
    parser.add_argument("--estimate", action="store_true", help="of the full matrix of PROTOCOL")
    parser.add_argument("--piece", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.piece:
        run(given.piece, given.folder)
        return 0
    known = json.loads(given.results.read_text("utf-8")) if given.results.exists() else {}
    pieces: list[Line] = known.get("pieces", [])
    content: Line = {"machine": f"{processor()[0]}, {len(os.sched_getaffinity(0))} cores"}
    content |= {key: known[key] for key in ("estimate",) if key in known}
    for name in given.curves:
        for value in CURVES[name]:
            piece = {**BASE, name: value}
            missing = not any(piece.items() <= one.items() for one in pieces)
            if missing and piece["subjects"] <= given.most:
                pieces.append(measured(piece))
                print(json.dumps(pieces[-1]), flush=True)
                write_json(given.results, {**content, "pieces": pieces})
    rows, faults = fitted(pieces, given.curves)
    content |= {"pieces": pieces, "exponents": rows, "faults": faults}
    if given.estimate:
        content["estimate"] = estimate(*timed())
    write_json(given.results, content)
    draw(pieces, given.curves, given.results.with_suffix(".svg"))
    for line in (*rows, *([content["estimate"]] if "estimate" in content else []), *faults):
        print(line if isinstance(line, str) else json.dumps(line))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
