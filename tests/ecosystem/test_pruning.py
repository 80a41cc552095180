"""Torch-Pruning on converted networks: it ends, and prunes what it would prune of the plain network."""

import copy
import importlib

import pytest
import torch
from helpers import deformable, images, perturbed, randomise_offsets
from torch import nn

from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_

tp = pytest.importorskip("torch_pruning")
pruning_arguments = importlib.import_module("zoo.integrations.pruning").pruning_arguments


def prune(model, **kwargs):
    pruner = tp.pruner.MagnitudePruner(
        model,
        images()[:1],
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.get_classifier()],
        **kwargs,
    )
    pruner.step()
    return model


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
def test_a_network_whose_offsets_are_zero_is_pruned_as_the_plain_one(name: str) -> None:
    plain = perturbed(name, num_classes=10)
    model = inject_(copy.deepcopy(plain))
    # The same channels are the least important: no importance counts the inputs of deformable layers.
    prune(model, **pruning_arguments(model))
    x = images()
    shapes = {key: w.shape for key, w in prune(plain).state_dict().items()}
    assert {key: w.shape for key, w in model.state_dict().items() if "offset" not in key} == shapes
    folded = copy.deepcopy(plain)
    folded.load_state_dict({key: w for key, w in model.state_dict().items() if "offset" not in key})
    torch.testing.assert_close(model(x), folded(x), rtol=1e-4, atol=1e-4)


def test_pruned_layers_deform_and_train() -> None:
    model = inject_(perturbed("resnet18", num_classes=10))
    randomise_offsets(model)
    prune(model, **pruning_arguments(model))
    layers = deformable(model)
    assert layers["layer4.1.conv1"].weight.shape == (256, 256, 3, 3)
    assert layers["layer4.1.conv1"].offset_weight.shape == (27, 256, 3, 3)
    model(images()).sum().backward()
    assert all(layer.offset_weight.grad.abs().max() > 0 for layer in layers.values())


def test_a_pruned_predictor_keeps_what_it_knows_of_the_other_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), DeformConv2d(8, 4, 3, separable_predictor=True)).eval()
    model[2].offset_weight.data.normal_()
    # The last four channels are 0, so the outputs don't need them.
    model[0].weight.data[4:] = 0
    model[0].bias.data[4:] = 0
    x = images()
    before = model(x)
    graph = tp.DependencyGraph().build_dependency(model, x, **pruning_arguments(model))
    graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [4, 5, 6, 7]).prune()
    assert model[2].offset_depthwise_weight.shape == (4, 1, 3, 3)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_pruned_is_named() -> None:
    for layer, reason in (
        (DeformConv2d(4, 4, 3, groups=4), "groups=4"),
        (DeformConv2d(4, 4, 3, offset_groups=2), "offset_groups=2"),
        (DeformConv2d(4, 4, 3, predict_offsets=False), "from outside"),
    ):
        with pytest.raises(ValueError, match=f"{reason}.*got '0'"):
            pruning_arguments(nn.Sequential(layer))
    model = inject_(perturbed("mobilenetv2_100"), DCNConfig(operator="v4", keep_output=False))
    with pytest.raises(ValueError, match="DCNv4"):
        pruning_arguments(model)
