"""What checkpoints hold and say: plain ones, nnU-Net's, nnssl's, and MONAI bundles."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import files
import pytest
import torch
from safetensors.torch import save_file

from trm_bench import checkpoints, networks, nnunet_networks
from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig

STATE = {"conv.weight": torch.randn(2, 1, 3, 3), "conv.bias": torch.randn(2)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        lambda state: {"model_state_dict": state, "optimizer": {"state": {0: {"m": state}}}},
        lambda state: {"net": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
    ],
)
def test_weights_are_found_under_their_own_names(wrap: Any, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(wrap(STATE), file)
    found = checkpoints.read(file).tensors
    assert list(found) == list(STATE) and all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_safetensors_and_odd_names(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"  # the content counts, not the name
    save_file(STATE, file)
    foreign = checkpoints.read(file)
    assert foreign.format == "safetensors" and foreign.tensors.keys() == STATE.keys()
    for state, message in (
        ({"a\x1b[2J": torch.zeros(1)}, "strange name"),
        ({"a": torch.zeros(1), "_orig_mod.a": torch.zeros(1)}, "two tensors of one name"),
        ({"state_dict": {}}, "no tensors"),
    ):
        torch.save(state, file)
        with pytest.raises(UserError, match=message):
            checkpoints.read(file)


# ------------------------------------------------------------------------------------------ nnU-Net


@pytest.mark.parametrize("plans", [files.PLANS, files.EARLY], ids=["plans", "early plans"])
def test_nnunet_is_read_built_and_loaded_whole(plans: Any, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    theirs = files.nnunet(file, plans).eval()
    foreign = checkpoints.read(file)
    assert (foreign.format, foreign.spatial_dims, foreign.channels) == ("nnU-Net", 3, 2)
    assert foreign.classes == ("background", "oedema", "tumour")
    assert foreign.network is not None
    ours = networks.build(foreign.network, 2, 3, 3, seed=0).eval()
    parts = networks.parts(foreign.network, 2, 3)
    state, account = checkpoints.fit(foreign.tensors, ours, parts, with_head=True)
    ours.load_state_dict(state)
    image = torch.randn(1, 2, 8, 16, 16)
    assert torch.equal(ours(image), theirs(image)[0]), "the finest of its outputs"
    assert set(account.left_out) == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}
    assert len(account.loaded) + 2 == len(theirs.state_dict()) and not account.initial


def test_nnssl_is_read_without_a_head(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint_final.pth"
    theirs = files.nnssl(file)
    foreign = checkpoints.read(file)
    assert foreign.format == "nnssl" and foreign.network is not None
    assert (foreign.network.name, foreign.channels) == ("ResidualEncoderUNet", 1)
    assert foreign.classes is None
    ours = networks.build(foreign.network, 1, 4, 3, seed=0)
    parts = networks.parts(foreign.network, 1, 3)
    state, account = checkpoints.fit(foreign.tensors, ours, parts)
    assert account.initial == ("decoder.seg_layers.1.weight", "decoder.seg_layers.1.bias")
    given = theirs.state_dict()
    assert all(torch.equal(state[n], given[k]) for k, n in account.loaded.items())


def test_resencl_has_the_tensors_of_the_published_one() -> None:
    """The published checkpoint of that name: 956 tensors, 448 of them under `encoder.`, with four
    heads more than ours.
    """
    plan = {"architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None}}
    network, dims = nnunet_networks.network_of_adaptation(plan)
    own = networks.build(network, 1, 2, dims, seed=0).state_dict()
    assert sum(name.startswith("encoder.") for name in own) == 448
    assert len(own) + 4 * 2 == 956


@pytest.mark.parametrize(
    "change",
    [
        {"norm_op": "torch.nn.LayerNorm"},
        {"dropout_op": "torch.nn.Dropout3d"},
        {"conv_op": "os.system"},
        {"features_per_stage": {1: 2}},
    ],
)
def test_plans_of_another_network_leave_the_tensors(change: dict[str, Any], tmp_path: Path) -> None:
    file, plans = tmp_path / "checkpoint.pth", json.loads(json.dumps(files.PLANS))
    full = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    full.update(change)
    files.nnunet(file, plans)
    foreign = checkpoints.read(file)
    assert foreign.network is None and foreign.tensors and "no network" in foreign.about["network"]


def test_regions_are_no_classes(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    described = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    given = {"plans": files.PLANS, "configuration": "3d_fullres", "dataset_json": described}
    files.nnunet(file, init_args=given)
    assert checkpoints.read(file).classes is None


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        __import__("sys").modules, "dynamic_network_architectures.architectures.unet", None
    )
    config = NetworkConfig(name="PlainConvUNet", features_per_stage=[2, 2], strides=[1, 2])
    with pytest.raises(UserError, match=r"pip install 'trm-bench\[nnunet\]'"):
        networks.network_class(config)


# ---------------------------------------------------------------------------------------- MONAI


UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 8]}


def bundle(folder: Path, definition: Any, name: str = "inference.json", **more: Any) -> Path:
    """A bundle with this network."""
    network = networks.build(
        NetworkConfig(name="UNet", channels=[4, 8, 8], strides=[2, 2]), 1, 2, 3, seed=5
    )
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    config = {
        "imports": ["$import glob"],
        "device": "$torch.device('cuda:0')",
        "network_def": definition,
        "network": "$@network_def.to(@device)",
        **more,
    }
    (folder / "configs" / name).write_text(json.dumps(config))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.mark.parametrize("name", ["inference.json", "inference.yaml", "train.json"])
def test_a_bundle_is_read_and_loaded(name: str, tmp_path: Path) -> None:
    definition = {"_target_": "UNet", **UNET, "strides": "@steps::0", "channels": "@sizes#all"}
    bundle(tmp_path, definition, name, steps=[[2, 2]], sizes={"all": [4, 8, "@eight"]}, eight=8)
    names = {"0": "background", "1": "spleen"}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": names}}}}
    (tmp_path / "configs" / "metadata.json").write_text(json.dumps(metadata))
    foreign = checkpoints.read(tmp_path)
    assert foreign.network == NetworkConfig(name="UNet", channels=[4, 8, 8], strides=[2, 2])
    assert (foreign.spatial_dims, foreign.channels) == (3, 1) and foreign.format == "MONAI bundle"
    assert foreign.classes == ("background", "spleen")
    network = networks.build(foreign.network, 1, 2, 3, seed=0)
    parts = networks.parts(foreign.network, 1, 3)
    _, account = checkpoints.fit(foreign.tensors, network, parts, with_head=True)
    assert len(account.loaded) == len(network.state_dict())


@pytest.mark.parametrize(
    "definition, message",
    [
        ({"_target_": "monai.networks.nets.UNet", **UNET, "strides": "$[2, 2]"}, "is code"),
        ({"_target_": "UNet", **UNET, "strides": "@device"}, "is code"),
        ({"_target_": "UNet", **UNET, "strides": "@nowhere"}, "not there"),
        ({"_target_": "UNet", **UNET, "strides": "@round"}, "too many references"),
        ({"_target_": "UNet", "act": {"_target_": "os.system"}}, "an object"),
        ({"_target_": "os.system", "command": "true"}, "not a network of MONAI's"),
        ({"_target_": "monai.networks.nets_of_mine.UNet"}, "not a network of MONAI's"),
        ({"_target_": "UNet", "_requires_": "$print(1)"}, "is code"),
        ({"_target_": "UNet", "_requires_": "@sizes"}, "_requires_"),
        ("$monai.networks.nets.UNet()", "is code"),
        ({"channels": [4]}, "not described by"),
        ({"_target_": "UNet", "act": 1e400}, "strange arguments"),
    ],
)
def test_what_a_bundle_would_run_is_refused(definition: Any, message: str, tmp_path: Path) -> None:
    bundle(tmp_path, definition, round="@round", sizes=[1])
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.read(tmp_path)
    assert "models/model.pt" in caught.value.fix


def test_a_bundle_without_its_weights(tmp_path: Path) -> None:
    bundle(tmp_path, {"_target_": "UNet", **UNET, "strides": [2, 2]})
    (tmp_path / "models" / "model.pt").unlink()
    with pytest.raises(UserError, match="no such file"):
        checkpoints.read(tmp_path)
    (tmp_path / "configs" / "inference.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        checkpoints.read(tmp_path)


# -------------------------------------------------------------------------------- weights of others


DEEPBET = {
    "name": "ResidualEncoderUNet",
    "features_per_stage": [16, 16, 32, 64, 128],
    "strides": [1, 4, 2, 2, 2],
    "kernel_sizes": [7, 3, 3, 3, 3],
    "n_blocks_per_stage": [1, 2, 2, 2, 2],
    "conv_bias": False,
    "nonlin": "relu",
    "zero_residuals": False,
}
DEEPBET_NAMES = [
    (r"^init\.0\.", "encoder.stem.convs.0.conv."),
    (r"^down0\.", "encoder.stages.1."),
    (r"^down1\.", "encoder.stages.2."),
    (r"^down2\.", "encoder.stages.3."),
    (r"^down3\.", "encoder.stages.4."),
    (r"\.block1\.", ".blocks.0."),
    (r"\.block2\.", ".blocks.1."),
    (r"\.double_conv\.0\.", ".conv1.conv."),
    (r"\.double_conv\.3\.", ".conv2.conv."),
    (r"\.downsample\.0\.", ".skip.1.conv."),
]


@pytest.mark.skipif(
    "TRM_DEEPBET" not in os.environ,
    reason="TRM_DEEPBET does not name the wheel of deepbet 1.0.2, which carries real weights",
)
def test_the_encoder_of_deepbet_loads(tmp_path: Path) -> None:
    with zipfile.ZipFile(os.environ["TRM_DEEPBET"]) as wheel:
        wheel.extract("data/models/model.pt", tmp_path)
    file = tmp_path / "data/models/model.pt"
    foreign = checkpoints.read(
        file, "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd"
    )
    assert foreign.format == "torchscript" and len(foreign.tensors) == 38
    config = NetworkConfig(**DEEPBET)
    network, parts = networks.build(config, 1, 2, 3, 0), networks.parts(config, 1, 3)
    state, account = checkpoints.fit(foreign.tensors, network, parts, DEEPBET_NAMES, partial=True)
    encoder = [n for n in foreign.tensors if n.startswith(("init.", "down"))]
    assert list(account.loaded) == encoder and len(encoder) == 20
    assert set(account.left_out.values()) == {"not in the network"}
    network.load_state_dict(state)
    blocks = network.get_submodule("encoder.stages.2.blocks.0")
    image = torch.randn(1, 16, 8, 8, 8)
    given = {n.removeprefix("down1.block1."): t for n, t in foreign.tensors.items()}
    norm, conv = torch.nn.functional.instance_norm, torch.nn.functional.conv3d
    inner = conv(image, given["double_conv.0.weight"], stride=2, padding=1)
    inner = norm(conv(norm(inner).relu(), given["double_conv.3.weight"], padding=1))
    skip = norm(conv(torch.nn.functional.avg_pool3d(image, 2), given["downsample.0.weight"]))
    assert torch.allclose(blocks(image), (inner + skip).relu(), atol=1e-4)
