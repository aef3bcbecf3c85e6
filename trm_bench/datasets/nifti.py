"""Volumes in NIfTI (.nii, .nii.gz, .hdr with .img) and Analyze files."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import SerializableImage
from nibabel.spatialimages import SpatialImage

from trm_bench.datasets.volume import Header, Volume

SLACK = 2**26  # bytes that a compressed file may hold beside its voxels


class NiftiVolume(Volume):
    """A volume that nibabel reads.

    Analyze, and NIfTI with sform_code = qform_code = 0, state the size of their voxels alone.
    """

    def open(self) -> Header:
        """See `Volume.open`."""
        file = nib.load(self.path, mmap=False)
        if not isinstance(file, SpatialImage):
            raise TypeError(f"{type(file).__name__} is no volume")
        self._file, header = file, file.header
        coded = isinstance(header, nib.Nifti1Header) and (
            header["sform_code"] > 0 or header["qform_code"] > 0
        )
        return Header(
            tuple(int(size) for size in file.shape),
            np.dtype(header.get_data_dtype()),
            np.asarray(file.affine, np.float64),
            bool(coded) or not isinstance(header, nib.AnalyzeHeader),
            np.abs(np.asarray(header.get_zooms()[:3], np.float64)),
        )

    def load(self) -> np.ndarray:
        """See `Volume.load`."""
        if self.path.suffix != ".gz" or not isinstance(self._file, SerializableImage):
            return self._array(self._file.dataobj)
        with gzip.open(self.path) as stream:
            array = self._array(type(self._file).from_stream(stream).dataobj)
            # to the end, where the length and the checksum are verified
            while stream.read(1 << 20):
                if stream.tell() > self.promised + SLACK:
                    raise ValueError("it goes on long after its last voxel")
        return array

    def _array(self, data: Any) -> np.ndarray:
        slope, inter = 1.0, 0.0
        # scaled here, in place: under NumPy 2 nibabel does it in float64
        if isinstance(data, ArrayProxy):
            slope, inter = float(data.slope), float(data.inter)
            data = ArrayProxy(data.file_like, (data.shape, data.dtype, data.offset), mmap=False)
        # what does not fit into float32 becomes infinite, and is reported so
        with np.errstate(over="ignore"):
            array = np.asarray(
                data if self.channel is None else data[:, :, :, self.channel], np.float32
            )
            if (slope, inter) != (1, 0):
                array *= slope
                array += inter
        return array
