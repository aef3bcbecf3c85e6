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
Paths = Annotated[
    tuple[Annotated[tuple[Name, ...], Field(min_length=2, max_length=10)], ...],
    Field(min_length=1, max_length=1000),
    AfterValidator(different),
]
"""From a source, maybe by others, to the target."""
Shots = Annotated[
    tuple[Number, ...], Field(min_length=1, max_length=1000), AfterValidator(different)
]


Value = Annotated[int, Field(ge=0, le=255)]
Classes = Annotated[
    dict[Name, Annotated[tuple[Value, ...], Field(min_length=1), AfterValidator(different)]],
    Field(min_length=1, max_length=255),
]
"""Class to its label values; all others are background."""
Unit = Literal["mm", "voxels"]
Labels = Name | Classes
"""A label map: the name of one of the dataset's, or its classes."""


def name_of(labels: Labels) -> str:
    """What a label map is called."""
    return labels if isinstance(labels, str) else "+".join(labels)


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


class SetConfig(Strict):
    """A data set, prepared in one way.

    Attributes:
        dataset: A registered dataset.
        root: Its folder, as the protocol names it.
        volume: How its volumes are prepared.
        distance_unit: See `DataConfig`.
    """

    dataset: Name
    root: PathText
    volume: VolumeConfig
    distance_unit: Unit | None = None


class DataConfig(Strict):
    """Which data; what source and target share, whatever `domains` say besides.

    Attributes:
        dataset: A registered dataset; null where each of the `domains` names its own.
        root: Its folder; `${VARIABLE}` is taken from the environment. Relative to the working
            directory.
        labels: The label map, where it is the same for source and target: the name of one of the
            dataset's, or its classes with their label values.
        label_maps: More label maps by name, beside those of the dataset.
        modalities: The modalities in play; all of the dataset's when null.
        volume: How its volumes are prepared.
        distance_unit: What distances in its files are in, where the data set does not say it:
            `voxels` where published files have lost the size of their voxels.
        on_bad_subject: `stop`, or `skip` to leave unusable subjects out, visibly.
        allow_links: Whether symbolic links may lead to files outside `root`; where not, a subject
            with such a file cannot be used.
    """

    dataset: Name | None = None
    root: PathText | None = None
    labels: Labels | None = None
    label_maps: dict[Name, Classes] = Field(default_factory=dict, max_length=1000)
    modalities: Names | None = None
    volume: VolumeConfig = VolumeConfig()
    distance_unit: Unit | None = None
    on_bad_subject: Literal["stop", "skip"] = "stop"
    allow_links: bool = False


class TargetSplit(Strict):
    """Numbers of target subjects.

    Attributes:
        train: That a network is fine-tuned on.
        val: That methods may look at while they train, and that sweeps score.
        test: That are scored at the end; `rest` means all that are left.
    """

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
        kind: What pairs name. `cross_modality`: modalities; `cross_task`: label maps;
            `cross_institution`: institutions; `cross_dataset`: the protocol's `domains`, which may
            differ in anything.
        pairs: `all` ordered pairs; a list of [source, target], or of [first source, ..., target]
            for chains; under `cross_institution` also `leave_one_out`: from all other institutions
            to each.
        shots: Numbers of target training subjects, each a transfer of its own (few-shot); null uses
            all of them.
        same_task: Whether the source's head comes along, which takes the same classes. Null: where
            source and target share the label map of one data set, or a checkpoint names the
            target's classes.
        channels: How the first layer is adapted where source and target differ in their number of
            channels. `repeat`: target channel j gets the weights of source channel j modulo their
            number; `mean`: each gets the mean over the source's. Both times source channels over
            target channels.
    """

    kind: Literal["cross_modality", "cross_task", "cross_institution", "cross_dataset"]
    pairs: Literal["all", "leave_one_out"] | Paths = "all"
    shots: Shots | None = None
    same_task: bool | None = None
    channels: Literal["repeat", "mean"] = "repeat"

    @model_validator(mode="after")
    def _sensible(self) -> TransfersConfig:
        if self.pairs == "leave_one_out" and self.kind != "cross_institution":
            raise ValueError("pairs: leave_one_out is for cross_institution")
        if not isinstance(self.pairs, str) and any(len(set(p)) < len(p) for p in self.pairs):
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
