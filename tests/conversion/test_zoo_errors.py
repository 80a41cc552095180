"""What is refused: configs, models and convolutions."""

import copy
import re

import pytest
import timm
import torch
from helpers import without_data
from timm.layers import StdConv2d
from torch import nn

import zoo
from zoo import DCNConfig, inject_, plan
from zoo.select import block_of, mismatch, refusal


def tiny():
    return timm.create_model("resnet18", channels=(8, 16, 32, 64), num_classes=10)


def converted():
    return inject_(tiny(), DCNConfig(stages=(4,)))


ERRORS = {
    "nothing fits": (
        lambda: timm.create_model("test_vit"),
        DCNConfig(),
        r"VisionTransformer can be replaced:\n  patch embedding: kernel and stride are 16x16: patch",
    ),
    "nothing asked for": (tiny, DCNConfig(include=("layer3",)), r"not in include=\('layer3',\): layer2.0.conv1"),
    "all excluded": (tiny, DCNConfig(exclude=("*",)), r"in exclude=\('\*',\): layer2.0.conv1, .* and 8 more"),
    "no convolution": (lambda: nn.Sequential(nn.Linear(2, 2)), DCNConfig(stages=None), "it has none"),
    "no such stage": (
        tiny,
        DCNConfig(stages=(3, 5)),
        r"stages \[0, 1, 2, 3, 4\], but none in \[5\], got .*\(3, 5\)",
    ),
    "no convolution in the stage": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        DCNConfig(stages=(3, 4)),
        r"convolutions in the stages \[1\], but none in \[3, 4\], .*take a network of convolutions",
    ),
    "stage cut off": (
        lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 2)),
        DCNConfig(stages=(2, 3, 4)),
        r"stages \[0, 1, 2\], but none in \[3, 4\]",
    ),
    "no feature_info": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3)),
        DCNConfig(stages=(2, 3, 4)),
        r"neither a timm feature_info nor .* got stages=\(2, 3, 4\); pass input_size",
    ),
    "already converted": (
        converted,
        DCNConfig(stages=(2,)),
        "already converted: inject_ runs once, and layer4.0.conv1,",
    ),
    "a convolution": (lambda: nn.Conv2d(3, 3, 3), DCNConfig(stages=None), r"got the convolution Conv2d\(3, 3"),
    "no such module": (tiny, DCNConfig(include=("layer2.*", "layr3.0")), "'layr3.0'; close names: layer3.0"),
    "no such module to exclude": (tiny, DCNConfig(exclude=("layer5.*",)), "exclude pattern 'layer5"),
    "no such kind": (tiny, DCNConfig(kinds=("depthwise",)), r"dense, not in kinds=\('depthwise',\): layer2"),
    "no such kernel": (tiny, DCNConfig(kernels=(5,)), r"kernel 3x3, not in kernels=\(5,\): layer2.0.conv1"),
    "none that it wants": (tiny, DCNConfig(where=lambda name, conv: False), r"where\(\) is false: layer2.0.conv1"),
    "width of one layer": (
        tiny,
        DCNConfig(offset_group_width=16),
        "layer2.0.conv1: expected offset_group_width to",
    ),
    "offset_groups of one layer": (
        tiny,
        DCNConfig(offset_groups=16),
        r"layer2.0.conv1: .*in_channels=8, .*=16; exclude",
    ),
}


@pytest.mark.parametrize("verb", [plan, inject_])
@pytest.mark.parametrize("case", ERRORS)
def test_error_leaves_the_model_untouched(case, verb):
    make, config, message = ERRORS[case]
    model = make()
    modules = list(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        verb(model, config)
    assert list(model.named_modules()) == modules
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def integer_conv():
    conv = nn.Conv2d(4, 4, 3)
    conv.weight = nn.Parameter(torch.ones(4, 4, 3, 3, dtype=torch.int8), requires_grad=False)
    return conv


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


REFUSALS = {
    "Doubled has its own forward": Doubled(4, 4, 3),
    "kernel 1x1": nn.Conv2d(4, 4, 1),
    "kernel 2x2": nn.Conv2d(4, 4, 2),
    "patch embedding: kernel and stride are 4x4": nn.Conv2d(4, 4, 4, stride=4),
    "torch.int8 instead of a floating dtype": integer_conv(),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refused_convolutions(reason):
    assert refusal(REFUSALS[reason], reads_image=False, positions=1) == reason


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, (1, 7)),
        nn.Conv2d(4, 4, 4, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        StdConv2d(4, 4, 3),
    ],
)
def test_accepted_convolutions(conv):
    assert refusal(conv, reads_image=False, positions=None) is None


