"""A network of this package applied to one subject's files, wherever they lie: `predict`.

`risk_map` uses the same way in (files, preparation, network) and the same way back to the grid of
the first file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from trm_bench.data.volumes import prepare_scan
from trm_bench.datasets.base import LabelMap, NiftiDataset, Scan, Subject
from trm_bench.datasets.grid import Grid
from trm_bench.errors import BadSubject, UserError
from trm_bench.inputs import ensure_writable
from trm_bench.runs import arrays, compute
from trm_bench.runs.config import RunConfig, RunDomain
from trm_bench.seeds import deterministic
from trm_bench.training import evaluation

Values = Literal["classes", "labels"]


class Given(NiftiDataset):
    """The files of one subject; each label value is a class of its own.

    Args:
        images: One file per modality, in their order.
        label: None for a scan without one, whose label is 0 everywhere.
        modalities: Of the images.
    """

    name = "given"
    label_maps: Mapping[str, LabelMap] = {
        "any": LabelMap(tuple(map(str, range(256))), {value: value for value in range(256)})
    }
    allow_links = True

    def __init__(
        self, images: Sequence[Path], label: Path | None, modalities: tuple[str, ...]
    ) -> None:
        self.modalities, self.labelled = modalities, label is not None
        # a subject has a label file: without one an image stands there, and is not read as one
        self.subject = Subject(
            "files", dict(zip(modalities, images, strict=True)), label or images[0]
        )
        self.root = self.subject.label.parent

    def subjects(self) -> list[Subject]:
        return [self.subject]

    def check_label(self, subject: Subject, file: Path, values: np.ndarray) -> np.ndarray:
        """See `Dataset.check_label`."""
        if not self.labelled:
            return np.zeros(values.shape, np.uint8)
        return super().check_label(subject, file, values)

    def scan(self) -> Scan:
        """The files, read and checked as a benchmark's are.

        Raises:
            UserError: One of them cannot be used.
        """
        try:
            return self.read(self.subject, self.modalities)
        except BadSubject as error:
            fix = "give whole NIfTI files on one grid, a label with whole numbers from 0 to 255"
            raise UserError(error.what, error.where, fix) from error


@dataclass(frozen=True)
class Files:
    """A subject's files, read and prepared as a network's data were.

    Attributes:
        scan: As it was read.
        tensors: Of `prepare_scan`; `label` has the files' values.
        native: Shape of the cropped volume at the scan's own spacing.
        grid: Of the first file, with the place of the cropped volume.
    """

    scan: Scan
    tensors: Mapping[str, Tensor]
    native: tuple[int, ...]
    grid: Grid


def read(config: RunConfig, images: Sequence[Path], label: Path | None, out: Path) -> Files:
    """Reads files and prepares them as the data of a training were.

    Args:
        config: Of the training.
        images: One file per modality that its network sees, in its order.
        label: None for a scan without one.
        out: What is to be written; tried before the work begins.

    Raises:
        UserError: A file is missing, damaged or does not fit, or `out` cannot be written.
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise UserError("what is written is a NIfTI file", out, "name it .nii or .nii.gz")
    modalities = config.domain.images
    if len(images) != len(modalities):
        fix = f"give --image once for each of {', '.join(modalities)}"
        what = f"{len(images)} images, but the network sees {len(modalities)}"
        raise UserError(what, "--image", fix)
    scan = Given(images, label, modalities).scan()
    ensure_writable(out.parent)
    with told(images[0]):
        tensors, prepared = prepare_scan(scan, config.volume)
    native = tuple(tensors.get("native", tensors["label"]).shape)
    return Files(scan, tensors, native, Grid(**prepared["grid"]))


def predict(
    network: torch.nn.Module,
    files: Files,
    config: RunConfig,
    classes: int,
    image: Path,
    checkpoint: Path,
) -> Tensor:
    """The softmax of a network on a scan, float32, shape (1, classes, X, Y, Z).

    Args:
        network: In eval mode.
        files: The scan.
        config: Names windows and precision.
        classes: Of the network.
        image: The file that is named where the network cannot be applied.
        checkpoint: The file that is named where its weights are no good.

    Raises:
        UserError: It does not fit, or gives no finite numbers.
    """
    device = next(network.parameters()).device
    with told(image):
        given = files.tensors["image"][None].to(device).float()
        probabilities = evaluation.predict(network, given, config.training, config.evaluation)
        wanted = (1, classes, *files.tensors["label"].shape)
        if probabilities.shape != wanted:
            raise ValueError(f"it returns the shape {tuple(probabilities.shape)}, not {wanted}")
    if not bool(probabilities.isfinite().all()):
        fix = "train the network again: delete this file and run the protocol"
        raise UserError("the network gives NaN: its weights are no good", checkpoint, fix)
    return probabilities


