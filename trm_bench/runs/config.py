"""The one object that says what a run is: it is hashed, stored, read back and executed."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from pydantic import Field, model_validator

from trm_bench.datasets.base import LabelMap
from trm_bench.fingerprint import digest_of
from trm_bench.protocol.schema import (
    EvaluationConfig,
    Metric,
    NetworkConfig,
    TrainingConfig,
    VolumeConfig,
)
from trm_bench.protocol.strict import Plain, Strict

SCHEMA: Final = 4  # of all that a results folder holds; files of another one are named, not misread


class Member(NamedTuple):
    """A subject of a part of a split: its id, and the hash of its files' contents."""

    subject: str
    digest: str


class Subjects(Strict):
    """The subjects of each part; a run without test subjects is not tested."""

    train: tuple[Member, ...]
    val: tuple[Member, ...]
    test: tuple[Member, ...] = ()

    def parts(self) -> dict[str, tuple[Member, ...]]:
        """The parts that are not empty, by name."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: members for name, members in parts.items() if members}


class RunDomain(Strict):
    """What a network sees and learns, without the dataset's code.

    Attributes:
        images: Modalities, in the order of the channels.
        labels: Name of the label map.
        classes: Names of the classes; index 0 is the background.
        values: Label value of the files to class index.
        regions: What is scored, as unions of class indices.
    """

    images: tuple[str, ...]
    labels: str
    classes: tuple[str, ...]
    values: dict[int, int]
    regions: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, images: tuple[str, ...], labels: str, label_map: LabelMap) -> RunDomain:
        """The domain of a dataset's label map."""
        return cls(
            images=images,
            labels=labels,
            classes=label_map.classes,
            values=dict(label_map.values),
            regions=dict(label_map.regions),
        )

    @property
    def label_map(self) -> LabelMap:
        """As the data layer takes it."""
        return LabelMap(self.classes, self.values, self.regions)


class RunMethod(Strict):
    """A method with every parameter, defaults included."""

    name: str
    parameters: dict[str, Plain] = Field(default_factory=dict)


class Identified(Strict):
    """What is named by all that it says."""

    @property
    def id(self) -> str:
        """16 hex digits of the hash of everything here."""
        return digest_of(self.model_dump(mode="json"))[:16]


class Imported(Identified):
    """A network that was trained elsewhere, resolved; no path.

    Attributes:
        schema_version: Of this class.
        kind: `checkpoint`.
        sha256: Of the file with its weights.
        network: Name and arguments.
        spatial_dims: 2 for networks that see slices, 3 for volumes.
        domain: Names of the channels that it sees, and of its classes; none where it has no head.
        rename: Rules that turned the file's names of tensors into the network's.
        partial: Whether tensors beside the head could be left out.
        code: Fingerprint of the code that reads it.
    """

    schema_version: Literal[4] = SCHEMA
    kind: Literal["checkpoint"] = "checkpoint"
    sha256: str
    network: NetworkConfig
    spatial_dims: int
    domain: RunDomain
    rename: tuple[tuple[str, str], ...] = ()
    partial: bool = False
    code: str

    @property
    def has_head(self) -> bool:
        """Whether its class scores mean something."""
        return bool(self.domain.classes)


class RunConfig(Identified):
    """All that can change the numbers of a training, resolved; no path, label or date.

    A source network is a training like any other, with `kind` "source", the method `scratch` (or
    `finetune`, within a chain) and no test subjects.

    Attributes:
        schema_version: Of this class.
        kind: `source`, or `run` for a method on the target.
        data: Whether the subjects are real or the stand-in.
        dataset: Name.
        domain: What is learned.
        volume: How scans were prepared.
        subjects: Who is in which part.
        network: Name and arguments.
        training: Its precision is never `auto`.
        evaluation: Windows and tolerance.
        metrics: Of the test; none without one.
        method: Which, and its parameters.
        seed: Of the training.
        device: Kind of device. Kernels differ, and so do the numbers that they give.
        code: Fingerprint of the code that computes.
        source: What made the source network: a training, or someone elsewhere; None for methods
            that do not transfer.
        same_task: Whether the source's head comes along.
        channels: How the source's first layer is adapted to another number of channels; None where
            it is not. See `protocol.data.TransfersConfig`.
    """

    schema_version: Literal[4] = SCHEMA
    kind: Literal["source", "run"]
    data: Literal["phantom", "real"]
    dataset: str
    domain: RunDomain
    volume: VolumeConfig
    subjects: Subjects
    network: NetworkConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    metrics: tuple[Metric, ...] = ()
    method: RunMethod
    seed: int
    device: Literal["cpu", "cuda"]
    code: str
    source: RunConfig | Imported | None = None
    same_task: bool = False
    channels: Literal["repeat", "mean"] | None = None

    @model_validator(mode="after")
    def _resolved(self) -> RunConfig:
        if self.training.precision == "auto":
            raise ValueError("training.precision: 'auto' must be resolved before a run is named")
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for networks that see slices, 3 for volumes."""
        return len(self.training.patch)

    @property
    def source_training(self) -> RunConfig | None:
        """The training that made the source network, where one of ours did."""
        return self.source if isinstance(self.source, RunConfig) else None

    @property
    def has_head(self) -> bool:
        """Whether its class scores mean something; see `Imported`."""
        return True
