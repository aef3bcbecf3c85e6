"""The phantom's folder: its files, its marker, and how an interrupted call goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench.errors import UserError, nearest
from trm_bench.files import write_atomically, write_json, write_text
from trm_bench.inputs import ensure_writable, read_text
from trm_bench.phantom.geometry import LAYOUTS, SIGNS
from trm_bench.phantom.scanner import institution_of
from trm_bench.phantom.subject import draw_subject
from trm_bench.seals import BLANK, digest_of_file, read_sealed, write_sealed

MARKER = "PHANTOM.json"
MOST_SUBJECTS = 10_000
VERSION = 1
"""Of what is drawn: raise it when the same arguments no longer give the same files."""

_ROOTS = {"fets2021": "MICCAI_FeTS2021_TrainingData", "iseg2019": "iSeg-2019-Training"}


def write_phantom(
    layout: str,
    out: Path,
    subjects: int,
    spacing: float = 1.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the phantom dataset under `out` and returns the folder to be used as data.root.

    Subject s depends on (seed, layout, s) alone. A call that was interrupted goes on where it
    stopped; of a complete phantom with the same arguments, what is gone or no longer what was
    written is drawn again.

    Args:
        layout: One of `LAYOUTS`.
        out: The folder in which the dataset's own folder is made.
        subjects: How many; 1 to `MOST_SUBJECTS`.
        spacing: Edge of the isotropic voxels in mm, 1 to 6; the field of view is that of the real
            dataset.
        seed: 0 to 2^31 - 1.
        progress: Called with (subjects done, subjects) after each subject.

    Raises:
        UserError: An argument is out of range, or the folder cannot be written or holds something
            else than this very phantom.
    """
    _check(layout, subjects, spacing, seed)
    ensure_writable(Path(out))
    root = Path(out) / _ROOTS[layout]
    wanted = {
        "phantom": True,
        "layout": layout,
        "subjects": int(subjects),
        "spacing": float(spacing),
        "seed": int(seed),
    }
    started = _claim(root, wanted | {"version": VERSION})
    damaged = set(damaged_files(root))
    for s in range(subjects):
        files = _files(layout, root, s)
        parts = [file for parts in files.values() for file in parts]
        if damaged.intersection(parts) or not all(file.exists() for file in parts):
            for name, voxels in draw_subject(layout, s, float(spacing), int(seed)).items():
                contents = _encode(layout, voxels, float(spacing))
                for file, content in zip(files[name], contents, strict=True):
                    write_atomically(file, partial(Path.write_bytes, data=content))
        if progress is not None:
            progress(s + 1, subjects)
    if layout == "fets2021":
        write_text(root / "partitioning_1.csv", _partitioning(root, subjects))
    if not is_phantom(root):
        sums = {file.relative_to(root).as_posix(): digest_of_file(file) for file in _written(root)}
        marker = {**wanted, "version": VERSION, "files": sums, "sha256": BLANK}
        write_sealed(root / MARKER, json.dumps(marker, indent=1) + "\n")
    started.unlink(missing_ok=True)
    return root


def damaged_files(root: Path) -> list[Path]:
    """The files of a complete phantom that are gone or no longer what was written.

    None of a phantom that is not complete.
    """
    if not is_phantom(root):
        return []
    try:
        sums = json.loads(read_sealed(root / MARKER))["files"]
    except (OSError, UserError, ValueError, KeyError):
        return [root / MARKER]
    return [root / name for name, digest in sums.items() if not _is(root / name, digest)]


def _is(file: Path, digest: str) -> bool:
    try:
        return digest_of_file(file) == digest
    except (OSError, UserError):
        return False


def _written(root: Path) -> list[Path]:
    endings = (".nii.gz", ".hdr", ".img", ".csv")
    return sorted(path for path in root.rglob("*") if path.name.endswith(endings))


def is_phantom(root: Path) -> bool:
    """Whether the folder that serves as data.root is a complete phantom of `write_phantom`."""
    return (Path(root) / MARKER).is_file()


