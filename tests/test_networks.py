"""Networks.

Their parts by autograd, source weights under audit, seeded, and checked on paper before a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import CPU
from safetensors.torch import save_file
from torch import Tensor, nn

from trm_bench import networks
from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig, TrainingConfig
from trm_bench.runs import arrays, execute, store

UNET = {"name": "UNet", "channels": [4, 8, 16], "strides": [2, 2]}
DYNUNET = {
    "name": "DynUNet",
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 16],
}
SWIN = {"name": "SwinUNETR", "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
SEGRESNET = {"name": "SegResNet", "init_filters": 8, "blocks_down": [1, 2, 1], "blocks_up": [1, 1]}
PLAIN = {
    "name": "PlainConvUNet",
    "features_per_stage": [4, 8, 8],
    "strides": [1, 2, 2],
    "n_conv_per_stage": [1, 2, 1],
}
RESENC = {
    "name": "ResidualEncoderUNet",
    "features_per_stage": [4, 8, 8],
    "strides": [1, 2, 2],
    "n_blocks_per_stage": [1, 2, 1],
    "norm": "batch",
    "nonlin": "relu",
}
# a network, the side of a patch, the head's module, and the modules whose outputs the way up starts
# from
KNOWN: dict[str, tuple[dict[str, Any], int, str, tuple[str, ...]]] = {
    "UNet": (UNET, 16, "model.2.conv", ("model.1.submodule.1.submodule",)),
    "UNet-residual": (
        {**UNET, "num_res_units": 2},
        16,
        "model.2",
        ("model.1.submodule.1.submodule",),
    ),
    "UNet-batchnorm": (
        {**UNET, "norm": "batch"},
        16,
        "model.2.conv",
        ("model.1.submodule.1.submodule",),
    ),
    "UNet-two-levels": (
        {"name": "UNet", "channels": [4, 8], "strides": [2], "num_res_units": 2},
        16,
        "model.2",
        ("model.1.submodule",),
    ),
    "UNet-five-levels": (
        {"name": "UNet", "channels": [2, 2, 4, 4, 4], "strides": [2, 2, 2, 2], "num_res_units": 3},
        32,
        "model.2",
        ("model" + 4 * ".1.submodule",),
    ),
    "Unet": ({**UNET, "name": "Unet"}, 16, "model.2.conv", ("model.1.submodule.1.submodule",)),
    "AttentionUnet": (
        {**UNET, "name": "AttentionUnet"},
        16,
        "model.2.conv",
        ("model.1.submodule.1.submodule",),
    ),
    "DynUNet": (DYNUNET, 16, "output_block.conv.conv", ("bottleneck",)),
    "DynUNet-residual": (
        {**DYNUNET, "res_block": True},
        16,
        "output_block.conv.conv",
        ("bottleneck",),
    ),
    "SegResNet": (SEGRESNET, 16, "conv_final.2.conv", ("down_layers.2",)),
    "BasicUNet": (
        {"name": "BasicUNet", "features": [4, 4, 4, 8, 8, 4]},
        32,
        "final_conv",
        ("down_4",),
    ),
    "PlainConvUNet": (PLAIN, 16, "decoder.seg_layers.1", ("encoder.stages.2",)),
    "ResidualEncoderUNet": (RESENC, 16, "decoder.seg_layers.1", ("encoder.stages.2",)),
    "SwinUNETR": (SWIN, 64, "out.conv.conv", tuple(f"encoder{n}" for n in (1, 2, 3, 4, 10))),
}
IN_2D_AND_3D = pytest.mark.parametrize("dims", [2, 3])
EVERY_NETWORK = pytest.mark.parametrize("name", KNOWN)


def config(name: str, **more: Any) -> NetworkConfig:
    return NetworkConfig(**{**KNOWN[name][0], **more})


def random(name: str, dims: int) -> Tensor:
    shape = (2, 1, *[KNOWN[name][1]] * dims) if name != "SwinUNETR" else (1, 1, *[64] * dims)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def members(network: nn.Module) -> dict[str, Tensor]:
    """Name to the parameter or buffer itself, under each of its names."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


