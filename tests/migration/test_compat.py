"""Stand-ins for mmcv.ops and detectron2.layers.deform_conv against torchvision's operator."""

import inspect
import sys
from types import ModuleType

import pytest
import torch
import torchvision
from sources import MMCV_V1, MMCV_V2, OUTSIDE
from test_layers import GROUPS, assert_equal, step
from torch import nn

from dcn_ops.compat import detectron2, mmcv

PACKS = {"v1": (mmcv.DeformConv2dPack, MMCV_V1), "v2": (mmcv.ModulatedDeformConv2dPack, MMCV_V2)}


def images():
    return torch.randn(2, 8, 9, 7, dtype=torch.float64)


@pytest.mark.parametrize(("groups", "offset_groups"), GROUPS)
@pytest.mark.parametrize("version", PACKS)
def test_packs_compute_and_train_as_mmcvs(version, groups, offset_groups):
    ours, theirs = PACKS[version]
    source = theirs(stride=2, groups=groups, offset_groups=offset_groups, bias=version == "v2").double()
    layer = ours(8, 8, 3, stride=2, padding=1, groups=groups, deform_groups=offset_groups).double()
    layer.load_state_dict(source.state_dict())
    x = images()
    assert_equal(source, layer, x)
    states = step(source, x), step(layer, x)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-12, atol=1e-12)


CALLS = {
    "mmcv v1": (mmcv.DeformConv2d, mmcv.deform_conv2d, "deform_groups", False),
    "mmcv v2": (mmcv.ModulatedDeformConv2d, mmcv.modulated_deform_conv2d, "deform_groups", True),
    "detectron2 v1": (detectron2.DeformConv, detectron2.deform_conv, "deformable_groups", False),
    "detectron2 v2": (detectron2.ModulatedDeformConv, detectron2.modulated_deform_conv, "deformable_groups", True),
}


@pytest.mark.parametrize("name", CALLS)
def test_layers_and_functions_take_offsets_and_masks_from_outside(name):
    cls, function, groups_name, masked = CALLS[name]
    for groups, offset_groups in GROUPS:
        layer = cls(8, 6 if groups == 2 else 8, 3, 2, 1, 1, groups, offset_groups).double()
        assert (getattr(layer, groups_name), layer.groups) == (offset_groups, groups)
        x = images()
        offset = torch.randn(2, 18 * offset_groups, 5, 4, dtype=torch.float64)
        mask = torch.rand(2, 9 * offset_groups, 5, 4, dtype=torch.float64) if masked else None
        expected = torchvision.ops.deform_conv2d(x, offset, layer.weight, layer.bias, 2, 1, 1, mask)
        given = (x, offset, mask) if masked else (x, offset)
        tensors = (*given, layer.weight, layer.bias) if masked else (*given, layer.weight)
        for out in (layer(*given), function(*tensors, 2, 1, 1, groups, offset_groups)):
            torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
            assert out.is_contiguous()
    with pytest.raises(ValueError, match="expected offset"):
        layer(x, offset[:, 1:], *given[2:])


# As read in mmcv 2.2.0 and detectron2 0.6.
SHAPE = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"]
NUMBERS = ["stride", "padding", "dilation", "groups"]
V1, V2 = ["input", "offset", "weight", *NUMBERS], ["input", "offset", "mask", "weight", "bias", *NUMBERS]
SIGNATURES = {
    mmcv.DeformConv2d: [*SHAPE, "deform_groups", "bias", "im2col_step"],
    mmcv.ModulatedDeformConv2d: [*SHAPE, "deform_groups", "bias"],
    mmcv.deform_conv2d: [*V1, "deform_groups", "bias", "im2col_step"],
    mmcv.modulated_deform_conv2d: [*V2, "deform_groups"],
    detectron2.DeformConv: [*SHAPE, "deformable_groups", "bias", "norm", "activation"],
    detectron2.ModulatedDeformConv: [*SHAPE, "deformable_groups", "bias", "norm", "activation"],
    detectron2.deform_conv: [*V1, "deformable_groups", "im2col_step"],
    detectron2.modulated_deform_conv: [*V2, "deformable_groups"],
}


@pytest.mark.parametrize("named", SIGNATURES, ids=lambda named: f"{named.__module__}.{named.__name__}")
def test_signatures(named):
    assert list(inspect.signature(named).parameters) == SIGNATURES[named]


def test_fresh_layers_start_as_theirs():
    pack = mmcv.ModulatedDeformConv2dPack(8, 8, 3, padding=1)
    x = torch.randn(1, 8, 6, 6)
    plain = nn.functional.conv2d(x, pack.weight, pack.bias, padding=1)
    torch.testing.assert_close(pack(x), plain / 2, rtol=1e-5, atol=1e-5)  # masks are ½, the bias 0
    assert pack.weight.abs().max() <= 1 / 72**0.5
    plain = nn.functional.conv2d(x, (v1 := mmcv.DeformConv2dPack(8, 8, 3, padding=1)).weight, padding=1)
    torch.testing.assert_close(v1(x), plain, rtol=1e-5, atol=1e-5)


def test_norm_and_activation_follow():
    norm = nn.BatchNorm2d(8).eval()
    nn.init.normal_(norm.bias)
    layer = detectron2.ModulatedDeformConv(8, 8, 3, padding=1, bias=False, norm=norm, activation=torch.tanh)
    x, offset, mask = torch.randn(1, 8, 6, 6), torch.randn(1, 18, 6, 6), torch.rand(1, 9, 6, 6)
    bare = OUTSIDE["detectron2 v2"](bias=False)
    bare.weight = layer.weight
    torch.testing.assert_close(layer(x, offset, mask), norm(bare(x, offset, mask)).tanh(), rtol=1e-5, atol=1e-5)
    assert [key for key in layer.state_dict() if "num" not in key] == [
        "weight",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    ]


def test_wrong_arguments():
    for cls in (mmcv.DeformConv2dPack, detectron2.DeformConv):
        with pytest.raises(ValueError, match=f"expected bias=False, got bias=True; {cls.__name__} has none"):
            cls(8, 8, 3, bias=True)
    with pytest.raises(ValueError, match=r"expected groups to divide the channels, got in_channels=8, .* groups=3"):
        mmcv.ModulatedDeformConv2d(8, 9, 3, groups=3)
    with pytest.raises(ValueError, match=r"got kernel_size=\(3, 3, 3\)"):
        mmcv.DeformConv2d(8, 8, (3, 3, 3))


@pytest.mark.parametrize(("module", "registry"), [("mmengine.registry", "MODELS"), ("mmcv.cnn", "CONV_LAYERS")])
def test_importing_registers_the_layers_where_there_is_a_registry(module, registry, monkeypatch):
    """mmengine 0.10 and mmcv 1 take the same arguments; a second class of a name needs force."""

    class Registry(dict):
        def register_module(self, name=None, force=False, module=None):
            assert force or name not in self
            self[name] = module

    fake, parent = ModuleType(module), ModuleType(module.partition(".")[0])
    parent.__path__ = []
    setattr(fake, registry, Registry(DCNv2=object))
    monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.setitem(sys.modules, module, fake)
    mmcv.register()
    expected = {"DCN": mmcv.DeformConv2dPack, "DCNv2": mmcv.ModulatedDeformConv2dPack}
    assert getattr(fake, registry) == expected
