"""The results folder: every path in it.

results/                                what a command gets as --out
    sources/<id>.safetensors            source networks, shared by the protocols
    prepared/<dataset>/                 prepared volumes, likewise
    phantom/<name>/                     stand-in data
    mlflow.db, mlartifacts/             the tracking store
    index.html                          the index over the protocols' reports
    <protocol>/
        plan.json                       which run fills which cell (transfer, method, seed)
        records/<id>.json               one per run, named by the hash of its configuration
        slices/<id>.safetensors         a few test slices with prediction and risk map
        predictions/<id>/*.nii.gz       classes of every test subject, on the grid of its files
        savepoints/<id>.safetensors     trainings that are under way, or were cut off
        networks/<id>.safetensors       trained target networks, where the protocol keeps them
        voxels/*.json                   audits of the voxel level
        sweep/tuned.yaml                the best values of each method
        sweep/trials.json               every trial, and what they took
        sweep/report.html, summary.md, trials.csv, figures/
                                        what the report of a sweep writes
        figures/, report.html, tables   what the report writes
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trm_bench.errors import UserError

READABLE = {"->": "-to-", "@": "-at-", " ": "-"}


def slug(transfer: str) -> str:
    """A transfer's name as part of a file's name; no two transfers share one."""
    return re.sub(r"->|[^A-Za-z0-9_]", _readable, transfer)


def _readable(found: re.Match[str]) -> str:
    return READABLE.get(found[0]) or f"~{ord(found[0]):x}~"


@dataclass(frozen=True)
class ResultsFolder:
    """The folder that a command gets as --out."""

    path: Path

    def protocol(self, name: str) -> ProtocolFolder:
        """The part of a protocol."""
        return ProtocolFolder(self.path / name)

    def source(self, identity: str) -> Path:
        """A source network's file."""
        return self.path / "sources" / f"{identity}.safetensors"

    def prepared(self, dataset: str) -> Path:
        """The prepared volumes of a dataset."""
        return self.path / "prepared" / dataset

    def phantom(self, name: str) -> Path:
        """Stand-in data."""
        return self.path / "phantom" / name

    @property
    def mlflow_store(self) -> Path:
        """The tracking store, where no other is named."""
        return self.path / "mlflow.db"

    def mlflow_artifacts(self, experiment: str) -> Path:
        """The tracking store's files of an experiment."""
        return self.path / "mlartifacts" / experiment

    @property
    def index(self) -> Path:
        """The index over the protocols' reports."""
        return self.path / "index.html"