# -------------------------------------------------------------------------------------------- parts


@IN_2D_AND_3D
@EVERY_NETWORK
def test_the_parts_divide_the_network(name: str, dims: int) -> None:
    network, parts = (
        networks.build(config(name), 1, 2, dims, 0),
        networks.parts(config(name), 1, dims),
    )
    assert parts.head == KNOWN[name][2]
    head = [n for n in network.state_dict() if parts.in_head(n)]
    assert head and parts.encoder
    assert bool(parts.decoder) == (name != "UNet-two-levels"), (
        "with two levels, the head is all of the way up"
    )
    assert sorted([*head, *parts.encoder, *parts.decoder]) == sorted(network.state_dict())
    held = members(network)
    pieces = [{id(held[n]) for n in names} for names in (head, parts.encoder, parts.decoder)]
    assert len(set.union(*pieces)) == sum(map(len, pieces)), (
        "one tensor, under two names, lies in two parts"
    )
    assert network.get_submodule(parts.head)


@IN_2D_AND_3D
@EVERY_NETWORK
def test_the_encoder_is_what_the_way_up_starts_from(name: str, dims: int) -> None:
    """Exactly the encoder's weights have a gradient of what the deepest layers, and a Swin's skips,
    put out.
    """
    network = networks.build(config(name), 1, 2, dims, 0)
    outputs: list[Tensor] = []
    for module in KNOWN[name][3]:
        network.get_submodule(module).register_forward_hook(
            lambda _, inputs, output: outputs.append(output)
        )
    network(random(name, dims))
    assert len(outputs) == len(KNOWN[name][3])
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(
        sum(o.square().sum() for o in outputs), [*parameters.values()], allow_unused=True
    )
    reached = {
        id(p)
        for p, gradient in zip(parameters.values(), found, strict=True)
        if gradient is not None
    }
    encoder, held = set(networks.parts(config(name), 1, dims).encoder), members(network)
    if name == "SwinUNETR":  # the deepest hidden state but one goes up without a layer of its own
        reached |= {id(p) for n, p in parameters.items() if n.startswith("swinViT.")}
    weights = {id(held[n]) for n in encoder if isinstance(held[n], nn.Parameter)}
    assert weights == reached
    for (
        path,
        module,
    ) in network.named_modules():  # moving statistics go with the weights of their layer
        own = {
            f"{path}.{n}" for n in (*module._parameters, *module._buffers) if f"{path}.{n}" in held
        }
        assert own <= encoder or not own & encoder


def test_networks_without_known_parts() -> None:
    parts = networks.parts(NetworkConfig(name="VNet", act="relu"), 1, 3)
    assert parts.encoder == () and parts.decoder and parts.head
    assert not parts.in_head(parts.head + "2") and parts.in_head(parts.head + ".weight")
    with pytest.raises(UserError, match="has several heads"):
        networks.parts(NetworkConfig(name="BasicUNetPlusPlus", features=[4, 4, 4, 8, 8, 4]), 1, 2)


# -------------------------------------------------------------------------------------------- build


