"""Checkpoints as other programs write them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLANS: dict[str, Any] = {
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_lowres": {"spacing": [2.0, 2.0, 2.0]},
        "3d_fullres": {
            "inherits_from": "3d_lowres",
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet."
                "PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": [4, 8, 8],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
                    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                    "n_conv_per_stage": [2, 2, 2],
                    "n_conv_per_stage_decoder": [2, 2],
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        },
    },
}
EARLY: dict[str, Any] = {
    "configurations": {
        "3d_fullres": {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
            "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        }
    }
}
ADAPTATION: dict[str, Any] = {
    "architecture_plans": {
        "arch_class_name": "ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": [4, 8, 8],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [3, 3, 3],
            "strides": [1, 2, 2],
            "n_blocks_per_stage": [1, 2, 1],
            "n_conv_per_stage_decoder": [1, 1],
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "nonlin": "torch.nn.modules.activation.LeakyReLU",
        },
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
    },
    "pretrain_num_input_channels": 1,
    "key_to_encoder": "encoder.stages",
    "key_to_stem": "encoder.stem",
}


def unet(name: str, channels: int, classes: int, **more: Any) -> nn.Module:
    """One of nnU-Net's networks as it trains them: with heads at every resolution."""
    from dynamic_network_architectures.architectures import unet as nets

    torch.manual_seed(3)
    built: nn.Module = getattr(nets, name)(
        input_channels=channels,
        num_classes=classes,
        n_stages=3,
        features_per_stage=[4, 8, 8],
        conv_op=nn.Conv3d,
        n_conv_per_stage_decoder=2 if name == "PlainConvUNet" else 1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
        **more,
    )
    return built


def nnunet(file: Path, plans: Any = PLANS, **more: Any) -> nn.Module:
    """Writes what nnU-Net v2 leaves after training, and returns its network."""
    full = PLANS["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    sizes = {key: full[key] for key in ("kernel_sizes", "strides", "n_conv_per_stage")}
    network = unet("PlainConvUNet", 2, 3, **sizes)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99)
    sum(p.sum() for p in network.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": {"scale": 65536.0},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "dice": [[np.float32(0.1)], np.zeros(2)]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": {
                "channel_names": {"0": "T1", "1": "T2"},
                "labels": {"background": 0, "tumour": 2, "oedema": 1},
            },
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **more,
    }
    torch.save(content, file)
    return network


def nnssl(file: Path) -> nn.Module:
    """Writes what nnssl leaves after pre-training, and returns its network."""
    sizes = {"kernel_sizes": 3, "strides": [1, 2, 2], "n_blocks_per_stage": [1, 2, 1]}
    network = unet("ResidualEncoderUNet", 1, 1, **sizes)
    content = {
        "network_weights": network.state_dict(),
        "nnssl_adaptation_plan": ADAPTATION,
        "trainer_name": "BaseMAETrainer",
        "citations": ["-"],
    }
    torch.save(content, file)
    return network


def zipped(file: Path, pickle: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """An archive of `torch.save` with this pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", b"little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return file


def text(value: str) -> bytes:
    """The operation that pushes a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def long(value: int) -> bytes:
    """The operation that pushes a number."""
    content = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(content)]) + content


def tensor(numbers: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A pickle of {"w": tensor} that claims these sizes of the storage "0"."""
    storage = (b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")) + long(
        numbers
    )
    sizes, steps = (b"(" + b"".join(map(long, given)) + b"t" for given in (shape, stride))
    rebuilt = b"(" + storage + b"tQ" + long(offset) + sizes + steps + b"\x89}t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + rebuilt + b"Rs."


def odd_state() -> dict[str, Tensor]:
    """Tensors of every kind that a state has: types, strides, shared memory, no dimension."""
    draws = torch.Generator().manual_seed(0)
    shared = torch.randn(6, 5, generator=draws)
    return {
        "plain.weight": torch.randn(3, 2, 3, 3, generator=draws),
        "plain.bias": nn.Parameter(torch.randn(3, generator=draws)),
        "transposed": shared.T,
        "part": shared[2:4, 1::2],
        "last.weight": torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
        "number": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "half": torch.randn(4).half(),
        "bfloat16": torch.randn(4).bfloat16(),
        "double": torch.randn(4).double(),
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
