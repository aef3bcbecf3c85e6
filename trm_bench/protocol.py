"""The protocol: the YAML schema, its loading with overrides, and its expansion into transfers and methods."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trm_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from trm_bench.datasets.base import Dataset

Metric = Literal["dice", "hd95", "surface_dice"]


class Strict(BaseModel):
    """A block of the protocol in which unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Claim(Strict):
    """What a paper claims, to be held against the measured gain.

    Attributes:
        gain: As printed by the paper.
        unit: `points` (Dice x 100), `relative` (per cent of the baseline), or `points-or-relative` where nothing says.
    """

    source: str
    metric: Literal["dice"] = "dice"
    gain: float
    unit: Literal["points", "relative", "points-or-relative"] = "points-or-relative"
    method: str = "trm"
    versus: str = "finetune"


class VolumeConfig(Strict):
    """How volumes are prepared, once.

    Attributes:
        spacing: Voxel size in mm after resampling; null keeps each scan's own.
        crop: `brain`, the bounding box of the non-zero voxels; `none`.
        intensity: `zscore_brain`, mean 0 and deviation 1 over the non-zero voxels and 0 outside; `zscore`, over all
            voxels; `percentile`, the 0.5 to 99.5 percentile range of the non-zero voxels to [0, 1].
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
        root: Its folder; `${VARIABLE}` is taken from the environment. Relative to the working directory.
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
    """How patients are divided.

    Attributes:
        by: The unit that never lies on two sides.
        stratify: `institution` keeps the institutions' shares alike in every part.
        source: Source training patients, a share (below 1) or a number.
        overlap: `forbidden`: source and target patients are disjoint.
        seed: Draws the split.
        per_seed: Draws another split for every training seed, for sets too small for one test set.
    """

    by: Literal["subject"] = "subject"
    stratify: Literal["institution"] | None = None
    source: float = Field(gt=0)
    target: TargetSplit
    overlap: Literal["forbidden"] = "forbidden"
    seed: int = Field(0, ge=0)
    per_seed: bool = False

    @field_validator("source")
    @classmethod
    def _share_or_number(cls, source: float) -> float:
        if source >= 1 and source != int(source):
            raise ValueError(f"{source:g} is neither a share below 1 nor a whole number of patients")
        return source


class TransfersConfig(Strict):
    """Which transfers.

    Attributes:
        kind: `cross_modality`: pairs name modalities; `cross_task`: pairs name label maps.
        pairs: `all` ordered pairs, or a list of [source, target].
        shots: Numbers of target training subjects, each a transfer of its own (few-shot); null uses all of them.
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
    """The plain segmentation loss: weights of mean voxel cross-entropy and of soft Dice over the batch."""

    cross_entropy: float = Field(1.0, ge=0)
    dice: float = Field(1.0, ge=0)


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
        patch: Voxels; three numbers for 3D networks, two for 2D networks that see slices (axes 0 and 1).
        foreground: Share of patches centred on a foreground voxel.
        schedule: Of the learning rate: `poly` (power 0.9), `cosine`, `one_cycle`, `constant`.
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


class MethodConfig(BaseModel):
    """A method by name; every further key but `label` is one of its parameters.

    Attributes:
        label: What the method is called in tables; needed where a method is listed twice.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str
    label: str = ""

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

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters, as written."""
        return dict(self.model_extra or {})


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
            raise ValueError(f"methods: {', '.join(sorted(twice))} listed twice; give each its own `label`")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: must be different numbers, 0 or above")
        if len(self.training.source.patch) != len(self.training.target.patch):
            raise ValueError("training: source and target patches must both be 2D or both 3D")
        if self.transfers.kind == "cross_modality" and self.data.labels is None:
            raise ValueError("data.labels: name the label map that source and target share")
        if self.transfers.kind == "cross_task" and self.data.labels is not None:
            raise ValueError("data.labels: transfers.pairs name the label maps of a cross_task protocol; remove it")
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


def transfers_of(protocol: Protocol, dataset: Dataset) -> list[Transfer]:
    """Expands `transfers` against what the dataset has.

    Raises:
        UserError: A modality or label map is unknown, or `shots` exceeds `split.target.train`.
    """
    modalities = protocol.data.modalities or dataset.modalities
    for modality in modalities:
        _require(modality, dataset.modalities, "data.modalities", dataset.name)
    by_modality = protocol.transfers.kind == "cross_modality"
    known = list(modalities) if by_modality else list(dataset.label_maps)
    if protocol.transfers.pairs == "all":
        pairs: Sequence[tuple[str, str]] = [(a, b) for a in known for b in known if a != b]
    else:
        pairs = protocol.transfers.pairs
        for name in (x for pair in pairs for x in pair):
            _require(name, known, "transfers.pairs", dataset.name)
    most = protocol.split.target.train
    shots = protocol.transfers.shots or (most,)
    if max(shots) > most:
        raise UserError(
            f"{max(shots)} shots, but only {most} target training subjects",
            "transfers.shots",
            "raise split.target.train or lower the shots",
        )
    if by_modality:
        dataset.label_map(protocol.data.labels or "")
    found = []
    for a, b in pairs:
        if by_modality:
            labels = protocol.data.labels or ""
            source, target = Domain(images=(a,), labels=labels), Domain(images=(b,), labels=labels)
        else:
            source, target = (Domain(images=tuple(modalities), labels=x) for x in (a, b))
        for n in shots:
            suffix = f"@{n}" if protocol.transfers.shots else ""
            found.append(Transfer(source=source, target=target, shots=n, name=f"{a}->{b}{suffix}"))
    return found


