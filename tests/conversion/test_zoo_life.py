"""Common uses of a timm network keep working after the conversion."""

import copy
import functools
import re

import pytest
import timm
import torch
from helpers import NARROW, deformable, perturbed, randomise_offsets
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from zoo import DCNConfig, inject_
from zoo.optim import param_groups

SMALL = {"num_classes": 10}
# Dense, depthwise, and standardised without norms.
NETWORKS = {
    "resnet18": NARROW,
    "convnext_atto": SMALL,
    "mobilenetv3_small_050": SMALL,
    "nf_resnet26": {"channels": (32, 64, 128, 256), "depths": (1, 2, 2, 1), **SMALL},
}
# Padding by the image's size, and standardised weights.
MORE = {
    **NETWORKS,
    "tf_efficientnet_lite0": SMALL,
    "resnetv2_50x1_bit": {"channels": (128, 128, 128, 256), **SMALL},
}

each_network = pytest.mark.parametrize("name", NETWORKS)
each_of_more = pytest.mark.parametrize("name", MORE)
OFFSETS = {"offset_weight", "offset_bias", "offset_depthwise_weight"}


def images():
    return torch.randn(2, 3, 64, 64)


@functools.cache
def made(name, **kwargs):
    return perturbed(name, **MORE[name], **kwargs)


def plain_network(name, **kwargs):
    model = copy.deepcopy(made(name, **kwargs))
    # The random numbers drawn afterwards don't depend on who built the network.
    torch.manual_seed(0)
    return model


def converted(name, config=None, **kwargs):
    model = inject_(plain_network(name, **kwargs), config or DCNConfig())
    randomise_offsets(model)
    return model


def is_offset(name):
    return name.rpartition(".")[2] in OFFSETS


def gradients(model, x):
    # Random drops in a forward pass are the same for every model.
    torch.manual_seed(1)
    model.zero_grad()
    model(x).square().mean().backward()
    return {key: p.grad.clone() for key, p in model.named_parameters()}


def step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images()), torch.tensor([0, 1])).backward()
    optimizer.step()


def close(actual, expected, dtype=torch.float32):
    """Compare up to a few roundings of the largest value."""
    atol = 200 * torch.finfo(dtype).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@each_of_more
@torch.no_grad()
def test_features_and_head_make_the_forward_pass(name):
    plain = plain_network(name)
    model = converted(name)
    x = images()
    features = model.forward_features(x)
    assert features.shape == plain.forward_features(x).shape
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, plain.head_hidden_size)
    # The offsets affect the output.
    assert not torch.allclose(model(x), plain(x))


@each_of_more
@torch.no_grad()
def test_intermediates_are_those_of_the_forward_pass(name):
    plain, model = plain_network(name), converted(name)
    if not hasattr(plain, "forward_intermediates"):
        pytest.skip(f"timm {timm.__version__} has no forward_intermediates for {name}")
    x = images()
    final, features = model.forward_intermediates(x)
    _, plain_features = plain.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [f.shape for f in features] == [f.shape for f in plain_features]
    # The first stages stay plain.
    assert torch.equal(features[0], plain_features[0])
    assert not torch.allclose(features[-1], plain_features[-1])


@each_network
@torch.no_grad()
def test_features_only_network_is_converted_like_the_whole_one(name):
    plain = plain_network(name, features_only=True, out_indices=(1, 2, 3))
    model = inject_(copy.deepcopy(plain))
    x = images()
    for feature, expected in zip(model(x), plain(x), strict=True):
        close(feature, expected)
    assert model.feature_info.channels() == plain.feature_info.channels()
    whole = [re.sub(r"\W", "_", key) for key in deformable(inject_(timm.create_model(name, **MORE[name])))]
    cut = [re.sub(r"\W", "_", key) for key in deformable(model)]
    # features_only drops the stages after the last index.
    assert cut == whole[: len(cut)]
    randomise_offsets(model)
    assert not torch.allclose(model(x)[-1], plain(x)[-1])


