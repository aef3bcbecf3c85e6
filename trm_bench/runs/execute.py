"""One job to one record: read what it needs, compute, write what it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trm_bench import environment
from trm_bench.data.patches import SubjectStore
from trm_bench.data.prepared import Prepared, open_expected
from trm_bench.datasets import REGISTRY as DATASETS
from trm_bench.methods import Context, Method
from trm_bench.methods.registry import REGISTRY as METHODS
from trm_bench.methods.registry import create
from trm_bench.runs import arrays, claims, compute, store
from trm_bench.runs.executors import Failure
from trm_bench.runs.plan import Job
from trm_bench.runs.records import Checkpoint, Loading, Record, SourceNote
from trm_bench.runs.savepoints import SavepointFile
from trm_bench.seals import digest_of_file
from trm_bench.seeds import deterministic
from trm_bench.training.evaluation import to_prepared
from trm_bench.training.loop import Curves, Diverged
from trm_bench.training.resuming import Unfit

Progress = Callable[[int, int, float | None], None]
SLICED_SUBJECTS = 3  # test subjects of which a slice is kept for pictures


def do(job: Job, device: torch.device, progress: Progress) -> str:
    """Does a job and leaves its result; a run's own failures become its record.

    Args:
        job: From a plan.
        device: Where to train.
        progress: Called with step, number of steps and loss; then, of the test, with subjects,
            their number and None.

    Returns:
        `finished`, `diverged`, or `failed: ` with the reason. A source that fails raises instead,
        since it has no record.
    """
    deterministic(device)
    with claims.claimed(job.result):
        found = job.health()  # another command may have done it since this one looked
        kept = not job.keep or job.folder.network(job.id).exists()
        if found.done and kept:
            return found.record.state if found.record else "finished"
        return _done_now(job, device, progress)


def _done_now(job: Job, device: torch.device, progress: Progress) -> str:
    savepoint = SavepointFile(job.savepoint, job.config.training.steps)
    if job.config.kind == "source":
        _train_source(job, device, progress, savepoint)
        savepoint.remove()
        return "finished"
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    curves = Curves()
    note: dict[str, Any] = {"state": "failed"}
    try:
        note |= _train_method(job, device, progress, curves, savepoint)
    except Diverged as error:
        note |= {"state": "diverged", "reason": str(error)}
    except Exception as error:  # one failed run must not end the others; its record says why
        note |= asdict(Failure.of(error))
    record = Record(
        id=job.id,
        config=job.config,
        environment=_machine(job, device),
        started=started,
        curves=curves.logged(),
        passes=curves.passes,
        trained=curves.trained,
        resumed=savepoint.resumed,
        **note,
    )
    store.write_model(job.result, record)
    if record.state != "failed":  # which is tried again, and then goes on
        savepoint.remove()
    return f"failed: {record.reason}" if record.state == "failed" else record.state


def failed(job: Job, failure: Failure, device: torch.device) -> None:
    """Leaves the record of a run that could not say itself why it failed.

    Its process died, or its source failed.
    """
    machine, said = _machine(job, device), asdict(failure)
    record = Record(id=job.id, state="failed", config=job.config, environment=machine, **said)
    store.write_model(job.result, record)


def _machine(job: Job, device: torch.device) -> environment.Environment:
    """The machine, with the packages that brought the method and the data set, if any did."""
    machine, config = environment.describe(device), job.config
    brought = METHODS.package(config.method.name) | DATASETS.package(config.dataset)
    return machine.model_copy(update={"packages": machine.packages | brought})


def load_part(job: Job, device: torch.device, part: str) -> SubjectStore:
    """The prepared subjects of a part of a job, as its network sees them; see `compute.Part`.

    Raises:
        Damaged: A prepared volume is gone, not what was written, or not that of the configuration.
    """
    config, files = job.config, job.prepared
    if part == "source":
        source = config.source_training
        assert source is not None, "only where one of ours trained it may a method ask for its data"
        config, files, part = source, job.source_prepared, "train"
    volumes = [open_expected(files[m.subject], *m) for m in config.subjects.parts()[part]]
    return SubjectStore(volumes, config.domain.images, config.domain.label_map, device)


@dataclass(frozen=True)
class _Trained:
    """A training that has ended.

    Attributes:
        run: Whose network was trained.
        method: That trained it.
        source: What is known of the network that it started from.
        loading: Audit of that network's weights; see `compute.start`.
        prepared: Seconds before the training itself, in this sitting.
        seconds: Of the training, in all sittings.
    """

    run: Context
    method: Method
    source: Checkpoint | None
    loading: dict[str, Any] | None
    prepared: float
    seconds: float


def _trained(
    job: Job, device: torch.device, progress: Progress, curves: Curves, savepoint: SavepointFile
) -> _Trained:
    """Trains a job's network, from its savepoint where there is one that it can go on from."""
    config, clock = job.config, time.perf_counter()
    about, source = _source(job, device)
    run, loading = compute.start(config, source, partial(load_part, job, device), device)
    method, steps = create(config.method.name, config.method.parameters), config.training.steps
    prepared = time.perf_counter() - clock
    savepoint.begin()
    try:
        compute.train(
            run, method, curves, lambda step, loss: progress(step, steps, loss), savepoint
        )
    except Unfit as error:
        savepoint.refuse(str(error))
        vars(curves).update(vars(Curves()))
        return _trained(job, device, progress, curves, savepoint)
    return _Trained(run, method, about, loading, prepared, savepoint.spent)


