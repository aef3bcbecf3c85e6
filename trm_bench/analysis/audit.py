"""The voxel level of a transfer: which voxels each method loses and wins, and whether the risk map
knew them.

Computed after the runs, from the predictions that they keep; one file per transfer and seed.
Nothing here reaches a training: test labels are read for analysis alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trm_bench.analysis import voxels
from trm_bench.analysis.voxels import ALL_VOXELS, LOST_OR_WON, REFERENCE, SCRATCH
from trm_bench.data.cohorts import Cohorts, find
from trm_bench.data.patches import SubjectStore
from trm_bench.data.prepared import Prepared, open_expected
from trm_bench.fingerprint import code_fingerprint
from trm_bench.methods.trm import READINGS
from trm_bench.runs import arrays, compute, health, store
from trm_bench.runs.folders import ProtocolFolder
from trm_bench.runs.records import Record, VoxelAudit
from trm_bench.runs.store import Results
from trm_bench.seeds import deterministic
from trm_bench.training.evaluation import predict, to_prepared
from trm_bench.transfer_risk import RiskMap

PRIOR = "trm_prior"


@dataclass(frozen=True)
class Audit:
    """One transfer under one seed, all of whose finished runs are judged together.

    Attributes:
        folder: Of the protocol's results.
        transfer: Its name.
        seed: Of the runs.
        records: Method, as the table calls it, to the record of its run.
        code: Fingerprint of what computes the audit.
        test: Subject to prepared volume, of the test subjects.
    """

    folder: ProtocolFolder
    transfer: str
    seed: int
    records: Mapping[str, Record]
    code: str
    test: Mapping[str, Path]

    @property
    def result(self) -> Path:
        """The file to write."""
        return self.folder.audit(self.transfer, self.seed)

    @property
    def title(self) -> str:
        """For progress."""
        return f"{self.transfer} seed {self.seed}"

    @property
    def readings(self) -> dict[str, Record]:
        """The methods that are readings of TRM, whose maps are held against the lost voxels.

        Those whose map comes from the source's classes, since that of clusters or of a probe cannot
        be made again from the record. Empty without the reference, whose lost voxels they should
        find.
        """
        if REFERENCE not in self.records:
            return {}
        return {
            m: r
            for m, r in self.records.items()
            if (chosen := r.config.method).name in READINGS
            and chosen.parameters.get("evidence", "classes") == "classes"
        }


def pending(results: Results, cohorts: Cohorts) -> list[Audit]:
    """The audits that the finished runs of a folder allow and that are not done yet.

    A transfer needs `scratch` and one method more; runs whose predictions are gone or damaged are
    left out.

    Args:
        results: Of a protocol.
        cohorts: The protocol's data sets.
    """
    code = code_fingerprint(__name__)
    groups: dict[tuple[str, int], dict[str, Record]] = {}
    for cell, record in results.finished():
        if health.of_run(results.folder, cell.run).whole:
            groups.setdefault((cell.transfer, cell.seed), {})[cell.method] = record
    audits = []
    for (transfer, seed), records in groups.items():
        if SCRATCH not in records or len(records) < 2:
            continue
        done = store.read_audit(results.folder, transfer, seed)
        runs = {method: record.id for method, record in records.items()}
        if done and done.runs == runs and done.code == code:
            continue
        config = records[SCRATCH].config
        test = {
            member.subject: volume.path
            for member in config.subjects.test
            if (volume := find(cohorts, config.dataset, config.volume, *member))
        }
        audits.append(Audit(results.folder, transfer, seed, records, code, test))
    return audits


def audit(work: Audit, device: torch.device, progress: Callable[[int, int, None], None]) -> str:
    """Judges every test subject and writes the file.

    Args:
        work: From `pending`.
        device: Where the source network runs.
        progress: Called with the subjects done, and all.

    Returns:
        `finished`.
    """
    deterministic(device)
    domain = work.records[SCRATCH].config.domain
    members = work.records[SCRATCH].config.subjects.test
    volumes = [open_expected(work.test[m.subject], *m) for m in members if m.subject in work.test]
    test_set = SubjectStore(volumes, domain.images, domain.label_map, device)
    maps = _Maps(work, device)
    outcomes: dict[str, dict[str, list[tuple[int, int, int]]]] = {}
    areas: dict[str, dict[str, dict[str, float]]] = {}
    curves: dict[str, list[np.ndarray]] = {}
    for i, volume in enumerate(test_set.prepared):
        image, label, _ = test_set.volume(i)
        truth = label[0].cpu().numpy().astype(np.int64)
        predictions = _predictions(work, volume, tuple(truth.shape))
        for method in [m for m in work.records if m != SCRATCH]:
            pair = predictions[SCRATCH], predictions[method]
            counts = voxels.outcomes(truth, *pair, len(domain.classes)).tolist()
            outcomes.setdefault(method, {})[volume.subject] = [
                (n, lost, won) for n, lost, won in counts
            ]
        for name, risk in maps(image, label).items():
            rocs = _rocs(risk, truth, predictions, domain.classes)
            of_map = areas.setdefault(name, {})
            of_map |= (
                {volume.subject: {place: area for place, (area, _) in rocs.items()}} if rocs else {}
            )
            if ALL_VOXELS in rocs:
                curves.setdefault(name, []).append(rocs[ALL_VOXELS][1])
        progress(i + 1, len(test_set), None)
    finished = VoxelAudit(
        transfer=work.transfer,
        seed=work.seed,
        runs={method: record.id for method, record in work.records.items()},
        code=work.code,
        classes=domain.classes,
        outcomes=outcomes,
        auroc={name: of_map for name, of_map in areas.items() if of_map},
        roc={name: np.mean(of_map, axis=0).tolist() for name, of_map in curves.items()},
    )
    store.write_model(work.result, finished)
    return "finished"


def _rocs(
    risk: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> dict[str, tuple[float, np.ndarray]]:
    """Place to how well a map finds the reference's lost voxels there; see `voxels.roc`."""
    lost = voxels.lost(truth, predictions[SCRATCH], predictions[REFERENCE])
    won = voxels.lost(truth, predictions[REFERENCE], predictions[SCRATCH])
    places = {ALL_VOXELS: np.ones(truth.shape, bool), LOST_OR_WON: lost | won}
    places |= {name: truth == k for k, name in enumerate(classes)}
    rocs = {place: voxels.roc(risk[at], lost[at]) for place, at in places.items()}
    return {place: roc for place, roc in rocs.items() if roc is not None}


