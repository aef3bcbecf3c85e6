"""The protocol's blocks: what a YAML file may say, with defaults and limits."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trm_bench.protocol.strict import Strict
from trm_bench.protocol.sweep import SweepConfig

Metric = Literal["dice", "hd95", "surface_dice"]


# same loss as trm, without the map's information
CONTROLS = ("trm_prior", "trm_uniform", "trm_shuffled")


class Claim(Strict):
    """What is to be found out: a gain of a method, a paper's or one's own question.

    Attributes:
        source: Who claims it; "" for one's own question.
        gain: As printed by the paper; null where there is none to be judged.
        unit: `points` (Dice x 100), `relative` (per cent of the baseline), or `points-or-relative`
            where nothing says.
        method: Which is claimed to gain.
        versus: Over which method.
        family: The comparisons that get marks, corrected for their number; all others are
            exploratory. `controls`: the method against `versus` and against each of its controls
            (trm_prior, trm_uniform, trm_shuffled); `all`: every method against `versus`; or a list
            of [method, versus].
    """

    source: str = ""
    metric: Literal["dice"] = "dice"
    gain: float | None = None
    unit: Literal["points", "relative", "points-or-relative"] = "points-or-relative"
    method: str = "trm"
    versus: str = "finetune"
    family: Literal["controls", "all"] | tuple[tuple[str, str], ...] = "controls"


class VolumeConfig(Strict):
    """How volumes are prepared, once.

    Attributes:
        spacing: Voxel size in mm after resampling; null keeps each scan's own.
        crop: `brain`, the bounding box of the non-zero voxels; `none`.
        intensity: `zscore_brain`, mean 0 and deviation 1 over the non-zero voxels and 0 outside;
            `zscore`, over all voxels; `percentile`, the 0.5 to 99.5 percentile range of the
            non-zero voxels to [0, 1].
    """

    spacing: tuple[float, float, float] | None = None
    crop: Literal["brain", "none"] = "brain"
    intensity: Literal["zscore_brain", "zscore", "percentile"] = "zscore_brain"

    @field_validator("spacing")
    @classmethod
    def _positive(cls, spacing: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if spacing is not None and min(spacing) <= 0:
            raise ValueError("spacing must be above 0 mm")
        return spacing


class DataConfig(Strict):
    """Which data.

    Attributes:
        dataset: A registered dataset.
        root: Its folder; `${VARIABLE}` is taken from the environment. Relative to the working
            directory.
        labels: The label map, where it is the same for source and target.
        modalities: The modalities in play; all of the dataset's when null.
        on_bad_subject: `stop`, or `skip` to leave unusable subjects out, visibly.
    """

    dataset: str
    root: str
    labels: str | None = None
    modalities: tuple[str, ...] | None = None
    volume: VolumeConfig = VolumeConfig()
    on_bad_subject: Literal["stop", "skip"] = "stop"


class TargetSplit(Strict):
    """Numbers of target subjects. `rest` means all that are left."""

    train: int = Field(ge=1)
    val: int = Field(ge=1)
    test: int | Literal["rest"] = "rest"


class SplitConfig(Strict):
    """How patients are divided; no patient lies in two parts, and no two parts overlap.

    Attributes:
        stratify: `institution` keeps the institutions' shares alike in every part.
        source: Source training patients, a share (below 1) or a number.
        target: The target's patients. `train` is the size of a training set, whatever the design.
        seed: Draws the split.
        design: What the training seeds share. `fixed`: one split, so that results hold for its
            training set; `disjoint`: source, validation and test set, while seed s trains on set s
            of training sets that have no patient in common; `resampled`: nothing, a new split with
            every seed, for data too small for one test set.
        sets: Disjoint target training sets that are set aside, whichever seeds train; matters for
            `disjoint` alone.
    """

    stratify: Literal["institution"] | None = None
    source: float = Field(gt=0)
    target: TargetSplit
    seed: int = Field(0, ge=0)
    design: Literal["fixed", "disjoint", "resampled"] = "fixed"
    sets: int = Field(5, ge=1)

    @field_validator("source")
    @classmethod
    def _share_or_number(cls, source: float) -> float:
        if source >= 1 and source != int(source):
            raise ValueError(
                f"{source:g} is neither a share below 1 nor a whole number of patients"
            )
        return source


class TransfersConfig(Strict):
    """Which transfers.

    Attributes:
        kind: `cross_modality`: pairs name modalities; `cross_task`: pairs name label maps.
        pairs: `all` ordered pairs, or a list of [source, target].
        shots: Numbers of target training subjects, each a transfer of its own (few-shot); null uses
            all of them.
    """

    kind: Literal["cross_modality", "cross_task"]
    pairs: Literal["all"] | tuple[tuple[str, str], ...] = "all"
    shots: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _sensible(self) -> TransfersConfig:
        if self.pairs != "all" and any(a == b for a, b in self.pairs):
            raise ValueError("pairs: source and target are the same, so nothing is transferred")
        if self.shots is not None and (not self.shots or min(self.shots) < 1):
            raise ValueError("shots: must be numbers of subjects, at least 1")
        return self


class NetworkConfig(BaseModel):
    """A MONAI network by its class name; every further key is an argument of that class."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The network's own arguments."""
        return dict(self.model_extra or {})