def _train_source(
    job: Job, device: torch.device, progress: Progress, savepoint: SavepointFile
) -> None:
    curves = Curves()
    run = _trained(job, device, progress, curves, savepoint).run
    _keep_network(job, job.result, run, curves, run.validate(run.network))


def _source(job: Job, device: torch.device) -> tuple[Checkpoint | None, compute.Source | None]:
    """What a training starts from."""
    if not job.source:
        return None, None
    about, state = arrays.read_source(job.folder.results, job.source)
    return about, compute.source_of(job.config, state, device)


def _train_method(
    job: Job, device: torch.device, progress: Progress, curves: Curves, savepoint: SavepointFile
) -> dict[str, Any]:
    """Trains and tests; returns the fields of the record that a finished run has."""
    config = job.config
    environment.reset_peak_memory(device)
    ended = _trained(job, device, progress, curves, savepoint)
    run, about, loading = ended.run, ended.source, ended.loading
    trained = time.perf_counter()
    note: dict[str, Any] = {
        "state": "finished",
        "validation_dice": run.validate(run.network),
        "manifest": _manifest(job),
        "source": about and SourceNote(id=about.id, validation_dice=about.validation_dice),
        "loading": loading and Loading(**loading),
    }
    if config.subjects.test:
        test_set = load_part(job, device, "test")
        sums: dict[str, str] = {}
        progress(0, len(config.subjects.test), None)
        keep = partial(_keep_prediction, job, sums, progress)
        note["metrics"] = compute.test(config, run, test_set, keep)
        note["predictions"] = sums
        note["slices"] = _keep_slices(job, run, ended.method, test_set, sums)
    if job.keep:
        path = job.folder.network(job.id)
        _keep_network(job, path, run, curves, note["validation_dice"])
    seconds = {"prepare": ended.prepared, "train": ended.seconds}
    return note | {
        "diagnostics": run.diagnostics,
        "seconds": seconds | {"test": time.perf_counter() - trained},
        "peak_memory_bytes": environment.peak_memory(device),
    }


def _keep_network(job: Job, path: Path, run: Context, curves: Curves, validation: float) -> None:
    about = Checkpoint(
        id=job.id,
        config=job.config,
        validation_dice=validation,
        curves=curves.logged(),
        environment=_machine(job, run.device),
    )
    arrays.write_checkpoint(path, about, run.network.state_dict())


def _manifest(job: Job) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Part to subject to file name to [bytes, sha256]."""
    parts = {name: (job.prepared, ms) for name, ms in job.config.subjects.parts().items()}
    if source := job.config.source_training:
        parts["source"] = (job.source_prepared, source.subjects.train)
    return {
        part: {m.subject: open_expected(files[m.subject], *m).files for m in members}
        for part, (files, members) in parts.items()
    }


def _keep_prediction(
    job: Job, sums: dict[str, str], progress: Progress, prepared: Prepared, classes: Tensor
) -> None:
    path = job.folder.prediction(job.id, prepared.subject)
    names = job.config.domain.classes
    arrays.write_prediction(path, classes.numpy(), prepared.grid, names)
    sums[prepared.subject] = digest_of_file(path)
    progress(len(sums), len(job.config.subjects.test), None)


def _keep_slices(
    job: Job, run: Context, method: Method, test_set: SubjectStore, sums: dict[str, str]
) -> str:
    """Keeps the axial slice with most foreground of a few test subjects, with its maps.

    Returns:
        The sha256 of their file.
    """
    slices: dict[str, dict[str, Tensor]] = {}
    for i, prepared in enumerate(test_set.prepared[:SLICED_SUBJECTS]):
        image, label, _ = test_set.volume(i)
        z = int((label[0] > 0).sum((0, 1)).argmax())
        path = job.folder.prediction(job.id, prepared.subject)
        native = arrays.read_prediction(path, sums[prepared.subject], prepared.grid)
        prediction = to_prepared(torch.from_numpy(native), tuple(label.shape[1:]))
        volumes = {"image": image[:, 0], "label": label, "prediction": prediction[None]}
        volumes |= method.maps(run, image, label)
        slices[prepared.subject] = {name: _slice(v, z) for name, v in volumes.items()}
    path = job.folder.slices(job.id)
    arrays.write_slices(path, slices)
    return digest_of_file(path)


def _slice(volume: Tensor, z: int) -> Tensor:
    kept = volume[0, :, :, z].detach().cpu()
    return kept.half() if kept.is_floating_point() else kept.to(torch.uint8)
