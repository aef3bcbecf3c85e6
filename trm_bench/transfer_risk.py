"""The transfer risk map: LEEP adapted to segmentation, and the fine-tuning loss that it weights.

Three objects, usable in any PyTorch or MONAI training loop without the rest of this package:

    statistics = LeepStatistics(target_classes=2, source_classes=2) for image, label in
    target_training_set:                      # one pass of the frozen source network
        statistics.update(source(image).softmax(1), label)
    risk_map = RiskMap(statistics.conditional()) weights =
    risk_map.weights([risk_map(source(image).softmax(1), label) for image, label in
    target_training_set]) loss = RiskWeightedLoss()(network(image), label, weight)      # in the
    training loop

With the source softmax theta(x) over classes c and target labels y in {0..Kt-1} (LEEP: Nguyen et
al., ICML 2020, arXiv:2002.12462; per pixel: Duan et al., ICASSP 2025, arXiv:2502.02340):

    joint          P(k, c)  = 1/N sum_i sum_v [y_iv = k] theta(x_i)_cv
    conditional    P(k | c) = P(k, c) / sum_k' P(k', c)
    EEP            p_iv     = sum_c P(y_iv | c) theta(x_i)_cv
    transferability map       T_iv = log p_iv;  LEEP is its mean
    risk map       R_iv     = -T_iv
    loss           sum_v w(R_iv) CE_iv / |foreground|

The paper does not say how the map becomes a weight: every reading is an option here, none is "the
paper's". LEEP needs labels: compute the statistics and the maps from target *training* labels only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

Scope = Literal["all", "brain", "labelled", "class_balanced"]
Risk = Literal["neg_log", "one_minus"]
Normalise = Literal["none", "max", "minmax_per_image", "mean_one"]
Weight = Literal["risk", "affine", "power"]
Denominator = Literal["label_foreground", "image_foreground", "weights", "voxels"]
Over = Literal["all", "foreground"]

VOXELS, DICE = "voxels", "dice"  # the terms of a segmentation loss
LARGEST_WEIGHT = 1e12  # of weight=power: a sum of weighted losses stays finite in float32
# a label that the statistics never saw has p = 0; the map stays finite (R <= 27.7)
SMALLEST_PROBABILITY = 1e-12


def _known(value: str, option: object, name: str) -> None:
    if value not in get_args(option):
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(option))}")


class LeepStatistics:
    """The joint distribution P(target label, source class), streamed in float64.

    Args:
        target_classes: Kt, the number of target classes, background included.
        source_classes: Ks, the number of channels of the source softmax.
        scope: Which voxels count: `all`; `brain`, those under the mask given to `update`;
            `labelled`, those with y > 0, so that the background has no part in the joint and is
            at no risk; `class_balanced`, all, with every target class that occurs given the same
            total mass.
    """

    def __init__(self, target_classes: int, source_classes: int, scope: Scope = "all") -> None:
        _known(scope, Scope, "scope")
        self.scope = scope
        self._mass = torch.zeros(target_classes, source_classes, dtype=torch.float64)

    def update(self, probabilities: Tensor, label: Tensor, brain: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            probabilities: Source softmax, shape (B, Ks, *spatial), summing to 1 over dimension 1.
            label: Target labels, integers in [0, Kt), shape (B, *spatial).
            brain: Bool mask, shape (B, *spatial); needed for the scope `brain`.

        Raises:
            ValueError: The shapes do not fit, a label is not below Kt, or the brain mask is
                missing.
        """
        target_classes, source_classes = self._mass.shape
        if probabilities.shape[1] != source_classes:
            channels = probabilities.shape[1]
            raise ValueError(f"{channels} source channels, but source_classes={source_classes}")
        if probabilities.shape[:1] + probabilities.shape[2:] != label.shape:
            shapes = f"probabilities {tuple(probabilities.shape)} and label {tuple(label.shape)}"
            raise ValueError(f"{shapes} do not fit")
        lowest, highest = int(label.min()), int(label.max())
        if highest >= target_classes or lowest < 0:
            raise ValueError(f"labels {lowest}..{highest}, but target_classes={target_classes}")
        if self.scope == "brain" and brain is None:
            raise ValueError("scope='brain' needs the brain mask")
        per_class = probabilities.movedim(1, 0).flatten(1)
        flat, inside = label.flatten(), in_scope(self.scope, label, brain)
        for k in range(len(self._mass)):
            chosen = flat == k if inside is None else (flat == k) & inside.flatten()
            self._mass[k] += (per_class * chosen).sum(1, dtype=torch.float64).cpu()

    def joint(self) -> Tensor:
        """P(k, c), float64, shape (Kt, Ks), summing to 1.

        Raises:
            ValueError: No voxel was seen.
        """
        mass = self._mass
        if self.scope == "class_balanced":
            per_label = mass.sum(1, keepdim=True)
            mass = torch.where(
                per_label > 0, mass / per_label.clamp(min=torch.finfo(torch.float64).tiny), 0.0
            )
        total = mass.sum()
        if total <= 0:
            raise ValueError("the LEEP statistics have seen no voxel")
        return mass / total

    def prior(self) -> Tensor:
        """P(k), float64, shape (Kt,): how often each target class occurs in the scope.

        Under `labelled` P(0) is 1, as in `conditional`.
        """
        return self.without_risk(self.joint().sum(1))

    def conditional(self) -> Tensor:
        """P(k | c), float64, shape (Kt, Ks).

        A source class that never occurs gets the prior P(k). Under `labelled` P(0 | c) is 1, and
        the rest is a distribution without it: the map is about labelled voxels, and in all others
        p = 1 and the risk is 0.
        """
        joint = self.joint()
        per_source = joint.sum(0, keepdim=True)
        seen = joint / per_source.clamp(min=torch.finfo(torch.float64).tiny)
        return self.without_risk(torch.where(per_source > 0, seen, joint.sum(1, keepdim=True)))

    def without_risk(self, probability: Tensor) -> Tensor:
        """Probability of classes, in dimension 0, with 1 for a background that does not count.

        Changes its argument.
        """
        if self.scope == "labelled":
            probability[0] = 1
        return probability