@contextmanager
def told(image: Path) -> Iterator[None]:
    """What PyTorch says where a scan does not fit a network, memory above all, as a `UserError`."""
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        what = f"the network cannot be applied: {' '.join(str(error).split())[:300]}"
        raise UserError(what, image, "give an image like those it was trained on") from error


def network_of(
    config: RunConfig, state: Mapping[str, Tensor], device: torch.device, checkpoint: Path
) -> torch.nn.Module:
    """A checkpoint's network, in eval mode; raises `UserError` where its weights do not fit."""
    try:
        return compute.frozen(config, state, device)
    except (RuntimeError, KeyError, AttributeError) as error:  # of load_state_dict
        what = f"the weights are not those of its network: {' '.join(str(error).split())[:300]}"
        fix = "delete this file, and run the protocol that made it again"
        raise UserError(what, checkpoint, fix) from error


def save(
    out: Path, volume: np.ndarray, grid: Grid, classes: Mapping[int, str] | None = None
) -> None:
    """Writes a volume on the grid of the first file; see `arrays.write_volume`.

    Raises:
        UserError: It cannot be written.
    """
    try:
        arrays.write_volume(out, volume, grid, classes)
    except OSError as error:
        fix = "choose another --out, or free some space"
        raise UserError(f"cannot be written: {error.strerror or error}", out, fix) from error


def write(
    checkpoint: Path, images: Sequence[Path], out: Path, values: str, device: torch.device
) -> dict[str, int]:
    """Writes what a network predicts of a scan, uint8, on the grid of its first file, 0 outside.

    For the same network, files and kind of device it is what a run keeps of its test subjects, bit
    for bit, unless other modalities of the data set are 0 at other voxels: a run's preparation
    looks for the brain in all modalities of its protocol, and in the label.

    Args:
        checkpoint: A source or target network of this package.
        images: One NIfTI file per modality that the network sees, in its order.
        out: `.nii` or `.nii.gz`.
        values: `classes` for class indices, or `labels` for the label values of the data that the
            network was trained on.
        device: Where to compute.

    Returns:
        Class, background first, to its number of voxels.

    Raises:
        UserError: See `read` and `predict`; or `values` is no such choice, or a class has no label
            value of its own.
    """
    if values not in get_args(Values):
        raise UserError(f"no values '{values}'", "--values", "choose classes or labels")
    _, config, state = arrays.read_trained(checkpoint)
    files = read(config, images, None, out)
    deterministic(device)
    network = network_of(config, state, device, checkpoint)
    names = config.domain.classes
    shown = label_values(config.domain) if values == "labels" else list(range(len(names)))
    probabilities = predict(network, files, config, len(names), images[0], checkpoint)
    classes = evaluation.to_native(probabilities, files.native).cpu().numpy()
    save(
        out,
        np.array(shown, np.uint8)[classes],
        files.grid,
        dict(zip(shown, names, strict=True)),
    )
    counts = np.bincount(classes.ravel(), minlength=len(names)).tolist()
    counts[0] += int(np.prod(files.grid.shape)) - classes.size
    return dict(zip(names, counts, strict=True))


def label_values(domain: RunDomain) -> list[int]:
    """The label value of each class; of the background it is 0 where 0 is one of its values.

    Raises:
        UserError: A class has several, or none.
    """
    values: list[int] = []
    for index, name in enumerate(domain.classes):
        own = sorted(value for value, of in domain.values.items() if of == index)
        if index == 0 and 0 in own:
            own = [0]
        if len(own) != 1:
            listed = ", ".join(map(str, own)) or "none"
            what = f"the class {name} has not one label value of its own, but {listed}"
            raise UserError(what, "--values", "leave it out: class indices are written then")
        values += own
    return values
