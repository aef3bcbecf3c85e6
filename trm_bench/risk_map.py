"""The transfer risk map of one subject as NIfTI: the one that a run's loss used, or a new one.

Of a run, everything comes from its record: source network, options, preparation, label map, and
P(y | c) over its training subjects. So for one of these the map is the run's own. Without a run the
options are those of a protocol's method, or the defaults, and P(y | c) is that of the one subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trm_bench import prediction
from trm_bench.contents import Run, find
from trm_bench.data.volumes import to_classes
from trm_bench.datasets import REGISTRY as DATASETS
from trm_bench.datasets.base import LabelMap
from trm_bench.display import Display
from trm_bench.errors import UserError, nearest
from trm_bench.files import write_json
from trm_bench.methods.registry import REGISTRY, create
from trm_bench.methods.trm import READINGS
from trm_bench.preparing import open_sets
from trm_bench.protocol import Protocol
from trm_bench.protocol.choices import choose_methods
from trm_bench.report.sources import Network, name_of, named
from trm_bench.runs import arrays
from trm_bench.runs.compute import source_of
from trm_bench.runs.config import RunConfig
from trm_bench.runs.folders import ResultsFolder
from trm_bench.seeds import deterministic
from trm_bench.transfer_risk import LeepStatistics, RiskMap, RiskSummary, in_scope

Values = Literal["risk", "weights"]
OF_THE_SET = ("max", "mean_one")  # normalisations that take the risks of all training subjects


@dataclass(frozen=True)
class Basis:
    """What a map is made from.

    Attributes:
        network: The source network as the target sees it, frozen.
        file: Of the source network.
        source: Its id, name and validation Dice, for people.
        classes: Of the source network.
        config: Says how files are prepared and networks applied.
        method: The reading of the paper.
        options: Its parameters.
        label_map: Name, and label values to classes; None where each value is a class of its own.
        conditional: P(y | c) of a run's training subjects; None for that of the subject itself.
        run: What is known of the run; empty without one.
    """

    network: nn.Module
    file: Path
    source: Mapping[str, Any]
    classes: int
    config: RunConfig
    method: str
    options: Any
    label_map: tuple[str, LabelMap] | None = None
    conditional: Tensor | None = None
    run: Mapping[str, Any] | None = None

    @property
    def statistics(self) -> str:
        """Of what P(y | c) is, in words."""
        if self.run is None:
            return "this subject alone, so the map is not that of a training set"
        about = f"{self.run['method']}, seed {self.run['seed']}"
        about = ", ".join([*self.run["transfers"][:1], about])
        trained = self.run["training_subjects"]
        return f"{trained} training subjects of run {self.run['id']} ({about})"


def of_run(text: str, results: Path, device: torch.device) -> Basis:
    """The basis of the map that a run used.

    Args:
        text: The file of its record; or its id, or the beginning of one, in the results folder.
        results: The folder of the results, for an id.
        device: Where to compute.

    Raises:
        UserError: There is no such run, it made no map of its source's classes, or its source
            network is gone.
    """
    found = find(text, results)
    folder, record = found.folder, found.record
    config, where = record.config, folder.record(record.id)
    _require_reading(config.method.name, where)
    options = create(config.method.name, config.method.parameters).p
    _require_classes(options.evidence, where)
    conditional = record.diagnostics.get("conditional")
    if config.source is None or not conditional:
        fix = "choose a run that finished"
        raise UserError(f"this run is {record.state}, and its record holds no map", where, fix)
    about, state = arrays.read_source(folder.results, config.source.id)
    path = folder.results.source(about.id)
    try:
        network = source_of(config, state, device).network
    except (RuntimeError, KeyError, AttributeError) as error:  # of load_state_dict
        what = "the weights are not those of its network"
        raise UserError(what, path, "delete this file, and run the protocol again") from error
    known = {network.about.id: network for network in named(folder.results)}
    return Basis(
        network,
        path,
        _source(known.get(about.id), about),
        len(config.source.domain.classes),
        config,
        config.method.name,
        options,
        (config.domain.labels, config.domain.label_map),
        torch.tensor(conditional, dtype=torch.float64),
        _run(found),
    )


def of_checkpoint(
    checkpoint: Path,
    protocol: Protocol | None,
    method: str,
    label_map: str | None,
    device: torch.device,
) -> Basis:
    """The basis of a new map.

    Args:
        checkpoint: A source network of this package.
        protocol: Whose options the map has; None for the method's defaults.
        method: The label of a method of the protocol, or a method's name.
        label_map: The name of a label map of the network's data set or of the protocol; None where
            each label value is a class of its own.
        device: Where to compute.

    Raises:
        UserError: Method or label map is unknown, or the network is none of this package.
    """
    name, parameters = method, dict[str, Any]()
    if protocol is not None:
        chosen = choose_methods(protocol, [method], REGISTRY.names()).methods[0]
        name, parameters = chosen.name, chosen.parameters
    _require_reading(name, "--method")
    options = create(name, parameters, "--method").p
    _require_classes(options.evidence, "--method")
    about, config, state = arrays.read_trained(checkpoint)
    network = prediction.network_of(config, state, device, checkpoint)
    results = ResultsFolder(checkpoint.resolve().parent.parent)
    known = {n.about.id: n for n in named(results)} if checkpoint.parent.name == "sources" else {}
    chosen_map = None if label_map is None else _label_map(label_map, config, protocol)
    source = _source(known.get(about.id), about)
    classes = len(config.domain.classes)
    return Basis(network, checkpoint, source, classes, config, name, options, chosen_map)


def write(
    basis: Basis,
    images: Sequence[Path],
    label: Path,
    out: Path,
    values: str,
    device: torch.device,
) -> dict[str, Any]:
    """Writes the map in the image's own space, 0 outside the prepared volume, and a JSON beside it.

    Args:
        basis: What it is made from.
        images: One NIfTI file per modality that the network sees, in its order.
        label: NIfTI label.
        out: `.nii` or `.nii.gz`; the JSON file has its name with the ending `.json`.
        values: `risk` for R; `weights` for w(R), what the loss is multiplied by.
        device: Where to compute.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: A file is missing, damaged or does not fit, the map cannot be written, or the
            weights take the risks of all training subjects of the run.
    """
    _require_values(values, basis)
    options = basis.options
    files = prediction.read(basis.config, images, label, out)
    deterministic(device)
    given = basis.network, files, basis.config, basis.classes, images[0], basis.file
    probabilities = prediction.predict(*given).cpu()
    classes, (name, label_map) = _classes(basis, files, label)
    brain = files.tensors["brain"][None]
    conditional = basis.conditional
    if conditional is None:
        conditional = _conditional(probabilities, classes, brain, len(label_map.classes), options)
    chosen = options.normalise, options.weight, options.strength, options.base
    risk_map = RiskMap(conditional, options.risk, *chosen)
    risks = risk_map(probabilities, classes)
    summary = RiskSummary(len(label_map.classes))
    inside = in_scope(options.scope, classes, brain)
    summary.update(risks, risk_map.transferability(probabilities, classes), classes, inside)
    shown = risks.float() if values == "risk" else risk_map.weights([risks.float()])[0]
    native = functional.interpolate(
        shown[None].float(), size=files.native, mode="trilinear", align_corners=False
    )
    about = {
        "map": out.name,
        "values": values,
        "images": [path.name for path in images],
        "label": label.name,
        **_about(basis),
        "label_map": {"name": name, "classes": label_map.classes, "values": label_map.values},
        "conditional": conditional.tolist(),
        **summary.result(),
    }
    prediction.save(out, native[0, 0].numpy(), files.grid)
    sidecar = out.with_name(out.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    write_json(sidecar, about)
    return about


def _about(basis: Basis) -> dict[str, Any]:
    return {
        "source": dict(basis.source),
        "method": basis.method,
        "options": basis.options.model_dump(mode="json"),
        "statistics": basis.statistics,
        "run": None if basis.run is None else dict(basis.run),
    }


def _conditional(
    probabilities: Tensor, classes: Tensor, brain: Tensor, number: int, options: Any
) -> Tensor:
    statistics = LeepStatistics(number, probabilities.shape[1], options.scope)
    statistics.update(probabilities, classes, brain)
    return statistics.conditional()


def _classes(
    basis: Basis, files: prediction.Files, label: Path
) -> tuple[Tensor, tuple[str, LabelMap]]:
    """The class of each prepared voxel, shape (1, X, Y, Z), and by which label map."""
    present = sorted(np.unique(files.scan.label).astype(int).tolist())
    if basis.label_map is None:
        own = LabelMap(tuple(map(str, present)), {v: i for i, v in enumerate(present)})
        return to_classes(files.tensors["label"], own)[None], ("label values", own)
    name, label_map = basis.label_map
    if odd := [value for value in present if value not in label_map.values]:
        known = ", ".join(map(str, sorted(label_map.values)))
        what = f"the label holds {odd[0]}; the label map '{name}' has {known}"
        raise UserError(what, label, "give a label of that data set, or another label map")
    if not any(label_map.values[value] for value in present):
        what = f"no voxel is labelled under the label map '{name}'"
        raise UserError(what, label, "give a label with foreground")
    return to_classes(files.tensors["label"], label_map)[None], basis.label_map


def _label_map(name: str, config: RunConfig, protocol: Protocol | None) -> tuple[str, LabelMap]:
    """A label map by name: the network's own, of its data set, or of the protocol's data."""
    maps = dict(getattr(DATASETS.get(config.dataset), "label_maps", {}))
    maps[config.domain.labels] = config.domain.label_map
    if name not in maps and protocol is not None:
        for dataset in open_sets(protocol, None, Display(quiet=True)).values():
            maps = {**dataset.label_maps, **maps}
    if name not in maps:
        more = "" if protocol else "; --protocol adds those of its data"
        raise UserError(f"no label map '{name}'", "--label-map", nearest(name, [*maps]) + more)
    return name, maps[name]


def _run(found: Run) -> dict[str, Any]:
    record, cells = found.record, found.cells
    numbers = ("leep", "class_explained", "risk_mean", "risk_per_class")
    return {
        "id": record.id,
        "protocol": found.folder.path.name,
        "transfers": [cell.transfer for cell in cells],
        "method": cells[0].method if cells else record.config.method.name,
        "seed": record.config.seed,
        "training_subjects": len(record.config.subjects.train),
        **{name: record.diagnostics.get(name) for name in numbers},
    }


def _source(known: Network | None, about: Any) -> dict[str, Any]:
    return {
        "id": about.id,
        "name": known.name if known else name_of(about.config),
        "protocols": known.protocols if known else (),
        "transfers": known.transfers if known else (),
        "channels": about.config.domain.images,
        "labels": about.config.domain.labels,
        "classes": about.config.domain.classes,
        "validation_dice": about.validation_dice,
    }


def _require_values(values: str, basis: Basis) -> None:
    if values not in get_args(Values):
        raise UserError(f"no values '{values}'", "--values", "choose risk or weights")
    normalise = basis.options.normalise
    if values == "weights" and basis.conditional is not None and normalise in OF_THE_SET:
        what = f"normalise: {normalise} takes the risks of all training subjects"
        raise UserError(what, "--values", "write the risks, which hold for each subject")


def _require_reading(name: str, where: object) -> None:
    if name not in READINGS:
        what = f"'{name}' has no risk map of its own"
        raise UserError(what, where, f"choose {', '.join(READINGS[:-1])} or {READINGS[-1]}")


def _require_classes(evidence: str, where: object) -> None:
    if evidence != "classes":
        what = f"the map of evidence '{evidence}' is fitted to features of the training subjects"
        raise UserError(what, where, "choose a method or run with evidence: classes")