def test_refuses_the_convolution_that_reads_the_image():
    conv = nn.Conv2d(4, 4, 3)
    assert refusal(conv, reads_image=True, positions=1) == "reads the image"
    model = inject_(timm.create_model("ese_vovnet19b_slim"), DCNConfig(stages=(0, 1)))
    assert type(model.stem[0].conv) is nn.Conv2d
    assert type(model.stem[1].conv) is not nn.Conv2d


def test_refuses_the_convolution_that_is_not_called():
    assert "is not called" in refusal(nn.Conv2d(4, 4, 3), reads_image=False, positions=0)


CONV = nn.Conv2d(4, 4, 3)


@pytest.mark.parametrize(
    ("names", "stage", "config", "reason"),
    [
        (["a.conv"], 2, DCNConfig(), None),
        (["a.conv"], None, DCNConfig(), None),
        (["a.conv"], None, DCNConfig(stages=(2, 3)), "after the last stage, not in stages=(2, 3)"),
        (["a.conv"], 1, DCNConfig(stages=(2, 3)), "stage 1, not in stages=(2, 3)"),
        (["a.conv"], 2, DCNConfig(kinds=("grouped",)), "dense, not in kinds=('grouped',)"),
        (["a.conv"], 2, DCNConfig(kernels=(3, 5)), None),
        (["a.conv"], 2, DCNConfig(include=("conv",)), "not in include=('conv',)"),
        (["a.conv"], 2, DCNConfig(exclude=("a.*",)), "in exclude=('a.*',)"),
        (["a.conv", "b.conv"], 2, DCNConfig(include=("b.*",)), None),
        (["a.conv", "b.conv"], 2, DCNConfig(exclude=("b.*",)), "in exclude=('b.*',)"),
        (["a.conv"], 2, DCNConfig(where=lambda name, conv: conv is CONV and name == "a.conv"), None),
    ],
)
def test_mismatch(names, stage, config, reason):
    assert mismatch(CONV, names, stage, config) == reason


