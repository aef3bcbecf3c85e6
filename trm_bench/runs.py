"""From a protocol to runs, and from a run to its record: content-addressed, atomic, resumable.

results/<protocol>/
    plan.json            which run fills which cell (transfer, method, seed) of the table
    records/<id>.json    one per run, named by the hash of all that can change its numbers
    slices/<id>.safetensors         a few test slices with prediction and risk map, for pictures
    predictions/<id>/*.nii.gz       the predicted classes of every test subject, on its cropped native grid
results/sources/<id>.safetensors    source networks, shared by the protocols of a results folder
results/prepared/<dataset>/         prepared volumes, likewise
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from trm_bench import environment, evaluation, networks, registry
from trm_bench.datasets.base import Dataset, LabelMap, Subject
from trm_bench.errors import UserError
from trm_bench.files import code_fingerprint, digest_of, write_atomically, write_json
from trm_bench.methods import Context, Method
from trm_bench.patches import PatchSampler, SubjectStore
from trm_bench.protocol import Domain, EvaluationConfig, MethodConfig, Protocol, TrainingConfig, Transfer
from trm_bench.seeds import seed_of
from trm_bench.splits import Split, refuse_leakage, split
from trm_bench.training import Curves, Diverged, train
from trm_bench.volumes import Prepared, open_prepared

# The modules whose code can change a number. A change in any of them gives runs new ids; the report and the CLI do not.
NUMERIC = tuple(
    f"trm_bench.{name}"
    for name in (
        "environment",
        "evaluation",
        "methods",
        "networks",
        "patches",
        "runs",
        "seeds",
        "splits",
        "training",
        "transfer_risk",
        "volumes",
    )
)
SLICED_SUBJECTS = 3  # test subjects of which a slice is kept for pictures


@dataclass(frozen=True)
class Job:
    """A training to be done: of a source network, or of a method on a target.

    Attributes:
        id: Hash of `config`.
        kind: `source` or `run`.
        title: For progress bars and messages.
        config: All that can change the numbers, as JSON; paths and devices are not in it.
        protocol: Resolved.
        domain: What is learned, and `label_map`, its classes.
        source_domain: What the source network has learned, and `source_label_map`.
        seed: Of the training.
        subjects: Part of the split to prepared files.
        output: The folder of the results.
        method: Of a run.
        source: Id of the source network that a run starts from; "" for none.
    """

    id: str
    kind: Literal["source", "run"]
    title: str
    config: dict[str, Any]
    protocol: Protocol
    domain: Domain
    label_map: LabelMap
    source_domain: Domain
    source_label_map: LabelMap
    seed: int
    subjects: Mapping[str, tuple[Path, ...]]
    output: Path
    method: MethodConfig | None = None
    source: str = ""

    @property
    def result(self) -> Path:
        """The file that the job leaves."""
        if self.kind == "source":
            return source_path(self.output, self.id)
        return self.output / self.protocol.name / "records" / f"{self.id}.json"

    def is_done(self) -> bool:
        """Whether the result is there. A failed run is not done; a diverged one is: it would diverge again."""
        if self.kind == "source":
            return self.result.is_file()
        record = read_record(self.result)
        return record is not None and record["state"] in ("finished", "diverged")


@dataclass
class Plan:
    """All jobs of a protocol, and the cells of the table that they fill.

    Attributes:
        sources: Source trainings, each once.
        runs: Method trainings, each once: a run that does not see the source fills a cell of every source.
        cells: One per (transfer, method, seed), with the run that fills it.
        settings: Hash of what runs must share to stand in one table.
    """

    sources: list[Job] = field(default_factory=list)
    runs: list[Job] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    settings: str = ""


def plan(
    protocol: Protocol,
    dataset: Dataset,
    transfers: Sequence[Transfer],
    subjects: Sequence[Subject],
    prepared: Mapping[str, Prepared],
    output: Path,
    phantom: bool,
) -> Plan:
    """Expands a protocol into jobs.

    Args:
        protocol: Resolved.
        dataset: The protocol's.
        transfers: Those to run.
        subjects: The usable ones.
        prepared: Subject id to prepared volume.
        output: The folder of the results.
        phantom: Whether the data are the stand-in.

    Raises:
        UserError: The split does not work out or leaks, or a method's parameters are wrong.
    """
    free = {"methods", "seeds", "transfers", "tracking", "phantom", "description", "claim", "name"}
    shared = protocol.model_dump(mode="json", exclude={**dict.fromkeys(free, True), "data": {"root": True}})
    contents = {s.id: prepared[s.id].digest for s in subjects}
    made = Plan(settings=digest_of(shared, contents, phantom, code_fingerprint(*NUMERIC, *_modules(dataset)))[:16])
    jobs: dict[str, Job] = {}
    for seed in protocol.seeds:
        division = split(subjects, protocol.split, seed)
        refuse_leakage(division, subjects, {s.id: prepared[s.id].voxels for s in subjects})
        for transfer in transfers:
            source = _source_job(protocol, dataset, transfer, seed, division, prepared, output, phantom)
            for index, chosen in enumerate(protocol.methods):
                method = registry.create(chosen.name, chosen.parameters, f"methods.{index}")
                job = _run_job(protocol, dataset, transfer, seed, division, prepared, source, chosen, method)
                if job.source and source.id not in jobs:
                    made.sources.append(source)
                    jobs[source.id] = source
                if job.id not in jobs:
                    made.runs.append(job)
                    jobs[job.id] = job
                made.cells.append({"transfer": transfer.name, "method": chosen.label, "seed": seed, "run": job.id})
    return made


def _source_job(
    protocol: Protocol,
    dataset: Dataset,
    transfer: Transfer,
    seed: int,
    division: Split,
    prepared: Mapping[str, Prepared],
    output: Path,
    phantom: bool,
) -> Job:
    parts = {"train": division.source, "val": division.val}
    config = {
        "kind": "source",
        "data": "phantom" if phantom else "real",
        **_common(protocol, dataset, transfer.source, seed, parts, prepared),
        "training": protocol.training.source.model_dump(mode="json"),
        "code": code_fingerprint(*NUMERIC, *_modules(dataset), "baselines.scratch"),
    }
    return Job(
        id=digest_of(config)[:16],
        kind="source",
        title=f"source {'+'.join(transfer.source.images)}:{transfer.source.labels} seed {seed}",
        config=config,
        protocol=protocol,
        domain=transfer.source,
        label_map=dataset.label_map(transfer.source.labels),
        source_domain=transfer.source,
        source_label_map=dataset.label_map(transfer.source.labels),
        seed=seed,
        subjects=_paths(parts, prepared),
        output=output,
    )


def _run_job(
    protocol: Protocol,
    dataset: Dataset,
    transfer: Transfer,
    seed: int,
    division: Split,
    prepared: Mapping[str, Prepared],
    source: Job,
    chosen: MethodConfig,
    method: Method,
) -> Job:
    parts = {"train": division.train_of(transfer.shots), "val": division.val, "test": division.test}
    own_modules = {kind.__module__ for kind in type(method).__mro__ if issubclass(kind, Method)}
    config = {
        "kind": "run",
        "data": source.config["data"],
        **_common(protocol, dataset, transfer.target, seed, parts, prepared),
        "training": protocol.training.target.model_dump(mode="json"),
        "metrics": list(protocol.metrics),
        "method": {"name": chosen.name, **method.p.model_dump(mode="json")},
        "code": code_fingerprint(*NUMERIC, *_modules(dataset), *own_modules),
        "source": source.config if method.transfers else None,
    }
    return Job(
        id=digest_of(config)[:16],
        kind="run",
        title=f"{transfer.name} {chosen.label} seed {seed}",
        config=config,
        protocol=protocol,
        domain=transfer.target,
        label_map=dataset.label_map(transfer.target.labels),
        source_domain=transfer.source,
        source_label_map=source.label_map,
        seed=seed,
        subjects=_paths({**parts, "source": division.source}, prepared),
        output=source.output,
        method=chosen,
        source=source.id if method.transfers else "",
    )


def _common(
    protocol: Protocol,
    dataset: Dataset,
    domain: Domain,
    seed: int,
    parts: Mapping[str, Sequence[str]],
    prepared: Mapping[str, Prepared],
) -> dict[str, Any]:
    label_map = dataset.label_map(domain.labels)
    values = {str(value): index for value, index in label_map.values.items()}
    regions = {name: list(classes) for name, classes in label_map.regions.items()}
    return {
        "dataset": dataset.name,
        "domain": {"images": list(domain.images), "labels": domain.labels, "values": values, "regions": regions},
        "volume": protocol.data.volume.model_dump(mode="json"),
        "subjects": {part: [[i, prepared[i].digest] for i in ids] for part, ids in parts.items()},
        "network": {"name": protocol.network.name, **protocol.network.arguments},
        "evaluation": protocol.evaluation.model_dump(mode="json"),
        "seed": seed,
    }


def _modules(dataset: Dataset) -> list[str]:
    """The modules that read the dataset."""
    return [kind.__module__ for kind in type(dataset).__mro__ if issubclass(kind, Dataset)]


def _paths(parts: Mapping[str, Sequence[str]], prepared: Mapping[str, Prepared]) -> dict[str, tuple[Path, ...]]:
    return {part: tuple(prepared[i].path for i in ids) for part, ids in parts.items()}


def source_path(output: Path, identity: str) -> Path:
    """Where a source network lies."""
    return output / "sources" / f"{identity}.safetensors"


# ---------------------------------------------------------------------------------------------------------- doing a job


def do(job: Job, device: torch.device, progress: Callable[[int, int, float], None]) -> str:
    """Does a job and leaves its result; a run's own failures become its record.

    Args:
        job: From a plan.
        device: Where to train.
        progress: Called with step, number of steps and loss.

    Returns:
        `finished`, `diverged` or `failed`. A source that fails raises instead, since it has no record.
    """
    environment.deterministic(device)
    if job.kind == "source":
        _train_source(job, device, progress)
        return "finished"
    record = {
        "id": job.id,
        "state": "failed",
        "reason": "",
        "config": job.config,
        "environment": environment.describe(device),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    try:
        _train_method(job, device, progress, record)
    except Diverged as error:
        record |= {"state": "diverged", "reason": str(error)}
    except Exception as error:  # one failed run must not end the others; its record says why
        record |= {"reason": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    write_json(job.result, record)
    return str(record["state"])


def failed(job: Job, reason: str, device: torch.device) -> None:
    """Leaves the record of a run that could not say itself why it failed (its process died, or its source failed)."""
    about = {"id": job.id, "state": "failed", "reason": reason, "config": job.config}
    write_json(job.result, {**about, "environment": environment.describe(device)})


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None where there is none that can be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "state" in record else None


def store_of(job: Job, part: str, domain: Domain, device: torch.device) -> SubjectStore:
    """The prepared subjects of a part of a job's split, as a domain sees them."""
    prepared = [open_prepared(path) for path in job.subjects[part]]
    for path, found in zip(job.subjects[part], prepared, strict=True):
        if found is None:
            raise OSError(f"{path}: the prepared volume is gone or damaged; delete it and run again")
    label_map = job.label_map if domain == job.domain else job.source_label_map
    return SubjectStore([p for p in prepared if p is not None], domain.images, label_map, device)


