"""The protocol's blocks on training: network, optimiser, loss, augmentation, methods."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from trm_bench.protocol.strict import Name, Plain, Strict, different

Rate = Annotated[float, Field(ge=1e-8, le=1e3)]
"""Of learning: what is below is lost when it is added to a weight in float32."""
Decay = Annotated[float, Field(ge=0, le=1e3)]
Side = Annotated[int, Field(ge=1, le=4096)]

MOST_VOXELS = 2**30  # of the patches of a step
LEAST_LOSS = 1e-6  # sum of the weights of the loss: AdamW's epsilon hides gradients far below it
# of the forms of the loss, with their papers' values; see `trm_bench.losses`
OWN_OF_FORMS = {
    "focal": {"gamma": 2.0},
    "topk": {"share": 0.1},
    "tversky": {"alpha": 0.3, "beta": 0.7},
}
UNMOVED = "one step with a warm-up has the learning rate 0, so nothing would be learned"


class NetworkConfig(Strict):
    """A MONAI network by its class name; every further key is an argument of that class.

    Arguments are plain values; see `networks.build` for the limits of their size.

    Attributes:
        name: Of the class, such as `UNet`; nnU-Net's own networks go by theirs.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]
    name: Name

    @property
    def arguments(self) -> dict[str, Any]:
        """The network's own arguments."""
        return dict(self.model_extra or {})


