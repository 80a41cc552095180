"""Layers of other libraries in a live network, replaced by ours."""

import copy
from collections import OrderedDict

import pytest
import torch
import torchvision
from sources import EDVR, OUTSIDE, PREDICTING, Normed, Outside, of_class
from test_layers import GROUPS, assert_equal, step
from torch import nn

from dcn_ops import DeformConv2d
from dcn_ops.compat import detectron2, mmcv
from zoo import migrate


class Block(nn.Module):
    """Offsets from outside, as in detectron2's DeformBottleneckBlock, or predicted."""

    def __init__(self, conv2, masked=True):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = conv2
        if not hasattr(conv2, "conv_offset") and not hasattr(conv2, "conv_offset_mask"):
            groups = getattr(conv2, "deformable_groups", getattr(conv2, "deform_groups", 2))
            outputs = groups * 9 * (3 if masked else 2)
            self.conv2_offset = nn.Conv2d(8, outputs, 3, conv2.stride, conv2.padding, conv2.dilation)

    def forward(self, x):
        x = self.conv1(x).relu()
        if not hasattr(self, "conv2_offset"):
            return self.conv2(x)
        out = self.conv2_offset(x)
        count = self.conv2_offset.out_channels // 3 * 2
        if out.shape[1] % 27:
            return self.conv2(x, out)
        return self.conv2(x, out[:, :count], out[:, count:].sigmoid())


def images():
    return torch.randn(2, 8, 9, 7, dtype=torch.float64)


@pytest.mark.parametrize(("groups", "offset_groups"), GROUPS)
@pytest.mark.parametrize("name", PREDICTING)
def test_predicting_layers(name, groups, offset_groups):
    source = Block(PREDICTING[name](groups=groups, offset_groups=offset_groups)).double()
    model, x = copy.deepcopy(source), images()
    result = migrate.replace_(model)
    layer = model.conv2
    assert type(layer) is DeformConv2d
    assert (layer.offset_groups, layer.groups, layer.mask_scale) == (offset_groups, groups, 1)
    assert_equal(source, model, x)
    theirs = {result.renamed.get(key, key): value for key, value in step(source, x).items()}
    ours = step(model, x)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", OUTSIDE)
def test_layers_with_offsets_from_outside(name, masked):
    for groups, offset_groups in GROUPS:
        block = Block(OUTSIDE[name](groups=groups, offset_groups=offset_groups), masked).double()
        model = copy.deepcopy(block)
        result = migrate.replace_(model)
        assert result.replaced == {"conv2": type(block.conv2).__name__}
        assert list(model.state_dict()) == list(block.state_dict())
        assert_equal(block, model, images())


def test_torchvisions_own_layer():
    source = Block(torchvision.ops.DeformConv2d(8, 6, 3, stride=2, padding=1, dilation=(1, 2))).double()
    model = copy.deepcopy(source)
    migrate.replace_(model)
    assert isinstance(model.conv2, DeformConv2d)
    assert_equal(source, model, images())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), None])
@pytest.mark.parametrize("activation", [nn.ReLU(), torch.tanh, None])
def test_norm_and_activation_of_detectron2_follow(norm, activation):
    cls = of_class("ModulatedDeformConv", Normed)
    source = Block(cls(norm=norm, activation=activation)).double()
    model = copy.deepcopy(source)
    migrate.replace_(model)
    assert list(model.state_dict()) == list(source.state_dict())
    assert_equal(source, model, images())
    assert_equal(source.eval(), model.eval(), images())


def test_edvrs_layer_predicts_from_another_feature():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.align = EDVR(offset_groups=4)

        def forward(self, x):
            return self.align(x, x.flip(3))

    source = Network().double()
    model = copy.deepcopy(source)
    migrate.replace_(model)
    assert_equal(source, model, images())


def test_the_stand_ins_are_replaced_too():
    for layer in (mmcv.ModulatedDeformConv2dPack(8, 8, 3, padding=1), detectron2.DeformConv(8, 8, 3, padding=1)):
        source = Block(layer, masked=False).double()
        model = copy.deepcopy(source)
        migrate.replace_(model)
        assert isinstance(model.conv2, DeformConv2d)
        assert_equal(source, model, images())