def _context(job: Job, network: nn.Module, source: nn.Module | None, device: torch.device) -> Context:
    """The context of a job's training; `train` and `val` are the job's own parts in its own domain."""
    train_store, validation = (store_of(job, part, job.domain, device) for part in ("train", "val"))
    return make_context(
        network,
        source,
        networks.parts(job.protocol.network, len(job.domain.images), job.protocol.spatial_dims),
        train_store,
        validation,
        lambda: store_of(job, "source", job.source_domain, device),
        job.protocol.training.source if job.kind == "source" else job.protocol.training.target,
        job.protocol.evaluation,
        same_task=job.domain.labels == job.source_domain.labels,
        # Named by the target alone, so that all methods, and scratch for all sources, see the same patches.
        axes=(job.kind, job.protocol.data.dataset, *job.domain.images, job.domain.labels, len(train_store), job.seed),
        device=device,
    )


def make_context(
    network: nn.Module,
    source: nn.Module | None,
    parts: networks.Parts,
    train_store: SubjectStore,
    validation: SubjectStore,
    source_store: Callable[[], SubjectStore],
    training: TrainingConfig,
    windows: EvaluationConfig,
    *,
    same_task: bool,
    axes: tuple[object, ...],
    device: torch.device,
) -> Context:
    """Puts a context together; the source's subjects are loaded when a method first asks for them."""
    return Context(
        network=network,
        parts=parts,
        source=source,
        same_task=same_task,
        train=train_store,
        patches=PatchSampler(train_store, training, "patches", *axes),
        source_patches=lambda: PatchSampler(source_store(), training, "source patches", *axes),
        validate=lambda candidate: evaluation.mean_dice(candidate, validation, training, windows),
        predict=lambda candidate, image: evaluation.predict(candidate, image, training, windows),
        fit=lambda method, first, last: None,  # set by `train`
        config=training,
        seed_axes=axes,
        device=device,
    )