@each_network
@torch.no_grad()
def test_classifier_can_be_reset(name):
    model = converted(name)
    x = images()
    features = model.forward_features(x)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert torch.equal(model.forward_features(x), features)
    assert model.get_classifier().out_features == 3
    model.reset_classifier(0)
    pooled = model(x)
    assert pooled.shape == (2, model.head_hidden_size)
    assert torch.equal(pooled, model.forward_head(features))


@each_of_more
def test_gradient_checkpointing_changes_no_gradient(name):
    model = converted(name, drop_rate=0.0).train()
    for module in model.modules():
        # Running statistics that are updated twice are not ours; the same input gives the same batch statistics.
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = images()
    expected = gradients(model, x)
    model.set_grad_checkpointing()
    actual = gradients(model, x)
    assert actual.keys() == expected.keys()
    assert any(is_offset(key) and grad.any() for key, grad in actual.items())
    for key, grad in actual.items():
        assert torch.equal(grad, expected[key]), key


@each_of_more
def test_layer_decay_takes_offsets_with_their_layer(name):
    model = converted(name)
    scales = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.7)
        for parameter in group["params"]
    }
    for layer in deformable(model).values():
        assert {scales[p] for p in layer.predictor_parameters()} == {scales[layer.weight]}
    assert len(set(scales.values())) > 2
    plain = plain_network(name)
    groups = {p: g["lr_scale"] for g in param_groups_layer_decay(plain, layer_decay=0.7) for p in g["params"]}
    for key, parameter in plain.named_parameters():
        assert scales[model.get_parameter(key)] == groups[parameter]


@each_network
def test_optimizer_with_layer_decay_moves_the_offsets(name):
    model = converted(name).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.7)
    before = copy.deepcopy(model.state_dict())
    step(model, optimizer)
    for layer_name in deformable(model):
        key = f"{layer_name}.offset_weight"
        assert not torch.equal(model.state_dict()[key], before[key])


@each_network
@pytest.mark.parametrize("separable", [None, False])
def test_each_parameter_is_in_one_group_and_offsets_in_the_slow_one(name, separable):
    with torch.device("meta"):
        model = timm.create_model(name, **MORE[name])
    inject_(model, DCNConfig(separable_predictor=separable))
    first = next(iter(deformable(model).values()))
    first.weight.requires_grad_(False)
    first.offset_bias.requires_grad_(False)
    groups = param_groups(model, weight_decay=0.05, offset_lr_scale=0.2)
    grouped = [parameter for group in groups for parameter in group["params"]]
    trained = {p for p in model.parameters() if p.requires_grad}
    assert len(grouped) == len(trained)
    assert set(grouped) == trained
    slow = {p for group in groups if group.get("lr_scale") == 0.2 for p in group["params"]}
    assert slow == {p for key, p in model.named_parameters() if is_offset(key) and p.requires_grad}
    assert {group["weight_decay"] for group in groups if "lr_scale" in group} == {0.0}
    for group in groups:
        if "lr_scale" not in group:
            assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@each_network
def test_scheduler_gives_offsets_their_part_of_the_rate(name):
    model = converted(name).train()
    optimizer = create_optimizer_v2(
        model, opt="momentum", momentum=0, lr=1e-2, param_group_fn=lambda m: param_groups(m, offset_lr_scale=0.1)
    )
    CosineLRScheduler(optimizer, t_initial=4).step(2)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    step(model, optimizer)
    rates = []
    for key, parameter in model.named_parameters():
        # With SGD the learning rate of each parameter is its change divided by its gradient.
        rate = 5e-3 * (0.1 if is_offset(key) else 1)
        torch.testing.assert_close(parameter.detach(), before[key] - rate * parameter.grad)
        rates.append(rate if parameter.grad.any() else 0)
    assert {5e-3, 5e-4} <= set(rates)


