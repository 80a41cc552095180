"""DCNv3 and DCNv4 in a network: where they keep its output, and where they need a consent."""

import copy

import pytest
import timm
import torch
from helpers import perturbed
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo.scripts.config.schema import DCN

import zoo
from zoo import DCNConfig, inject_, plan
from zoo.coverage import examine, train
from zoo.mixers import DeformMixer2d, make
from zoo.optim import param_groups

DIMS = [*2 * [128], *6 * [320], *2 * [512]]  # of the blocks at strides 8 to 32


def poolformer():
    return perturbed("poolformerv2_s12", num_classes=5)


def mobile():
    return perturbed("mobilenetv2_035", num_classes=5)


def mixers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, DeformMixer2d)}


@torch.no_grad()
def perturb(model):
    """Let all layers sample elsewhere."""
    for layer in mixers(model).values():
        for parameter in layer.predictor_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


KEEP = {
    "PoolFormer, v3": (poolformer, DCNConfig(operator="v3"), 10),
    "PoolFormer, v4": (poolformer, DCNConfig(operator="v4"), 10),
    "ConvNeXt, v4": (
        lambda: perturbed("convnext_atto", num_classes=5),
        DCNConfig(operator="v4", offset_group_width=1, stages=(2,)),
        2,
    ),
    "MobileNetV2 with strides, v4": (
        mobile,
        DCNConfig(operator="v4", offset_group_width=1, stages=(1, 2), kinds=("depthwise",)),
        5,
    ),
    "EfficientNet, v4": (
        lambda: perturbed("test_efficientnet", num_classes=5),
        DCNConfig(operator="v4", offset_group_width=1),
        2,
    ),
}


@pytest.mark.parametrize("case", KEEP)
def test_the_output_stays_the_same(case):
    build, config, count = KEEP[case]
    model, x = build().double(), torch.randn(2, 3, 64, 64).double()
    with torch.no_grad():
        before = model(x)
        injection = plan(model, config)
        inject_(model, config)
        layers = mixers(model)
        assert len(layers) == len(injection.replacements) == count
        assert all(r.changes_output is None for r in injection.replacements)
        assert all(p.dtype == torch.double for p in model.parameters())
        assert torch.allclose(model(x), before, atol=1e-12)
        perturb(model)
        assert not torch.allclose(model(x), before, atol=1e-3)


LAYERS = [
    nn.AvgPool2d(3, 1, 1),
    nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    nn.AvgPool2d((3, 5), (2, 1), (0, 2), count_include_pad=False),
    nn.AvgPool2d(4, 2, 1),
    nn.Conv2d(6, 6, 3, padding=1, groups=6),
    nn.Conv2d(6, 6, (5, 3), stride=2, padding=(2, 0), dilation=(1, 2), groups=6, bias=False),
    nn.Conv2d(6, 6, 4, stride=1, padding=1, groups=6),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_a_layer_starts_as_what_it_replaces(layer, operator):
    layer, x = copy.deepcopy(layer).double(), torch.randn(2, 6, 9, 11).double()
    is_conv = isinstance(layer, nn.Conv2d)
    mixer = make(layer, operator, 6, 6 if is_conv else 2, like=x)
    right = layer(x)
    assert mixer(x).shape == right.shape
    if not is_conv or operator == "v4":
        assert torch.allclose(mixer(x), right, atol=1e-12)
    else:
        # DCNv3 has no filters: it equals the convolution on constant images, where no window leaves the image.
        x = torch.randn(2, 6, 1, 1).double().expand(2, 6, 15, 15)
        assert torch.allclose(mixer(x)[:, :, 4:-4, 4:-4], layer(x)[:, :, 4:-4, 4:-4], atol=1e-12)
        assert not torch.allclose(mixer(torch.randn_like(x)), layer(torch.randn_like(x)), atol=1e-3)


def test_groups_share_the_mean_of_their_filters():
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4).double()
    mixer = make(conv, "v4", 4, 2, like=conv.weight)
    mean = conv.weight.view(2, 2, 1, 3, 3).mean(1, keepdim=True).expand(2, 2, 1, 3, 3).reshape(4, 1, 3, 3)
    x = torch.randn(1, 4, 6, 6).double()
    assert torch.allclose(mixer(x), nn.functional.conv2d(x, mean, conv.bias, padding=1, groups=4), atol=1e-12)
    assert mixer.bias is conv.bias


