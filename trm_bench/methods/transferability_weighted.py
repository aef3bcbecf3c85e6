"""`transferability_weighted`: a reading of the paper before TRM, which weighs regions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from trm_bench.data.patches import Batch
from trm_bench.methods import Context, Method, hyper
from trm_bench.methods.trm import TransferRiskMap, TrmParameters


class TransferabilityWeightedParameters(TrmParameters):
    """Size of the regions and strength; what else `trm` leaves open is fixed."""

    scope: Literal["all"] = hyper("all", "voxels in the joint")
    risk: Literal["neg_log"] = hyper("neg_log", "how p becomes a risk: R = -T")
    normalise: Literal["mean_one"] = hyper("mean_one", "of the risks")
    weight: Literal["affine"] = hyper("affine", "how the risk becomes a weight")
    base: Literal[3] = hyper(3, "of weight=power: without effect")
    denominator: Literal["voxels"] = hyper("voxels", "what the sum is divided by")
    over: Literal["all"] = hyper("all", "voxels in the sum")
    with_dice: None = hyper(None, "the Dice term has the protocol's weight")
    strength: float = hyper(
        1.0, "lambda; 0 is fine-tuning", search=(0.1, 100.0), log=True, ge=0, le=1e6
    )
    region: int = hyper(
        8, "edge of a region in voxels, within the slice in 2D", search=[1, 4, 8, 16], ge=1, le=512
    )


class TransferabilityWeighted(TransferRiskMap):
    """A reading of transferability-weighted fine-tuning: more weight on the regions of low
    transferability.

    Tan, Li, Li, Zhang, "Efficient Prediction of Model Transferability in Semantic Segmentation
    Tasks", ICIP 2023, pages 720-724. What its abstract says: transferability is computed over
    pixel-wise features; fine-tuning then puts more importance on regions of low transferability,
    and is 4 % more accurate than plain fine-tuning in few-shot segmentation. The rest is ours: T =
    log p is LEEP's map as in `trm`; a region is a block of `region` voxels along each axis, and its
    risk R the mean of -T in it; with r = R over its mean over the training set,

        loss = cross_entropy * mean over voxels of w CE + dice * soft Dice
        w = (1 + `strength` r) / (1 + `strength`)

    The mean of w over the training set is 1, so that the weights move no balance between the terms
    of the loss; nor is there a division by the foreground, which the later paper adds. `strength` 0
    is fine-tuning.
    """

    name = "transferability_weighted"
    paper = "a reading of Tan et al., ICIP 2023, pages 720-724"
    Parameters = TransferabilityWeightedParameters

    def risks(self, run: Context) -> list[Tensor]:
        return [self.of_regions(run, risk) for risk in super().risks(run)]

    def weights(self, run: Context) -> list[Tensor]:
        return [weight / (1 + self.p.strength) for weight in super().weights(run)]

    def of_regions(self, run: Context, risk: Tensor) -> Tensor:
        """The mean of each voxel's region, shape (1, X, Y, Z); regions are cut at the far edges."""
        sizes = [self.p.region] * len(run.config.patch) + [1] * (3 - len(run.config.patch))
        sizes = [min(size, n) for size, n in zip(sizes, risk.shape[1:], strict=True)]
        mean = functional.avg_pool3d(risk[None].double(), sizes, ceil_mode=True)[0]
        for axis, (size, n) in enumerate(zip(sizes, risk.shape[1:], strict=True), start=1):
            mean = mean.repeat_interleave(size, axis).narrow(axis, 0, n)
        return mean.to(risk.dtype)

    def terms(self, run: Context, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self.p.strength:  # bit for bit, which another order of sums would not be
            return Method.terms(self, run, logits, batch)
        return super().terms(run, logits, batch)

    def maps(self, run: Context, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        maps = super().maps(run, image, label)
        return {**maps, "risk": self.of_regions(run, maps["risk"])}