def in_scope(scope: Scope, label: Tensor, brain: Tensor | None) -> Tensor | None:
    """The voxels that count, a bool mask of the label's shape; None for all."""
    if scope == "labelled":
        return label > 0
    return brain if scope == "brain" else None


class RiskMap:
    """Turns the source softmax and the target labels into a per-voxel risk, and risks into loss
    weights.

    Args:
        conditional: P(k | c), shape (Kt, Ks), of `LeepStatistics.conditional`.
        risk: `neg_log`, R = -log p; `one_minus`, R = 1 - p.
        normalise: What is done to the risks of the training set before weighting: `none`; `max`,
            divided by the largest risk of the set; `minmax_per_image`, each image to [0, 1];
            `mean_one`, divided by the mean over the set.
        weight: `risk`, w = R; `affine`, w = 1 + strength R; `power`, w = base^R.
        strength: Of `affine`.
        base: Of `power`; above 0.
    """

    def __init__(
        self,
        conditional: Tensor,
        risk: Risk = "neg_log",
        normalise: Normalise = "none",
        weight: Weight = "risk",
        strength: float = 1.0,
        base: float = 10.0,
    ) -> None:
        _known(risk, Risk, "risk")
        _known(normalise, Normalise, "normalise")
        _known(weight, Weight, "weight")
        if base <= 0:
            raise ValueError(f"base={base}: must be above 0")
        self.conditional, self.risk, self.normalise = conditional.double(), risk, normalise
        self.weight, self.strength, self.base = weight, strength, base

    def expected_prediction(self, probabilities: Tensor, label: Tensor) -> Tensor:
        """EEP p_v = sum_c P(y_v | c) theta_cv, in [0, 1], float64, shape (B, *spatial).

        Args:
            probabilities: Source softmax, shape (B, Ks, *spatial).
            label: Target labels, shape (B, *spatial).
        """
        conditional = self.conditional.to(probabilities.device)
        per_label = torch.einsum("kc,bc...->bk...", conditional, probabilities.double())
        return per_label.gather(1, label.long().unsqueeze(1)).squeeze(1)

    def transferability(self, probabilities: Tensor, label: Tensor) -> Tensor:
        """T = log p (nats, <= 0), float64, shape (B, *spatial).

        Its mean over the training set is LEEP.
        """
        return self.expected_prediction(probabilities, label).clamp(min=SMALLEST_PROBABILITY).log()

    def __call__(self, probabilities: Tensor, label: Tensor) -> Tensor:
        """The risk R >= 0, float64, shape (B, *spatial)."""
        p = self.expected_prediction(probabilities, label)
        risk = -p.clamp(min=SMALLEST_PROBABILITY).log() if self.risk == "neg_log" else 1 - p
        return risk.clamp(min=0)  # p may exceed 1 by a rounding error

    def weights(self, risks: Sequence[Tensor]) -> list[Tensor]:
        """Loss weights of the whole training set.

        Args:
            risks: One risk map per image, all of the training set, since `max` and `mean_one` are
                taken over the set.

        Returns:
            One weight map per image, of the same shape.
        """
        return [self._weigh(risk) for risk in self._normalised(risks)]

    def _normalised(self, risks: Sequence[Tensor]) -> list[Tensor]:
        smallest = torch.finfo(torch.float32).tiny  # a constant map stays finite
        if self.normalise == "minmax_per_image":
            return [(r - r.min()) / (r.max() - r.min()).clamp(min=smallest) for r in risks]
        if self.normalise == "max":
            scale = max(float(r.max()) for r in risks)
        elif self.normalise == "mean_one":
            total = math.fsum(float(r.double().sum()) for r in risks)
            scale = total / sum(r.numel() for r in risks)
        else:
            return list(risks)
        return [r / max(scale, smallest) for r in risks]

    def _weigh(self, risk: Tensor) -> Tensor:
        if self.weight == "risk":
            return risk
        if self.weight == "affine":
            return 1 + self.strength * risk
        return (self.base ** risk.double()).clamp(max=LARGEST_WEIGHT).to(risk.dtype)


