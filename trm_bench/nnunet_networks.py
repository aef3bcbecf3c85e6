"""nnU-Net's own networks, of the package dynamic-network-architectures, under plain names.

What a protocol says of them is made of numbers and words; what nnU-Net writes into its plans is
turned into the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        in_channels,
        out_channels,
        features_per_stage,
        norm,
        nonlin,
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
    zero_residuals: bool = True,
    deep_supervision: Literal[False] = False,
) -> nn.Module:
    """nnU-Net's U-Net with a residual encoder; the defaults are its own.

    `zero_residuals` begins the last normalisation of every block at 0, so that blocks begin as
    identities; without it, at 1, which is what a checkpoint means that has no such weights.
    """
    network = _built(
        "ResidualEncoderUNet",
        spatial_dims,
        in_channels,
        out_channels,
        features_per_stage,
        norm,
        nonlin,
        strides=strides,
        kernel_sizes=kernel_sizes,
        n_blocks_per_stage=n_blocks_per_stage,
        n_conv_per_stage_decoder=n_conv_per_stage_decoder,
        conv_bias=conv_bias,
    )
    if not zero_residuals:
        for name, parameter in network.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
    return network


CONSTRUCTORS: dict[str, Callable[..., nn.Module]] = {
    "PlainConvUNet": PlainConvUNet,
    "ResidualEncoderUNet": ResidualEncoderUNet,
}


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


def _built(
    name: str,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    features_per_stage: Sequence[int],
    norm: str,
    nonlin: str,
    **arguments: Any,
) -> nn.Module:
    """The network with nnU-Net's initial weights (He et al. 2015, of slope 0.01).

    The package makes heads at every resolution, for deep supervision; here the finest alone is
    used, so the others go, and it keeps its name.
    """
    from dynamic_network_architectures.architectures import unet

    if (norm, spatial_dims) not in NORMS or nonlin not in ACTIVATIONS:
        raise ValueError(f"norm is instance or batch, nonlin is {' or '.join(ACTIVATIONS)}")
    network = getattr(unet, name)(
        input_channels=in_channels,
        num_classes=out_channels,
        n_stages=len(features_per_stage),
        features_per_stage=features_per_stage,
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


RES_ENC_L = {
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "strides": [1, 2, 2, 2, 2, 2],
    "kernel_sizes": 3,
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
    "conv_op": "Conv3d",
    "norm_op": "InstanceNorm3d",
    "nonlin": "LeakyReLU",
}
"""What nnssl means by `ResEncL`; it writes the name alone."""


def network_of_plans(plans: Any, configuration: str) -> tuple[NetworkConfig, int]:
    """The network of nnU-Net v2's plans, and its number of spatial dimensions.

    Args:
        plans: What `plans.json`, or a checkpoint's `init_args`, says.
        configuration: Such as `3d_fullres`.

    Raises:
        UserError: They say no network, or one that has other parts than nnU-Net's own.
    """
    with _told():
        said = _configuration(plans["configurations"], configuration)
        architecture = said.get("architecture") or _of_early_plans(said)
        return _network(architecture["network_class_name"], architecture["arch_kwargs"])


def network_of_adaptation(plan: Any) -> tuple[NetworkConfig, int]:
    """The network of an adaptation plan of nnssl, and its number of spatial dimensions.

    Raises:
        UserError: See `network_of_plans`.
    """
    with _told():
        architecture = plan["architecture_plans"]
        name, given = architecture["arch_class_name"], architecture.get("arch_kwargs")
        if name == "ResEncL":
            name, given = "ResidualEncoderUNet", RES_ENC_L
        return _network(name, given)


@contextmanager
def _told() -> Iterator[None]:
    """Tells what is odd about plans."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the plans say no network that is known here: {' '.join(str(error).split())[:200]}",
            "network",
            f"known: {', '.join(CONSTRUCTORS)}, without dropout; else say `network` yourself",
        ) from error


def _network(name: str, given: Mapping[str, Any]) -> tuple[NetworkConfig, int]:
    """From the arguments of the class, in which others are named by their dotted paths."""
    norm, nonlin, convolution = (
        str(given[key]).rpartition(".")[2] for key in ("norm_op", "nonlin", "conv_op")
    )
    name = name.rpartition(".")[2]
    if name not in CONSTRUCTORS or given.get("dropout_op"):
        raise ValueError(f"{name[:60]} with dropout {str(given.get('dropout_op'))[:60]}")
    words = {
        "norm": {kind.__name__: word for (word, _), kind in NORMS.items()}[norm],
        "nonlin": {kind.__name__: word for word, kind in ACTIVATIONS.items()}[nonlin],
    }
    arguments = {key: given[key] for key in _KEPT if key in given}
    return NetworkConfig(name=name, **words, **arguments), {"Conv2d": 2, "Conv3d": 3}[convolution]


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