def network_of(job: Job, domain: Domain, device: torch.device) -> nn.Module:
    """A job's network with its initial weights, with the inputs and classes of a domain."""
    classes = len((job.label_map if domain == job.domain else job.source_label_map).classes)
    seed = seed_of("initial weights", job.kind, job.seed)
    network = networks.build(job.protocol.network, len(domain.images), classes, job.protocol.spatial_dims, seed)
    if device.type == "cuda":
        layout = torch.channels_last if job.protocol.spatial_dims == 2 else torch.channels_last_3d
        network = network.to(memory_format=layout)  # type: ignore[call-overload]  # missing in PyTorch's stubs
    return network.to(device)


def _train_source(job: Job, device: torch.device, progress: Callable[[int, int, float], None]) -> None:
    network = network_of(job, job.domain, device)
    run = _context(job, network, None, device)
    curves, steps = Curves(), job.protocol.training.source.steps
    torch.manual_seed(seed_of("training", *run.seed_axes))
    train(run, registry.create("scratch", {}), curves, lambda step, loss: progress(step, steps, loss))
    about = {
        "id": job.id,
        "config": job.config,
        "classes": list(run.train.label_map.classes),
        "validation_dice": run.validate(network),
        "curves": {"loss": curves.loss, "validation": curves.validation},
        "environment": environment.describe(device),
    }
    # cloned, since safetensors takes no tensor twice and DynUNet lists its modules under two names
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_atomically(job.result, lambda path: save_file(tensors, path, metadata={"checkpoint": json.dumps(about)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of a source network and what is known of it (`config`, `classes`, `validation_dice`).

    Raises:
        UserError: The file is not such a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["checkpoint"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        hint = "source networks lie under RESULTS/sources/"
        raise UserError(f"not a checkpoint of trm-bench ({error})", path, hint) from error


def source_of(job: Job, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    """The frozen source network that a run starts from, in eval mode, and what is known of it."""
    network = network_of(job, job.source_domain, device)
    state, about = load_checkpoint(source_path(job.output, job.source))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False), about


def _train_method(
    job: Job, device: torch.device, progress: Callable[[int, int, float], None], record: dict[str, Any]
) -> None:
    assert job.method is not None
    protocol, clock = job.protocol, time.perf_counter()
    environment.reset_peak_memory(device)
    network = network_of(job, job.domain, device)
    source = None
    if job.source:
        source, about = source_of(job, device)
        record["source"] = {"id": job.source, "validation_dice": about["validation_dice"]}
    run = _context(job, network, source, device)
    if source is not None:
        record["loading"] = networks.load_source(network, source.state_dict(), run.parts, with_head=run.same_task)
    method = registry.create(job.method.name, job.method.parameters)
    curves = Curves()
    record["curves"] = {"loss": curves.loss, "validation": curves.validation}
    torch.manual_seed(seed_of("training", *run.seed_axes))
    started = time.perf_counter()
    train(run, method, curves, lambda step, loss: progress(step, protocol.training.target.steps, loss))
    trained = time.perf_counter()
    record["validation_dice"] = run.validate(run.network)
    test = store_of(job, "test", job.domain, device)
    record["metrics"] = evaluation.score_subjects(
        run.network, test, protocol.metrics, run.config, protocol.evaluation, partial(_keep_prediction, job)
    )
    _keep_slices(job, run, method, test)
    record |= {
        "state": "finished",
        "manifest": _manifest(job),
        "diagnostics": run.diagnostics,
        "seconds": {
            "prepare": started - clock,
            "train": trained - started,
            "test": time.perf_counter() - trained,
        },
        "peak_memory_bytes": environment.peak_memory(device),
    }


def _manifest(job: Job) -> dict[str, dict[str, dict[str, list[Any]]]]:
    """Part to subject to file name to [bytes, sha256]."""
    parts = {part: [open_prepared(path) for path in paths] for part, paths in job.subjects.items()}
    return {part: {p.subject: p.files for p in found if p is not None} for part, found in parts.items()}


def _keep_slices(job: Job, run: Context, method: Method, test: SubjectStore) -> None:
    """Keeps, of a few test subjects, the axial slice with most foreground: image, label, prediction, and maps."""
    tensors: dict[str, Tensor] = {}
    for i, prepared in enumerate(test.prepared[:SLICED_SUBJECTS]):
        image, label, _ = test.volume(i)
        z = int((label[0] > 0).sum((0, 1)).argmax())
        found = read_prediction(job.result, prepared.subject, tuple(label.shape[1:]))
        pictures = {"image": image[:, 0], "label": label, "prediction": found[None]}
        pictures |= method.maps(run, image, label)
        for name, volume in pictures.items():
            kept = volume[0, :, :, z].detach().cpu()
            kept = kept.half() if kept.is_floating_point() else kept.to(torch.uint8)
            tensors[f"{prepared.subject}/{name}"] = kept.contiguous()
    path = job.result.parents[1] / "slices" / f"{job.id}.safetensors"
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def prediction_path(record: Path, subject: str) -> Path:
    """Where the run of a record keeps its prediction of a test subject."""
    return record.parents[1] / "predictions" / record.stem / f"{subject}.nii.gz"


def _keep_prediction(job: Job, prepared: Prepared, found: Tensor) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(found.numpy(), np.array(prepared.affine))
    write_atomically(prediction_path(job.result, prepared.subject), partial(nib.save, image))


def read_prediction(record: Path, subject: str, shape: tuple[int, ...]) -> Tensor:
    """The classes that a run predicted, uint8, brought to the prepared grid of a shape by nearest voxel.

    Args:
        record: Of the run.
        subject: A test subject.
        shape: Of the prepared label, (X, Y, Z).
    """
    import nibabel as nib

    image: Any = nib.load(prediction_path(record, subject))
    return to_prepared(torch.from_numpy(np.asarray(image.dataobj).astype(np.uint8)), shape)


def to_prepared(prediction: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A predicted label on the native grid, back on the prepared grid, nearest voxel."""
    if tuple(prediction.shape) == shape:
        return prediction
    resampled = functional.interpolate(prediction[None, None].float(), size=shape, mode="nearest-exact")
    return resampled[0, 0].to(torch.uint8)