class RiskWeightedLoss(nn.Module):
    """cross_entropy * sum_v w_v CE_v / denominator + with_dice * soft Dice loss, over a batch.

    Another loss of voxels may stand for CE (see `terms`), and another one for soft Dice.

    Args:
        denominator: `label_foreground`, voxels with y > 0; `image_foreground`, brain voxels;
            `weights`, sum of w; `voxels`, all voxels summed over. Counted per batch and at least 1,
            so that patches without foreground give a finite loss.
        over: Which voxels the sum runs over: `all`, or `foreground` (y > 0).
        with_dice: Weight of an added soft Dice term over the foreground classes of the batch.
        cross_entropy: Weight of the cross-entropy term.
        overlap: Takes the place of soft Dice: a scalar of logits and labels (B, 1, *spatial).
    """

    def __init__(
        self,
        denominator: Denominator = "label_foreground",
        over: Over = "all",
        with_dice: float = 0.0,
        cross_entropy: float = 1.0,
        overlap: nn.Module | None = None,
    ) -> None:
        super().__init__()
        _known(denominator, Denominator, "denominator")
        _known(over, Over, "over")
        self.denominator, self.over = denominator, over
        self.with_dice, self.cross_entropy = with_dice, cross_entropy
        self.dice = (overlap or soft_dice()) if with_dice else None

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        weight: Tensor,
        brain: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar: the sum of `terms`, which says what the arguments are."""
        return torch.stack([*self.terms(logits, label, weight, brain, values).values()]).sum()

    def terms(
        self,
        logits: Tensor,
        label: Tensor,
        weight: Tensor,
        brain: Tensor | None = None,
        values: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss, each with its weight: `voxels`, and `dice` where it counts.

        Args:
            logits: Shape (B, Kt, *spatial).
            label: Integers, shape (B, *spatial).
            weight: w_v >= 0, shape (B, *spatial).
            brain: Bool mask, shape (B, *spatial); needed for the denominator `image_foreground`.
            values: What is weighted, shape (B, *spatial); by default the cross-entropy.

        Raises:
            ValueError: The brain mask is needed and missing.
        """
        if self.denominator == "image_foreground" and brain is None:
            raise ValueError("denominator='image_foreground' needs the brain mask")
        logits, label, weight = logits.float(), label.long(), weight.float()
        foreground = label > 0
        if self.over == "foreground":
            weight = weight * foreground
        if values is None:
            values = functional.cross_entropy(logits, label, reduction="none")
        weighted = (weight * values).sum()
        if self.denominator == "weights":
            count = weight.sum().clamp(min=SMALLEST_PROBABILITY)
        elif self.denominator == "voxels":
            count = (
                foreground.sum()
                if self.over == "foreground"
                else torch.tensor(label.numel(), device=label.device)
            )
            count = count.clamp(min=1)
        else:
            count = (
                (foreground if self.denominator == "label_foreground" or brain is None else brain)
                .sum()
                .clamp(min=1)
            )
        terms = {VOXELS: self.cross_entropy * weighted / count}
        if self.dice is not None:
            terms[DICE] = self.with_dice * self.dice(logits, label.unsqueeze(1))
        return terms