def test_weights_come_from_the_seed_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        networks.build(config("UNet"), 1, 3, 3, seed).state_dict() for seed in (0, 0, 1)
    )
    torch.manual_seed(5)
    again = networks.build(config("UNet"), 1, 3, 3, 0).state_dict()
    torch.set_rng_state(before)
    networks._parts.cache_clear()
    networks.parts(config("UNet"), 1, 3)
    networks.training_bytes(config("UNet"), TrainingConfig(steps=1, patch=(16, 16, 16)), 1, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[k], same[k]) and torch.equal(one[k], again[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "arguments, where, message",
    [
        ({"name": "Unett"}, "network.name", "did you mean 'U"),
        ({"name": "Module"}, "network.name", "MONAI has no network 'Module'"),
        ({**UNET, "chanels": [4, 8]}, "network.chanels", "did you mean 'channels'"),
        ({**UNET, "out_channels": 2}, "network.out_channels", "set by the data and the patch"),
        ({**UNET, "spatial_dims": 3}, "network.spatial_dims", "set by the data and the patch"),
        ({**DYNUNET, "deep_supervision": True}, "network.deep_supervision", "not supported"),
        ({"name": "UNet"}, "network", "refuses its arguments"),
        ({**UNET, "strides": [2]}, "network", "refuses its arguments"),
        ({**UNET, "norm": "nonsense"}, "network", "refuses its arguments"),
        ({**UNET, "channels": "abc"}, "network", "refuses its arguments"),
        ({**SWIN, "feature_size": 13}, "network", "refuses its arguments"),
        ({**SWIN, "num_heads": [0, 0, 0, 0]}, "network", "zero"),
        ({**UNET, "norm": ["group", {"num_groups": 0}]}, "network", "zero"),
        ({**UNET, "channels": None}, "network", "refuses its arguments"),
        ({**UNET, "channels": [-4, 8, 16]}, "network", "negative"),
        ({**UNET, "channels": [4] * 1000, "strides": [1] * 999}, "network", "recursion"),
        ({**UNET, "num_res_units": 10**9}, "network.num_res_units", "above 1000000"),
        ({**UNET, "norm": ["group", {"num_groups": 1e9}]}, "network.norm", "above 1000000"),
        ({**UNET, "kernel_size": 99_999}, "network", "too large"),
        ({**UNET, "channels": [10**6, 10**6, 4]}, "network", "too large"),
        ({**SWIN, "window_size": 1000}, "network", "too large"),
        ({"name": "DenseNet121", "pretrained": True}, "network.pretrained", "not supported"),
    ],
)
def test_wrong_names_and_arguments_are_said(
    arguments: dict[str, Any], where: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        networks.build(NetworkConfig(**arguments), 1, 2, 3, 0)
    assert caught.value.where == where and message in str(caught.value) and caught.value.fix


def test_a_network_that_is_built_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MOST_SECONDS", 0.2)
    endless = NetworkConfig(**{**UNET, "num_res_units": 10**6})
    for use in (
        lambda: networks.build(endless, 1, 2, 3, 0),
        lambda: networks.parts(endless, 1, 3),
        lambda: networks.training_bytes(endless, TrainingConfig(steps=1, patch=(16, 16, 16)), 1, 2),
    ):
        with pytest.raises(UserError, match=r"more than 0\.2 seconds"):
            use()


@EVERY_NETWORK
def test_the_limits_change_no_weight(name: str) -> None:
    kind, arguments = networks.network_class(config(name)), config(name).arguments
    torch.manual_seed(7)
    plain = kind(spatial_dims=3, in_channels=1, out_channels=2, **arguments).state_dict()
    built = networks.build(config(name), 1, 2, 3, seed=7).state_dict()
    assert built.keys() == plain.keys()
    assert all(torch.equal(built[k], plain[k]) for k in plain)


@pytest.mark.parametrize("stride", [0, 100])
def test_a_forward_pass_that_fails_is_told(stride: int) -> None:
    strange = NetworkConfig(**{**UNET, "strides": [stride, stride]})
    with pytest.raises(UserError, match="does not take a patch"):
        networks.training_bytes(strange, TrainingConfig(steps=1, patch=(16, 16, 16)), 1, 2)


# -------------------------------------------------------------------------------------- load_source


class TestLoadSource:
    @staticmethod
    def both(
        classes: int, name: str = "UNet"
    ) -> tuple[nn.Module, dict[str, Tensor], networks.Parts]:
        source = networks.build(config(name), 1, classes, 3, 1).state_dict()
        return networks.build(config(name), 1, 2, 3, 0), source, networks.parts(config(name), 1, 3)

    @pytest.mark.parametrize("name", ["UNet", "UNet-batchnorm", "DynUNet"])
    def test_the_same_task_takes_everything(self, name: str) -> None:
        network, source, parts = self.both(2, name)
        audit = networks.load_source(network, source, parts, with_head=True)
        assert audit == {"loaded": len(source), "adapted": [], "skipped": []}
        assert all(torch.equal(v, source[k]) for k, v in network.state_dict().items())

    @pytest.mark.parametrize("classes", [2, 5])
    @pytest.mark.parametrize("name", ["UNet", "UNet-residual", "DynUNet"])
    def test_another_task_keeps_its_own_head(self, classes: int, name: str) -> None:
        network, source, parts = self.both(classes, name)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        audit = networks.load_source(network, source, parts, with_head=False)
        head = [k for k in before if parts.in_head(k)]
        assert audit["loaded"] == len(before) - len(head) and audit["skipped"] == head and head
        for k, v in network.state_dict().items():
            assert torch.equal(v, before[k] if k in head else source[k]), k

    @pytest.mark.parametrize("with_head", [False, True])
    @pytest.mark.parametrize("fault", ["missing", "unexpected", "reshaped"])
    def test_what_does_not_fit_is_named_and_nothing_is_loaded(
        self, fault: str, with_head: bool
    ) -> None:
        network, source, parts = self.both(2)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        wrong = "model.0.conv.weight" if fault != "unexpected" else "model.7.conv.weight"
        if fault == "missing":
            del source[wrong]
        else:
            source[wrong] = torch.zeros(3, 2)
        with pytest.raises(ValueError, match=wrong.replace(".", r"\.") + r" \(1 in all\)"):
            networks.load_source(network, source, parts, with_head)
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())

    @pytest.mark.parametrize("with_head", [False, True])
    def test_what_a_method_has_added_is_skipped_and_nothing_else(self, with_head: bool) -> None:
        network, source, parts = self.both(2)
        network.add_module("own", nn.Linear(2, 2))
        added = ["own.weight", "own.bias"]
        before = {k: v.clone() for k, v in network.state_dict().items()}
        audit = networks.load_source(network, source, parts, with_head)
        head = [k for k in source if parts.in_head(k)]
        assert audit["skipped"] == added + ([] if with_head else head)
        assert all(torch.equal(network.state_dict()[k], before[k]) for k in added)
        with pytest.raises(ValueError, match=r"own\.bias, own\.weight \(2 in all\)"):
            networks.load_source(self.both(2)[0], before, parts, with_head)

    def test_a_head_of_other_classes_is_refused_where_it_should_come_along(self) -> None:
        network, source, parts = self.both(3)
        with pytest.raises(ValueError, match=r"model\.2\.conv\.weight"):
            networks.load_source(network, source, parts, with_head=True)
        del source["model.2.conv.bias"]
        with pytest.raises(ValueError, match=r"model\.2\.conv\.bias"):
            networks.load_source(network, source, parts, with_head=True)


# ----------------------------------------------------------------------------------- adapt_channels


REPEATED = [(way, 1, 3) for way in ("repeat", "mean")] + [("repeat", 2, 4)]
AVERAGED = [("mean", 2, 3), ("mean", 3, 1), ("mean", 3, 2)]


@pytest.mark.parametrize("way, before, after", REPEATED + AVERAGED)
@pytest.mark.parametrize(
    "name", ["UNet-residual", "SegResNet", "DynUNet", "SwinUNETR", "AttentionUnet", "PlainConvUNet"]
)
def test_copies_of_one_image_give_the_same_output(
    name: str, way: Any, before: int, after: int
) -> None:
    source, target = (networks.build(config(name), c, 2, 2, c).eval() for c in (before, after))
    state, names = networks.adapt_channels(source.state_dict(), before, after, config(name), 2, way)
    audit = networks.load_source(
        target, state, networks.parts(config(name), after, 2), True, adapted=names
    )
    assert audit["adapted"] == list(names) and names and audit["loaded"] == len(state)
    image = random(name, 2)
    seen = [net(image.repeat(1, c, 1, 1)) for net, c in ((source, before), (target, after))]
    assert torch.allclose(seen[0], seen[1], atol=1e-4)
    kept = source.state_dict()
    assert all(
        state[k] is kept[k] or torch.equal(state[k], kept[k]) for k in kept if k not in names
    )


def test_channels_are_adapted_by_the_formula() -> None:
    weights = torch.tensor([[1.0, 10.0]]).reshape(1, 2, 1, 1, 1).repeat(4, 1, 3, 3, 3)
    state = {
        **networks.build(config("UNet"), 2, 2, 3, 0).state_dict(),
        "model.0.conv.weight": weights,
    }

    def first(way: Any, channels: int) -> list[float]:
        adapted, names = networks.adapt_channels(state, 2, channels, config("UNet"), 3, way)
        assert names == (("model.0.conv.weight",) if channels != 2 else ())
        return adapted["model.0.conv.weight"][0, :, 0, 0, 0].tolist()

    assert first("repeat", 5) == pytest.approx([0.4, 4, 0.4, 4, 0.4])
    assert first("mean", 4) == pytest.approx([2.75] * 4)
    assert first("repeat", 1) == pytest.approx([2]) and first("mean", 1) == pytest.approx([11])
    assert first("repeat", 2) == first("mean", 2) == [1, 10]


def test_channels_that_are_no_axis_are_refused() -> None:
    """A Vision Transformer's patches mix channels and voxels in one axis."""
    unetr = NetworkConfig(
        name="UNETR",
        img_size=[32, 32],
        hidden_size=12,
        mlp_dim=12,
        num_heads=2,
        proj_type="perceptron",
        feature_size=4,
    )
    with pytest.raises(UserError, match=r"no axis of 'vit\.patch_embedding") as caught:
        networks.input_layers(unetr, 1, 2, 2)
    assert caught.value.fix


# -------------------------------------------------------------------------------- forward, backward


@IN_2D_AND_3D
@pytest.mark.parametrize(
    "name",
    [
        *("UNet", "UNet-residual", "AttentionUnet", "DynUNet", "SegResNet", "SwinUNETR"),
        *("PlainConvUNet", "ResidualEncoderUNet"),
    ],
)
def test_a_step_reaches_every_weight(name: str, dims: int) -> None:
    network, image = networks.build(config(name), 1, 3, dims, 0), random(name, dims)
    logits = network(image)
    assert logits.shape == (len(image), 3, *image.shape[2:])
    nn.functional.cross_entropy(logits, torch.ones_like(image[:, 0], dtype=torch.long)).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_a_dynunet_lives_through_source_checkpoint_and_run(toy_data: Path, tmp_path: Path) -> None:
    """DynUNet lists its modules twice, which safetensors refuses for tensors that share memory."""
    shared = networks.build(config("DynUNet"), 1, 2, 3, 0).state_dict()
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(shared, tmp_path / "shared.safetensors")
    once = {"steps": 1, "batch": 1, "patch": [16, 16, 16]}
    made = helpers.plan(
        toy_data,
        tmp_path,
        network=DYNUNET,
        training={"source": once, "target": once},
        methods=["finetune"],
    )
    assert execute.do(made.sources[0], CPU, lambda *at: None) == "finished"
    about, state = arrays.read_checkpoint(made.sources[0].result)
    assert about.config == made.sources[0].config and about.id == made.sources[0].id
    network = networks.build(config("DynUNet"), 1, 2, 3, 7)
    network.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert torch.equal(
        state["skip_layers.upsample.transp_conv.conv.weight"],
        state["upsamples.1.transp_conv.conv.weight"],
    )
    assert not torch.equal(
        state["input_block.conv1.conv.weight"], shared["input_block.conv1.conv.weight"]
    )
    assert execute.do(made.runs[0], CPU, lambda *at: None) == "finished"
    record = store.read_record(made.runs[0].result)
    assert record is not None and record.loading is not None
    assert record.loading.skipped == (
        "output_block.conv.conv.weight",
        "output_block.conv.conv.bias",
    )


@pytest.mark.parametrize("content", [b"", b"not safetensors", None])
def test_what_is_no_checkpoint_is_said(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "network.safetensors"
    if content is None:
        save_file({"weight": torch.zeros(2)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint of trm-bench"):
        arrays.read_checkpoint(file)


# ------------------------------------------------------------------------------------------- memory


def training(patch: tuple[int, ...] = (16, 16, 16), **more: Any) -> TrainingConfig:
    return TrainingConfig(**{"steps": 1, "batch": 2, "patch": patch, **more})


@IN_2D_AND_3D
@pytest.mark.parametrize("name", ["UNet-residual", "DynUNet", "SegResNet", "SwinUNETR"])
def test_memory_is_weights_and_layers_times_the_batch(name: str, dims: int) -> None:
    patch = (KNOWN[name][1],) * dims
    one, two, four = (
        networks.training_bytes(config(name), training(patch, batch=batch), 1, 3)
        for batch in (1, 2, 4)
    )
    assert two - one > 0 and four - two == 2 * (two - one)
    weights = sum(p.numel() for p in networks.build(config(name), 1, 3, dims, 0).parameters())
    assert one - (two - one) == 4 * 4 * weights, "weights, gradients and two moments in float32"
    sgd = networks.training_bytes(
        config(name), training(patch, batch=1, optimizer={"name": "sgd"}), 1, 3
    )
    assert one - sgd == 4 * weights
    half = networks.training_bytes(config(name), training(patch, batch=1), 1, 3, bytes_per_number=2)
    assert one - half == (two - one) // 2


def test_memory_of_ten_more_classes_by_hand() -> None:
    """The head is a 3x3x3 transposed convolution of 8 channels.

    Its weights and its output grow, and nothing else.
    """
    few, many = (
        networks.training_bytes(config("UNet"), training(), 1, classes) for classes in (2, 12)
    )
    weights, voxels = 10 * (8 * 27 + 1), 2 * 10 * 16**3
    assert many - few == 4 * 4 * weights + 2 * 4 * voxels


@pytest.mark.parametrize(
    ("patch", "deep"), [((8, 8, 16), True), ((16, 8, 8), False), ((8, 8), False)]
)
def test_convolutions_of_two_voxels_depth(patch: tuple[int, ...], deep: bool) -> None:
    """Three levels: two voxels at the bottom, where the patch begins with eight."""
    network = NetworkConfig(name="UNet", channels=[4, 8, 8], strides=[2, 2])
    found = networks.two_deep(network, training(patch), 1, 2)
    assert bool(found) == deep
    layers = dict(networks.build(network, 1, 2, len(patch), seed=0).named_modules())
    assert all(layers[name].in_channels == 8 for name in found)


@pytest.mark.parametrize(
    "network, patch, message",
    [
        (UNET, (16, 16, 10), "does not take a patch of [16, 16, 10]"),
        (UNET, (15, 16), "does not take a patch of [15, 16]"),
        ({"name": "BasicUNetPlusPlus", "features": [4, 4, 4, 8, 8, 4]}, (32, 32), "returns a list"),
        ({"name": "FullyConnectedNet", "hidden_channels": [4]}, (16, 16), "does not take a patch"),
        (SWIN, (48, 64, 64), "does not take a patch"),
    ],
)
def test_networks_that_do_not_map_the_patch_to_logits_are_refused(
    network, patch, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        networks.training_bytes(NetworkConfig(**network), training(patch), 1, 2)
    assert message in str(caught.value) and caught.value.fix
