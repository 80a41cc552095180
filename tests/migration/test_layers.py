"""Each source's layer and ours with its weights: the same output, and the same step of training."""

import itertools
from collections import OrderedDict

import pytest
import torch
from sources import PREDICTING, renamed
from torch import nn

from dcn_ops import DeformConv2d
from zoo import migrate

SHAPES = {
    "usual": {},
    "strided": {"stride": 2},
    "dilated": {"padding": 2, "dilation": 2},
    "pointwise": {"kernel_size": 1, "padding": 0},
    "large": {"kernel_size": 5, "padding": 2, "bias": False},
}
GROUPS = list(itertools.product((1, 2, 8), (1, 2, 4)))
# How the sources call the tensors of the predictor of "conv2".
KEYS = {
    "mmcv": (),
    "mmcv before version 2, detectron2": ((r"^conv2\.conv_offset", "conv2_offset"),),
    "nn.DataParallel": ((r"^", "module."),),
}


def network(layer):
    return nn.Sequential(OrderedDict(conv2=layer))


def imported(source, weights=None):
    """Return a network with our layer in the place of a source's, and the weights of that."""
    layer = source.conv2
    numbers = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    conv = nn.Conv2d(layer.in_channels, layer.out_channels, *numbers, bias=layer.bias is not None)
    model = network(conv.to(layer.weight.dtype))
    migrate.load_(model, weights or source.state_dict())
    return model


def step(model, x):
    # A sum of all outputs would hide an exchange of channels.
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return model.state_dict()


def assert_equal(source, model, x):
    tolerance = 1e-6 if x.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(model(x), source(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("groups", "offset_groups"), GROUPS)
@pytest.mark.parametrize("name", PREDICTING)
def test_outputs_are_the_sources_for_all_groups(name, groups, offset_groups, dtype):
    source = network(PREDICTING[name](groups=groups, offset_groups=offset_groups)).to(dtype)
    model = imported(source)
    layer = model.conv2
    assert (layer.offset_groups, layer.modulated, layer.mask_scale) == (offset_groups, "v1" not in name, 1)
    assert_equal(source, model, torch.randn(2, 8, 9, 7, dtype=dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PREDICTING)
def test_a_step_of_training_moves_the_weights_as_in_the_source(name, shape):
    source = network(PREDICTING[name](offset_groups=2, **SHAPES[shape])).double()
    model = imported(source)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    assert_equal(source, model, x)
    before = source.state_dict()["conv2.weight"].clone()
    theirs = renamed(step(source, x), (r"conv_offset(_mask)?\.", "offset_"))
    ours = step(model, x)
    assert ours.keys() == theirs.keys()
    assert not torch.equal(before, ours["conv2.weight"])
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("name", ["mmcv v1", "mmcv v2"])
def test_all_spellings_of_a_key_are_known(name, keys):
    source = network(PREDICTING[name](offset_groups=4)).double()
    model = imported(source, renamed(source.state_dict(), *KEYS[keys]))
    assert_equal(source, model, torch.randn(1, 8, 6, 6, dtype=torch.float64))


def test_weights_keep_their_bits():
    source = network(PREDICTING["fork"](offset_groups=2))
    ours = imported(source).state_dict()
    for key, value in renamed(source.state_dict(), (r"conv_offset_mask\.", "offset_")).items():
        assert torch.equal(ours[key], value)


def test_of_two_readings_the_caller_chooses():
    source = network(PREDICTING["mmcv v1"](in_channels=12, offset_groups=3)).double()
    model = network(nn.Conv2d(12, 8, 3, padding=1).double())
    with pytest.raises(ValueError, match=r"54 channels for 9 taps are 2 offset groups with masks .* or 3 without"):
        migrate.load_(model, source.state_dict())
    migrate.load_(model, source.state_dict(), modulated=False)
    assert_equal(source, model, torch.randn(1, 12, 6, 6, dtype=torch.float64))


def test_a_predictor_that_fits_no_layer_is_refused():
    source = network(PREDICTING["mmcv v2"]())
    weights = source.state_dict() | {"conv2.conv_offset.weight": torch.zeros(20, 8, 3, 3)}
    with pytest.raises(ValueError, match=r"conv2: expected 2 or 3 predicted channels for each of 9 taps .* got 20"):
        migrate.read(weights)


def test_neighbours_named_offset_are_not_always_predictors():
    weights = {"scale.weight": torch.zeros(4, 4, 3, 3), "scale_offset.weight": torch.zeros(5, 4, 3, 3)}
    weights |= {"scale_offset.bias": torch.zeros(5), "adapt.conv_offset.weight": torch.zeros(18, 4, 1, 1)}
    weights |= {"adapt.conv_offset.bias": torch.zeros(18)}  # GuidedAnchor's: "adapt" has no filters of its own
    found = migrate.read(weights)
    assert (found.layers, found.weights.keys()) == ({}, weights.keys())


def test_a_layer_that_is_deformable_already_must_be_the_same():
    source = network(PREDICTING["mmcv v2"]())
    model = network(DeformConv2d(8, 8, 3, padding=1, mask_scale=1))
    migrate.load_(model, source.state_dict())
    assert torch.equal(model.conv2.offset_bias, source.conv2.conv_offset.bias)
    with pytest.raises(ValueError, match=r"deformable in another way than in the checkpoint: {'mask_scale': 2.0}"):
        migrate.load_(network(DeformConv2d(8, 8, 3, padding=1)), source.state_dict())


def test_a_dilated_fork_never_ran():
    """The forks' predictor ignores the dilation: its map is larger than the output that it is for."""
    layer = PREDICTING["fork"](padding=2, dilation=2)
    predictor = nn.Conv2d(8, 27, 3, padding=2)
    x = torch.randn(1, 8, 9, 9)
    assert predictor(x).shape[2:] != layer(x).shape[2:] == (9, 9)