class OptimizerConfig(Strict):
    """Attributes: name, lr (learning rate), weight_decay, momentum (Nesterov; of sgd)."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class LossConfig(Strict):
    """The segmentation loss: weights of the voxel-wise term and of soft Dice over the batch.

    The voxel-wise term is the mean cross-entropy, unless a method has its own.
    """

    cross_entropy: float = Field(1.0, ge=0)
    dice: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not (self.cross_entropy or self.dice):
            raise ValueError("cross_entropy and dice are both 0, so nothing would be learned")
        return self

    @property
    def dice_share(self) -> float:
        """The weight of Dice as a share of both."""
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

    flip: tuple[Literal[0, 1, 2], ...] = ()
    rotate: float = Field(0.0, ge=0, le=180)
    scale: float = Field(0.0, ge=0, lt=1)
    contrast: float = Field(0.0, ge=0, lt=1)
    brightness: float = Field(0.0, ge=0)
    noise: float = Field(0.0, ge=0)


class TrainingConfig(Strict):
    """One training: of the source network, or of a method on the target.

    Attributes:
        steps: Optimiser steps.
        batch: Patches a step.
        patch: Voxels; three numbers for 3D networks, two for 2D networks that see slices (axes 0
            and 1).
        foreground: Share of patches centred on a foreground voxel.
        schedule: Of the learning rate: `poly` (power 0.9), `cosine`, `one_cycle`, `constant`.
        warmup: Share of the steps over which the learning rate rises linearly from 0 to what the
            schedule says.
        clip: Largest gradient norm; null for none.
        precision: `auto` is bf16 where the device has it, else fp32.
        select: Which weights are kept: `last`, or `best` by mean Dice on the validation subjects.
        validate_every: Steps between validations for `best`; 0 for ten in all.
    """

    steps: int = Field(ge=1)
    batch: int = Field(2, ge=1)
    patch: tuple[int, int, int] | tuple[int, int]
    foreground: float = Field(0.33, ge=0, le=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["poly", "cosine", "one_cycle", "constant"] = "poly"
    warmup: float = Field(0.0, ge=0, lt=1)
    clip: float | None = Field(12.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    select: Literal["last", "best"] = "last"
    validate_every: int = Field(0, ge=0)

    @field_validator("patch")
    @classmethod
    def _positive(cls, patch: tuple[int, ...]) -> tuple[int, ...]:
        if min(patch) < 1:
            raise ValueError("patch must be at least 1 voxel along each axis")
        return patch


class TrainingsConfig(Strict):
    """Source pre-training and target training; every method on the target gets the same."""

    source: TrainingConfig
    target: TrainingConfig


class EvaluationConfig(Strict):
    """Whole-volume inference and scoring.

    Attributes:
        overlap: Of neighbouring windows, a share of the patch.
        batch: Windows at a time.
        surface_tolerance: Of the surface Dice, mm.
    """

    overlap: float = Field(0.5, ge=0, lt=1)
    batch: int = Field(8, ge=1)
    surface_tolerance: float = Field(1.0, gt=0)


class PhantomConfig(Strict):
    """The stand-in that `--phantom` uses instead of the real data.

    Attributes:
        subjects: How many to make.
        spacing: Voxel size, mm.
        seed: Of the phantom.
        overrides: Keys of the protocol that `--phantom` sets, as `--set` would.
    """

    subjects: int = Field(24, ge=3)
    spacing: float = Field(3.0, ge=1, le=6)
    seed: int = Field(0, ge=0)
    overrides: dict[str, Any] = Field(default_factory=dict)


class MethodTraining(Strict):
    """Where a method's target training differs from the protocol's; null is the protocol's.

    What makes methods comparable (steps, batch, patches, augmentation, ...) cannot differ.

    Attributes:
        lr: Learning rate of the optimiser.
        weight_decay: Of the optimiser.
        warmup: Share of the steps over which the learning rate rises.
        dice_share: Weight of Dice as a share of the sum of the loss weights, which stays.
    """

    lr: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
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
            changes["loss"] = LossConfig(cross_entropy=(1 - share) * total, dice=share * total)
        return training.model_copy(update=changes)


class MethodSettings(BaseModel):
    """A method's parameters, and `training`, where its target training differs."""

    model_config = ConfigDict(extra="allow", frozen=True)
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
    """A method by name; every further key is one of its parameters.

    Attributes:
        label: What the method is called in tables; needed where a method is listed twice.
        per_transfer: Name of a transfer to settings that hold there.
    """

    name: str
    label: str = ""
    per_transfer: dict[str, MethodSettings] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labelled(self) -> MethodConfig:
        if not self.label:
            object.__setattr__(self, "label", self.name)
        if not re.fullmatch(r"[\w.+^=-]+", self.label):
            raise ValueError(f"label '{self.label}': use letters, digits and _ . + ^ = -")
        return self

    def at(self, transfer: str) -> MethodSettings:
        """What holds in a transfer."""
        return self.per_transfer.get(transfer, MethodSettings()).over(self)


