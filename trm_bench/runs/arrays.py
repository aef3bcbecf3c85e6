"""Readers and writers of what runs keep in arrays: networks, predictions, slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench.datasets.grid import Grid
from trm_bench.errors import Damaged, UserError
from trm_bench.files import write_atomically
from trm_bench.runs.config import RunConfig
from trm_bench.runs.folders import ResultsFolder
from trm_bench.runs.records import Checkpoint, Saved
from trm_bench.runs.store import parse_model
from trm_bench.seals import read_about, read_tensors, require_digest, write_tensors


def write_checkpoint(path: Path, about: Checkpoint, state: Mapping[str, Any]) -> None:
    """Writes a source network, or a target network that is kept."""
    write_tensors(path, state, about.model_dump(mode="json"))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A file that is there and cannot be read counts as damaged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}", path) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """What a network's file says of it; the weights are not read.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is not what was written, or not a network.
        UserError: It was written under another schema version.
    """
    with _readable(path):
        about = parse_model(Checkpoint, read_about(path), path)
    if about.id != about.config.id:
        raise Damaged("names a configuration that it does not hold", path)
    return about


def read_checkpoint(path: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """A network's description and weights.

    Raises:
        UserError: There is none, it is not what was written, or of another schema version.
    """
    fix = "networks lie in sources/ and PROTOCOL/networks/ of RESULTS; run the protocol again"
    try:
        return open_checkpoint(path), read_tensors(path)
    except Damaged as error:
        raise Damaged(f"not a checkpoint of trm-bench: it {error.what}", path, fix) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path, fix) from error


def read_trained(path: Path) -> tuple[Checkpoint, RunConfig, dict[str, Any]]:
    """A network that was trained here, with the configuration of its training.

    Raises:
        UserError: See `read_checkpoint`; or it was trained elsewhere, so that nothing says how its
            images are prepared.
    """
    about, state = read_checkpoint(path)
    if not isinstance(about.config, RunConfig):
        what = "was trained elsewhere, and does not say how its images are prepared"
        raise UserError(what, path, "give a network that a protocol has trained")
    return about, about.config, state


def read_source(results: ResultsFolder, identity: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The source network of that id, description and weights.

    Raises:
        UserError: See `read_checkpoint`; or it is another one.
    """
    path = results.source(identity)
    about, state = read_checkpoint(path)
    if about.id != identity:
        raise Damaged(f"is the source network {about.id}", path)
    return about, state


def write_savepoint(path: Path, about: Saved, tensors: Mapping[str, Any]) -> None:
    """Writes what a training goes on from."""
    write_tensors(path, tensors, about.model_dump(mode="json"))


def open_savepoint(path: Path) -> Saved:
    """What a savepoint says of its training; the tensors are not read.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is not what was written, or that of another training.
    """
    try:
        with _readable(path):
            about = parse_model(Saved, read_about(path), path)
    except UserError as error:  # of another version: its id, and so its name, would be another
        raise Damaged(error.what, path) from error
    if about.id != path.stem:
        raise Damaged(f"is the savepoint of another training, {about.id}", path)
    return about


def read_savepoint(path: Path) -> tuple[Saved, dict[str, Any]]:
    """A savepoint's description and tensors.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It is not what was written, or that of another training.
    """
    about = open_savepoint(path)
    with _readable(path):
        return about, read_tensors(path)


def write_slices(path: Path, slices: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes tensors by subject and name."""
    tensors = {f"{s}/{name}": t for s, named in slices.items() for name, t in named.items()}
    write_tensors(path, tensors, {})


def read_slices(path: Path, digest: str) -> dict[str, dict[str, np.ndarray]]:
    """Subject to name to slice, float32.

    Args:
        path: Of the slices.
        digest: In the run's record.

    Raises:
        OSError: There are none.
        Damaged: They are not those of the run.
    """
    require_digest(path, digest)
    slices: dict[str, dict[str, np.ndarray]] = {}
    for key, value in read_tensors(path).items():
        subject, _, name = key.rpartition("/")
        slices.setdefault(subject, {})[name] = value.float().numpy()
    return slices


def write_volume(
    path: Path, volume: np.ndarray, grid: Grid, classes: Mapping[int, str] | None = None
) -> None:
    """Writes a volume as NIfTI on the grid of the scan's first file, 0 outside.

    Args:
        path: `.nii` or `.nii.gz`.
        volume: On the cropped native grid.
        grid: Of the scan, with where the volume lies on it.
        classes: Value to name, where the values are those of classes: the header says so (its
            intent is `label`), and lists them in its description, as far as its 79 bytes go.

    Raises:
        OSError: It cannot be written.
    """
    import nibabel as nib

    image_class: Any = nib.Nifti1Image  # without types
    image = image_class(grid.put_back(volume), np.array(grid.affine))
    image.header.set_xyzt_units("mm")
    if classes:
        image.header.set_intent("label", name="classes")
        listed = ", ".join(f"{value} {name}" for value, name in classes.items())
        image.header["descrip"] = listed.encode("ascii", "replace")[:79]
    write_atomically(path, partial(nib.save, image))


def write_prediction(path: Path, classes: np.ndarray, grid: Grid, names: Sequence[str]) -> None:
    """Writes predicted class indices, uint8, of the cropped native grid; see `write_volume`."""
    write_volume(path, classes, grid, dict(enumerate(names)))


def read_prediction(path: Path, digest: str, grid: Grid) -> np.ndarray:
    """A predicted label, uint8, on the cropped native grid.

    Args:
        path: Of the prediction.
        digest: In the run's record.
        grid: Of the prepared scan.

    Raises:
        OSError: There is none.
        Damaged: It is not that of the run, or not on this grid.
    """
    import nibabel as nib

    require_digest(path, digest)
    image: Any = nib.load(path)
    try:
        return grid.cut_out(np.asarray(image.dataobj).astype(np.uint8))
    except ValueError as error:
        raise Damaged(f"lies on another grid than its scan: {error}", path) from error