def _predictions(work: Audit, volume: Prepared, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Every method's prediction of a subject, on the prepared grid."""
    predictions = {}
    for method, record in work.records.items():
        path = work.folder.prediction(record.id, volume.subject)
        digest = record.predictions[volume.subject]
        native = arrays.read_prediction(path, digest, volume.grid)
        predictions[method] = to_prepared(torch.from_numpy(native), shape).numpy()
    return predictions


class _Maps:
    """The risk maps of a test subject: of each reading of TRM, and of the class prior."""

    def __init__(self, work: Audit, device: torch.device) -> None:
        self.readings = work.readings
        self.networks: dict[str, nn.Module] = {}
        for record in self.readings.values():
            assert record.source is not None
            if record.source.id not in self.networks:
                _, state = arrays.read_source(work.folder.results, record.source.id)
                source = compute.source_of(record.config, state, device)
                self.networks[record.source.id] = source.network

    def __call__(self, image: Tensor, label: Tensor) -> dict[str, np.ndarray]:
        maps: dict[str, np.ndarray] = {}
        seen: dict[str, Tensor] = {}
        for method, record in self.readings.items():
            assert record.source is not None
            source, config = record.source.id, record.config
            if source not in seen:
                network = self.networks[source]
                seen[source] = predict(network, image, config.training, config.evaluation)
            risk = config.method.parameters["risk"]
            conditional, prior = (
                torch.tensor(record.diagnostics[k], dtype=torch.float64)
                for k in ("conditional", "prior")
            )
            maps[method] = RiskMap(conditional, risk)(seen[source], label)[0].cpu().numpy()
            if PRIOR not in maps:
                one = torch.ones_like(image[:, :1])  # one source class, so that P(y | c) = P(y)
                maps[PRIOR] = RiskMap(prior[:, None], risk)(one, label)[0].cpu().numpy()
        return maps
