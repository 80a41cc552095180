"""InternImage and FlashInternImage in timm's registry: names, shapes and counts of the authors' checkpoints."""

import pytest
import timm
import torch
from helpers import without_data
from torch import Tensor, nn

import zoo
from dcn_ops import DCNv3, DCNv4
from zoo.card import Card, card_text
from zoo.mixers import deformable_layers

# Parameters, and entries of the state_dict.
COUNTS = {
    "internimage_tiny": (29_918_424, 633),
    "internimage_small": (50_079_880, 751),
    "internimage_base": (97_461_832, 751),
    "flash_internimage_tiny": (29_815_528, 393),
    "flash_internimage_small": (50_067_496, 553),
    "flash_internimage_base": (97_448_960, 553),
}
LARGE = ("internimage_large", "flash_internimage_large")
SMALL = {"channels": 16, "depths": (1, 2, 1, 1), "groups": (1, 2, 4, 8), "num_classes": 5}
FAMILIES = {
    "tiny": ("internimage_tiny", SMALL),
    "small": ("internimage_small", SMALL),
    "flash_tiny": ("flash_internimage_tiny", SMALL),
    "flash_base": ("flash_internimage_base", SMALL),
    "flash_large": ("flash_internimage_large", SMALL),
}
every_family = pytest.mark.parametrize(("name", "arguments"), FAMILIES.values(), ids=FAMILIES)


