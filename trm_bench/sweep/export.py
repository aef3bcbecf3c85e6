"""A sweep's studies in a storage of Optuna, for its dashboard and plots.

They are a copy: tuned.yaml and trials.json stay the truth, and nothing reads an export.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trm_bench.errors import UserError
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.locks import only_one
from trm_bench.runs.records import SweptMethod, SweptTrial, Tuned, TunedMethod
from trm_bench.runs.store import read_record, read_trials, read_tuned
from trm_bench.runs.times import span
from trm_bench.sweep.space import Dimension, dimensions_of
from trm_bench.sweep.studies import frozen, quiet
from trm_bench.urls import URL, shown, told, with_driver

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

JOURNALS = (".log", ".journal")
WHOLE = (
    "tuned.yaml is written, the sweep is whole without this; the same command exports again at no "
    "cost"
)


@dataclass(frozen=True)
class _Copy:
    """What a study in the storage is to be."""

    name: str
    attributes: Mapping[str, Any]
    trials: list[FrozenTrial]


def export(folder: ProtocolFolder, target: str) -> list[str]:
    """Writes every study of a sweep, with all its trials, to a storage of Optuna.

    A study that is there and holds the first of these trials gets the rest, so that exporting again
    changes nothing. One of the same sweep with other trials (some were trained anew) is replaced.
    One of anything else is refused, before anything is written.

    Args:
        folder: Of the protocol, with the files of a whole sweep.
        target: A database's URL, or a file for Optuna's journal (.log or .journal).

    Returns:
        The studies' names: `protocol/method`, and `/transfer` where each has its own values.

    Raises:
        UserError: There is no sweep here, or the storage cannot be written.
    """
    import optuna

    with only_one(folder), quiet():
        copies = _copies(folder)
        with _told(target), _storage(target) as storage:
            names = set(optuna.get_all_study_names(storage))
            held = {c.name: _held(c, storage, target) for c in copies if c.name in names}
            for copy in copies:
                number = held.get(copy.name)
                if copy.name in names and number is None:
                    optuna.delete_study(study_name=copy.name, storage=storage)
                _write(copy, number, storage)
    return [copy.name for copy in copies]


def _copies(folder: ProtocolFolder) -> list[_Copy]:
    tuned = read_tuned(folder.tuned)
    swept = {(s.method, s.transfer): s for s in read_trials(folder).methods}
    copies = []
    for method in tuned.methods:
        trials = swept.get((method.method, method.transfer))
        if trials is None:
            what = f"lacks the trials of '{method.method}' that tuned.yaml tells of"
            raise UserError(
                what, folder.trials, f"sweep it again: trm-bench sweep {tuned.protocol}"
            )
        copies.append(_copy(folder, tuned, method, trials))
    return copies


def _copy(folder: ProtocolFolder, tuned: Tuned, method: TunedMethod, swept: SweptMethod) -> _Copy:
    whole = tuned.model_dump(mode="json", include={"protocol", "data", "budget", "conditions"})
    of_method = {"method", "name", "transfer", "space", "space_hash", "code"}
    dimensions = dimensions_of(method.space)
    return _Copy(
        "/".join(filter(None, (tuned.protocol, method.method, method.transfer))),
        whole | method.model_dump(mode="json", include=of_method),
        [_trial(folder, dimensions, trial) for trial in swept.trials],
    )


def _trial(
    folder: ProtocolFolder, dimensions: tuple[Dimension, ...], trial: SweptTrial
) -> FrozenTrial:
    """A trial as the sampler saw it, with what Optuna has no place for as user attributes.

    Optuna takes no value outside its range, such as a default there: that one is an attribute.
    """
    inside = {d.name: trial.values[d.name] for d in dimensions if _lies_inside(d, trial.values)}
    outside = {name: value for name, value in trial.values.items() if name not in inside}
    score, given = trial.validation_dice, dict[str, Any]()
    given |= {"reason": trial.reason, "voxel_share": trial.voxel_share, "outside_range": outside}
    attributes = {name: value for name, value in given.items() if value not in ("", None, {})}
    attributes |= {"runs": list(trial.runs), "seconds": trial.seconds}
    state = "FAIL" if score is None else "COMPLETE"
    made = frozen(dimensions, inside, state, score, **attributes)
    assert made is not None  # all of its values lie inside
    records = [r for run in trial.runs if (r := read_record(folder.record(run))) is not None]
    if (times := span(records)) is not None:
        # Optuna's times are local and have no zone
        start, end = (time.astimezone().replace(tzinfo=None) for time in times)
        made.datetime_start, made.datetime_complete = start, end
    return made


def _lies_inside(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    return dimension.name in values and dimension.holds(values[dimension.name])


def _identity(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.value, trial.params, trial.user_attrs.get("runs")


def _held(copy: _Copy, storage: BaseStorage, target: str) -> int | None:
    """How many of the trials a study holds already; None where it is to be replaced.

    Raises:
        UserError: It is no export of this sweep.
    """
    import optuna

    study = optuna.load_study(study_name=copy.name, storage=storage)
    there = study.get_trials(deepcopy=False)
    if [d.name for d in study.directions] == ["MAXIMIZE"]:
        own = [_identity(trial) for trial in copy.trials]
        if [_identity(trial) for trial in there] == own[: len(there)]:
            return len(there)
        exported = all("runs" in trial.user_attrs for trial in there)
        if exported and all(study.user_attrs.get(k) == v for k, v in copy.attributes.items()):
            return None
    raise UserError(
        f"holds a study '{copy.name}' that is no export of this sweep",
        shown(target),
        f"choose another storage, or remove that study (optuna delete-study); {WHOLE}",
    )


def _write(copy: _Copy, held: int | None, storage: BaseStorage) -> None:
    """Makes a study, or adds what one that holds some of its trials lacks."""
    import optuna

    if held is None:
        study: Study = optuna.create_study(
            study_name=copy.name, storage=storage, direction="maximize"
        )
    else:
        study = optuna.load_study(study_name=copy.name, storage=storage)
    known = study.user_attrs
    for name, value in copy.attributes.items():
        if name not in known or known[name] != value:
            study.set_user_attr(name, value)
    study.add_trials(copy.trials[held or 0 :])


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Turns what a storage raises into one message, without the password.

    Raises:
        UserError: Anything was raised.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        fix = "pip install 'trm-bench[export]' for PostgreSQL; other databases have their own"
        what = f"needs a driver that is not installed ({told(error, target)})"
        raise UserError(what, shown(target), f"{fix}; {WHOLE}") from error
    except Exception as error:  # drivers, SQLAlchemy, Alembic and Optuna raise what is theirs
        what = f"the studies cannot be written here: {told(error, target)}"
        raise UserError(what, shown(target), WHOLE) from error


@contextmanager
def _storage(target: str) -> Iterator[BaseStorage]:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" not in target:
        path = _journal(target)
        # absolute, since a lock that a kill left on a relative path is waited for without end
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    storage = RDBStorage(_url(target))
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _url(target: str) -> str:
    """A database's URL as Optuna takes it.

    Raises:
        UserError: It is none.
    """
    if target.startswith("sqlite"):
        if target.rstrip("/") == "sqlite:" or ":memory:" in target:
            fix = "name a file: sqlite:///studies.db"
            raise UserError("would be gone with the command", target, f"{fix}; {WHOLE}")
    elif URL.fullmatch(target) is None:
        fix = "for example postgresql://USER@HOST:5432/NAME; write @ : / ? of a password as %40 ..."
        raise UserError("is not the URL of a database", shown(target), f"{fix}; {WHOLE}")
    return with_driver(target).replace("{", "{{").replace("}", "}}")  # Optuna fills in templates


def _journal(target: str) -> Path:
    """The file of a journal; one that is there must be one, and whole.

    Raises:
        UserError: It is no such file.
    """
    path = Path(target).expanduser().resolve()
    if path.suffix not in JOURNALS:
        fix = f"give a URL (postgresql://..., sqlite:///...) or a file in {' or '.join(JOURNALS)}"
        raise UserError(f"'{target}' is no storage of Optuna", "--export-study", f"{fix}; {WHOLE}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            first = file.readline()
            file.seek(-1, 2)
            ended = file.read() == b"\n"
        if not (ended and _is_operation(first)):
            what = "is not a journal of Optuna, or the last line of one is cut off"
            raise UserError(what, target, f"remove it, or name another file; {WHOLE}")
    return path


def _is_operation(line: bytes) -> bool:
    try:
        content = json.loads(line)
    except ValueError:
        return False
    return isinstance(content, dict) and "op_code" in content
