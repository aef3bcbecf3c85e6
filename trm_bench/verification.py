"""Is a results folder what trm-bench wrote? Every file is read and nothing is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from trm_bench.data.prepared import open_prepared
from trm_bench.datasets import REGISTRY as DATASETS
from trm_bench.errors import Damaged, UserError
from trm_bench.files import TEMPORARY
from trm_bench.fingerprint import code_fingerprint
from trm_bench.methods.registry import REGISTRY as METHODS
from trm_bench.phantom import MARKER, damaged_files
from trm_bench.runs import health
from trm_bench.runs.arrays import open_savepoint
from trm_bench.runs.claims import is_stale
from trm_bench.runs.config import RunConfig
from trm_bench.runs.folders import ProtocolFolder, ResultsFolder
from trm_bench.runs.plan import NUMERIC
from trm_bench.runs.records import StoredPlan
from trm_bench.runs.store import read_model, read_record, read_trials
from trm_bench.seals import require_tensors

Kind = Literal["damaged", "missing", "orphan", "other code", "cut off", "leftover", "set aside"]
FAULTS: tuple[Kind, ...] = ("damaged", "missing")


@dataclass(frozen=True)
class Finding:
    """Something about a file.

    Attributes:
        kind: `damaged`, not what was written; `missing`, named by another file or the plan, and not
            there. The others are no faults: `orphan`, belongs to no cell and no trial, such as the
            runs of earlier settings; `other code`, a cell's record that this version of the code
            would name otherwise; `cut off`, a training that goes on; `leftover`, the part of a file
            that a killed command was writing, or the savepoint of a training that has ended;
            `set aside`, a damaged file that an earlier command has renamed.
        path: Which.
        what: In words.
    """

    kind: Kind
    path: Path
    what: str

    @property
    def is_fault(self) -> bool:
        """Whether numbers cannot be trusted, or are not all there."""
        return self.kind in FAULTS


def verify(folder: Path) -> tuple[int, list[Finding]]:
    """Holds every file of a results folder against its checksum, its name and those that name it.

    Args:
        folder: Given to --out, or that of one protocol, whose shared files are read too.

    Returns:
        Number of files read, and what was found.

    Raises:
        UserError: There are no results.
    """
    inside = [p for p in sorted(folder.glob("*")) if _is_protocol(p)]
    protocols = [ProtocolFolder(p) for p in ([folder] if _is_protocol(folder) else inside)]
    if not protocols:
        fix = "run a protocol first: trm-bench run PROTOCOL --out DIR"
        raise UserError("no results of trm-bench here", folder, fix)
    findings: list[Finding] = []
    known = _Known()
    for protocol in protocols:
        findings += _protocol(protocol, known)
    findings += _shared(protocols[0].results, known, whole=bool(inside))
    findings += _remains(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sorted(findings, key=lambda f: (str(f.path), f.kind))


class _Known:
    """What records and checkpoints name: source networks, and subjects by the digest of files."""

    def __init__(self) -> None:
        self.sources: set[str] = set()
        self.volumes: set[tuple[str, str]] = set()

    def add(self, config: RunConfig) -> None:
        self.volumes |= {
            (m.subject, m.digest) for part in config.subjects.parts().values() for m in part
        }
        if config.source is not None:
            self.sources.add(config.source.id)
        if config.source_training is not None:
            self.add(config.source_training)


def _is_protocol(path: Path) -> bool:
    return any((path / name).exists() for name in ("plan.json", "records", "sweep"))


def _protocol(folder: ProtocolFolder, known: _Known) -> Iterator[Finding]:
    """A protocol's plan, records with what they keep, audits and sweep."""
    swept = health.of_sweep(folder)
    texts = health.of_plan(folder)
    if len(swept.missing) == 2:  # nothing was swept
        swept.missing.clear()
    elif not (folder.path / "predictions").exists():  # nothing but a sweep
        texts.missing.clear()
    yield from _told(swept)
    yield from _told(texts)
    plan = read_model(StoredPlan, folder.plan)
    cells = plan.cells if plan else ()
    trials = {r for m in read_trials(folder).methods for t in m.trials for r in t.runs}
    wanted = {cell.run for cell in cells} | trials
    present = {path.stem for path in folder.records.glob("[!.]*.json")}
    for run in sorted(wanted | present):
        found = health.of_run(folder, run)
        yield from _told(found)
        if found.record is None:
            continue
        known.add(found.record.config)
        if run not in wanted:
            what = "belongs to no cell of the plan and no trial; such as one of earlier settings"
            yield Finding("orphan", folder.record(run), what)
        elif found.record.config.code != (code := _code(found.record.config)):
            what = "was made by other code than this trm-bench's"
            what = what if code else "cannot be told from other code: its method is not installed"
            yield Finding("other code", folder.record(run), what)
    yield from _unnamed(folder, present)
    yield from _savepoints(folder)
    yield from _told(health.of_audits(folder, cells))