def built(name: str, arguments: dict, **more: object) -> nn.Module:
    """Return a network whose offsets, masks and scales are not those of the start."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments, **more).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key or "offset" in key or "mask" in key:
                parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_authors(name: str) -> None:
    model = without_data(name)
    assert (sum(p.numel() for p in model.parameters()), len(model.state_dict())) == COUNTS[name]


@pytest.mark.parametrize("name", LARGE)
def test_the_large_ones_have_223_million_parameters(name: str) -> None:
    assert round(sum(p.numel() for p in without_data(name).parameters()) / 1e6) == 223


# Of the first block, which stands for all; "C" and "G" are the channels and groups there.
STEM = {
    "patch_embed.conv1.weight": [32, 3, 3, 3],
    "patch_embed.conv1.bias": [32],
    "patch_embed.norm1.1.weight": [32],
    "patch_embed.norm1.1.bias": [32],
    "patch_embed.conv2.weight": [64, 32, 3, 3],
    "patch_embed.conv2.bias": [64],
    "patch_embed.norm2.1.weight": [64],
    "patch_embed.norm2.1.bias": [64],
}
BLOCK = {
    "norm1.0.weight": [64],
    "norm1.0.bias": [64],
    "norm2.0.weight": [64],
    "norm2.0.bias": [64],
    "mlp.fc1.weight": [256, 64],
    "mlp.fc1.bias": [256],
    "mlp.fc2.weight": [64, 256],
}
V3 = {
    "dcn.dw_conv.0.weight": [64, 1, 3, 3],
    "dcn.dw_conv.0.bias": [64],
    "dcn.dw_conv.1.1.weight": [64],
    "dcn.dw_conv.1.1.bias": [64],
    "dcn.offset.weight": [72, 64],
    "dcn.offset.bias": [72],
    "dcn.mask.weight": [36, 64],
    "dcn.mask.bias": [36],
    "dcn.input_proj.weight": [64, 64],
    "dcn.input_proj.bias": [64],
    "dcn.output_proj.weight": [64, 64],
    "dcn.output_proj.bias": [64],
    "mlp.fc2.bias": [64],
}
V4 = {
    "dcn.offset_mask.weight": [112, 64],
    "dcn.offset_mask.bias": [112],
    "dcn.value_proj.weight": [64, 64],
    "dcn.value_proj.bias": [64],
    "dcn.output_proj.weight": [64, 64],
}
BETWEEN = {
    "levels.0.norm.0.weight": [64],
    "levels.0.norm.0.bias": [64],
    "levels.0.downsample.conv.weight": [128, 64, 3, 3],
    "levels.0.downsample.norm.1.weight": [128],
    "levels.0.downsample.norm.1.bias": [128],
    "levels.3.norm.0.weight": [512],
    "conv_head.0.weight": [768, 512, 1, 1],
    "conv_head.1.0.weight": [768],
    "conv_head.1.0.bias": [768],
    "conv_head.1.0.running_mean": [768],
    "conv_head.1.0.running_var": [768],
    "conv_head.1.0.num_batches_tracked": [],
    "head.weight": [1000, 768],
    "head.bias": [1000],
}


@pytest.mark.parametrize(("name", "own"), [("internimage_tiny", V3), ("flash_internimage_tiny", V4)])
def test_names_and_shapes_are_the_authors(name: str, own: dict[str, list[int]]) -> None:
    shapes = {key: list(value.shape) for key, value in without_data(name).state_dict().items()}
    first = "levels.0.blocks.0."
    assert {key.removeprefix(first): s for key, s in shapes.items() if key.startswith(first)} == BLOCK | own
    expected = STEM | BETWEEN
    assert {key: shapes.get(key) for key in expected} == expected


def test_the_scaled_networks_have_scales_and_no_norm_after_a_level() -> None:
    keys = set(without_data("internimage_small").state_dict())
    assert {"levels.0.blocks.0.gamma1", "levels.3.blocks.3.gamma2"} <= keys
    assert not {key for key in keys if ".norm.0." in key}
    assert "levels.0.blocks.0.dcn.offset_mask_dw.weight" in without_data("flash_internimage_small").state_dict()


def official(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    return {"model": state}


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"model.{key}".replace("gamma", "layer_scale"): value for key, value in state.items()}


@every_family
@pytest.mark.parametrize(
    "layout", [lambda state: {"model": state}, hugging_face, dict], ids=["official", "hf", "own"]
)
def test_checkpoints_load_strictly(name: str, arguments: dict, layout: object, tmp_path: object) -> None:
    torch.manual_seed(1)
    model = built(name, arguments)
    state = {key: torch.rand_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    torch.save(layout(state), tmp_path / "checkpoint.pth")
    overlay = {"file": str(tmp_path / "checkpoint.pth"), "num_classes": 5}
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())


@every_family
def test_features_are_those_of_the_levels(name: str, arguments: dict) -> None:
    model, images = built(name, arguments), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last, features = model.forward_intermediates(images)
        assert [list(f.shape) for f in features] == [[2, 16 * 2**i, 16 // 2**i, 24 // 2**i] for i in range(4)]
        assert torch.equal(last, features[-1])
        assert torch.equal(last, model.forward_features(images))
        assert torch.equal(model(images), model.forward_head(last))
        assert model.forward_head(last, pre_logits=True).shape == (2, model.head_hidden_size)
        last_first = model.forward_intermediates(images, indices=[1], output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(last_first[0].permute(0, 3, 1, 2), features[1])
        backbone = timm.create_model(name, features_only=True, out_indices=(0, 2), **arguments).eval()
        assert backbone.feature_info.channels() == [16, 64]
        assert backbone.feature_info.reduction() == [4, 16]
        assert len(backbone.model.levels) == 3
        state = {f"model.{key}": value for key, value in model.state_dict().items()}
        backbone.load_state_dict({key: state[key] for key in backbone.state_dict()})
        assert all(map(torch.equal, backbone(images), (features[0], features[2])))


@every_family
def test_other_images_and_classes(name: str, arguments: dict) -> None:
    model = timm.create_model(name, **{**arguments, "num_classes": 0}, in_chans=1)
    images = torch.randn(2, 1, 45, 70)
    assert model(images).shape == (2, 192)
    model.reset_classifier(7, "max")
    assert model(images).shape == (2, 7)
    assert model.get_classifier().out_features == 7


@every_family
def test_gradients_reach_every_parameter_with_and_without_checkpointing(name: str, arguments: dict) -> None:
    images, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = built(name, arguments).eval()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients[0].values())
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


@every_family
def test_a_fresh_network_learns(name: str, arguments: dict) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments, drop_path_rate=0.1).train()
    images, classes = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_layer_decay_knows_stem_blocks_and_head() -> None:
    model = timm.create_model("internimage_tiny", **SMALL)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", 1e-3, weight_decay=0.05, layer_decay=0.5)
    scales = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            scales[parameter] = group["lr_scale"]
    by_name = {key: scales[parameter] for key, parameter in model.named_parameters()}
    assert by_name["head.weight"] == by_name["conv_head.0.weight"] == 1
    order = ["patch_embed.conv1.weight", "levels.0.blocks.0.dcn.offset.weight", "levels.0.downsample.conv.weight"]
    order += ["levels.1.blocks.0.mlp.fc1.weight", "levels.1.blocks.1.mlp.fc1.weight", "levels.3.norm.0.weight"]
    values = [by_name[key] for key in order]
    assert values == sorted(set(values))


def test_no_weights_are_downloaded_unasked_and_the_config_says_where_they_are() -> None:
    for name in (*COUNTS, *LARGE):
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.url.startswith("https://huggingface.co/OpenGVLab/")
        assert cfg.license == (None if name.startswith("flash") else "mit")
        assert (cfg.first_conv, cfg.classifier) == ("patch_embed.conv1", "head")
    assert set(timm.list_models("*internimage*")) == {*COUNTS, *LARGE}


@every_family
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_traced_and_exported_networks_take_other_images(name: str, arguments: dict) -> None:
    model, images, others = built(name, arguments), torch.randn(2, 3, 64, 96), torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        expected = model(others)
        torch.testing.assert_close(torch.jit.trace(model, images)(others), expected)
        sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        program = torch.export.export(model, (images,), dynamic_shapes=(sizes,))
        torch.testing.assert_close(program.module()(others), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tiny", "flash_base"])
def test_compiled_network_is_the_network(family: str) -> None:
    name, arguments = FAMILIES[family]
    model, images = built(name, arguments), torch.randn(2, 3, 64, 64)
    torch._dynamo.reset()
    with torch.no_grad():
        actual, expected = torch.compile(model, fullgraph=True)(images), model(images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_tools_of_the_zoo_work(tmp_path: object) -> None:
    model = built("internimage_tiny", {key: value for key, value in SMALL.items() if key != "num_classes"})
    plan = zoo.plan(model, zoo.DCNConfig(stages=(3, 4), kinds=("dense",)))
    assert [replacement.fqn for replacement in plan.replacements] == ["levels.2.downsample.conv"]
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)
    zoo.inject_(model, zoo.DCNConfig(stages=(3, 4), kinds=("dense",)))
    torch.testing.assert_close(model(images), expected)
    zoo.save(model, tmp_path, {key: value for key, value in SMALL.items() if key != "num_classes"})
    loaded = zoo.load(tmp_path).eval()
    assert torch.equal(loaded(images), model(images))
    assert {type(m) for m in loaded.modules()} >= {DCNv3}
    assert DCNv4 not in {type(m) for m in loaded.modules()}


@every_family
def test_a_network_without_conversion_is_saved(name: str, arguments: dict, tmp_path: object) -> None:
    model, images = built(name, arguments), torch.randn(1, 3, 64, 64)
    zoo.save(model, tmp_path, arguments)
    assert torch.equal(zoo.load(tmp_path).eval()(images), model(images))
    layers = deformable_layers(model)
    assert len(layers) == sum(arguments["depths"])
    assert f"with {len(layers)} deformable layers" in card_text(model, "me/net", Card())


def test_an_unknown_operator_is_refused() -> None:
    with pytest.raises(ValueError, match='expected operator "v3" or "v4", got operator=\'v5\''):
        timm.create_model("internimage_tiny", operator="v5")