class Protocol(Strict):
    """A benchmark: data, split, transfers, network, training, methods, seeds, metrics."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$")
    description: str = ""
    claim: Claim | None = None
    data: DataConfig
    split: SplitConfig
    transfers: TransfersConfig
    network: NetworkConfig
    training: TrainingsConfig
    methods: tuple[MethodConfig, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    metrics: tuple[Metric, ...] = Field(("dice", "hd95", "surface_dice"), min_length=1)
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = SweepConfig()
    phantom: PhantomConfig | None = None
    tracking: Literal["mlflow", "off"] = "mlflow"

    @field_validator("tracking", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        labels = [m.label for m in self.methods]
        twice = {x for x in labels if labels.count(x) > 1}
        if twice:
            raise ValueError(
                f"methods: {', '.join(sorted(twice))} listed twice; give each its own `label`"
            )
        if self.claim and isinstance(self.claim.family, tuple):
            unknown = {name for pair in self.claim.family for name in pair} - set(labels)
            if unknown:
                listed = ", ".join(sorted(unknown))
                raise ValueError(f"claim.family: names methods that are not listed: {listed}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: must be different numbers, 0 or above")
        if len(self.training.source.patch) != len(self.training.target.patch):
            raise ValueError("training: source and target patches must both be 2D or both 3D")
        if self.transfers.kind == "cross_modality" and self.data.labels is None:
            raise ValueError("data.labels: name the label map that source and target share")
        if self.transfers.kind == "cross_task" and self.data.labels is not None:
            raise ValueError(
                "data.labels: remove it, since transfers.pairs name the label maps of a cross_task "
                "protocol"
            )
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for networks that see slices, 3 for volumes."""
        return len(self.training.target.patch)


class Domain(Strict):
    """What a network is trained on: the modalities it sees and the label map that it learns."""

    images: tuple[str, ...]
    labels: str


class Transfer(Strict):
    """A source and a target domain, and the number of target training subjects."""

    source: Domain
    target: Domain
    shots: int
    name: str
