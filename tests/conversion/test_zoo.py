"""Backbones with deformable convolutions: what is replaced, and that nothing else changes."""

import copy
import logging
import pickle

import pytest
import timm
import torch
from helpers import NARROW, Shared, deformable, perturbed, randomise_offsets
from timm.models import FeatureListNet
from torch import nn

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_

# name: (arguments, deformable layers at stages 2, 3, 4, some of them, image size)
BACKBONES = {
    "resnet18": ({}, 12, ("layer2.0.conv1", "layer4.1.conv2"), 64),
    "resnet50": ({}, 13, ("layer2.0.conv2", "layer3.5.conv2", "layer4.2.conv2"), 64),
    "resnext50_32x4d": ({}, 13, ("layer2.0.conv2", "layer4.2.conv2"), 64),
    "res2net50_26w_4s": ({}, 39, ("layer2.0.convs.0", "layer4.2.convs.2"), 64),
    "resnetv2_50": ({}, 13, ("stages.1.blocks.0.conv2", "stages.3.blocks.2.conv2"), 64),
    "vgg11_bn": ({"mlp_ratio": 0.05}, 4, ("features.15", "features.25"), 64),
    "darknet53": ({}, 23, ("stages.2.blocks.0.conv2.conv", "stages.4.blocks.3.conv2.conv"), 64),
    "cspdarknet53": ({}, 23, ("stages.2.conv_down.conv", "stages.4.blocks.3.conv2.conv"), 64),
    "dla34": ({}, 20, ("level3.tree1.tree1.conv1", "level5.tree2.conv2"), 64),
    "ese_vovnet39b": ({}, 25, ("stages.1.blocks.0.conv_mid.0.conv", "stages.3.blocks.1.conv_mid.4.conv"), 64),
    "dpn68": ({}, 19, ("features.conv3_1.c3x3_b.conv", "features.conv5_3.c3x3_b.conv"), 64),
    "selecsls42": ({}, 15, ("features.2.conv1.0", "head.1.0"), 64),
    "densenet121": ({}, 52, ("features.denseblock2.denselayer1.conv2",), 64),
    "regnetx_002": ({}, 12, ("s2.b1.conv2.conv", "s4.b7.conv2.conv"), 64),
    "convnext_atto": ({}, 10, ("stages.1.blocks.0.conv_dw", "stages.3.blocks.1.conv_dw"), 64),
    "efficientnet_b0": ({}, 13, ("blocks.2.0.conv_dw", "blocks.6.0.conv_dw"), 64),
    "tf_efficientnet_lite0": ({}, 13, ("blocks.2.0.conv_dw", "blocks.6.0.conv_dw"), 65),
    "mobilenetv3_small_100": ({}, 10, ("blocks.1.0.conv_dw", "blocks.4.2.conv_dw"), 64),
    "mixnet_s": ({}, 40, ("blocks.2.0.conv_dw.0",), 64),
    "resnetv2_50x1_bit": ({}, 13, ("stages.1.blocks.0.conv2",), 64),
    "nf_resnet26": ({}, 6, ("stages.1.0.conv2",), 64),
    "dm_nfnet_f0": ({}, 22, ("stages.1.0.conv2b",), 64),
    "vit_small_r26_s32_224": ({"img_size": 64}, 8, (), 64),
    "hrnet_w18_small": ({}, 57, (), 64),
    "convmixer_768_32": ({}, 32, ("blocks.0.0.fn.0",), 35),
    "repvgg_a0": ({}, 19, ("stages.1.0.conv_kxk.conv",), 64),
    "levit_128s": ({}, 3, (), 224),
    "inception_v3": ({}, 50, ("Mixed_5b.branch3x3dbl_2.conv", "Mixed_7c.branch3x3dbl_2.conv"), 96),
}


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_backbone_starts_as_the_plain_network(name):
    kwargs, count, sample, size = BACKBONES[name]
    model = perturbed(name, **kwargs)
    x = torch.randn(2, 3, size, size)
    plain_parameters = dict(model.named_parameters())
    plain_keys = list(model.state_dict())
    plain, exact = model(x), copy.deepcopy(model).double()(x.double())

    assert inject_(model) is model

    layers = deformable(model)
    assert len(layers) == count
    assert set(sample) <= set(layers)
    # An error budget: twice that of the plain network in the same precision, and one rounding step.
    budget = 2 * (plain - exact).abs().max() + torch.finfo(plain.dtype).eps * exact.abs().max()
    assert (model(x) - exact).abs().max() <= budget
    added = {f"{name}.{key}" for name, layer in layers.items() for key, _ in layer.named_parameters()}
    added -= set(plain_keys)
    assert all(key.rpartition(".")[2].startswith("offset_") for key in added)
    assert set(model.state_dict()) == {*plain_keys, *added}
    assert all(model.get_parameter(key) is parameter for key, parameter in plain_parameters.items())


def test_state_dict_round_trip():
    model = inject_(perturbed("resnet18", **NARROW))
    randomise_offsets(model)
    other = inject_(timm.create_model("resnet18", **NARROW)).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kwargs"), [("resnet18", NARROW), ("resnet50", {"num_classes": 10})])
def test_training_step_moves_the_predictors(name, kwargs):
    torch.manual_seed(0)
    # With timm's zero-initialised last norms the branches, and so the offsets, get no gradient at first.
    model = inject_(timm.create_model(name, zero_init_last=False, **kwargs))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    optimizer.step()
    for layer in deformable(model).values():
        assert layer.offset_weight.grad.any()
        assert layer.offset_weight.any()


