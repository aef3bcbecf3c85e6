"""Volumes in NRRD (.nrrd) and MetaImage (.mha) files, through SimpleITK, the extra `sitk`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from trm_bench.datasets.volume import Header, Volume
from trm_bench.errors import UserError

READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
"""File ending to ITK's reader of it: a file's content does not choose another one."""
MOST_HEADER = 2**16  # bytes
ITK_TO_RAS = np.diag([-1.0, -1, 1, 1])
"""ITK's world is LPS: x to the left, y to the back."""
_KINDS = {f"sitk{'U' * (k == 'u')}Int{8 * n}": f"{k}{n}" for k in "iu" for n in (1, 2, 4, 8)} | {
    "sitkFloat32": "f4",
    "sitkFloat64": "f8",
}
_STATES_AXES = {
    ".nrrd": re.compile(rb"(?im)^space directions:"),
    ".mha": re.compile(rb"(?m)^(?:TransformMatrix|Rotation|Orientation)\s*="),
}


class ItkVolume(Volume):
    """A volume that SimpleITK reads.

    Files whose header names another file for the voxels are refused: they could lead anywhere. A
    file without axes' directions is one that states no affine, as Analyze.

    Raises:
        UserError: SimpleITK is not installed.
    """

    def open(self) -> Header:
        """See `Volume.open`."""
        sitk = _simple_itk(self.path)
        text = _header_text(self.path)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(READERS[self.path.suffix])
        reader.SetFileName(str(self.path))
        reader.ReadImageInformation()
        shape = tuple(int(size) for size in reader.GetSize())
        pixel = reader.GetPixelID()
        kinds = {getattr(sitk, name): kind for name, kind in _KINDS.items()}
        if pixel not in kinds or reader.GetNumberOfComponents() != 1:
            raise TypeError(f"its voxels are {sitk.GetPixelIDValueAsString(pixel)}, not numbers")
        spacing, affine = np.asarray(reader.GetSpacing(), np.float64), np.eye(4)
        if len(shape) == 3:  # else the shape is told
            affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * spacing
            affine[:3, 3] = reader.GetOrigin()
        stated = _STATES_AXES[self.path.suffix].search(text) is not None
        self._reader = reader
        return Header(shape, np.dtype(kinds[pixel]), ITK_TO_RAS @ affine, stated, spacing[:3])

    def load(self) -> np.ndarray:
        """See `Volume.load`."""
        sitk = _simple_itk(self.path)
        self._reader.SetOutputPixelType(sitk.sitkFloat32)
        array: np.ndarray = sitk.GetArrayFromImage(self._reader.Execute())
        return array.T  # ITK's first axis, x, is NumPy's last


def _simple_itk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        what = f"{path.suffix} files are read by SimpleITK, which is not installed"
        raise UserError(what, path, "pip install 'trm-bench[sitk]'") from error
    return SimpleITK


def _header_text(path: Path) -> bytes:
    """The header as it stands; raises `ValueError` where the voxels are not in this very file."""
    with path.open("rb") as file:
        start = file.read(MOST_HEADER)
    if path.suffix == ".nrrd":
        end = re.search(rb"\r?\n\r?\n", start)
        if not start.startswith(b"NRRD") or end is None:
            raise ValueError("it has no header of a NRRD file")
        header = start[: end.start()]
        within = not re.search(rb"(?i)data\s*file", header)
    else:  # the first ElementDataFile ends the header of a MetaImage
        key = re.search(rb"(?i)ElementDataFile", start)
        if key is None:
            raise ValueError("it has no header of a MetaImage file")
        header = start[: key.start()]
        within = re.match(rb"ElementDataFile *= *LOCAL\r?\n", start[key.start() :]) is not None
    if not within:
        raise ValueError("its voxels are in another file: write them into this one")
    return header