BLOCKS = {
    "resnet18": {"layer3.1.conv2": "layer3.1"},
    "convnext_atto": {"stages.2.blocks.1.conv_dw": "stages.2.blocks.1"},
    "res2net50_26w_4s": {"layer2.0.convs.1": "layer2.0"},
    "densenet121": {"features.denseblock2.denselayer1.conv2": "features.denseblock2.denselayer1"},
    "regnetx_002": {"s2.b1.conv2.conv": "s2.b1"},
    "ese_vovnet19b_slim": {"stages.1.blocks.0.conv_mid.0.conv": "stages.1.blocks.0"},
    "mixnet_s": {"blocks.2.0.conv_dw.0": "blocks.2.0"},
    "vgg11": {"features.8": "features.8"},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_of_a_convolution(name):
    model = without_data(name)
    for conv, block in BLOCKS[name].items():
        assert model.get_submodule(conv).kernel_size
        assert block_of(conv, model) == block


def test_config_takes_lists():
    config = DCNConfig(stages=[3, 4], include=["*"], exclude=["head.*"])
    assert config == DCNConfig(stages=(3, 4), exclude=("head.*",))
    assert hash(config) == hash(DCNConfig(stages=(3, 4), exclude=("head.*",)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stages": ()}, ValueError, r"at least one stage, or None for the deep ones, got stages=\(\)"),
        ({"stages": 4}, TypeError, "a sequence of int for stages, got 4"),
        ({"stages": ("4",)}, TypeError, r"a sequence of int for stages, got '4' in \('4',\)"),
        ({"stages": (True,)}, TypeError, "got True"),
        ({"include": "layer4.*"}, TypeError, "a sequence of str for include, got 'layer4"),
        ({"include": ()}, ValueError, "at least one include pattern"),
        ({"exclude": (3,)}, TypeError, "a sequence of str for exclude, got 3"),
        ({"offset_groups": 0}, ValueError, "got offset_groups=0"),
        ({"every": 0}, ValueError, "got every=0"),
        ({"offset_group_width": True}, TypeError, "got offset_group_width=True"),
        ({"offset_groups": 2, "offset_group_width": 8}, ValueError, "expected one of offset_groups=2"),
        ({"kinds": ("sparse",)}, ValueError, r"some of the kinds .* got kinds=\('sparse',\)"),
        ({"kernels": ()}, ValueError, "at least one kernel"),
        ({"offset_groups": 1.5}, TypeError, "got offset_groups=1.5"),
        ({"offset_bound": 0.0}, ValueError, "got offset_bound=0.0"),
        ({"offset_bound": float("inf")}, ValueError, "got offset_bound=inf"),
        ({"offset_bound": "8"}, TypeError, "a number of pixels, or None, got offset_bound='8'"),
        ({"offset_bound": True}, TypeError, "got offset_bound=True"),
        ({"modulated": None}, TypeError, "True or False, got modulated=None"),
        ({"separable_predictor": "no"}, TypeError, "True, False or None, got separable_predictor='no'"),
        ({"where": "layer4"}, TypeError, "a function of name and convolution, or None, got where='layer4'"),
        ({"exclude": None}, TypeError, "a sequence of str for exclude, got None"),
    ],
)
def test_config_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        DCNConfig(**arguments)


@pytest.mark.parametrize("value", [torch.zeros(1, 3, 224, 224), torch.zeros(1, 3, 224, 224).numpy(), "x" * 999])
def test_a_long_value_is_named_by_its_type(value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"got {kind}( of shape \\[1, 3, 224, 224\\])?; pass"):
        inject_(tiny(), value)


NO_NETWORK = "expected a network, an nn.Module, for model, got {}; timm.create_model builds one"


@pytest.mark.parametrize("model", [None, "resnet18", nn.Conv2d, [nn.Conv2d(3, 3, 3)]])
@pytest.mark.parametrize(
    "verb",
    [
        plan,
        inject_,
        lambda model: zoo.fold_(model, [torch.zeros(1, 3, 8, 8)]),
        lambda model: zoo.fuse_batch_norm_(model, torch.zeros(1, 3, 8, 8)),
        lambda model: zoo.save(model, "nowhere"),
        zoo.optim.param_groups,
    ],
)
def test_a_model_is_a_network(verb, model):
    with pytest.raises(TypeError, match=re.escape(NO_NETWORK.format(repr(model)))):
        verb(model)


@pytest.mark.parametrize("verb", [plan, inject_])
def test_a_config_is_a_dcn_config(verb):
    for config in ({}, None, {"stages": (4,)}, (4,)):
        with pytest.raises(
            TypeError,
            match=f"expected a DCNConfig, or a list of them, for config, got {re.escape(repr(config))}; pass",
        ):
            verb(tiny(), config)


@pytest.mark.parametrize("verb", [plan, inject_])
@pytest.mark.parametrize(
    ("size", "error"),
    [
        (224, TypeError),
        ("3x8", TypeError),
        ((3, 8.0, 8), TypeError),
        ((224, 224), ValueError),
        ([3, 0, 8], ValueError),
    ],
)
def test_an_input_size_is_channels_height_and_width(verb, size, error):
    with pytest.raises(error, match=rf"\(C, H, W\).* for input_size, got {re.escape(repr(size))}"):
        verb(tiny(), input_size=size)


def test_batches_and_images_are_what_they_should_be():
    with pytest.raises(TypeError, match="an iterable of batches, such as a DataLoader, got None"):
        zoo.fold_(converted(), None)
    with pytest.raises(TypeError, match=r"a tensor of images \[N, C, H, W\], got <class 'list'>"):
        zoo.fuse_batch_norm_(converted().eval(), [torch.zeros(3, 8, 8)])
