"""How networks lie in memory: a rule, and what is built by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import toy
from helpers import CPU

from trm_bench import formats, pipeline
from trm_bench.errors import UserError
from trm_bench.protocol import parse
from trm_bench.protocol.schema import NetworkConfig, TrainingConfig
from trm_bench.runs import compute

UNET = {"name": "UNet", "channels": [4, 8, 16], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("network", "patch", "precision", "compiled", "last"),
    [
        (UNET, (16, 16, 16), "fp32", False, True),
        (UNET | {"name": "Unet"}, (16, 16, 16), "bf16", False, True),  # MONAI's alias
        (UNET, (16, 16, 16), "auto", False, True),
        (UNET, (16, 16, 16), "fp32", True, True),
        (UNET, (16, 16, 16), "bf16", True, False),
        (UNET, (16, 16), "fp32", False, False),
        ({"name": "SegResNet"}, (16, 16, 16), "fp32", False, True),
        ({"name": "SegResNet"}, (16, 16, 16), "bf16", False, False),
        ({"name": "DynUNet"}, (16, 16, 16), "fp32", False, False),
    ],
)
def test_channels_are_last_where_a_step_is_faster_so(
    network: dict[str, Any], patch: tuple[int, ...], precision: Any, compiled: bool, last: bool
) -> None:
    config = NetworkConfig.model_validate(network)
    training = TrainingConfig(steps=1, patch=patch, precision=precision, compile=compiled)
    layout = formats.memory_format(config, training, CPU)
    assert layout == (torch.channels_last_3d if last else torch.contiguous_format)
    of_gpu = formats.memory_format(config, training, torch.device("cuda"))
    assert of_gpu == (torch.channels_last if len(patch) == 2 else torch.channels_last_3d)


@pytest.mark.parametrize(
    ("flags", "sound"),
    [
        (("avx512f", "avx512_bf16"), False),
        (("avx512f", "avx512_bf16", "amx_bf16"), True),
        (("avx2",), True),
    ],
)
def test_which_processors_have_sound_bf16(
    flags: tuple[str, ...], sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "processor", lambda: ("a processor", flags))
    assert formats.has_sound_bf16(CPU) == sound and formats.has_sound_bf16(torch.device("cuda"))


def test_bf16_is_refused_where_its_gradients_are_wrong(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "has_sound_bf16", lambda device: False)
    for patch, refused in ((8, True), (16, False)):
        for precision in ("fp32", "bf16"):
            size = {"steps": 2, "patch": [patch] * 3, "precision": precision}
            changes = {"network": UNET, "training": {"source": size, "target": size}}
            plan = helpers.plan(toy_data, tmp_path / f"{patch}{precision}", **changes)
            loaded = parse(toy.protocol(toy_data, **changes), "test")
            if refused and precision == "bf16":
                with pytest.raises(UserError, match="two voxels deep: layer model"):
                    pipeline.check_networks(loaded, plan)
            else:
                assert pipeline.check_networks(loaded, plan) > 0


def test_a_run_trains_with_its_channels_last(toy_data: Path, tmp_path: Path) -> None:
    plan = helpers.plan(toy_data, tmp_path)
    network = compute.build(plan.runs[0].config, CPU)
    weights = [p for p in network.parameters() if p.ndim == 5 and p.shape[1] > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)
    assert not any(w.is_contiguous() for w in weights)