def _unnamed(folder: ProtocolFolder, present: set[str]) -> Iterator[Finding]:
    """Predictions, slices and networks that no record names."""
    for path in sorted((folder.path / "predictions").glob("*")):
        record = read_record(folder.record(path.name)) if path.name in present else None
        if path.name not in present:
            yield Finding("orphan", path, "predictions of a run that has no record")
        elif record is not None and path.is_dir():
            names = {folder.prediction(record.id, subject).name for subject in record.predictions}
            for file in sorted(path.iterdir()):
                if file.name not in names and not _remain(file):
                    yield Finding("orphan", file, "a prediction that its run's record lacks")
    for kind, inside in (("slices", folder.path / "slices"), ("network", folder.networks)):
        for path in sorted(inside.glob("[!.]*.safetensors")):
            if path.stem not in present:
                yield Finding("orphan", path, f"{kind} of a run that has no record")


def _savepoints(folder: ProtocolFolder) -> Iterator[Finding]:
    """Trainings that are under way or were cut off."""
    for path in sorted(folder.savepoints.glob("[!.]*.safetensors")):
        record = read_record(folder.record(path.stem))
        if folder.results.source(path.stem).exists() or (record and record.state != "failed"):
            yield Finding("leftover", path, "is of a training that has ended; can be deleted")
            continue
        found = health.of_savepoint(path)
        yield from _told(found)
        if found.whole:
            saved = open_savepoint(path)
            what = f"is a training at step {saved.step} of {saved.steps}, under way or cut off; "
            yield Finding("cut off", path, what + "the same command goes on there")


def _shared(results: ResultsFolder, known: _Known, whole: bool) -> Iterator[Finding]:
    """Source networks and prepared volumes; those of other protocols only if all were read."""
    sources = {p.stem for p in (results.path / "sources").glob("[!.]*.safetensors")}
    for identity in sorted(sources & known.sources if not whole else sources | known.sources):
        found = health.of_source(results.source(identity))
        yield from _told(found)
        if found.whole and identity not in known.sources:
            yield Finding("orphan", results.source(identity), "no record names it")
    for path in sorted((results.path / "prepared").glob("*/[!.]*.safetensors")):
        try:
            volume = open_prepared(path)
            require_tensors(path)
        except Damaged as error:
            yield _damaged(error)
            continue
        if whole and volume and (volume.subject, volume.digest) not in known.volumes:
            yield Finding("orphan", path, "no record names it")
    for marker in sorted((results.path / "phantom").glob(f"*/*/{MARKER}")):
        for path in damaged_files(marker.parent):
            yield Finding("damaged", path, "is not what the phantom has there; run again")
    if whole and (results.mlflow_store.exists() or results.mlflow_store.is_symlink()):
        yield from _database(results.mlflow_store)


def _database(path: Path) -> Iterator[Finding]:
    if path.is_symlink() or not path.is_file():  # sqlite would wait for a pipe
        yield Finding("damaged", path, "is a link or no file; move it aside and run again")
        return
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except (sqlite3.Error, UnicodeError) as error:  # damaged text is not UTF-8
        answer = str(error)
    if answer != "ok":
        what = f"the tracking store cannot be read ({answer}); move it aside and run again"
        yield Finding("damaged", path, what)


def _told(found: health.Health) -> Iterator[Finding]:
    yield from map(_damaged, found.damaged)
    for path in found.missing:
        yield Finding("missing", path, "is not there; run again")


def _damaged(error: Damaged) -> Finding:
    return Finding("damaged", Path(error.where or ""), error.what)


def _remain(path: Path) -> Kind | None:
    if TEMPORARY.fullmatch(path.name) or (path.suffix == ".claim" and _is_forsaken(path)):
        return "leftover"
    return "set aside" if health.SUFFIX in path.suffix else None


def _is_forsaken(claim: Path) -> bool:
    try:
        return is_stale(claim)
    except OSError:  # its job has ended meanwhile, or it is a link to nowhere
        return claim.is_symlink()


def _remains(root: Path) -> Iterator[Finding]:
    words = {
        "leftover": "is of a command that was ended while it worked",
        "set aside": "was damaged, and has been made again since or will be",
    }
    for path in sorted(root.rglob("*")):
        if kind := _remain(path):
            yield Finding(kind, path, words[kind])


@cache
def _fingerprint(dataset: str, method: str) -> str:
    try:
        kinds = DATASETS.get(dataset), METHODS.get(method)
    except UserError:
        return ""
    return code_fingerprint(*NUMERIC, *(kind.__module__ for kind in kinds))


def _code(config: RunConfig) -> str:
    """The fingerprint of this code for a run; "" where its dataset or method is not installed."""
    return _fingerprint(config.dataset, config.method.name)
