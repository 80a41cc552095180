"""The convolutions that a config selects in real networks, and the cost of their predictors."""

import pytest
import timm
import torch
from helpers import deformable, without_data
from torch.utils.flop_counter import FlopCounterMode

from zoo import DCNConfig, inject_
from zoo.convert import kind
from zoo.select import block_of


def chosen(model_name, **config):
    return deformable(inject_(without_data(model_name), DCNConfig(**config)))


def test_kinds_choose_by_groups():
    # EfficientNetV2 has dense blocks first, then depthwise ones.
    dense = chosen("tf_efficientnetv2_b0", kinds=("dense",), stages=(1, 2))
    assert next(iter(dense)) == "blocks.1.0.conv_exp"
    assert {kind(layer) for layer in dense.values()} == {"dense"}
    depthwise = chosen("tf_efficientnetv2_b0", kinds=("depthwise",))
    assert next(iter(depthwise)) == "blocks.3.0.conv_dw"
    assert {kind(layer) for layer in depthwise.values()} == {"depthwise"}
    grouped = chosen("resnext50_32x4d", kinds=("grouped",))
    assert list(grouped) == [f"layer{i}.{j}.conv2" for i, n in ((2, 4), (3, 6), (4, 3)) for j in range(n)]
    assert set(grouped) == set(chosen("resnext50_32x4d"))
    with pytest.raises(ValueError, match=r"grouped, not in kinds=\('depthwise',\)"):
        chosen("resnext50_32x4d", kinds=("depthwise",))


def test_kernels_choose_by_size():
    both = chosen("mobilenetv3_small_050")
    five = chosen("mobilenetv3_small_050", kernels=(5,))
    three = chosen("mobilenetv3_small_050", kernels=[3])
    assert {layer.kernel_size for layer in five.values()} == {(5, 5)}
    assert list(three) == ["blocks.1.0.conv_dw", "blocks.1.1.conv_dw"]
    assert set(both) == set(three) | set(five)
    assert len(chosen("convnext_atto", kernels=(7,))) == len(chosen("convnext_atto")) == 10


def test_where_is_asked_by_name_and_convolution():
    strided = chosen("resnet50", where=lambda name, conv: conv.stride == (2, 2))
    assert list(strided) == ["layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
    named = chosen("convnext_atto", where=lambda name, conv: name.startswith("stages.3") and conv.groups > 1)
    assert list(named) == ["stages.3.blocks.0.conv_dw", "stages.3.blocks.1.conv_dw"]


def test_every_counts_blocks_within_a_stage():
    resnet = chosen("resnet18", every=2)
    assert list(resnet) == [f"layer{i}.0.conv{j}" for i in (2, 3, 4) for j in (1, 2)]
    convnext = chosen("convnext_tiny", every=3)
    assert list(convnext) == [
        f"stages.{i}.blocks.{j}.conv_dw" for i, n in ((1, 3), (2, 9), (3, 3)) for j in range(0, n, 3)
    ]
    regnet = chosen("regnety_032", every=2)
    assert list(regnet) == [
        f"s{i}.b{j}.conv2.conv" for i, n in ((2, 5), (3, 13), (4, 1)) for j in range(1, n + 1, 2)
    ]
    # Stages 3 and 4 of EfficientNet have several groups of blocks each.
    mobile = chosen("efficientnet_b0", stages=(3,), every=2)
    assert list(mobile) == ["blocks.3.0.conv_dw", "blocks.3.2.conv_dw", "blocks.4.1.conv_dw"]


def test_group_width_fits_layers_of_any_width():
    for layer in chosen("resnet18", offset_group_width=32).values():
        assert layer.offset_groups == layer.in_channels // 32
        assert layer.offset_weight.shape[0] == 27 * layer.offset_groups
    with pytest.raises(ValueError, match=r"blocks\.\d\.\d\.conv_dw: expected offset_group_width to divide"):
        chosen("mobilenetv3_small_050", offset_group_width=32)


def test_predictors_are_separable_where_asked_or_depthwise_or_large():
    assert not any(layer.separable_predictor for layer in chosen("resnet18").values())
    assert not any(layer.separable_predictor for layer in chosen("regnety_032").values())
    assert all(layer.separable_predictor for layer in chosen("efficientnet_b0").values())
    assert all(layer.separable_predictor for layer in chosen("resnet18", separable_predictor=True).values())
    for layer in chosen("mobilenetv3_small_050", separable_predictor=False).values():
        assert layer.offset_depthwise_weight is None
        assert layer.offset_weight.shape[1:] == (layer.in_channels, *layer.kernel_size)
    # Inception has dense 5x5, 1x7 and 3x3 kernels.
    for layer in chosen("inception_v3").values():
        assert layer.separable_predictor == (max(layer.kernel_size) > 3)


def flops(model):
    """Return the FLOPs of convolutions and linear layers by module, as torch counts them."""
    image = torch.empty(1, *model.pretrained_cfg["input_size"], device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    ops = {key.partition(".")[2]: value for key, value in counter.get_flop_counts().items()}
    return {key: {str(op): count for op, count in value.items()} for key, value in ops.items()}


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "efficientnet_b0", "mobilenetv2_100", "convnext_tiny"])
def test_predictor_of_a_depthwise_layer_costs_no_more_than_its_block(name):
    with torch.device("meta"):
        plain, model = timm.create_model(name).eval(), inject_(timm.create_model(name).eval())
    before, after = flops(plain), flops(model)
    layers = deformable(model)
    assert {kind(layer) for layer in layers.values()} == {"depthwise"}
    for layer in layers:
        # The convolutions within the layer are the predictor, the rest is the operator's.
        predictor = sum(count for op, count in after[layer].items() if "convolution" in op)
        assert 0 < predictor <= sum(before[block_of(layer, model)].values()), layer
