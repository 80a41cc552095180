"""What is refused: configs, models and convolutions."""

import copy

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import nn

from zoo import DCNConfig, inject_, plan
from zoo.select import mismatch, refusal


def tiny():
    return timm.create_model("resnet18", channels=(8, 16, 32, 64), num_classes=10)


def block_with(method):
    """Return a block that could fold its branches by a method of this name."""
    return type("RepBlock", (nn.Sequential,), {method: lambda self: self})()


def converted():
    return inject_(tiny(), DCNConfig(stages=(4,)))


ERRORS = {
    "nothing fits": (
        lambda: timm.create_model("test_convnext"),
        DCNConfig(),
        r"no convolution of ConvNeXt can be replaced:\n(.|\n)*kernel 7x7 instead of 3x3: stages.0.blocks.0.conv_dw",
    ),
    "nothing asked for": (tiny, DCNConfig(include=("layer3",)), r"not in include=\('layer3',\): layer2.0.conv1"),
    "all excluded": (tiny, DCNConfig(exclude=("*",)), r"in exclude=\('\*',\): layer2.0.conv1, .* and 8 more"),
    "no convolution": (lambda: nn.Sequential(nn.Linear(2, 2)), DCNConfig(stages=None), "it has none"),
    "no such stage": (tiny, DCNConfig(stages=(3, 5)), r"stages \[0, 1, 2, 3, 4\], but not \[5\], got .*\(3, 5\)"),
    "stage cut off": (
        lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 2)),
        DCNConfig(),
        r"stages \[0, 1, 2\], but not \[3, 4\]",
    ),
    "no feature_info": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3)),
        DCNConfig(),
        r"no timm feature_info .* got config.stages=\(2, 3, 4\); use stages=None",
    ),
    "already converted": (
        converted,
        DCNConfig(stages=(2,)),
        "already converted: inject_ runs once, and layer4.0.conv1,",
    ),
    "a convolution": (lambda: nn.Conv2d(3, 3, 3), DCNConfig(stages=None), r"got the convolution Conv2d\(3, 3"),
    "no such module": (tiny, DCNConfig(include=("layer2.*", "layr3.0")), "'layr3.0'; close names: layer3.0"),
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


REFUSALS = {
    "StdConv2d instead of nn.Conv2d": StdConv2d(4, 4, 3),
    "kernel 1x1 instead of 3x3": nn.Conv2d(4, 4, 1),
    "kernel 3x5 instead of 3x3": nn.Conv2d(4, 4, (3, 5)),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "padding_mode='reflect'": nn.Conv2d(4, 4, 3, padding_mode="reflect"),
    "torch.int8 instead of a floating dtype": integer_conv(),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refused_convolutions(reason):
    assert reason in refusal(REFUSALS[reason], [], reads_image=False)


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, dilation=2)])
def test_accepted_convolutions(conv):
    assert refusal(conv, [nn.Sequential()], reads_image=False) is None


def test_refuses_the_convolution_that_reads_the_image():
    assert refusal(nn.Conv2d(4, 4, 3), [], reads_image=True) == "reads the image"
    model = inject_(timm.create_model("ese_vovnet19b_slim"), DCNConfig(stages=None))
    assert type(model.stem[0].conv) is nn.Conv2d
    assert type(model.stem[1].conv) is not nn.Conv2d


@pytest.mark.parametrize("method", ["reparameterize", "switch_to_deploy", "fuse", "fuse_conv_bn"])
def test_refuses_blocks_that_fold_their_branches(method):
    reason = refusal(nn.Conv2d(4, 4, 3), [nn.Sequential(), block_with(method)], reads_image=False)
    assert reason == f"inside a RepBlock, whose {method}() would drop the offsets"


def test_repvgg_has_nothing_to_convert():
    with torch.device("meta"):
        model = timm.create_model("repvgg_a0")
    with pytest.raises(ValueError, match=r"inside a RepVggBlock, whose reparameterize\(\) would drop the offsets"):
        inject_(model)


@pytest.mark.parametrize(
    ("names", "stage", "config", "reason"),
    [
        (["a.conv"], 2, DCNConfig(), None),
        (["a.conv"], None, DCNConfig(stages=None), None),
        (["a.conv"], None, DCNConfig(), "behind the last stage, not in stages=(2, 3, 4)"),
        (["a.conv"], 1, DCNConfig(), "stage 1, not in stages=(2, 3, 4)"),
        (["a.conv"], 2, DCNConfig(include=("conv",)), "not in include=('conv',)"),
        (["a.conv"], 2, DCNConfig(exclude=("a.*",)), "in exclude=('a.*',)"),
        (["a.conv", "b.conv"], 2, DCNConfig(include=("b.*",)), None),
        (["a.conv", "b.conv"], 2, DCNConfig(exclude=("b.*",)), "in exclude=('b.*',)"),
    ],
)
def test_mismatch(names, stage, config, reason):
    assert mismatch(names, stage, config) == reason


def test_config_takes_lists():
    config = DCNConfig(stages=[3, 4], include=["*"], exclude=["head.*"])
    assert config == DCNConfig(stages=(3, 4), exclude=("head.*",))
    assert hash(config) == hash(DCNConfig(stages=(3, 4), exclude=("head.*",)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stages": ()}, ValueError, r"at least one stage, or None for all, got self.stages=\(\)"),
        ({"stages": 4}, TypeError, "a sequence of int for stages, got 4"),
        ({"stages": ("4",)}, TypeError, r"a sequence of int for stages, got '4' in \('4',\)"),
        ({"stages": (True,)}, TypeError, "got True"),
        ({"include": "layer4.*"}, TypeError, "a sequence of str for include, got 'layer4"),
        ({"include": ()}, ValueError, "at least one include pattern"),
        ({"exclude": (3,)}, TypeError, "a sequence of str for exclude, got 3"),
        ({"offset_groups": 0}, ValueError, "got self.offset_groups=0"),
        ({"offset_groups": 1.5}, TypeError, "got self.offset_groups=1.5"),
        ({"offset_bound": 0.0}, ValueError, "got self.offset_bound=0.0"),
        ({"offset_bound": float("inf")}, ValueError, "got self.offset_bound=inf"),
    ],
)
def test_config_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        DCNConfig(**arguments)