@each_network
def test_moving_average_follows_the_offsets(name):
    model = converted(name)
    ema = ModelEmaV3(model, decay=0.75)
    before = copy.deepcopy(model.state_dict())
    randomise_offsets(model)
    ema.update(model)
    assert list(ema.module.state_dict()) == list(before)
    for key, value in ema.module.state_dict().items():
        if is_offset(key):
            torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * model.state_dict()[key])
    assert len(deformable(ema.module)) == len(deformable(model))
    with torch.no_grad():
        assert not torch.equal(ema.module(x := images()), model(x))


@each_network
def test_saved_checkpoint_is_loaded_and_resumed(name, tmp_path):
    model = converted(name).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, param_group_fn=param_groups)
    ema = ModelEmaV3(model, decay=0.5)
    step(model, optimizer)
    ema.update(model)
    saver = CheckpointSaver(model, optimizer, model_ema=ema, checkpoint_dir=str(tmp_path), max_history=1)
    saver.save_checkpoint(3, metric=1.0)
    path = str(tmp_path / "checkpoint-3.pth.tar")
    x = images()

    averaged = inject_(timm.create_model(name, **MORE[name])).eval()
    assert load_checkpoint(averaged, path) == ([], [])
    assert torch.equal(averaged(x), ema.module.eval()(x))

    resumed = inject_(timm.create_model(name, **MORE[name])).train()
    other = create_optimizer_v2(resumed, opt="adamw", lr=1e-3, param_group_fn=param_groups)
    assert resume_checkpoint(resumed, path, other, log_info=False) == 4
    for net, opt in ((model, optimizer), (resumed, other)):
        torch.manual_seed(7)
        step(net, opt)
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@each_network
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_checkpoint_leaves_the_offsets(name, wrapped, tmp_path):
    plain, path = plain_network(name), str(tmp_path / "plain.pth")
    weights = plain.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}} if wrapped else weights, path)
    model = inject_(timm.create_model(name, **MORE[name])).eval()
    load_checkpoint(model, path)
    x = images()
    close(model(x), plain(x))
    randomise_offsets(model)
    offsets = {key: value.clone() for key, value in model.state_dict().items() if is_offset(key)}
    load_checkpoint(model, path)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in offsets.items())


@each_network
@torch.no_grad()
def test_copy_shares_no_tensor(name):
    model = converted(name)
    twin = copy.deepcopy(model)
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert pointers.isdisjoint(t.data_ptr() for t in twin.state_dict().values())
    x = images()
    before = model(x)
    assert torch.equal(twin(x), before)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(model(x), before)


@each_network
def test_state_dict_has_the_plain_keys_and_the_offsets(name):
    with torch.device("meta"):
        plain = timm.create_model(name, **MORE[name])
        model = inject_(timm.create_model(name, **MORE[name]))
    layers = deformable(model)
    added = set(model.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) < set(model.state_dict())
    names = {layer: {"offset_weight", "offset_bias"} for layer in layers}
    for layer, module in layers.items():
        if module.separable_predictor:
            names[layer].add("offset_depthwise_weight")
    assert added == {f"{layer}.{key}" for layer, keys in names.items() for key in keys}


@torch.no_grad()
def test_whole_graph_compiles():
    # Few layers keep the compiler's part short.
    model = converted("resnet18", DCNConfig(include=("layer3.0.*", "layer4.1.*")))
    x = images()
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "resnetv2_50x1_bit"])
@torch.no_grad()
def test_script_computes_the_same(name):
    model = converted(name, scriptable=True)
    x = images()
    close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "nf_resnet26"])
@torch.no_grad()
def test_exported_program_has_a_node_for_each_layer(name):
    model = converted(name)
    x = images()
    program = torch.export.export(model, (x,))
    nodes = [n for n in program.graph.nodes if "dcn_ops.deform_conv2d" in str(n.target)]
    assert len(nodes) == len(deformable(model))
    close(program.module()(x), model(x))


@each_network
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_stays_near(name, dtype):
    plain, model = plain_network(name), inject_(plain_network(name))
    x = images()
    exact = plain(x)
    budget = (
        2 * (plain.to(dtype)(x.to(dtype)).float() - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    )
    model = model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    out = model(x.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() <= budget
    randomise_offsets(model)
    assert model(x.to(dtype)).isfinite().all()
