"""fold_: layers that don't deform become plain convolutions, and nothing else changes."""

import copy
import logging

import pytest
import timm
import torch
from helpers import NARROW, Shared, deformable
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.data import DataLoader, TensorDataset

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_
from zoo.fold import fold_

# name: (arguments, image size)
BACKBONES = {
    "resnet18": (NARROW, 64),
    "mobilenetv3_small_050": ({"num_classes": 10}, 64),
    "tf_efficientnet_lite0": ({"num_classes": 10}, 65),
    "resnetv2_50x1_bit": ({"num_classes": 10}, 64),
    "nf_resnet26": ({"num_classes": 10}, 64),
    "repvgg_a0": ({"num_classes": 10}, 64),
}


def resnet(**kwargs):
    return timm.create_model("resnet18", **NARROW, **kwargs).eval()


def images(dtype=torch.float32, size=64):
    return torch.randn(2, 3, size, size, dtype=dtype)


def set_masks(layer, low=-1.0, high=1.0):
    """Make the layer predict a mask that is constant in space, but different for each tap and group."""
    logits = layer.offset_bias.detach()[layer._offset_channels :]
    logits.copy_(torch.linspace(low, high, len(logits)))
    return 2 * logits.sigmoid()


def snapshot(model):
    # As bytes, so that a NaN equals itself.
    state = {key: value.clone().numpy().tobytes() for key, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return list(model.named_modules()), state, [m.training for m in model.modules()], hooks


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_fresh_network_folds_back_entirely(name):
    kwargs, size = BACKBONES[name]
    plain = timm.create_model(name, **kwargs).eval()
    model = inject_(copy.deepcopy(plain))
    layers, parameters = deformable(model), dict(model.named_parameters())
    x = images(size=size)

    folding = fold_(model, [x])

    assert folding.folded == tuple(layers)
    assert folding.kept == {}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in plain.modules()]
    assert repr(model) == repr(plain)
    # Exactly the same computation.
    assert torch.equal(model(x), plain(x))
    assert folding.params_after == sum(p.numel() for p in plain.parameters())
    assert folding.params_before == folding.params_after + sum(
        p.numel() for layer in layers.values() for key, p in layer.named_parameters() if key.startswith("offset_")
    )


@pytest.mark.parametrize(
    "config",
    [DCNConfig(modulated=False), DCNConfig(separable_predictor=True), DCNConfig(offset_bound=3, offset_groups=4)],
)
def test_every_kind_of_predictor_folds(config):
    plain = resnet()
    model = inject_(copy.deepcopy(plain), config)
    x = images()
    assert len(fold_(model, [x]).folded) == 12
    assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize(
    ("channels", "groups", "offset_groups"),
    [
        ((8, 6), 1, 1),
        ((8, 6), 1, 4),
        ((8, 12), 2, 4),
        ((8, 12), 4, 2),
        ((12, 18), 3, 2),
        ((8, 8), 8, 2),
        ((8, 16), 8, 8),
    ],
)
@torch.no_grad()
def test_constant_masks_go_into_the_weight(channels, groups, offset_groups):
    model = nn.Sequential(
        nn.Conv2d(3, channels[0], 1), nn.Conv2d(*channels, (3, 5), 2, (1, 3), groups=groups), nn.ReLU()
    ).double()
    inject_(model, DCNConfig(include=["1"], offset_groups=offset_groups))
    set_masks(model[1])
    x, weight = images(torch.float64, size=17), model[1].weight
    expected, before = model(x), weight.clone()
    assert fold_(model, [x]).folded == ("1",)
    assert type(model[1]) is nn.Conv2d
    assert model[1].weight is weight
    assert not torch.allclose(weight, before)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_network_with_constant_masks_folds(name):
    kwargs, size = BACKBONES[name]
    model = inject_(timm.create_model(name, **kwargs).double().eval(), DCNConfig(offset_groups=2))
    for layer in deformable(model).values():
        set_masks(layer)
    x = images(torch.float64, size)
    expected = model(x)
    assert fold_(model, [x]).kept == {}
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


