"""The preview: it changes nothing, and its numbers are right."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from zoo import DCNConfig, inject_, plan

NARROW = {"channels": (8, 16, 32, 64), "num_classes": 10}


def tiny(**kwargs):
    return timm.create_model("resnet18", **NARROW, **kwargs)


class Plain(nn.Module):
    """A network that timm doesn't know, and that takes only images of 32x32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 32 * 32, 5)

    def forward(self, x):
        return self.head(self.conv(self.stem(x)).flatten(1))


def flops_by_conv(model, size):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.randn(1, *size))
    root = type(model).__name__
    counts = counter.get_flop_counts()
    return counter.get_total_flops(), {
        name.removeprefix(f"{root}."): sum(ops.values())
        for name, ops in counts.items()
        if name.startswith(f"{root}.")
    }


@pytest.mark.parametrize("mode", [True, False])
def test_plan_changes_nothing(mode):
    model = tiny(drop_rate=0.5, drop_path_rate=0.5).train(mode)
    modules = list(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()

    plan(model)

    assert torch.equal(torch.get_rng_state(), rng)
    assert list(model.named_modules()) == modules
    assert all(module.training == mode and not module._forward_hooks for module in model.modules())
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_plan_says_what_inject_does():
    model = tiny()
    injection = plan(model)
    inject_(model)
    for replacement in injection.replacements:
        layer = model.get_submodule(replacement.fqn)
        assert replacement.new == repr(layer)
        assert replacement.old == repr(layer).replace("Deform", "").replace(", offset_groups=1, modulated=True", "")
        assert replacement.stage == int(replacement.fqn[5])
        assert replacement.params_after == sum(p.numel() for p in layer.parameters())
    assert injection.params_after == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_agree_with_the_flop_counter(groups):
    model = timm.create_model("resnet50", layers=(1, 1, 1, 1), cardinality=groups, base_width=16, num_classes=10)
    size = (3, 64, 64)
    injection = plan(model, DCNConfig(offset_groups=2), input_size=size)
    total, convs = flops_by_conv(model, size)
    assert injection.flops_before == total
    assert [r.flops_before for r in injection.replacements] == [convs[r.fqn] for r in injection.replacements]

    inject_(model, DCNConfig(offset_groups=2))
    total, convs = flops_by_conv(model, size)
    assert injection.flops_after == total
    assert [r.flops_after for r in injection.replacements] == [convs[r.fqn] for r in injection.replacements]


def test_input_size_is_timms_or_the_callers(capsys):
    assert plan(tiny()).input_size == (3, 224, 224)
    assert "one image of 3x224x224" in capsys.readouterr().out
    assert plan(tiny(), input_size=(3, 64, 64)).input_size == (3, 64, 64)
    assert "one image of 3x64x64" in capsys.readouterr().out


def test_the_channels_are_the_networks_where_timms_config_has_others(capsys):
    model = tiny(in_chans=1)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    injection = plan(model)
    assert injection.input_size == (1, 224, 224)
    assert injection.flops_before > 0
    assert "one image of 1x224x224" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("input_size", "why"), [(None, "without input_size"), ((3, 16, 16), "doesn't run on an image of 3x16x16")]
)
def test_flops_are_unknown_without_a_forward_pass(capsys, input_size, why):
    model = Plain()
    injection = plan(model, DCNConfig(stages=None), input_size=input_size)
    assert injection.flops_before is injection.flops_after is None
    assert injection.replacements[0].flops_after is None
    assert injection.params_after == injection.params_before + 27 * (4 * 9 + 1)
    out = capsys.readouterr().out
    assert "–" in out
    assert why in out
    assert not model.conv._forward_hooks


def test_convolutions_that_are_not_called_stay():
    class Reading(Plain):
        def __init__(self):
            super().__init__()
            self.read = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = nn.functional.conv2d(self.conv(self.stem(x)), self.read.weight, padding=1)
            return self.head(x.flatten(1))

    injection = plan(Reading(), input_size=(3, 32, 32))
    assert "read" not in [r.fqn for r in injection.replacements]


def test_what_stays_has_its_reason(capsys):
    with torch.device("meta"):
        injection = plan(timm.create_model("efficientnet_cc_b0_4e"))
    assert injection.refused["blocks.4.0.conv_dw"] == "CondConv2d has its own forward"
    assert "stays as it is (CondConv2d has its own forward): blocks.4.0.conv_dw" in capsys.readouterr().out


def test_table(capsys):
    injection = plan(tiny(), DCNConfig(stages=(4,)), input_size=(3, 224, 224))
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "layer4.0.conv1" in line)
    assert "Conv2d -> DeformConv2d" in row
    assert "18.43 k -> 26.23 k" in row
    total = next(line for line in lines if "whole network" in line)
    assert f"{injection.params_after / injection.params_before - 1:+.1%}" in total
    assert f"{injection.flops_after / injection.flops_before - 1:+.1%}" in total
