"""nnU-Net's own networks, of the package dynamic-network-architectures, under plain names.

What a protocol says of them is made of numbers and words; what nnU-Net writes into its plans is
turned into the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig

Sizes = int | Sequence[int] | Sequence[Sequence[int]]
Norm = Literal["instance", "batch"]
Activation = Literal["leaky_relu", "relu"]

ACTIVATIONS = {"leaky_relu": nn.LeakyReLU, "relu": nn.ReLU}
NORMS = {
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
}


# Named like the classes that they make, as protocols and plans do.


def PlainConvUNet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    features_per_stage: Sequence[int],
    strides: Sizes,
    kernel_sizes: Sizes = 3,
    n_conv_per_stage: int | Sequence[int] = 2,
    n_conv_per_stage_decoder: int | Sequence[int] = 2,
    conv_bias: bool = True,
    norm: Norm = "instance",
    nonlin: Activation = "leaky_relu",
    deep_supervision: Literal[False] = False,
) -> nn.Module:
    """nnU-Net's plain U-Net; the defaults are its own."""
    return _built(
        "PlainConvUNet",
        spatial_dims,
        norm,
        nonlin,
        input_channels=in_channels,
        num_classes=out_channels,
        n_stages=len(features_per_stage),
        features_per_stage=features_per_stage,
        strides=strides,
        kernel_sizes=kernel_sizes,
        n_conv_per_stage=n_conv_per_stage,
        n_conv_per_stage_decoder=n_conv_per_stage_decoder,
        conv_bias=conv_bias,
    )


def ResidualEncoderUNet(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    features_per_stage: Sequence[int],
    strides: Sizes,
    n_blocks_per_stage: int | Sequence[int],
    kernel_sizes: Sizes = 3,
    n_conv_per_stage_decoder: int | Sequence[int] = 1,
    conv_bias: bool = True,
    norm: Norm = "instance",
    nonlin: Activation = "leaky_relu",
    deep_supervision: Literal[False] = False,
) -> nn.Module:
    """nnU-Net's U-Net with a residual encoder; the defaults are its own."""
    return _built(
        "ResidualEncoderUNet",
        spatial_dims,
        norm,
        nonlin,
        input_channels=in_channels,
        num_classes=out_channels,
        n_stages=len(features_per_stage),
        features_per_stage=features_per_stage,
        strides=strides,
        kernel_sizes=kernel_sizes,
        n_blocks_per_stage=n_blocks_per_stage,
        n_conv_per_stage_decoder=n_conv_per_stage_decoder,
        conv_bias=conv_bias,
    )


CONSTRUCTORS = {"PlainConvUNet": PlainConvUNet, "ResidualEncoderUNet": ResidualEncoderUNet}


def require_package() -> None:
    """Raises UserError where dynamic-network-architectures is not installed."""
    try:
        import dynamic_network_architectures.architectures.unet  # noqa: F401
    except ImportError as error:
        raise UserError(
            "nnU-Net's networks need the package dynamic-network-architectures",
            "network.name",
            "install it with: pip install 'trm-bench[nnunet]'",
        ) from error


def _built(name: str, spatial_dims: int, norm: str, nonlin: str, **arguments: Any) -> nn.Module:
    """The network with nnU-Net's initial weights (He et al. 2015, of slope 0.01).

    The package makes heads at every resolution, for deep supervision; here the finest alone is
    used, so the others go, and it keeps its name.
    """
    from dynamic_network_architectures.architectures import unet

    if (norm, spatial_dims) not in NORMS or nonlin not in ACTIVATIONS:
        raise ValueError(f"norm is instance or batch, nonlin is {' or '.join(ACTIVATIONS)}")
    network = getattr(unet, name)(
        conv_op=nn.Conv2d if spatial_dims == 2 else nn.Conv3d,
        norm_op=NORMS[norm, spatial_dims],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=ACTIVATIONS[nonlin],
        nonlin_kwargs={"inplace": True},
        **arguments,
    )
    network.apply(network.initialize)
    heads = network.decoder.seg_layers
    for coarse in range(len(heads) - 1):
        heads[coarse] = nn.Identity()
    return network


# ------------------------------------------------------------------------------------------- plans

_KEPT = (
    *("features_per_stage", "strides", "kernel_sizes", "conv_bias"),
    *("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder"),
)


def network_of_plans(plans: Any, configuration: str) -> tuple[NetworkConfig, int]:
    """The network of nnU-Net v2's plans, and its number of spatial dimensions.

    Args:
        plans: What `plans.json`, or a checkpoint's `init_args`, says.
        configuration: Such as `3d_fullres`.

    Raises:
        UserError: They say no such network, or one that has other parts than those of nnU-Net.
    """
    try:
        said = _configuration(plans["configurations"], configuration)
        architecture = said.get("architecture") or _of_early_plans(said)
        given = architecture["arch_kwargs"]
        name = architecture["network_class_name"].rpartition(".")[2]
        norm = str(given["norm_op"]).rpartition(".")[2]
        nonlin = str(given["nonlin"]).rpartition(".")[2]
        words = {
            "norm": {kind.__name__: word for (word, _), kind in NORMS.items()}[norm],
            "nonlin": {kind.__name__: word for word, kind in ACTIVATIONS.items()}[nonlin],
        }
        dims = int(str(given["conv_op"])[-2])
        if name not in CONSTRUCTORS or given.get("dropout_op"):
            raise ValueError(f"{name} with dropout {given.get('dropout_op')}")
        arguments = {key: given[key] for key in _KEPT if key in given}
        return NetworkConfig(name=name, **words, **arguments), dims
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        said_by_it = " ".join(str(error).split())[:200]
        raise UserError(
            f"nnU-Net's plans do not say a network that is known here: {said_by_it}",
            f"configuration {str(configuration)[:40]}",
            f"known: {', '.join(CONSTRUCTORS)}, without dropout; else say `network` yourself",
        ) from error


def _configuration(configurations: Any, name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    chain = [configurations[name]]
    while (parent := chain[-1].get("inherits_from")) and len(chain) < 8:
        chain.append(configurations[parent])
    return {key: value for said in reversed(chain) for key, value in said.items()}


def _of_early_plans(said: Any) -> dict[str, Any]:
    """The architecture as plans before nnU-Net 2.3 say it."""
    kernels, dims = said["conv_kernel_sizes"], len(said["conv_kernel_sizes"][0])
    base, most = said["UNet_base_num_features"], said["unet_max_num_features"]
    residual = said["UNet_class_name"] == "ResidualEncoderUNet"
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": said["UNet_class_name"],
        "arch_kwargs": {
            "conv_op": f"Conv{dims}d",
            "norm_op": f"InstanceNorm{dims}d",
            "nonlin": "LeakyReLU",
            "features_per_stage": [min(base * 2**n, most) for n in range(len(kernels))],
            "strides": said["pool_op_kernel_sizes"],
            "kernel_sizes": kernels,
            "conv_bias": True,
            blocks: said["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": said["n_conv_per_stage_decoder"],
        },
    }