def test_parameters_hooks_modes_and_names_are_kept():
    shared = PREDICTING["mmcv v2"]()
    shared.weight.requires_grad_(False)
    calls = []
    handle = shared.register_forward_hook(lambda module, *_: calls.append(type(module)))
    model = nn.Sequential(OrderedDict(one=shared, two=shared)).eval()
    parameters = [shared.weight, shared.bias, shared.conv_offset.weight, shared.conv_offset.bias]
    result = migrate.replace_(model)
    assert model.one is model.two
    assert all(ours is theirs for ours, theirs in zip(model.one.parameters(), parameters, strict=True))
    assert not model.one.training
    model(torch.randn(1, 8, 6, 6))
    assert calls == [DeformConv2d] * 2
    handle.remove()
    model(torch.randn(1, 8, 6, 6))
    assert len(calls) == 2
    assert result.renamed["two.conv_offset.bias"] == "two.offset_bias"


class SecondOrderDeformableAlignment(OUTSIDE["mmcv v2"]):
    def forward(self, x):
        return self.convolved(x, torch.zeros(len(x), 18, *x.shape[2:]))


def test_what_stays_is_named_with_the_reason():
    hooked = PREDICTING["mmcv v2"]()
    hooked.conv_offset.register_forward_hook(lambda *_: None)
    dilated = PREDICTING["fork"](padding=2, dilation=2)
    dilated.conv_offset_mask.dilation = (1, 1)
    ultralytics = PREDICTING["fork"]()
    ultralytics.bn = nn.BatchNorm2d(8)
    computed = nn.utils.parametrizations.weight_norm(OUTSIDE["fork"]())
    sequential = PREDICTING["mmcv v2"]()
    sequential.conv_offset = nn.Sequential(sequential.conv_offset)
    layers = {
        "own": (SecondOrderDeformableAlignment(), "has a forward of its own; .* dcn_ops.compat.mmcv"),
        "hooked": (hooked, "its conv_offset has hooks"),
        "dilated": (dilated, r"its conv_offset_mask has dilation=\(1, 1\), the layer itself \(2, 2\)"),
        "more": (ultralytics, "DCN also has bn"),
        "computed": (computed, "its weight is computed|forward of its own"),
        "sequential": (sequential, "its conv_offset is Sequential, not one convolution"),
        "cross": (type("DCN", (nn.Linear,), {})(3, 3), "has not the attributes of a convolution"),
    }
    model = nn.ModuleDict({name: layer for name, (layer, _) in layers.items()})
    model["good"] = PREDICTING["fork"]()
    before = dict(model.items())
    result = migrate.replace_(model)
    assert list(result.replaced) == ["good"]
    assert result.left.keys() == layers.keys()
    for name, (layer, reason) in layers.items():
        assert model[name] is layer is before[name]
        with pytest.raises(ValueError, match=reason):
            raise ValueError(result.left[name])
    with pytest.raises(ValueError, match="hooked: its conv_offset has hooks"):
        migrate.replace_(nn.ModuleDict({"hooked": hooked}))


def test_nothing_to_replace():
    with pytest.raises(ValueError, match="Sequential has no layer of the classes DCN, DCN_sep"):
        migrate.replace_(nn.Sequential(nn.Conv2d(3, 4, 3), DeformConv2d(4, 4, 3)))
    with pytest.raises(ValueError, match="expected a network that contains deformable layers, got the layer DCN"):
        migrate.replace_(PREDICTING["fork"]())
    with pytest.raises(TypeError, match="expected a network"):
        migrate.replace_("resnet50")


def test_a_subclass_that_changes_nothing_is_its_base():
    model = nn.Sequential(of_class("MyDCN", PREDICTING["fork"])(), of_class("Other", Outside)())
    assert migrate.replace_(model).replaced == {"0": "MyDCN"}