def _require(name: str, known: Sequence[str], where: str, dataset: str) -> None:
    if name not in known:
        raise UserError(f"'{dataset}' has no '{name}'", where, nearest(name, list(known)))


# ------------------------------------------------------------------------------------------------------------- loading


def bundled() -> dict[str, Path]:
    """The protocols that come with the package, by name."""
    folder = Path(str(resources.files("protocols")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name: str, overrides: Sequence[str] = (), phantom: bool = False) -> Protocol:
    """Loads a protocol by path or bundled name.

    Args:
        name: A YAML file, or the bare name of a bundled protocol.
        overrides: `key.path=value`, the value read as YAML.
        phantom: Apply the protocol's `phantom.overrides`, before `overrides`.

    Raises:
        UserError: The file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    path = _find(name)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not a YAML file: {' '.join(str(error).split())}", path, "mend the YAML") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path, "check the path and its permissions") from error
    if not isinstance(raw, dict):
        raise UserError("a protocol is a YAML mapping", path, "see the bundled ones: trm-bench protocols")
    settings = [_parse(item) for item in overrides]
    if phantom:
        block = raw.get("phantom")
        if not isinstance(block, dict):
            raise UserError("this protocol has no phantom", path, "leave --phantom out, or add a `phantom` block")
        own = block.get("overrides") or {}
        for key, value in own.items() if isinstance(own, dict) else ():
            _set(raw, key, value, f"{path} (phantom.overrides)")
    for key, value in settings:
        _set(raw, key, value, "--set")
    raw.pop("x-shared", None)  # a place for YAML anchors
    return parse(raw, path)


def parse(raw: Mapping[str, Any], where: object) -> Protocol:
    """Validates a protocol; every problem is listed with its key path, and unknown keys with the nearest valid one."""
    try:
        return Protocol.model_validate(raw)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = _keys_at(problem["loc"][:-1])
                lines.append(f"{key}: unknown key; {nearest(str(problem['loc'][-1]), known)}")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{key}: {message[0].lower()}{message[1:]}" if key else message)
        raise UserError("the protocol is not valid:\n    " + "\n    ".join(lines), where, "mend these keys") from error


def choose_methods(protocol: Protocol, labels: Sequence[str]) -> Protocol:
    """The protocol with some methods, by label; a method that it does not list gets its defaults.

    Args:
        protocol: To choose from.
        labels: Of its methods, or names of registered ones; `all` alone: all that can train the protocol's network.

    Raises:
        UserError: There is no such method.
    """
    from trm_bench import registry

    listed = {m.label: m for m in protocol.methods}
    if list(labels) == ["all"]:
        labels = [*listed, *(name for name in registry.trainable(protocol) if name not in listed)]
    for label in labels:
        if label not in listed and label not in registry.known():
            raise UserError(f"no method '{label}'", "--methods", nearest(label, [*listed, *registry.known()]))
    chosen = tuple(listed.get(label) or MethodConfig(name=label) for label in labels)
    return protocol.model_copy(update={"methods": chosen})


def choose_seeds(protocol: Protocol, seeds: Sequence[str]) -> Protocol:
    """The protocol with other seeds."""
    if not all(s.isdigit() for s in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"'{','.join(seeds)}' are not different whole numbers", "--seeds", "for example --seeds 0,1,2")
    return protocol.model_copy(update={"seeds": tuple(int(s) for s in seeds)})


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    known = bundled()
    if name in known:
        return known[name]
    hint = f"give a path, or a bundled protocol: {nearest(Path(name).stem, list(known))}"
    raise UserError("no such protocol", name, hint)


def _parse(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise UserError(f"'{item}' is not key.path=value", "--set", "for example --set training.target.steps=100")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value of '{key}' is not YAML: {value}", "--set", "quote it") from error


def _set(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Sets a dotted path; missing mappings on the way are made, so that validation names the unknown key."""
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(node, list):
            node = node[_index(node, part, key, where)]
        else:
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        node[_index(node, last, key, where)] = value
    else:
        node[last] = value


def _index(node: list[Any], part: str, key: str, where: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"'{part}' in '{key}' is not an index of that list of {len(node)}", where, "count from 0")
    if isinstance(node[int(part)], str):
        node[int(part)] = {"name": node[int(part)]}  # a method in its short form
    return int(part)


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The valid keys of the block at a location of the schema."""
    model: Any = Protocol
    for part in location:
        if isinstance(part, int) or not hasattr(model, "model_fields"):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if hasattr(a, "model_fields")]
        model = inner[0] if inner else None
    return list(model.model_fields) if model is not None else []


def data_root(protocol: Protocol) -> Path:
    """`data.root` with `${VARIABLE}` and `~` resolved.

    Raises:
        UserError: A variable is not set.
    """
    text = protocol.data.root
    missing = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment variable {missing[0]} is not set",
            f"data.root = {text}",
            f"export {missing[0]}=FOLDER, or --set data.root=FOLDER"
            + (", or --phantom for the stand-in" if protocol.phantom else ""),
        )
    return Path(re.sub(r"\$\{(\w+)\}", lambda m: os.environ[m[1]], text)).expanduser()
