"""Runs of methods on a ball in noise, without files: a context, and a whole training in it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trm_bench import formats, networks
from trm_bench.data.patches import PatchSampler, SubjectStore
from trm_bench.datasets.base import LabelMap
from trm_bench.methods import Context, Method
from trm_bench.methods.registry import create
from trm_bench.methods.trm import TransferRiskMap
from trm_bench.protocol.schema import EvaluationConfig, NetworkConfig, TrainingConfig
from trm_bench.runs.compute import with_modules
from trm_bench.training import evaluation
from trm_bench.training.loop import Curves, train

CPU = torch.device("cpu")
TWO = LabelMap(("background", "lesion"), {0: 0, 1: 1, 2: 1})
THREE = LabelMap(("background", "core", "rim"), {0: 0, 1: 1, 2: 2})


@dataclass(frozen=True)
class Volume:
    """What a store needs of a prepared subject.

    A bright ball (value 1) with a rim (value 2) in noise.
    """

    subject: str
    seed: int
    shape: tuple[int, int, int]
    native_spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    diagonal: float = 20.0

    def native_label(self) -> Tensor:
        grid = torch.stack(torch.meshgrid(*[torch.arange(n) for n in self.shape], indexing="ij"))
        middle = torch.tensor([n // 2 + self.seed % 2 for n in self.shape]).reshape(3, 1, 1, 1)
        distance = (grid - middle).float().square().sum(0).sqrt()
        return (2 * (distance < 4) - (distance < 2.5).int()).clamp(min=0).to(torch.uint8)

    def load(self, modalities: Any) -> tuple[Tensor, Tensor, Tensor]:
        draws = torch.Generator().manual_seed(self.seed)
        label = self.native_label()
        image = 0.5 * torch.randn(1, *self.shape, generator=draws) + label.float()
        return image.half(), label, torch.ones_like(label, dtype=torch.bool)


def store(seed: int, label_map: LabelMap, dims: int, subjects: int = 2) -> SubjectStore:
    shape = (10, 9, 8) if dims == 3 else (10, 9, 3)
    volumes: Any = [Volume(f"{seed}-{i}", 10 * seed + i, shape) for i in range(subjects)]
    return SubjectStore(volumes, ["MR"], label_map, CPU)


def unet(norm: str = "batch") -> NetworkConfig:
    return NetworkConfig.model_validate(
        {"name": "UNet", "channels": (4, 8, 8), "strides": (2, 2), "num_res_units": 0, "norm": norm}
    )


def context(
    dims: int = 3,
    same_task: bool = False,
    norm: str = "batch",
    network: NetworkConfig | None = None,
    subjects: int = 2,
    method: Method | None = None,
    **training: Any,
) -> Context:
    """A run on random data; source and target networks differ in their initial weights.

    The network has the method's own modules in it, and without a method a source is there.
    """
    config = TrainingConfig(**{"steps": 6, "batch": 2, "patch": (8,) * dims, **training})
    network = network or unet(norm)
    target_map, source_map = (TWO, TWO) if same_task else (TWO, THREE)
    parts = networks.parts(network, 1, dims)
    bare = networks.build(network, 1, len(target_map.classes), dims, seed=0)
    image = torch.empty(1, 1, *config.patch, device="meta")
    trained = with_modules(method, bare, parts, image, seed=2) if method else bare
    layout: Any = formats.memory_format(network, config, CPU)
    trained = trained.to(memory_format=layout)
    source = (
        networks.build(network, 1, len(source_map.classes), dims, seed=1)
        .eval()
        .requires_grad_(False)
    )
    transfers = method is None or method.transfers
    if transfers:
        networks.load_source(trained, source.state_dict(), parts, with_head=same_task)
    patients = store(1, target_map, dims, subjects)
    validation = store(2, target_map, dims, subjects=1)
    windows = EvaluationConfig(overlap=0.0)
    return Context(
        network=trained,
        parts=parts,
        source=source if transfers else None,
        same_task=same_task,
        training_set=patients,
        patches=PatchSampler(patients, config, "patches"),
        source_patches=lambda: PatchSampler(store(3, source_map, dims), config, "source patches"),
        validate=lambda candidate: evaluation.mean_dice(candidate, validation, config, windows),
        predict=lambda candidate, image: evaluation.predict(candidate, image, config, windows),
        outputs=lambda candidate, image: evaluation.outputs(candidate, image, config, windows),
        fresh=lambda: networks.build(network, 1, len(target_map.classes), dims, seed=0).to(
            memory_format=layout
        ),
        config=config,
        seed_axes=("test", dims),
        device=CPU,
    )


def prepared(
    name: str, run: Context | None = None, **parameters: Any
) -> tuple[Context, TransferRiskMap]:
    """A method of TRM's family and its run, after `prepare`."""
    run = run or context()
    method = create(name, parameters)
    method.prepare(run)
    assert isinstance(method, TransferRiskMap)
    return run, method


@dataclass
class Result:
    """Of a training: initial and final state, the batches drawn, the curves, and the context."""

    run: Context
    before: dict[str, Tensor]
    batches: dict[int, Tensor] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)

    @property
    def after(self) -> dict[str, Tensor]:
        return self.run.network.state_dict()

    def moved(self, name: str) -> bool:
        return not torch.equal(self.before[name], self.after[name])


def trained(name: str, parameters: dict[str, Any] | None = None, **of_context: Any) -> Result:
    method = create(name, parameters or {})
    run = context(method=method, **of_context)
    run.config = method.adjusted(run.config)
    result = Result(run, state(run.network))
    drawn = run.patches.batch

    def record(step: int) -> Any:
        batch = drawn(step)
        result.batches[step] = torch.cat([batch.image.flatten(), batch.label.flatten().float()])
        return batch

    run.patches.batch = record  # type: ignore[method-assign]
    train(run, method, result.curves)
    return result


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def positions(tensor: Tensor) -> list[tuple[int, ...]]:
    """Index tuples of the spatial axes of (B, C, *spatial)."""
    return list(itertools.product(*[range(n) for n in tensor.shape[2:]]))