@pytest.mark.parametrize("verb", [plan, inject_])
@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (
            "v3",
            r"masks of DCNv3 are positive .* don't\); keep_output=False allows it: stages",
        ),
        ("v4", r"channels of a group share .*; offset_group_width=1 keeps it, keep_output=False allows it: stages"),
    ],
)
def test_what_changes_the_output_needs_a_consent(verb, operator, reason):
    model = perturbed("convnext_atto", num_classes=5)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=r"or average pooling of ConvNeXt can be replaced:\n  would"):
        verb(model, DCNConfig(operator=operator))
    with pytest.raises(ValueError, match=reason):
        verb(model, DCNConfig(operator=operator))
    assert [name for name, _ in model.named_modules()] == names


@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_with_consent_the_plan_says_what_changes(operator, capsys):
    torch.manual_seed(0)
    model, x = perturbed("convnext_atto", num_classes=5), torch.randn(1, 3, 64, 64)
    config = DCNConfig(operator=operator, keep_output=False, stages=(3,))
    injection = plan(model, config)
    out = " ".join(capsys.readouterr().out.split())
    assert len(injection.replacements) == 6
    assert all(r.changes_output in out for r in injection.replacements)
    assert f"CHANGES THE OUTPUT ({injection.replacements[0].changes_output}): stages.2.blocks.0.conv_dw" in out
    with torch.no_grad():
        before = model(x)
        assert not torch.allclose(inject_(model, config)(x), before, atol=1e-4)


@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_parameters_and_flops_are_those_of_the_network(operator):
    model, config, size = poolformer(), DCNConfig(operator=operator), (3, 64, 64)
    injection = plan(model, config, input_size=size)
    assert all(r.flops_before == 0 for r in injection.replacements)
    inject_(model, config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *size))
    assert injection.flops_after == counter.get_total_flops()
    assert injection.params_after == sum(p.numel() for p in model.parameters())
    assert [r.new for r in injection.replacements] == [repr(layer) for layer in mixers(model).values()]


def test_planning_draws_no_random_numbers():
    model = poolformer()
    rng = torch.get_rng_state()
    plan(model, DCNConfig(operator="v3"))
    assert torch.equal(torch.get_rng_state(), rng)
    assert not mixers(model)


def test_groups_have_16_channels_unless_the_config_says_otherwise():
    def groups(**fields):
        model = inject_(poolformer(), DCNConfig(operator="v4", **fields))
        return [layer.layer.group for layer in mixers(model).values()]

    assert groups() == [dim // 16 for dim in DIMS]
    assert groups(offset_groups=4) == [4] * 10
    assert groups(offset_group_width=8) == [dim // 8 for dim in DIMS]
    with pytest.raises(ValueError, match="offset_group_width to divide channels=128, got 5; exclude this layer"):
        groups(offset_group_width=5)


REASONS = {
    "dense": (
        lambda: timm.create_model("resnet18"),
        DCNConfig(operator="v3"),
        "dense: DCNv3 replaces",
    ),
    "kind": (
        mobile,
        DCNConfig(operator="v4", kinds=("pooling",), keep_output=False),
        "depthwise, not in kinds=",
    ),
    "kernel": (poolformer, DCNConfig(operator="v4", kernels=(5,)), r"kernel 3x3, not in kernels=\(5,\)"),
    "twice": (
        lambda: inject_(poolformer(), DCNConfig(operator="v4")),
        DCNConfig(operator="v4"),
        "already converted: inject_ runs once, and stages.1.blocks.0",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_reasons(case):
    build, config, reason = REASONS[case]
    with pytest.raises(ValueError, match=reason):
        plan(build(), config)


def test_unusual_poolings_and_convolutions_stay():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1),
                nn.AvgPool2d(3, 1, 1, ceil_mode=True),
                nn.AvgPool2d(3, 1, 1, divisor_override=2),
                nn.AvgPool2d(2, 2),
                nn.Conv2d(4, 4, 3, padding="same", groups=4),
                nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4),
                nn.Conv2d(4, 8, 3, padding=1, groups=4),
                nn.Conv2d(8, 8, 3, padding=1, groups=8),
            )

        def forward(self, x):
            return self.net(x)

    injection = plan(Odd(), DCNConfig(operator="v4", keep_output=False))
    assert [r.fqn for r in injection.replacements] == ["net.7"]
    assert injection.refused == {
        "net.0": "dense: DCNv4 replaces depthwise convolutions with one filter for each channel",
        "net.1": "ceil_mode or divisor_override",
        "net.2": "ceil_mode or divisor_override",
        "net.4": "padding='same', padding_mode='zeros'",
        "net.5": "padding=(1, 1), padding_mode='reflect'",
        "net.6": "depthwise: DCNv4 replaces depthwise convolutions with one filter for each channel",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operator": "v5"}, r"one of \('v2', 'v3', 'v4'\), got operator='v5'"),
        ({"operator": "v3", "modulated": False}, "only operator='v2' has modulated, got operator='v3'"),
        ({"operator": "v4", "offset_bound": 2.0}, "only operator='v2' has offset_bound"),
    ],
)
def test_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DCNConfig(**fields)


