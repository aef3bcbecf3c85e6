"""The forms that the loss of a protocol can take, by name; see `LossConfig`.

The voxel-wise forms are values of each voxel, so that whoever weighs voxels, as `trm` does by its
map, weighs any of them. The overlap forms are MONAI's, over a batch's foreground classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trm_bench.transfer_risk import soft_dice

if TYPE_CHECKING:
    from trm_bench.protocol.schema import LossConfig

LEAST_MISTAKE = 1e-7  # 1 - p of a voxel: 0 has no gradient for gamma < 1


def voxel_values(
    config: LossConfig, logits: Tensor, label: Tensor, class_weight: Tensor | None = None
) -> Tensor:
    """The voxel-wise loss of each voxel, shape (B, *spatial); the term is its mean.

    With CE = -log p_y, p the softmax of the voxel and y its label:

        cross_entropy    CE
        focal            (1 - p_y)^gamma CE; Lin et al., ICCV 2017, arXiv:1708.02002
        topk             CE / share of the hardest `share` of the batch's voxels, else 0, so that
                         the mean is that of the hardest; Wu et al. 2016, arXiv:1605.06457. Hard is
                         a large CE, whatever weight the voxel gets afterwards.
        class_balanced   b_y CE / mean of b over the batch's voxels, b_k = 1 / n_k, n_k the voxels
                         of class k in the training set: PyTorch's weighted mean

    Inverse frequencies are the limit beta -> 1 of the effective number of samples, n_k becoming
    (1 - beta^n_k) / (1 - beta) (Cui et al., CVPR 2019, arXiv:1901.05555). The paper's beta of
    0.9999 or below counts no class for more than 10^4 samples: of voxels every class has more, so
    that all would weigh the same.

    Args:
        config: Names the form.
        logits: Shape (B, K, *spatial).
        label: Shape (B, *spatial).
        class_weight: b, shape (K,); needed for class_balanced.
    """
    ce = cross_entropy(logits, label)
    if config.voxels == "focal":
        assert config.gamma is not None
        return focal(ce, config.gamma)
    if config.voxels == "topk":
        assert config.share is not None
        chosen = hardest(ce, config.share).indices
        counts = torch.zeros_like(ce).flatten().scatter(0, chosen, ce.numel() / len(chosen))
        return counts.view_as(ce) * ce
    if config.voxels == "class_balanced":
        assert class_weight is not None
        weight = class_weight[label]
        return weight / weight.mean() * ce
    return ce


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p_y of each voxel: PyTorch's cross-entropy without a reduction, in three quarters of
    its time on a CPU.
    """
    return -logits.log_softmax(1).gather(1, label.unsqueeze(1)).squeeze(1)


def focal(ce: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma CE of voxels with the cross-entropy CE = -log p.

    MONAI's FocalLoss has a NaN for gradient where p is 1 and gamma below 1.
    """
    return (1 - (-ce).exp()).clamp(min=LEAST_MISTAKE) ** gamma * ce


def hardest(ce: Tensor, share: float) -> torch.return_types.topk:
    """The largest `share` of the values, one at least, and where they are among all, end to end."""
    return ce.flatten().topk(max(1, round(share * ce.numel())), sorted=False)


def overlap(config: LossConfig) -> nn.Module:
    """The overlap loss, a scalar of logits (B, K, *spatial) and labels (B, 1, *spatial).

        dice               1 - 2 TP / (2 TP + FP + FN), mean over classes
        tversky            1 - TP / (TP + alpha FP + beta FN), mean over classes; Salehi et al.,
                           MLMI 2017, arXiv:1706.05721
        generalized_dice   1 - 2 sum_k w_k TP_k / sum_k w_k (2 TP_k + FP_k + FN_k), w_k the inverse
                           square of the class's voxels in the batch; Sudre et al., DLMIA 2017,
                           arXiv:1707.03237

    TP, FP and FN are soft: sums of p y, p (1 - y) and (1 - p) y over the batch, of the foreground
    classes.
    """
    from monai.losses import GeneralizedDiceLoss, TverskyLoss

    if config.overlap == "dice":
        return soft_dice()
    every: Any = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
    if config.overlap == "tversky":
        assert config.alpha is not None and config.beta is not None
        return TverskyLoss(alpha=config.alpha, beta=config.beta, **every)
    return GeneralizedDiceLoss(**every)