@dataclass(frozen=True)
class ProtocolFolder:
    """A protocol's part of a results folder; its name is the protocol's."""

    path: Path

    @property
    def results(self) -> ResultsFolder:
        """The folder that it is part of."""
        return ResultsFolder(self.path.parent)

    @property
    def plan(self) -> Path:
        """Which run fills which cell."""
        return self.path / "plan.json"

    @property
    def lock(self) -> Path:
        """Held by the command that writes here."""
        return self.path / ".lock"

    @property
    def settled(self) -> Path:
        """What the folder was like when all was done; see `report.settled`."""
        return self.path / ".settled"

    @property
    def records(self) -> Path:
        """The folder of the records."""
        return self.path / "records"

    def record(self, run: str) -> Path:
        """A run's record."""
        return self.records / f"{run}.json"

    def slices(self, run: str) -> Path:
        """The slices that a run kept for pictures."""
        return self.path / "slices" / f"{run}.safetensors"

    def prediction(self, run: str, subject: str) -> Path:
        """A run's prediction of a test subject."""
        return self.path / "predictions" / run / f"{subject}.nii.gz"

    @property
    def savepoints(self) -> Path:
        """The folder of trainings that are under way."""
        return self.path / "savepoints"

    def savepoint(self, training: str) -> Path:
        """What a training goes on from, of a source network or a run."""
        return self.savepoints / f"{training}.safetensors"

    @property
    def networks(self) -> Path:
        """The folder of the target networks that are kept."""
        return self.path / "networks"

    def network(self, run: str) -> Path:
        """A run's trained network."""
        return self.networks / f"{run}.safetensors"

    def audit(self, transfer: str, seed: int) -> Path:
        """The voxel-level audit of a transfer."""
        return self.path / "voxels" / f"{slug(transfer)}_seed{seed}.json"

    @property
    def sweep(self) -> Path:
        """The folder of a sweep's values, trials and report."""
        return self.path / "sweep"

    @property
    def tuned(self) -> Path:
        """The best values of a sweep."""
        return self.sweep / "tuned.yaml"

    @property
    def trials(self) -> Path:
        """Every trial of a sweep, and what they took."""
        return self.sweep / "trials.json"

    @property
    def figures(self) -> Path:
        """The folder of the report's charts and pictures."""
        return self.path / "figures"

    def refuse_links(self) -> None:
        """Refuses a folder with a link in it that leads elsewhere, where nothing is to be written.

        The folder of the results may itself be a link, as may what a person names on purpose.

        Raises:
            UserError: There is such a link.
        """
        fix = "replace the link by a folder, or give the folder itself with --out"
        root, folder = self.results.path, self.path
        try:
            for folder in (root, *self.written()):
                if not folder.resolve().is_relative_to(root.resolve()):
                    what = f"leads out of the folder of the results, to {folder.resolve()}"
                    raise UserError(what, folder, fix)
        except (OSError, RuntimeError) as error:  # a link that leads to itself
            raise UserError("is a link that leads nowhere", folder, fix) from error

    def written(self) -> list[Path]:
        """The folders that commands write to: this one's own, and those shared by protocols."""
        own = [self.path, self.records, self.path / "slices", self.path / "voxels", self.figures]
        own += [self.sweep, self.sweep / "figures", self.networks, self.path / "predictions"]
        own += [self.savepoints]
        own += (self.path / "predictions").glob("*")
        results = self.results.path
        shared = [results, results / "sources", results / "prepared", results / "mlartifacts"]
        shared += [results / "phantom", *(results / "prepared").glob("*")]
        return [*own, *shared]

    def report(self, name: str) -> Path:
        """A file that the report writes: `report.html`, `table.md`, `metrics.csv`, ..."""
        return self.path / name


def swept_folders(path: Path) -> list[ProtocolFolder]:
    """Protocol folders at `path` that hold a sweep: itself, or those below it."""
    return _those_with(path, "sweep/tuned.yaml")


def run_folders(path: Path) -> list[ProtocolFolder]:
    """Protocol folders at `path` that hold runs: itself, or those below it."""
    return _those_with(path, "plan.json")


def _those_with(path: Path, file: str) -> list[ProtocolFolder]:
    folders = [path] if (path / file).is_file() else sorted(path.glob("*"))
    return [ProtocolFolder(folder) for folder in folders if (folder / file).is_file()]


def protocol_folders(path: Path) -> list[ProtocolFolder]:
    """Protocol folders at `path` that hold runs: itself, or those below it.

    Raises:
        UserError: There is none.
    """
    folders = run_folders(path)
    if not folders:
        fix = "run a protocol first: trm-bench run PROTOCOL --out DIR"
        raise UserError("no results of trm-bench here", path, fix)
    for folder in folders:
        folder.refuse_links()
    return folders


def distinct_names(named: Sequence[tuple[str, ProtocolFolder]]) -> list[str]:
    """Names, with that of the results folder before those that come twice; numbered at last."""
    names = [name for name, _ in named]
    names = [
        n if names.count(n) == 1 else f"{folder.path.resolve().parent.name}/{n}"
        for n, (_, folder) in zip(names, named, strict=True)
    ]
    return [n if names.count(n) == 1 else f"{n} ({i + 1})" for i, n in enumerate(names)]
