"""Loading a plain network's weights into a converted network, and weights that are not a plain network's."""

import copy

import pytest
import timm
import torch
from helpers import NARROW, deformable, perturbed, randomise_offsets
from torch import nn

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_

SEPARABLE = {"separable_predictor": True, "offset_groups": 2, "modulated": False}


def converted(**config):
    return inject_(timm.create_model("resnet18", **NARROW), DCNConfig(**config)).eval()


def test_plain_checkpoint_loads_after_injection(caplog):
    plain = perturbed("resnet18", **NARROW)
    model = converted()
    model.load_state_dict(plain.state_dict())
    assert "offsets stay as they are in layer2.0.conv1, layer2.0.conv2, layer2.1.conv1" in caplog.text
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))


def test_a_part_of_a_predictor_is_missed():
    model = converted()
    weights = model.state_dict()
    del weights["layer4.0.conv1.offset_bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layer4\.0\.conv1\.offset_bias"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("config", [{}, SEPARABLE])
@pytest.mark.parametrize("part", ["layer4", "layer4.1", "layer4.0.conv1", ""])
def test_plain_weights_load_into_every_part(part, config):
    plain, model = perturbed("resnet18", **NARROW), converted(**config)
    randomise_offsets(model)
    layer = model.layer4[0].conv1
    offsets = {name: p.detach().clone() for name, p in layer.named_parameters() if name.startswith("offset_")}
    assert model.get_submodule(part).load_state_dict(plain.get_submodule(part).state_dict()) == ([], [])
    assert torch.equal(layer.weight, plain.layer4[0].conv1.weight) == ("layer4.0.conv1".startswith(part))
    for name, value in offsets.items():
        assert torch.equal(layer.get_parameter(name), value)


@pytest.mark.parametrize("config", [{}, SEPARABLE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by", ["root", "parts", "wrapped"])
def test_plain_weights_are_assigned_to_a_network_without_data(by, dtype, config):
    plain = perturbed("resnet18", **NARROW).to(dtype)
    with torch.device("meta"):
        model = converted(**config)
    model.layer3.requires_grad_(False)
    if by == "root":
        model.load_state_dict(plain.state_dict(), assign=True)
    elif by == "wrapped":
        nn.ModuleDict({"body": model}).load_state_dict(nn.ModuleDict({"body": plain}).state_dict(), assign=True)
    else:
        for name, child in model.named_children():
            child.load_state_dict(plain.get_submodule(name).state_dict(), assign=True)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", dtype)}
    for name, layer in deformable(model).items():
        assert {p.requires_grad for p in layer.predictor_parameters()} == {not name.startswith("layer3")}
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("config", [{}, SEPARABLE])
@pytest.mark.parametrize("part", ["layer4", "layer4.0.conv1"])
def test_the_predictor_follows_plain_weights_that_are_assigned(part, config):
    plain, model = timm.create_model("resnet18", **NARROW).half(), converted(**config)
    layer = model.layer4[0].conv1
    layer.offset_bias.data.fill_(0.25)
    layer.offset_bias.requires_grad_(False)
    model.get_submodule(part).load_state_dict(plain.get_submodule(part).state_dict(), assign=True)
    assert {p.dtype for p in layer.parameters()} == {torch.half}
    assert (layer.offset_bias == 0.25).all()
    assert (layer.offset_bias.requires_grad, layer.offset_weight.requires_grad) == (False, True)


def test_a_network_without_data_stays_so_where_nothing_is_assigned():
    with torch.device("meta"):
        model = converted()
    with pytest.warns(UserWarning, match="no-op"):
        model.load_state_dict(perturbed("resnet18", **NARROW).state_dict())
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_layer_of_another_network_takes_plain_weights():
    # Not one that inject_ made.
    conv, layer = nn.Conv2d(4, 8, 3), DeformConv2d(4, 8, 3, device="meta")
    nn.Sequential(nn.ReLU(), layer).load_state_dict(nn.Sequential(nn.ReLU(), conv).state_dict(), assign=True)
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(layer(x), conv(x))


def test_weights_that_lack_the_layer_are_missed_whole():
    layer = DeformConv2d(4, 8, 3)
    assert set(layer.load_state_dict({}, strict=False).missing_keys) == set(layer.state_dict())
    names = [name for name in layer.state_dict() if name.startswith("offset_")]
    assert layer.load_state_dict({"weight": layer.weight}, strict=False).missing_keys == ["bias"]
    assert layer.load_state_dict({"bias": layer.bias}, strict=False).missing_keys == ["weight", *names]


MMCV, DETECTRON2 = "layer4.{}.{}.conv_offset", "layer4.{}.{}_offset"


@pytest.mark.parametrize("name", [MMCV, DETECTRON2])
def test_offsets_by_other_names_are_no_plain_networks(name, caplog):
    plain, model = perturbed("resnet18", **NARROW), converted(stages=(4,))
    weights = plain.state_dict()
    others = []
    for block in (0, 1):
        for conv in ("conv1", "conv2"):
            layer = model.layer4[block].get_submodule(conv)
            others += [f"{name.format(block, conv)}.{kind}" for kind in ("weight", "bias")]
            weights[others[-2]], weights[others[-1]] = layer.offset_weight.detach(), layer.offset_bias.detach()
    with pytest.raises(RuntimeError, match=f"Unexpected key.*{others[0]}"):
        model.load_state_dict(weights)
    missing, unexpected = copy.deepcopy(model).load_state_dict(weights, strict=False)
    assert sorted(unexpected) == sorted(others)
    expected = [
        f"layer4.{b}.{c}.offset_{k}" for b in (0, 1) for c in ("conv1", "conv2") for k in ("weight", "bias")
    ]
    # The weights are found under exactly this layer.
    assert missing == (expected if name is MMCV else [])
    assert "plain" not in caplog.text


def test_the_log_names_the_layers_by_where_they_are(caplog):
    plain = perturbed("resnet18", **NARROW)
    nn.ModuleDict({"body": converted(stages=(4,))}).load_state_dict(nn.ModuleDict({"body": plain}).state_dict())
    assert "stay as they are in body.layer4.0.conv1, body.layer4.0.conv2, body.layer4.1.conv1" in caplog.text
    caplog.clear()
    # Only some layers are converted, and only some weights are a plain network's.
    converted().load_state_dict(converted(stages=(4,)).state_dict())
    assert caplog.messages == [
        "the weights are a plain network's: the offsets stay as they are in "
        + ", ".join(f"layer{i}.{j}.conv{k}" for i in (2, 3) for j in (0, 1) for k in (1, 2))
    ]