@torch.no_grad()
def test_bfloat16_weights_are_rounded_once():
    model = nn.Sequential(DeformConv2d.from_conv2d(nn.Conv2d(3, 4, 3))).bfloat16()
    mask, weight = set_masks(model[0]), model[0].weight.clone()
    assert fold_(model, [images(torch.bfloat16)]).folded == ("0",)
    assert torch.equal(model[0].weight, (weight.double() * mask.view(1, 1, 3, 3).double()).bfloat16())


@torch.no_grad()
def test_masks_that_hardly_change_go_in_by_their_middle():
    model = nn.Sequential(DeformConv2d.from_conv2d(nn.Conv2d(1, 1, 3))).double()
    model[0].offset_weight[-1, 0, 1, 1] = 1.0
    weight = model[0].weight.clone()
    batches = [torch.full((1, 1, 3, 3), value, dtype=torch.float64) for value in (0.0, 0.2)]
    masks = 2 * torch.tensor([0.0, 0.2], dtype=torch.float64).sigmoid()
    assert fold_(model, batches, tolerance=0.09).kept == {"0": "masks that change by up to 0.0997"}
    assert fold_(model, batches, tolerance=0.1).kept == {}
    weight[..., -1, -1] *= masks.mean()
    torch.testing.assert_close(model[0].weight, weight)


@torch.no_grad()
def test_compiled_layer_stops_computing_itself():
    model = nn.Sequential(DeformConv2d.from_conv2d(nn.Conv2d(1, 1, 3)))
    layer = model[0]
    layer.compile(backend="eager")
    assert fold_(model, [images()[:, :1]]).folded == ("0",)
    layer.offset_bias.fill_(1.0)
    x = images()[:, :1]
    assert torch.equal(model(x), nn.functional.conv2d(x, layer.weight, layer.bias))


@torch.no_grad()
def test_what_moves_is_kept_and_named():
    model = inject_(resnet(), DCNConfig(stages=(3, 4), offset_groups=2))
    model.layer3[0].conv1.offset_bias[3] = -1.25
    model.layer3[1].conv2.offset_weight[-1] = 0.01
    model.layer4[0].conv1.offset_bias[0] = torch.nan
    model.layer4[1].conv2.offset_bias[0] = 5e-4
    x = images()
    expected, layers = model(x), deformable(model)
    folding = fold_(model, [x])
    assert folding.kept["layer3.0.conv1"] == "offsets up to 1.25 pixels"
    assert folding.kept["layer3.1.conv2"].startswith("masks that change by up to ")
    assert folding.kept["layer4.0.conv1"] == "offsets up to nan pixels"
    assert len(folding.kept) == 3
    assert all(model.get_submodule(name) is layers[name] for name in folding.kept)
    assert deformable(model).keys() == folding.kept.keys()
    # The folded layer loses its offset, which is within the tolerance of 1e-3 pixels.
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_tolerance_is_in_pixels():
    model = inject_(resnet())
    model.layer4[1].conv2.offset_bias[0] = 5e-4
    assert fold_(copy.deepcopy(model), [images()]).kept == {}
    assert fold_(model, [images()], tolerance=1e-4).kept == {"layer4.1.conv2": "offsets up to 0.0005 pixels"}
    assert fold_(model, [images()]).folded == ("layer4.1.conv2",)


@torch.no_grad()
def test_any_batch_can_move_a_layer():
    model = inject_(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3)), DCNConfig(include=["1"]))
    nn.init.eye_(model[0].weight.view(3, 3))
    nn.init.zeros_(model[0].bias)
    model[1].offset_weight[0, 0, 1, 1] = 1.0
    still, moving = torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 5, 6)
    moving[0, 0, 3, 3] = -2.0
    for batches in ([still, moving], [moving, still]):
        assert fold_(model, batches).kept == {"1": "offsets up to 2 pixels"}
    assert fold_(model, [still]).folded == ("1",)