def test_the_commands_take_the_operator():
    config = OmegaConf.merge(OmegaConf.structured(DCN), {"operator": "v4", "keep_output": False})
    assert DCNConfig(**OmegaConf.to_object(config).__dict__).operator == "v4"


@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_predictors_learn_more_slowly(operator):
    model = inject_(poolformer(), DCNConfig(operator=operator))
    slow = {p for group in param_groups(model, 0.1) if group.get("lr_scale") == 0.1 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if p in slow}
    kinds = {"v3": ("offset", "mask"), "v4": ("offset_mask",)}[operator]
    assert names == {f"{n}.layer.{k}.{p}" for n in mixers(model) for k in kinds for p in ("weight", "bias")}
    groups = param_groups(model, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert all(group["weight_decay"] == 0 for group in groups if "lr_scale" in group)


def test_predictors_of_internimage_learn_more_slowly():
    with torch.device("meta"):
        model = timm.create_model("flash_internimage_tiny")
    slow = [p for group in param_groups(model) if group.get("lr_scale") == 0.1 for p in group["params"]]
    assert len(slow) == 2 * 30  # a weight and a bias for each of 4 + 4 + 18 + 4 blocks


@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_save_and_load(operator, tmp_path):
    model = inject_(poolformer(), DCNConfig(operator=operator, offset_groups=2))
    perturb(model)
    zoo.save(model, tmp_path)
    again = zoo.load(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_depthwise_one_is_saved_too(tmp_path):
    model = inject_(mobile(), DCNConfig(operator="v4", stages=(3,), keep_output=False))
    zoo.save(model, tmp_path)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path).eval()(x), model(x))


def test_there_is_nothing_to_fold_back_to():
    model = inject_(poolformer(), DCNConfig(operator="v4"))
    with pytest.raises(ValueError, match="DCNv3 or DCNv4, which have no filters to fold back to"):
        zoo.fold_(model, [torch.randn(1, 3, 64, 64)])


def test_both_operators_in_one_network():
    model, x = mobile(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        configs = [DCNConfig(stages=(4,)), DCNConfig(operator="v4", offset_group_width=1, stages=(2,))]
        inject_(model, configs)
        assert torch.allclose(model(x), before, atol=1e-5)
    assert len(mixers(model)) == 3
    assert {name.partition(".")[0] for name in mixers(model)} == {"blocks"}


def test_hooks_and_the_mode_stay():
    model, seen = poolformer(), []
    pool = model.stages[1].blocks[0].token_mixer.pool
    handle = pool.register_forward_hook(lambda *_: seen.append(1))
    inject_(model, DCNConfig(operator="v4"))
    assert not any(m.training for m in mixers(model).values())
    model(torch.randn(1, 3, 64, 64))
    assert seen == [1]
    handle.remove()
    model(torch.randn(1, 3, 64, 64))
    assert seen == [1]


@pytest.mark.parametrize("operator", ["v3", "v4"])
def test_coverage_compares_and_trains_such_networks(operator):
    config = DCNConfig(operator=operator)
    result = examine("test_resnet", config)
    assert (result["converted"], result["error"].partition("\n")[0]) == (
        0,
        "no convolution or average pooling of ResNet can be replaced:",
    )
    result = examine("poolformerv2_s12", config)
    assert (result["converted"], result["identical"]) == (10, True)
    assert train("poolformerv2_s12", config) == {"trains": True}
