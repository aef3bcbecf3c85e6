"""The protocol: what a YAML file may say, with defaults and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from trm_bench.protocol.data import (
    DataConfig,
    Pairs,
    PhantomConfig,
    SetConfig,
    SplitConfig,
    TargetSplit,
    TransfersConfig,
    VolumeConfig,
)
from trm_bench.protocol.domains import CheckpointConfig, DomainConfig
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
    "CheckpointConfig",
    "Claim",
    "DataConfig",
    "Domain",
    "DomainConfig",
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
    "SetConfig",
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
        metric: In which the gain is.
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
        name: Of the protocol, and of the folder of its results.
        description: What it is about, in a line.
        claim: What is to be found out; null where nothing is claimed, and so nothing judged.
        data: Which data.
        domains: What the pairs of a `cross_dataset` protocol name: subjects with what is seen and
            learned of them, or networks that were trained elsewhere.
        split: How patients are divided.
        transfers: From where to where.
        network: Which network all trainings train.
        training: How the source and the target are trained.
        methods: What is compared; a name alone has the method's defaults.
        seeds: Of the trainings; every method is trained once with each.
        metrics: What is measured of every test subject; the first is the one of the table.
        evaluation: How test subjects are segmented and scored.
        sweep: The budget with which methods are tuned.
        phantom: The stand-in that takes the place of the data under `--phantom`; null for none.
        tracking: Whether runs are written to MLflow as well.
        keep: Which target networks stay in `networks/`: none, all, or of each transfer and method
            that of the seed with the best validation Dice.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$", max_length=60)
    description: Text = ""
    claim: Claim | None = None
    data: DataConfig
    domains: dict[Name, DomainConfig | CheckpointConfig] = Field(default_factory=dict)
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
        if len(self.training.source.patch) != len(self.training.target.patch):
            raise ValueError("training: source and target patches must both be 2D or both 3D")
        _refuse_unfitting_data(self)
        for method in self.methods:
            _refuse_unmoved(method, self.training.target)
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for networks that see slices, 3 for volumes."""
        return len(self.training.target.patch)

    @property
    def sets(self) -> tuple[SetConfig, ...]:
        """The data sets in play, each once."""
        domains = [d for d in self.domains.values() if isinstance(d, DomainConfig)]
        return tuple(dict.fromkeys(self.set_of(d) for d in domains or [DomainConfig()]))

    def set_of(self, domain: DomainConfig) -> SetConfig:
        """The data set of a domain."""
        dataset, root = domain.dataset or self.data.dataset, domain.root or self.data.root
        assert dataset is not None and root is not None, "which validation has seen to"
        unit = domain.distance_unit
        if unit is None and (dataset, root) == (self.data.dataset, self.data.root):
            unit = self.data.distance_unit
        volume = domain.volume or self.data.volume
        return SetConfig(dataset=dataset, root=root, volume=volume, distance_unit=unit)


class Domain(Strict):
    """What a network is trained on.

    Attributes:
        name: In the names of transfers.
        data: The data set.
        images: The modalities that the network sees, in the order of its channels.
        labels: The label map that it learns.
        institutions: Only subjects of these; of all where empty.
        except_institutions: No subjects of these.
    """

    name: Text
    data: SetConfig
    images: Names
    labels: Name
    institutions: tuple[Name, ...] = ()
    except_institutions: tuple[Name, ...] = ()


class Transfer(Strict):
    """A way from sources to a target domain, and the number of target training subjects.

    Attributes:
        sources: Where a network is trained before, the last of them right before the target. The
            first may be a network that was trained elsewhere.
        target: Where it is fine-tuned and tested.
        shots: Target training patients.
        way: Names of the sources and the target.
        name: In tables.
    """

    sources: tuple[Domain | CheckpointConfig, ...]
    target: Domain
    shots: int
    way: tuple[Text, ...]
    name: Text


def _refuse_unfitting_data(protocol: Protocol) -> None:
    """Raises ValueError where `data`, `domains` and `transfers.kind` do not go together."""
    data, kind = protocol.data, protocol.transfers.kind
    if kind != "cross_dataset":
        if protocol.domains:
            raise ValueError(f"domains: are for cross_dataset; the pairs of {kind} name others")
        for key in ("dataset", "root"):
            if getattr(data, key) is None:
                raise ValueError(f"data.{key}: field required")
    if kind in ("cross_modality", "cross_institution") and data.labels is None:
        raise ValueError("data.labels: name the label map that source and target share")
    if kind == "cross_task" and data.labels is not None:
        raise ValueError(
            "data.labels: remove it, since transfers.pairs name the label maps of a cross_task "
            "protocol"
        )
    if kind == "cross_dataset" and len(protocol.domains) < 2:
        raise ValueError("domains: describe two or more, which transfers.pairs name")
    for name, domain in protocol.domains.items():
        for key in ("dataset", "root", "labels") if isinstance(domain, DomainConfig) else ():
            if getattr(domain, key) is None and getattr(data, key) is None:
                raise ValueError(f"domains.{name}.{key}: give it here or in data")


def _refuse_unmoved(method: MethodConfig, training: TrainingConfig) -> None:
    """Raises ValueError where the method's own warm-up would take all of its steps."""
    ways = {"": method, **{f"per_transfer.{t}.": method.at(t) for t in method.per_transfer}}
    for where, settings in ways.items():
        if training.steps == 1 and settings.training.warmup:
            raise ValueError(f"methods.{method.label}.{where}training.warmup: {UNMOVED}")