class OptimizerConfig(Strict):
    """The optimiser.

    Attributes:
        name: Which.
        lr: Learning rate.
        weight_decay: Decoupled under `adamw`, as an L2 term under `sgd`.
        momentum: Nesterov's; of `sgd` alone.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Rate = 1e-3
    weight_decay: Decay = 1e-5
    momentum: float = Field(0.9, ge=0, lt=1)


class LossConfig(Strict):
    """The segmentation loss: a voxel-wise term and an overlap term over the batch.

    Each has a weight, a form, and the form's own parameters, which are null under other forms.

    Attributes:
        cross_entropy: Weight of the voxel-wise term, whatever its form.
        dice: Weight of the overlap term, whatever its form.
        voxels: Form of the voxel-wise term, unless a method has its own: the mean of
            `cross_entropy`; `focal`, by (1 - p)^gamma times the cross-entropy; `topk`, of the
            hardest voxels alone; `class_balanced`, weighted by the inverse frequency of the
            class in the training set.
        overlap: Form of the overlap term: `dice`, `tversky` or `generalized_dice`.
        gamma: Focusing exponent of `focal`; 2 unless given.
        share: Of the batch's voxels that count under `topk`; 0.1 unless given.
        alpha: Weight of false positives under `tversky`; 0.3 unless given.
        beta: Weight of false negatives under `tversky`; 0.7 unless given.
    """

    cross_entropy: float = Field(1.0, ge=0, le=1e6)
    dice: float = Field(1.0, ge=0, le=1e6)
    voxels: Literal["cross_entropy", "focal", "topk", "class_balanced"] = "cross_entropy"
    overlap: Literal["dice", "tversky", "generalized_dice"] = "dice"
    gamma: float | None = Field(None, ge=0, le=20)
    share: float | None = Field(None, gt=0, le=1)
    alpha: float | None = Field(None, ge=0, le=1e3)
    beta: float | None = Field(None, ge=0, le=1e3)

    @model_validator(mode="after")
    def _of_its_form(self) -> LossConfig:
        for form, own in OWN_OF_FORMS.items():
            chosen = form in (self.voxels, self.overlap)
            for name, default in own.items():
                if not chosen and getattr(self, name) is not None:
                    term = "overlap" if form == "tversky" else "voxels"
                    raise ValueError(
                        f"{name} is a parameter of {term}: {form}, which is not chosen"
                    )
                if chosen and getattr(self, name) is None:
                    object.__setattr__(self, name, default)
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0, so no voxel would be wrong")
        return self

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if self.cross_entropy + self.dice < LEAST_LOSS:
            raise ValueError(
                f"cross_entropy and dice are together below {LEAST_LOSS:g}, so nothing would be "
                "learned"
            )
        return self

    @property
    def dice_share(self) -> float:
        """The weight of the overlap term as a share of both."""
        return self.dice / (self.cross_entropy + self.dice)


class AugmentConfig(Strict):
    """Batched augmentation, the same draws for every method.

    Attributes:
        flip: Axes (0, 1, 2) flipped with probability 1/2.
        rotate: Largest rotation about each axis, degrees (in the plane only for 2D patches).
        scale: Largest relative zoom, e.g. 0.15 for 0.85 to 1.15.
        contrast: Largest relative change of gain.
        brightness: Largest shift, in units of the prepared intensity.
        noise: Largest standard deviation of added Gaussian noise, in the same units.
    """

    flip: Annotated[tuple[Literal[0, 1, 2], ...], AfterValidator(different)] = ()
    rotate: float = Field(0.0, ge=0, le=180)
    scale: float = Field(0.0, ge=0, le=0.9)
    contrast: float = Field(0.0, ge=0, le=0.99)
    brightness: float = Field(0.0, ge=0, le=100)
    noise: float = Field(0.0, ge=0, le=100)


class TrainingConfig(Strict):
    """One training: of the source network, or of a method on the target.

    Attributes:
        steps: Optimiser steps.
        batch: Patches a step.
        patch: Voxels; three numbers for 3D networks, two for 2D networks that see slices (axes 0
            and 1).
        foreground: Share of patches centred on a foreground voxel.
        optimizer: What moves the weights.
        schedule: Of the learning rate: `poly` (power 0.9), `cosine`, `one_cycle`, `constant`.
        warmup: Share of the steps over which the learning rate rises linearly from 0 to what the
            schedule says.
        clip: Largest gradient norm; null for none.
        ema: Decay d of an exponential moving average of the weights, m <- d_t m + (1 - d_t) w after
            each step t from 0, with d_t = min(d, (1 + t) / (10 + t)), so that short trainings are
            averaged too; null for none. The averaged weights are those that are validated, kept
            and tested: they vary less from step to step, which makes every arm stronger alike.
        precision: `auto` is bf16 on a GPU that has it, else fp32.
        compile: Whether the steps go through torch.compile, which takes about a minute, once of a
            network and patch on a machine.
        loss: What is made small.
        augment: How patches are varied.
        select: Which weights are kept: `last`, or `best` by mean Dice on the validation subjects.
        validate_every: Steps between validations for `best`; 0 for ten in all.
    """

    steps: int = Field(ge=1, le=10_000_000)
    batch: int = Field(2, ge=1, le=4096)
    patch: tuple[Side, ...] = Field(min_length=2, max_length=3)
    foreground: float = Field(0.33, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["poly", "cosine", "one_cycle", "constant"] = "poly"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip: float | None = Field(12.0, ge=1e-4, le=1e9)
    ema: float | None = Field(None, ge=0.5, lt=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    select: Literal["last", "best"] = "last"
    validate_every: int = Field(0, ge=0, le=10_000_000)

    @model_validator(mode="after")
    def _possible(self) -> TrainingConfig:
        if self.batch * math.prod(self.patch) > MOST_VOXELS:
            raise ValueError(f"batch x patch: more than {MOST_VOXELS} voxels a step")
        if self.steps == 1 and self.warmup > 0:
            raise ValueError(f"warmup: {UNMOVED}")
        return self


class TrainingsConfig(Strict):
    """Source pre-training and target training.

    Attributes:
        source: Of the source networks.
        target: Of every method on the target, alike.
    """

    source: TrainingConfig
    target: TrainingConfig


class EvaluationConfig(Strict):
    """Whole-volume inference and scoring.

    Attributes:
        overlap: Of neighbouring windows, a share of the patch.
        batch: Windows at a time.
        surface_tolerance: Of the surface Dice, mm.
    """

    overlap: float = Field(0.5, ge=0, le=0.9)
    batch: int = Field(8, ge=1, le=4096)
    surface_tolerance: float = Field(1.0, ge=1e-3, le=1000)


class MethodTraining(Strict):
    """Where a method's target training differs from the protocol's; null is the protocol's.

    What makes methods comparable (steps, batch, patches, augmentation, ...) cannot differ.

    Attributes:
        lr: Learning rate of the optimiser.
        weight_decay: Of the optimiser.
        warmup: Share of the steps over which the learning rate rises.
        dice_share: Weight of the overlap term as a share of the sum of the loss weights, which
            stays.
    """

    lr: Rate | None = None
    weight_decay: Decay | None = None
    warmup: float | None = Field(None, ge=0, lt=1)
    dice_share: float | None = Field(None, ge=0, le=1)

    def applied(self, training: TrainingConfig) -> TrainingConfig:
        """The training of the method."""
        own = self.model_dump(exclude_none=True)
        optimizer: dict[str, Any] = {k: own[k] for k in own if k in ("lr", "weight_decay")}
        changes: dict[str, Any] = {"optimizer": training.optimizer.model_copy(update=optimizer)}
        if self.warmup is not None:
            changes["warmup"] = self.warmup
        share, loss = self.dice_share, training.loss
        if share not in (None, loss.dice_share):  # an equal share leaves the weights to the bit
            total = loss.cross_entropy + loss.dice
            weights = {"cross_entropy": (1 - share) * total, "dice": share * total}
            changes["loss"] = loss.model_copy(update=weights)
        return training.model_copy(update=changes)


class MethodSettings(Strict):
    """A method's parameters, and where its target training differs.

    Attributes:
        training: What differs.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]
    training: MethodTraining = MethodTraining()

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters, as written."""
        return dict(self.model_extra or {})

    def over(self, below: MethodSettings) -> MethodSettings:
        """These settings, and those of `below` where these say nothing."""
        own = self.training.model_dump(exclude_none=True)
        training = below.training.model_copy(update=own)
        return MethodSettings(training=training, **{**below.parameters, **self.parameters})


class MethodConfig(MethodSettings):
    """A method by name; every further key is one of its parameters, or `preset`.

    A preset is a named set of values, as of the method's paper; parameters that are given win over
    it.

    Attributes:
        training: Where its target training differs from the protocol's.
        name: Of the method, as `trm-bench methods` lists it.
        label: What the method is called in tables; needed where a method is listed twice.
        per_transfer: Name of a transfer to settings that hold there.
    """

    name: Name
    label: Name = ""
    per_transfer: dict[Name, MethodSettings] = Field(default_factory=dict, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labelled(self) -> MethodConfig:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if not re.fullmatch(r"[\w.+^=-]{1,100}", self.label):
            raise ValueError(f"label '{self.label}': use up to 100 letters, digits and _ . + ^ = -")
        return self

    def at(self, transfer: str) -> MethodSettings:
        """What holds in a transfer."""
        return self.per_transfer.get(transfer, MethodSettings()).over(self)
