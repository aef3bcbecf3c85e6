"""The protocol's blocks on data: which, how prepared, how divided, which transfers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from trm_bench.protocol.strict import (
    Name,
    Names,
    PathText,
    Plain,
    Seed,
    Strict,
    Text,
    different,
)

Edge = Annotated[float, Field(ge=0.1, le=100)]
"""Of a voxel, mm."""
Number = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of subjects."""
Pairs = Annotated[
    tuple[tuple[Name, Name], ...], Field(min_length=1, max_length=1000), AfterValidator(different)
]
Shots = Annotated[
    tuple[Number, ...], Field(min_length=1, max_length=1000), AfterValidator(different)
]


class VolumeConfig(Strict):
    """How volumes are prepared, once.

    Attributes:
        spacing: Voxel size in mm after resampling; null keeps each scan's own.
        crop: `brain`, the bounding box of the non-zero voxels; `none`.
        intensity: `zscore_brain`, mean 0 and deviation 1 over the non-zero voxels and 0 outside;
            `zscore`, over all voxels; `percentile`, the 0.5 to 99.5 percentile range of the
            non-zero voxels to [0, 1].
    """

    spacing: tuple[Edge, Edge, Edge] | None = None
    crop: Literal["brain", "none"] = "brain"
    intensity: Literal["zscore_brain", "zscore", "percentile"] = "zscore_brain"


class DataConfig(Strict):
    """Which data.

    Attributes:
        dataset: A registered dataset.
        root: Its folder; `${VARIABLE}` is taken from the environment. Relative to the working
            directory.
        labels: The label map, where it is the same for source and target.
        modalities: The modalities in play; all of the dataset's when null.
        on_bad_subject: `stop`, or `skip` to leave unusable subjects out, visibly.
        allow_links: Whether symbolic links may lead to files outside `root`; where not, a subject
            with such a file cannot be used.
    """

    dataset: Name
    root: PathText
    labels: Name | None = None
    modalities: Names | None = None
    volume: VolumeConfig = VolumeConfig()
    on_bad_subject: Literal["stop", "skip"] = "stop"
    allow_links: bool = False


class TargetSplit(Strict):
    """Numbers of target subjects. `rest` means all that are left."""

    train: Number
    val: Number
    test: Number | Literal["rest"] = "rest"


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
    source: float = Field(gt=0, le=1_000_000)
    target: TargetSplit
    seed: Seed = 0
    design: Literal["fixed", "disjoint", "resampled"] = "fixed"
    sets: int = Field(5, ge=1, le=1000)

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
    pairs: Literal["all"] | Pairs = "all"
    shots: Shots | None = None

    @model_validator(mode="after")
    def _sensible(self) -> TransfersConfig:
        if self.pairs != "all" and any(a == b for a, b in self.pairs):
            raise ValueError("pairs: source and target are the same, so nothing is transferred")
        return self


class PhantomConfig(Strict):
    """The stand-in that `--phantom` uses instead of the real data.

    Attributes:
        subjects: How many to make.
        spacing: Voxel size, mm.
        seed: Of the phantom.
        overrides: Keys of the protocol that `--phantom` sets, as `--set` would.
    """

    subjects: int = Field(24, ge=3, le=10_000)
    spacing: float = Field(3.0, ge=1, le=6)
    seed: Seed = 0
    overrides: dict[Text, Plain] = Field(default_factory=dict)