def _check(layout: str, subjects: int, spacing: float, seed: int) -> None:
    if layout not in LAYOUTS:
        what = f"no phantom has the layout '{layout}'"
        raise UserError(what, "layout", nearest(str(layout), LAYOUTS))
    if not 1 <= subjects <= MOST_SUBJECTS:
        what, fix = f"a phantom of {subjects} subjects", f"ask for 1 to {MOST_SUBJECTS}"
        raise UserError(what, "subjects", fix)
    if not 1 <= spacing <= 6:
        what = f"a phantom with voxels of {spacing} mm"
        raise UserError(what, "spacing", "take a spacing from 1 to 6 mm")
    if not 0 <= seed < 2**31:
        raise UserError(f"the seed {seed}", "seed", "take one from 0 to 2147483647")


def _partitioning(root: Path, subjects: int) -> str:
    """The table of institutions that FeTS2021 comes with."""
    names = [_files("fets2021", root, s)["seg"][0].parent.name for s in range(subjects)]
    rows = sorted((institution_of(s) + 1, name) for s, name in enumerate(names))
    table = "".join(f"{institution},{name}\n" for institution, name in rows)
    return f"Partition_ID,Subject_ID\n{table}"


def _claim(root: Path, wanted: Mapping[str, Any]) -> Path:
    """Makes the folder this phantom's.

    Returns:
        The file to rename to `MARKER` when all subjects are written.

    Raises:
        UserError: The folder is something else's.
    """
    started = root / f".{MARKER}.started"  # so that a resumed call cannot mix two phantoms
    if root.exists() and not root.is_dir():
        what = "a file lies where the phantom's folder would be"
        raise UserError(what, root, "choose another folder")
    known = [file for file in (root / MARKER, started) if file.is_file()]
    if known:
        try:
            marker = (
                read_sealed(known[0]) if known[0].name == MARKER else read_text(started, 10_000)
            )
            present = json.loads(marker)
            present = {k: v for k, v in present.items() if k not in ("files", "sha256")}
        except (OSError, ValueError, AttributeError, RecursionError, UserError):
            present = "one whose marker cannot be read"
        if present != wanted:
            raise UserError(
                f"the folder holds another phantom: {present}, not {dict(wanted)}",
                known[0],
                "delete this folder, choose another one, "
                "or ask for the same layout, subjects, spacing and seed",
            )
    elif root.exists() and (foreign := sorted(path.name for path in root.iterdir())):
        raise UserError(
            f"the folder is not empty and not a phantom: it holds {', '.join(foreign[:3])}",
            root,
            "choose another folder; nothing was written here",
        )
    else:
        write_json(started, dict(wanted))
    return started


def _files(layout: str, root: Path, s: int) -> dict[str, tuple[Path, ...]]:
    """Image name to the files that make it up, of subject s (counted from 0, named from 1)."""
    if layout == "fets2021":
        name = f"FeTS21_Training_{s + 1:03d}"
        images = ("flair", "t1", "t1ce", "t2", "seg")
        return {image: (root / name / f"{name}_{image}.nii.gz",) for image in images}
    stems = {"t1": "T1", "t2": "T2", "seg": "label"}
    paths = {image: root / f"subject-{s + 1}-{stem}" for image, stem in stems.items()}
    return {m: (path.with_suffix(".hdr"), path.with_suffix(".img")) for m, path in paths.items()}


def _encode(layout: str, voxels: np.ndarray, spacing: float) -> tuple[bytes, ...]:
    """The contents of an image's files.

    They are compressed NIfTI, or header and voxels of Analyze with a trailing axis.
    """
    import nibabel as nib

    if layout == "iseg2019":
        header = nib.AnalyzeHeader()
        header.set_data_dtype(voxels.dtype)
        header.set_data_shape((*voxels.shape, 1))
        header.set_zooms((spacing, spacing, spacing, 1))
        return header.binaryblock, voxels.tobytes(order="F")
    affine = np.diag([*(spacing * np.array(SIGNS[layout])), 1.0])
    # BraTS's own affine at 1 mm; otherwise the field of view stays where it is
    shift = (spacing - 1) / 2
    affine[:3, 3] = (-shift, 239 - shift, shift)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    return (gzip.compress(image.to_bytes(), compresslevel=3, mtime=0),)
