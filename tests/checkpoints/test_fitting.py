"""Every tensor of a checkpoint and of the network is accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trm_bench import checkpoints, networks
from trm_bench.checkpoints import fitting
from trm_bench.errors import UserError
from trm_bench.protocol.schema import NetworkConfig

UNET = NetworkConfig(name="UNet", channels=[2, 4, 4], strides=[2, 2])
DYNUNET = NetworkConfig(
    name="DynUNet",
    kernel_size=[3, 3, 3],
    strides=[1, 2, 2],
    upsample_kernel_size=[2, 2],
    filters=[2, 4, 4],
)
PARTS = networks.parts(UNET, 1, 2)
HEAD = ["model.2.conv.weight", "model.2.conv.bias"]


def network(classes: int = 2, seed: int = 0, config: NetworkConfig = UNET) -> nn.Module:
    return networks.build(config, 1, classes, 2, seed)


def foreign(classes: int = 2) -> dict[str, Tensor]:
    """Of a checkpoint with names of its own."""
    return {f"net.{name}": t.clone() for name, t in network(classes, 1).state_dict().items()}


def fit(tensors: dict[str, Tensor], **options: Any) -> tuple[dict[str, Tensor], Any]:
    rename = options.pop("rename", [(r"^net\.", "")])
    return checkpoints.fit(tensors, network(), PARTS, rename, **options)


@pytest.mark.parametrize("with_head", [False, True])
def test_a_whole_checkpoint_is_loaded(with_head: bool) -> None:
    given = foreign()
    state, account = fit(given, with_head=with_head)
    own = network().state_dict()
    assert list(state) == list(own)
    for name in own:
        kept = name in HEAD and not with_head
        assert torch.equal(state[name], own[name] if kept else given[f"net.{name}"])
    assert account.loaded.keys() | account.left_out.keys() == given.keys()
    assert set(account.loaded.values()) | set(account.initial) == own.keys()
    assert list(account.initial) == ([] if with_head else HEAD)
    assert account == checkpoints.Account.model_validate_json(account.model_dump_json())


def test_the_head_of_other_classes_is_left_out_or_refused() -> None:
    _, account = fit(foreign(5))
    assert account.left_out == {f"net.{n}": "the head of other classes" for n in HEAD}
    with pytest.raises(UserError, match=r"of shape \[4, 5, 3, 3\] where \[4, 2, 3, 3\]") as caught:
        fit(foreign(5), with_head=True, partial=True)
    assert caught.value.where == "classes"
    headless = {name: t for name, t in foreign().items() if not name.endswith(tuple(HEAD))}
    assert fit(headless)[1].initial == tuple(HEAD)
    with pytest.raises(UserError, match="has no head"):
        fit(headless, with_head=True, partial=True)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda t: t.pop("net.model.0.conv.bias"), "nothing comes for 'model.0.conv.bias'"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' is not in the network"),
        (
            lambda t: t.update({"net.model.0.conv.bias": torch.zeros(9)}),
            "is of shape [9] where [2] is wanted",
        ),
        (
            lambda t: t.update({"net.model.0.conv.bias": torch.zeros(2, dtype=torch.int64)}),
            "is of torch.int64 where torch.float32 is wanted",
        ),
    ],
)
def test_what_does_not_fit_is_named_unless_part_is_enough(change: Any, reason: str) -> None:
    given = foreign()
    change(given)
    with pytest.raises(UserError) as caught:
        fit(given)
    assert reason in caught.value.what and "sources inspect" in caught.value.fix
    assert "rename" in caught.value.fix and "partial" in caught.value.fix
    state, account = fit(given, partial=True)
    assert account.loaded.keys() | account.left_out.keys() == given.keys()
    own = network().state_dict()
    assert set(account.loaded.values()) | set(account.initial) == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in account.initial)


def test_nothing_that_fits_is_an_error_however_partial() -> None:
    with pytest.raises(UserError, match="do not fit"):
        fit({"other": torch.zeros(2)}, partial=True)


def test_half_precision_is_taken_and_nan_is_not() -> None:
    given = foreign()
    state, _ = fit({name: tensor.half() for name, tensor in given.items()})
    assert state["model.0.conv.weight"].dtype == torch.float32
    given["net.model.0.conv.bias"][0] = float("nan")
    with pytest.raises(UserError, match="holds NaN"):
        fit(given, partial=True)


def test_one_name_of_a_module_that_is_listed_twice_is_enough() -> None:
    """DynUNet lists its layers again as nested skip layers."""
    own, parts = network(config=DYNUNET), networks.parts(DYNUNET, 1, 2)
    once = {
        name: tensor.clone()
        for name, tensor in network(seed=1, config=DYNUNET).state_dict().items()
        if not name.startswith("skip_layers.")
    }
    heads = {"deep_supervision_heads.0.conv.conv.weight": torch.zeros(2, 4, 1, 1)}
    state, account = checkpoints.fit(once | heads, own, parts, with_head=True)
    assert not account.initial and list(account.left_out) == list(heads)
    own.load_state_dict(state)
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in once.items())
    twice = {**once, "skip_layers.downsample.conv1.conv.weight": torch.zeros(2, 1, 3, 3)}
    with pytest.raises(UserError, match="is another value for"):
        checkpoints.fit(twice, own, parts)


def test_rules_are_applied_in_order() -> None:
    rules = [(r"^a\.(\d)", r"layer\1"), ("layer1", "first"), ("^first", "x")]
    assert fitting.renamed(["a.1.w", "a.2.w", "b"], rules) == {
        "a.1.w": "x.w",
        "a.2.w": "layer2.w",
        "b": "b",
    }


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("(", "")], "is no rule"),
        ([("a", r"\9")], "is no rule"),
        ([("a" * 301, "")], "longer than 300"),
        ([("a|b", "c")], "'a' and 'b' both become 'c'"),
        ([("a", "x" * 300), ("x", "yyy")], "makes names of over 500"),
        ([("a", "b")] * 1001, "more than 1000 rules"),
        ([("((a*)*)*$", "")], "takes too long"),
    ],
)
def test_rules_that_are_none(
    rules: list[tuple[str, str]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "MOST_SECONDS", 0.3)
    with pytest.raises(UserError, match=message):
        fitting.renamed(["a", "b", 60 * "a" + "!"], rules)


def test_an_encoder_like_medicalnets_loads_whole(tmp_path: Path) -> None:
    """A ResNet under `state_dict`, with the `module.` of parallel training, without a decoder."""
    from monai.networks.nets import resnet10

    resnet = resnet10(
        spatial_dims=3,
        n_input_channels=1,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    state = {f"module.{name}": tensor for name, tensor in resnet.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {}}, tmp_path / "resnet_10.pth")
    foreign = checkpoints.read(tmp_path / "resnet_10.pth")
    config = NetworkConfig.model_validate(
        {"name": "FlexibleUNet", "backbone": "resnet10", "decoder_channels": [64, 32, 16, 8, 8]}
    )
    unet, parts = networks.build(config, 1, 2, 3, seed=0), networks.parts(config, 1, 3)
    encoder = [("^", "encoder.")]
    fitted, account = checkpoints.fit(foreign.tensors, unet, parts, encoder, partial=True)
    assert set(account.loaded.values()) == set(parts.encoder) and not account.left_out
    assert set(account.initial) == set(unet.state_dict()) - set(parts.encoder)
    assert torch.equal(
        fitted["encoder.layer4.0.conv2.weight"], state["module.layer4.0.conv2.weight"]
    )
