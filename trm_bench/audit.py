"""The voxel level of a transfer: which voxels each method loses and wins, and whether the risk map knew them.

Computed after the runs, from the predictions that they keep; one file per transfer and seed:

    results/<protocol>/voxels/<transfer>_seed<seed>.json

Nothing here reaches a training: test labels are read for analysis alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trm_bench import environment, negative_transfer
from trm_bench.datasets.base import Dataset, LabelMap
from trm_bench.errors import UserError
from trm_bench.evaluation import predict
from trm_bench.files import code_fingerprint, write_json
from trm_bench.negative_transfer import ALL_VOXELS, LOST_OR_WON, REFERENCE, SCRATCH
from trm_bench.patches import SubjectStore
from trm_bench.protocol import Protocol
from trm_bench.results import Results, audit_path, read_audit
from trm_bench.riskmap import open_source
from trm_bench.runs import prediction_path, read_prediction, read_record, source_path
from trm_bench.transfer_risk import RiskMap
from trm_bench.volumes import Prepared, open_prepared

FOCUS, PRIOR = "trm", "trm_prior"
CODE = tuple(f"trm_bench.{name}" for name in ("audit", "evaluation", "negative_transfer", "runs", "transfer_risk"))


@dataclass(frozen=True)
class Audit:
    """One transfer under one seed, all of whose finished runs are judged together.

    Attributes:
        result: The file to write.
        transfer: Its name.
        seed: Of the runs.
        records: Method, as the table calls it, to its record.
        code: Fingerprint of what computes the audit.
        protocol: Resolved.
        images: What the target network sees.
        label_map: Of the target.
        test: Prepared test subjects.
        sources: Method to the checkpoint that its risk map comes from, for the methods that are readings of TRM.
    """

    result: Path
    transfer: str
    seed: int
    records: Mapping[str, Path]
    code: str
    protocol: Protocol
    images: tuple[str, ...]
    label_map: LabelMap
    test: tuple[Path, ...]
    sources: Mapping[str, Path]

    @property
    def title(self) -> str:
        """For progress."""
        return f"{self.transfer} seed {self.seed}"


def pending(
    results: Results, protocol: Protocol, dataset: Dataset, prepared: Mapping[str, Prepared], output: Path
) -> list[Audit]:
    """The audits that the finished runs of a folder allow and that are not done yet.

    A transfer needs `scratch` and one method more; runs whose predictions are gone are left out.
    """
    code = code_fingerprint(*CODE)
    groups: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for cell, record in results.finished():
        subject = record["config"]["subjects"]["test"][0][0]
        path = results.folder / "records" / f"{cell['run']}.json"
        if prediction_path(path, subject).is_file():
            groups.setdefault((cell["transfer"], cell["seed"]), {})[cell["method"]] = record
    found = []
    for (transfer, seed), records in groups.items():
        result = audit_path(results.folder, transfer, seed)
        runs = {method: record["id"] for method, record in records.items()}
        done = read_audit(result)
        if SCRATCH not in records or len(records) < 2 or (done and done["runs"] == runs and done["code"] == code):
            continue
        config = records[SCRATCH]["config"]
        test = [prepared.get(subject) for subject, _ in config["subjects"]["test"]]
        readings = [m for m, r in records.items() if r["config"]["method"]["name"] == FOCUS and REFERENCE in records]
        found.append(
            Audit(
                result=result,
                transfer=transfer,
                seed=seed,
                records={m: results.folder / "records" / f"{i}.json" for m, i in runs.items()},
                code=code,
                protocol=protocol,
                images=tuple(config["domain"]["images"]),
                label_map=dataset.label_map(config["domain"]["labels"]),
                test=tuple(p.path for p in test if p is not None),
                sources={m: source_path(output, records[m]["source"]["id"]) for m in readings},
            )
        )
    return found


def audit(work: Audit, device: torch.device, progress: Callable[[int, int, None], None]) -> str:
    """Judges every test subject and writes the file.

    Args:
        work: From `pending`.
        device: Where the source network runs.
        progress: Called with the subjects done, and all.

    Returns:
        `finished`.
    """
    environment.deterministic(device)
    store = SubjectStore([_opened(path) for path in work.test], work.images, work.label_map, device)
    classes = work.label_map.classes
    maps = _Maps(work, device)
    rates: dict[str, dict[str, list[list[int]]]] = {m: {} for m in work.records if m != SCRATCH}
    areas: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, list[np.ndarray]] = {}
    for i, prepared in enumerate(store.prepared):
        image, label, _ = store.volume(i)
        truth = label[0].cpu().numpy().astype(np.int64)
        shape = tuple(truth.shape)
        predictions = {m: read_prediction(p, prepared.subject, shape).numpy() for m, p in work.records.items()}
        for method, found in rates.items():
            counts = negative_transfer.outcomes(truth, predictions[SCRATCH], predictions[method], len(classes))
            found[prepared.subject] = counts.tolist()
        if work.sources:
            before, after = predictions[SCRATCH], predictions[REFERENCE]
            lost, won = negative_transfer.lost(truth, before, after), negative_transfer.lost(truth, after, before)
            places = {ALL_VOXELS: np.ones(shape, bool), LOST_OR_WON: lost | won}
            places |= {c: truth == k for k, c in enumerate(classes)}
        for name, risk in maps(image, label).items():
            for place, inside in places.items():
                if (roc := negative_transfer.roc(risk[inside], lost[inside])) is not None:
                    areas.setdefault(name, {}).setdefault(prepared.subject, {})[place] = roc[0]
                    if place == ALL_VOXELS:
                        curves.setdefault(name, []).append(roc[1])
        progress(i + 1, len(store), None)
    write_json(
        work.result,
        {
            "transfer": work.transfer,
            "seed": work.seed,
            "runs": {method: path.stem for method, path in work.records.items()},
            "code": work.code,
            "classes": list(classes),
            "outcomes": rates,
            "auroc": areas,
            "roc": {name: np.mean(found, axis=0).tolist() for name, found in curves.items()},
        },
    )
    return "finished"


class _Maps:
    """The risk maps of a test subject: of each reading of TRM, and of the class prior."""

    def __init__(self, work: Audit, device: torch.device) -> None:
        self.work, self.device = work, device
        self.networks = {path: open_source(path, device)[0] for path in set(work.sources.values())}
        self.records = {m: read_record(work.records[m]) or {} for m in work.sources}

    def __call__(self, image: Tensor, label: Tensor) -> dict[str, np.ndarray]:
        training, windows = self.work.protocol.training.target, self.work.protocol.evaluation
        seen = {p: predict(n, image, training, windows) for p, n in self.networks.items()}
        found: dict[str, np.ndarray] = {}
        for method, path in self.work.sources.items():
            about, risk = self.records[method]["diagnostics"], self.records[method]["config"]["method"]["risk"]
            conditional, prior = (torch.tensor(about[k], dtype=torch.float64) for k in ("conditional", "prior"))
            found[method] = RiskMap(conditional, risk)(seen[path], label)[0].cpu().numpy()
            if PRIOR not in found:
                one = torch.ones_like(image[:, :1])  # one source class, so that P(y | c) = P(y)
                found[PRIOR] = RiskMap(prior[:, None], risk)(one, label)[0].cpu().numpy()
        return found


def _opened(path: Path) -> Prepared:
    found = open_prepared(path)
    if found is None:
        raise UserError("the prepared volume is gone or damaged", path, "delete it and run again")
    return found
