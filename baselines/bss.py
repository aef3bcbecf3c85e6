"""BSS: the small singular values of the feature matrix are shrunk."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trm_bench.data.patches import Batch
from trm_bench.errors import UserError
from trm_bench.methods import Context, Parameters, hyper

from .encoder import EncoderMethod, encoder_blocks, watch


class BssParameters(Parameters):
    """Hyper-parameters of BSS."""

    eta: float = hyper(1.8e-4, "weight of the penalty", search=(1e-6, 1.0), log=True, ge=0, le=1e6)
    k: int = hyper(
        1, "number of singular values that are shrunk", search=[1, 2, 4, 8], ge=1, le=1000
    )


class Bss(EncoderMethod):
    """Fine-tuning with batch spectral shrinkage, eta sum_{i=1..k} sigma_{-i}^2, sigma_{-i} the i-th
    smallest of F.

    Chen et al., NeurIPS 2019, "Catastrophic Forgetting Meets Negative Transfer". There F is the
    matrix of a batch's feature vectors (b, f). A segmentation batch has 2 patches or so, hence 2
    singular values, and no feature vector; so F (B V, C) has one row for each of the V positions of
    the encoder's deepest map and one column for each of its C channels: the same reading of "a
    feature vector", one for each place that the network looks at. A patch of 48x64x48 with three
    halvings has 288 positions, so that 2 patches give 576 rows for 128 channels. The sum is not
    divided by the number of rows, as in the paper.

    sigma^2 are the eigenvalues of the smaller of F'F and FF', in float64, so that the cost of a
    decomposition does not grow with the number of rows. eta = 0 is fine-tuning.

    `preset: paper` has the paper's strength, for SGD and classification; the defaults are medians
    over the tuned values of four data sets (docs/decisions.md).

    Raises:
        UserError: Which part of the network is the encoder is not known, or the patch is so small
            that all singular values would be shrunk.
    """

    name = "bss"
    paper = "Chen et al., NeurIPS 2019"
    Parameters = BssParameters
    presets: ClassVar = {"paper": {"eta": 1e-3, "k": 1}}

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        self.blocks = encoder_blocks(run.network, run.parts)

    def loss(self, run: Context, batch: Batch) -> Tensor:
        if not self.p.eta:
            return super().loss(run, batch)
        with watch(self.blocks) as maps:
            loss = super().loss(run, batch)
        matrix = feature_matrix(deepest(maps))
        if min(matrix.shape) <= self.p.k:
            hint = f"a larger patch or batch, or k below {min(matrix.shape)}"
            raise UserError(
                f"bss: the feature matrix {tuple(matrix.shape)} is too small for k={self.p.k}",
                "k",
                hint,
            )
        return loss + self.p.eta * shrinkage(matrix, self.p.k)


def deepest(maps: dict[str, Tensor]) -> Tensor:
    """The last of the maps with the fewest positions: the bottleneck."""
    return min(reversed(list(maps.values())), key=lambda m: m[0, 0].numel())


def feature_matrix(features: Tensor) -> Tensor:
    """(B, C, *spatial) to (B V, C): a row for each position of each patch."""
    return features.movedim(1, -1).flatten(0, -2)


def shrinkage(matrix: Tensor, k: int) -> Tensor:
    """Sum of the squares of the k smallest of the min(rows, columns) singular values.

    A float32 scalar.
    """
    wide = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide.T @ wide)[:k].sum().float()