def soft_dice() -> nn.Module:
    """Soft Dice loss on logits (B, K, *spatial) and labels (B, 1, *spatial), over a batch's
    foreground classes.
    """
    from monai.losses import DiceLoss

    return DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


class RiskSummary:
    """What a set of risk maps says, streamed: LEEP, mean risk per class, and how much the class
    label explains.

    `class_explained` is eta squared, the between-class share of the risk's variance over all voxels
    seen. At 1 the map is constant within each class: it is class weighting, and says nothing about
    where the risk lies.

    Args:
        target_classes: Kt.
    """

    def __init__(self, target_classes: int) -> None:
        self._count, self._sum, self._squares = (
            torch.zeros(target_classes, dtype=torch.float64) for _ in range(3)
        )
        self._transferability = 0.0

    def update(
        self, risk: Tensor, transferability: Tensor, label: Tensor, where: Tensor | None = None
    ) -> None:
        """Adds maps of one shape; `where` is a bool mask of the voxels that count."""
        keep = torch.ones_like(label, dtype=torch.bool) if where is None else where
        r, t, y = risk[keep].double(), transferability[keep].double(), label[keep].long()
        self._transferability += float(t.sum())
        for k in range(len(self._count)):
            values = r[y == k]
            self._count[k] += values.numel()
            self._sum[k] += float(values.sum())
            self._squares[k] += float(values.square().sum())

    def result(self) -> dict[str, float | list[float | None]]:
        """`leep` (nats), `risk_mean`, `risk_per_class`, `class_explained` (in [0, 1].

        1 where the map is constant).
        """
        n, total = float(self._count.sum()), float(self._sum.sum())
        variance = float(self._squares.sum()) / n - (total / n) ** 2
        means = self._sum / self._count.clamp(min=1)
        between = float((self._count * (means - total / n).square()).sum()) / n
        constant = variance <= 1e-12 * max(1.0, (total / n) ** 2)
        return {
            "leep": self._transferability / n,
            "risk_mean": total / n,
            "risk_per_class": [
                float(m) if c > 0 else None for m, c in zip(means, self._count, strict=True)
            ],
            "class_explained": 1.0 if constant else min(1.0, max(0.0, between / variance)),
        }