def test_mode_dtype_and_requires_grad_are_kept():
    model = timm.create_model("resnet18", **NARROW).double().train()
    model.layer2.eval()
    model.layer3.requires_grad_(False)
    layers = deformable(inject_(model))
    for name, layer in layers.items():
        assert layer.training == (not name.startswith("layer2"))
        assert layer.weight.requires_grad == (not name.startswith("layer3"))
        assert layer.offset_weight.requires_grad
        assert {p.dtype for p in layer.parameters()} == {torch.float64}


def test_device_is_kept():
    with torch.device("meta"):
        model = timm.create_model("resnet18", **NARROW)
    assert {p.device.type for p in inject_(model).parameters()} == {"meta"}


def test_hooks_are_kept():
    model = timm.create_model("resnet18", **NARROW).eval()
    seen = []
    model.layer2[0].conv1.register_forward_hook(lambda module, args, output: seen.append(module))
    inject_(model)(torch.randn(1, 3, 64, 64))
    assert seen == [model.layer2[0].conv1]
    assert isinstance(seen[0], DeformConv2d)


def test_a_hook_can_still_be_removed_after_the_conversion():
    model, seen = timm.create_model("resnet18", **NARROW).eval(), []
    handle = model.layer2[0].conv1.register_forward_hook(lambda *_: seen.append(1))
    inject_(model)
    handle.remove()
    model(torch.randn(1, 3, 64, 64))
    assert seen == []


def test_a_compiled_convolution_becomes_deformable():
    model = perturbed("resnet18", **NARROW)
    model.layer2[0].conv1.compile(backend="eager")
    inject_(model)
    x = torch.randn(1, 3, 64, 64)
    plain = model(x)
    randomise_offsets(model)
    assert not torch.allclose(model(x), plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["repvgg_a0", "repvit_m0_9", "levit_128s", "fastvit_t8"])
@torch.no_grad()
def test_reparameterisation_keeps_the_offsets(name, copied):
    model = inject_(perturbed(name))
    randomise_offsets(model)
    model = copied(model)
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    before = model(x)
    with pytest.warns(UserWarning, match="stays as it is: folding its branches would drop the offsets"):
        after = timm.utils.reparameterize_model(model)
    assert len(deformable(after)) == len(deformable(model))
    torch.testing.assert_close(after(x), before)


@pytest.mark.parametrize("feature_cls", ["list", "hook", "getter"])
def test_features_only_then_inject(feature_cls):
    kwargs = {"features_only": True, "feature_cls": feature_cls, **NARROW}
    plain = perturbed("resnet18", **kwargs)
    model = inject_(copy.deepcopy(plain))
    assert len(deformable(model)) == 12
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))


def test_features_only_with_flattened_names():
    model = inject_(timm.create_model("vgg11_bn", features_only=True, mlp_ratio=0.05))
    assert list(deformable(model)) == ["features_15", "features_18", "features_22", "features_25"]


def test_inject_then_features_only():
    plain = perturbed("resnet18", **NARROW)
    model = inject_(copy.deepcopy(plain))
    x = torch.randn(2, 3, 64, 64)
    features = FeatureListNet(model, out_indices=(2, 3, 4))(x)
    torch.testing.assert_close(features, FeatureListNet(plain, out_indices=(2, 3, 4))(x))
    torch.testing.assert_close(model.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True), features)


def test_dilated_network_keeps_its_stages():
    plain = perturbed("resnet50", output_stride=8, num_classes=10)
    model = inject_(copy.deepcopy(plain))
    assert list(deformable(model)) == list(deformable(inject_(timm.create_model("resnet50"))))
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))


def test_deepcopy_is_independent():
    model = inject_(perturbed("resnet18", **NARROW))
    randomise_offsets(model)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
    randomise_offsets(twin)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_config_reaches_the_layers():
    config = DCNConfig(
        stages=[3, 4], include=["*.conv2"], exclude=["layer4.1.*"], offset_groups=4, modulated=False, offset_bound=2
    )
    layers = deformable(inject_(timm.create_model("resnet18", **NARROW), config))
    assert list(layers) == ["layer3.0.conv2", "layer3.1.conv2", "layer4.0.conv2"]
    for layer in layers.values():
        assert (layer.offset_groups, layer.modulated, layer.offset_bound) == (4, False, 2)


def test_shared_convolution_becomes_one_layer():
    plain = Shared()
    model = inject_(copy.deepcopy(plain), DCNConfig(stages=None))
    assert isinstance(model.first[0], DeformConv2d)
    assert model.first[0] is model.second[0]
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(model(x), plain(x))


def test_each_layer_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, logger="zoo.inject"):
        model = inject_(timm.create_model("resnet18", **NARROW))
    *layers, total = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in layers] == list(deformable(model))
    assert total == f"ResNet: {len(layers)} layers became deformable"
    assert [r.levelname for r in caplog.records] == ["DEBUG"] * len(layers) + ["INFO"]
    assert layers[0] == (
        "layer2.0.conv1: Conv2d(8, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)"
        f" -> {model.layer2[0].conv1}"
    )


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model = perturbed("resnet18", layers=(1, 1, 1, 1), features_only=True, out_indices=(1, 2), **NARROW)
    inject_(model, DCNConfig(stages=(1, 2)))
    randomise_offsets(model)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
