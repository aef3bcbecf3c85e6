"""The protocol: what a YAML file may say, with defaults and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from trm_bench.protocol.data import (
    DataConfig,
    Pairs,
    PhantomConfig,
    SplitConfig,
    TargetSplit,
    TransfersConfig,
    VolumeConfig,
)
from trm_bench.protocol.strict import Name, Names, Seeds, Strict, Text, different
from trm_bench.protocol.sweep import SweepConfig
from trm_bench.protocol.training import (
    UNMOVED,
    AugmentConfig,
    EvaluationConfig,
    LossConfig,
    MethodConfig,
    MethodSettings,
    MethodTraining,
    NetworkConfig,
    OptimizerConfig,
    TrainingConfig,
    TrainingsConfig,
)

__all__ = [
    "CONTROLS",
    "AugmentConfig",
    "Claim",
    "DataConfig",
    "Domain",
    "EvaluationConfig",
    "LossConfig",
    "MethodConfig",
    "MethodSettings",
    "MethodTraining",
    "Metric",
    "NetworkConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "Protocol",
    "SplitConfig",
    "SweepConfig",
    "TargetSplit",
    "TrainingConfig",
    "TrainingsConfig",
    "Transfer",
    "TransfersConfig",
    "VolumeConfig",
]

Metric = Literal["dice", "hd95", "surface_dice"]

CONTROLS = ("trm_prior", "trm_uniform", "trm_shuffled")
"""Methods with the same loss as `trm`, without the map's information."""

TAKEN = ("mlartifacts", "phantom", "prepared", "sources")
"""Folders of `runs.folders` that lie beside the protocols'."""


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

    source: Name = ""
    metric: Literal["dice"] = "dice"
    gain: float | None = Field(None, ge=-1000, le=1000)
    unit: Literal["points", "relative", "points-or-relative"] = "points-or-relative"
    method: Name = "trm"
    versus: Name = "finetune"
    family: Literal["controls", "all"] | Pairs = "controls"


class Protocol(Strict):
    """A benchmark: data, split, transfers, network, training, methods, seeds, metrics.

    Attributes:
        keep: Which target networks stay in `networks/`: none, all, or of each transfer and method
            that of the seed with the best validation Dice.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$", max_length=60)
    description: Text = ""
    claim: Claim | None = None
    data: DataConfig
    split: SplitConfig
    transfers: TransfersConfig
    network: NetworkConfig
    training: TrainingsConfig
    methods: tuple[MethodConfig, ...] = Field(min_length=1, max_length=1000)
    seeds: Seeds = (0,)
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1), AfterValidator(different)] = (
        "dice",
        "hd95",
        "surface_dice",
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = SweepConfig()
    phantom: PhantomConfig | None = None
    tracking: Literal["mlflow", "off"] = "mlflow"
    keep: Literal["none", "best", "all"] = "none"

    @field_validator("tracking", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in TAKEN:
            raise ValueError(f"'{name}' is a folder that all protocols share: choose another name")
        return name

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
        if len(self.training.source.patch) != len(self.training.target.patch):
            raise ValueError("training: source and target patches must both be 2D or both 3D")
        if self.transfers.kind == "cross_modality" and self.data.labels is None:
            raise ValueError("data.labels: name the label map that source and target share")
        if self.transfers.kind == "cross_task" and self.data.labels is not None:
            raise ValueError(
                "data.labels: remove it, since transfers.pairs name the label maps of a cross_task "
                "protocol"
            )
        for method in self.methods:
            _refuse_unmoved(method, self.training.target)
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for networks that see slices, 3 for volumes."""
        return len(self.training.target.patch)


class Domain(Strict):
    """What a network is trained on: the modalities it sees and the label map that it learns."""

    images: Names
    labels: Name


class Transfer(Strict):
    """A source and a target domain, and the number of target training subjects."""

    source: Domain
    target: Domain
    shots: int
    name: Text


def _refuse_unmoved(method: MethodConfig, training: TrainingConfig) -> None:
    """Raises ValueError where the method's own warm-up would take all of its steps."""
    ways = {"": method, **{f"per_transfer.{t}.": method.at(t) for t in method.per_transfer}}
    for where, settings in ways.items():
        if training.steps == 1 and settings.training.warmup:
            raise ValueError(f"methods.{method.label}.{where}training.warmup: {UNMOVED}")