@torch.no_grad()
def test_standardised_weights_take_no_masks():
    model = inject_(timm.create_model("nf_resnet26", num_classes=10).eval())
    first, second, *others = deformable(model)
    set_masks(model.get_submodule(first), 0.5, 0.5)
    set_masks(model.get_submodule(second), 1e-4, 1e-4)
    before = model.get_submodule(second).weight.clone()
    folding = fold_(model, [images()])
    assert folding.kept == {first: "masks up to 0.245 away from 1, and the weight is standardised"}
    assert folding.folded == (second, *others)
    assert torch.equal(model.get_submodule(second).weight, before)


@torch.no_grad()
def test_shared_and_computed_weights_take_no_masks():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)))
    model[1].weight = model[0].weight
    inject_(model, DCNConfig(include=["1", "2", "3"]))
    prune.random_unstructured(model[2], "weight", amount=0.5)
    prune.random_unstructured(model[3], "weight", amount=0.5)
    set_masks(model[1])
    set_masks(model[2])
    x = images()
    expected = model(x)
    folding = fold_(model, [x])
    assert folding.folded == ("3",)
    assert [reason.rpartition(", and ")[2] for reason in folding.kept.values()] == [
        "the weight is shared",
        "the weight is computed",
    ]
    torch.testing.assert_close(model(x), expected)


class Odd(nn.Module):
    """A network whose layers get their offsets from outside, are not called, or have their own class."""

    def __init__(self):
        super().__init__()
        self.given = DeformConv2d(3, 3, 3, padding=1)
        self.outside = DeformConv2d(3, 3, 3, padding=1, predict_offsets=False)
        self.idle = DeformConv2d(3, 3, 3)
        self.heir = type("Heir", (DeformConv2d,), {})(3, 3, 3, padding=1)
        self.parametrized = DeformConv2d(3, 3, 3, padding=1)
        parametrize.register_parametrization(self.parametrized, "weight", nn.Identity())
        self.still = DeformConv2d(3, 3, 3, padding=1)

    def forward(self, x):
        offset = x.new_zeros(len(x), 18, *x.shape[2:])
        x = self.outside(self.given(x, offset=offset), offset)
        return self.still(input=self.parametrized(self.heir(x)))


def test_other_reasons_to_keep_a_layer():
    assert fold_(Odd(), [images(size=8)]).kept == {
        "given": "gets offsets from outside",
        "outside": "predict_offsets=False",
        "idle": "is not called",
        "heir": "Heir has its own forward",
        "parametrized": "ParametrizedDeformConv2d has its own forward",
    }


@torch.no_grad()
def test_shared_layer_is_judged_by_all_its_calls(caplog):
    model = inject_(Shared().double(), DCNConfig(stages=None))
    set_masks(model.first[0])
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    expected = model(x)
    moving = copy.deepcopy(model)
    # The first call gets zeros, so only the bias moves the second.
    moving.first[0].offset_weight[0, :, 1, 1] = 1.0
    moving.first[0].bias.fill_(1.0)
    assert list(fold_(moving, [torch.zeros_like(x)]).kept) == ["first.0"]
    with caplog.at_level(logging.INFO, logger="zoo"):
        assert fold_(model, [x]).folded == ("first.0",)
    assert type(model.first[0]) is nn.Conv2d
    assert model.first[0] is model.second[0]
    torch.testing.assert_close(model(x), expected)
    assert caplog.messages[0].startswith("first.0 = second.0: DeformConv2d(16, 16, ")
    assert caplog.messages[0].endswith(f" -> {model.first[0]}")


