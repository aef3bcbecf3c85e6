"""The bare steps: that all kinds are the same step, and that their operations are counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from trm_bench.bench.bare import PLAIN, Bare, Kind, as_a_script, kinds, operations
from trm_bench.bench.workload import Workload, context, random_subjects, training_of
from trm_bench.seeds import deterministic

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_trainings_are() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    deterministic(CPU)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    # three voxels deep at the bottom: with two, bf16 is wrong on some processors
    config = training_of(CPU, steps=3, batch=2, patch=(24, 24, 24))
    return Workload(CPU, config, 3, random_subjects(tmp_path_factory.mktemp("x"), config, CPU))


def weights_after(kind: Kind, workload: Workload) -> torch.Tensor:
    bare = Bare(context(workload.subjects, workload.training, CPU), kind)
    before = torch.cat([p.detach().flatten().clone() for p in bare.trained])
    assert bare.seconds() > 0
    return torch.cat([p.detach().flatten() for p in bare.trained]) - before


def test_every_kind_of_bare_step_is_the_same_step(workload: Workload) -> None:
    plain, *others = kinds(CPU, ["fp32", "bf16"], compiled=False)
    assert plain.name == PLAIN and len(others) == 4
    moved = weights_after(plain, workload)
    assert moved.abs().mean() > 0.5 * workload.training.optimizer.lr
    for kind in others:
        also = weights_after(kind, workload)
        alike = nn.functional.cosine_similarity(moved, also, dim=0)
        assert alike > (0.8 if kind.precision == "bf16" else 0.99), kind.name


def test_operations_are_those_of_one_step(workload: Workload) -> None:
    run = context(workload.subjects, workload.training, CPU)
    bare, image = Bare(run, Kind("fp32", plain=True)), run.patches.batch(0).image
    forward = operations(lambda: run.network(image))
    # the way back is twice the way there, but for the first layer, whose image has no gradient
    assert 2 * forward < bare.flops() <= 3 * forward


def test_kinds_are_all_that_the_machine_has() -> None:
    names = [kind.name for kind in kinds(CPU, ["fp32"], compiled=True)]
    assert names == [
        "bare plain",
        "bare fp32",
        "bare fp32 channels-last",
        "bare fp32 compiled",
        "bare fp32 channels-last compiled",
    ]
    assert "bare tf32" in [kind.name for kind in kinds(torch.device("cuda"), ["fp32"], False)]


def test_a_script_has_no_deterministic_mode_and_what_follows_has() -> None:
    deterministic(CPU)
    cudnn = torch.backends.cudnn
    with as_a_script(Kind("tf32")):
        assert not torch.are_deterministic_algorithms_enabled()
        assert cudnn.allow_tf32 and cudnn.benchmark and not cudnn.deterministic
    with pytest.raises(KeyError), as_a_script(Kind("fp32", plain=True)):
        assert not cudnn.allow_tf32 and not cudnn.benchmark
        raise KeyError
    assert torch.are_deterministic_algorithms_enabled() and cudnn.deterministic
    assert not cudnn.allow_tf32


def test_operations_of_a_convolution_both_ways() -> None:
    layer, image = nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 4, 5, 6)
    forward = 2 * math.prod((3, 2, 3, 3, 3)) * math.prod((4, 5, 6))
    # the image has no gradient, so that the way back is as much as the way there
    assert operations(lambda: layer(image).sum().backward()) == 2 * forward


def test_workload_draws_the_same_volumes_each_time(workload: Workload, tmp_path: Path) -> None:
    again = random_subjects(tmp_path, workload.training, CPU)
    assert again.shapes == [(32, 32, 32)] * 4
    for i in range(4):
        image, label, _ = again.volume(i)
        assert torch.equal(image, workload.subjects.volume(i)[0])
        assert 0 < label.float().mean() < 0.2
