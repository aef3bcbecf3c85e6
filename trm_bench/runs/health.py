"""What jobs have left, held against what it should be: whole, damaged or missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from trm_bench.errors import Damaged
from trm_bench.runs.arrays import open_checkpoint, open_savepoint
from trm_bench.runs.config import Imported
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Cell, Record, StoredPlan, Trials
from trm_bench.runs.store import open_audit, open_model, open_record, read_model, read_tuned
from trm_bench.seals import require_digest, require_tensors

SUFFIX = ".damaged"


@dataclass
class Health:
    """The state of what a job leaves.

    Attributes:
        record: Of a run; None where there is none that can be trusted.
        damaged: Files that are not what was written.
        missing: Files that are not there.
    """

    record: Record | None = None
    damaged: list[Damaged] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged and not self.missing

    @property
    def done(self) -> bool:
        """Whether the job need not be done again.

        A failed run is not done; a diverged one is, as it would diverge again.
        """
        failed = self.record is not None and self.record.state == "failed"
        return self.whole and not failed

    def look(self, path: Path, check: Callable[[], object]) -> None:
        """Notes what a check of a file says by its exceptions."""
        try:
            check()
        except (FileNotFoundError, NotADirectoryError):
            self.missing.append(path)
        except Damaged as error:
            self.damaged.append(error)
        except OSError as error:
            self.damaged.append(Damaged(f"cannot be read: {error.strerror}", path))


def of_source(path: Path) -> Health:
    """The state of a source network, whose id is the name of its file."""
    health = Health()
    health.look(path, partial(_require_network, path))
    return health


def _require_network(path: Path) -> None:
    if (identity := open_checkpoint(path).id) != path.stem:
        raise Damaged(f"is the network {identity}", path)
    require_tensors(path)


def of_savepoint(path: Path) -> Health:
    """The state of a savepoint, whose id is the name of its file; it need not be there."""
    health = Health()
    if path.exists() or path.is_symlink():
        health.look(path, partial(_require_savepoint, path))
    return health


def _require_savepoint(path: Path) -> None:
    open_savepoint(path)
    require_tensors(path)


def of_run(folder: ProtocolFolder, run: str) -> Health:
    """The state of a run's record, predictions and slices, and of its network where that is kept.

    A network may be gone: a run is not done again for it.
    """
    health, path = Health(), folder.record(run)
    try:
        health.record = open_record(path)
    except Damaged as error:
        health.damaged.append(error)
        return health
    if health.record is None:
        health.missing.append(path)
        return health
    for file, digest in kept(folder, health.record):
        health.look(file, partial(require_digest, file, digest))
    network = folder.network(run)
    if network.exists() or network.is_symlink():
        health.look(network, partial(_require_network, network))
    return health


def of_plan(folder: ProtocolFolder) -> Health:
    """The state of plan.json."""
    return _of_text(folder.plan, lambda: open_model(StoredPlan, folder.plan))


def of_sweep(folder: ProtocolFolder) -> Health:
    """The state of tuned.yaml and trials.json; both are missing where nothing was swept."""
    tuned = _of_text(folder.tuned, lambda: folder.tuned.exists() and read_tuned(folder.tuned))
    trials = _of_text(folder.trials, lambda: open_model(Trials, folder.trials))
    return Health(None, tuned.damaged + trials.damaged, tuned.missing + trials.missing)


def _of_text(path: Path, read: Callable[[], object]) -> Health:
    health = Health()
    try:
        if not read():
            health.missing.append(path)
    except Damaged as error:
        health.damaged.append(error)
    return health


def of_report(folder: ProtocolFolder) -> Health:
    """What is damaged of all that a report reads, and the records that are missing.

    A damaged plan stops a report, and is not told here.
    """
    plan = read_model(StoredPlan, folder.plan)
    cells = plan.cells if plan else ()
    all_of_it, imported = Health(damaged=of_sweep(folder).damaged), set[str]()
    for run in dict.fromkeys(cell.run for cell in cells):
        found = of_run(folder, run)
        all_of_it.damaged += found.damaged
        all_of_it.missing += [path for path in found.missing if path == folder.record(run)]
        source = found.record.config.source if found.record else None
        if isinstance(source, Imported):
            imported.add(source.id)
    for identity in sorted(imported):  # whose accounts a report tells
        all_of_it.damaged += of_source(folder.results.source(identity)).damaged
    all_of_it.damaged += of_audits(folder, cells).damaged
    return all_of_it


def of_audits(folder: ProtocolFolder, cells: Iterable[Cell]) -> Health:
    """The state of the audits of some cells; one that is not there may never have been possible."""
    health = Health()
    for transfer, seed in dict.fromkeys((cell.transfer, cell.seed) for cell in cells):
        path = folder.audit(transfer, seed)
        found = _of_text(path, partial(open_audit, folder, transfer, seed))
        health.damaged += found.damaged
    return health


def kept(folder: ProtocolFolder, record: Record) -> Iterator[tuple[Path, str]]:
    """The files that a run keeps beside its record, and their sha256."""
    for subject, digest in record.predictions.items():
        yield folder.prediction(record.id, subject), digest
    if record.slices:
        yield folder.slices(record.id), record.slices


def set_aside(damaged: Iterable[Damaged], tell: Callable[[str], None]) -> None:
    """Renames damaged files, so that they are made again and can still be looked at.

    Args:
        damaged: What is to be said of each.
        tell: Called with a sentence on each that is there.
    """
    for error in damaged:
        path = Path(error.where or "")
        aside = path.with_name(path.name + SUFFIX)
        number = 1
        while aside.exists() or aside.is_symlink():
            number += 1
            aside = path.with_name(f"{path.name}{SUFFIX}{number}")
        if path.exists() or path.is_symlink():
            path.rename(aside)
            tell(f"{path} {error.what}; set aside as {aside.name}, and made again")