def test_hooks_mode_and_attributes_are_kept():
    model = inject_(resnet()).train()
    model.layer2.eval()
    model.layer3.requires_grad_(False)
    layer, seen = model.layer2[0].conv1, []
    layer.note = "mine"
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(module))
    modes = [module.training for module in model.modules()]
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    fold_(model, [images()])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(buffers[key], value) for key, value in model.named_buffers())
    assert not any(parameter.requires_grad for parameter in model.layer3.parameters())
    assert model.layer2[0].conv1.note == "mine"
    assert seen == [layer]
    model(images())
    assert seen[1:] == [model.layer2[0].conv1]
    handle.remove()
    model(images())
    assert len(seen) == 2
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


def batch_that_fails():
    yield images()
    yield torch.randn(2, 5, 64, 64)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (batch_that_fails, RuntimeError, "channels"),
        (lambda: [], ValueError, "at least one batch"),
        (lambda: iter(()), ValueError, "at least one batch"),
        (images, TypeError, "got one tensor"),
        (lambda: [{"image": images()}], TypeError, "got <class 'dict'>"),
        (lambda: [()], TypeError, "got <class 'tuple'>"),
    ],
)
def test_model_is_untouched_on_error(batches, error, message):
    model = inject_(resnet()).train()
    model.layer2.eval()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        fold_(model, batches())
    assert snapshot(model) == before


def test_refuses_what_is_not_converted():
    with pytest.raises(ValueError, match="got ResNet with 21 Conv2d"):
        fold_(resnet(), [images()])
    with pytest.raises(ValueError, match="got Linear with no convolution"):
        fold_(nn.Linear(2, 2), [images()])
    with pytest.raises(ValueError, match=r"got the layer DeformConv2d\(3, 4"):
        fold_(DeformConv2d(3, 4, 3), [images()])


@pytest.mark.parametrize("tolerance", [-1e-3, float("nan"), float("inf")])
def test_refuses_a_tolerance_that_is_none(tolerance):
    with pytest.raises(ValueError, match="tolerance="):
        fold_(inject_(resnet()), [images()], tolerance)


def test_takes_a_data_loader():
    dataset = TensorDataset(torch.randn(5, 3, 32, 32), torch.arange(5))
    assert len(fold_(inject_(resnet()), DataLoader(dataset, batch_size=2)).folded) == 12


@torch.no_grad()
def test_blocks_fuse_again_where_nothing_is_deformable():
    model = inject_(timm.create_model("repvgg_a0", num_classes=10).double().eval())
    for layer in deformable(model).values():
        set_masks(layer)
    model.stages[1][1].conv_kxk.conv.offset_bias[0] = 1.0
    x = images(torch.float64)
    expected = model(x)
    assert list(fold_(model, [x]).kept) == ["stages.1.1.conv_kxk.conv"]
    with pytest.warns(UserWarning, match="stays as it is"):
        model.stages[1][1].reparameterize()
    for name, block in model.named_modules():
        if hasattr(block, "reparameterize") and name != "stages.1.1":
            assert "reparameterize" not in vars(block)
            block.reparameterize()
            assert block.reparam_conv is not None
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_folded_network_can_be_converted_again():
    plain = resnet()
    model = inject_(copy.deepcopy(plain))
    fold_(model, [images()])
    inject_(model, DCNConfig(stages=(3,), modulated=False))
    assert len(deformable(model)) == 4
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    assert len(fold_(model, [x]).folded) == 4


def test_the_table_shows_each_layer(capsys):
    model = inject_(resnet(), DCNConfig(include=["layer4.1.*"]))
    nn.init.constant_(model.layer4[1].conv1.offset_bias, 0.5)
    folding = fold_(model, [images()])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    before, after = folding.params_before, folding.params_after
    assert lines[3:5] == [
        "│ layer4.1.conv1 │ offsets up to 0.5 pixels │ – │",
        f"│ layer4.1.conv2 │ folded │ {after - before:,} │",
    ]
    assert lines[6] == f"│ 1 folded, 1 kept │ │ {before:,} -> {after:,} ({after / before - 1:+.1%}) │"
