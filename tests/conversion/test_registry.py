"""Converted networks by name, and in a folder."""

import copy
import json
import subprocess
import sys
from fnmatch import fnmatchcase

import pytest
import timm
import torch
from helpers import (
    BUILT,
    NARROW,
    arguments,
    assert_same,
    deformable,
    images,
    perturbed,
    randomise_offsets,
    saved,
    without_data,
)
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import nn

import zoo
from dcn_ops import DeformConv2d
from zoo import DCNConfig, inject_
from zoo.convert import kind
from zoo.presets import PRESETS
from zoo.stages import stage_by_name

DEFAULT_LAYERS = [f"layer{i}.{j}.conv{k}" for i in (2, 3, 4) for j in (0, 1) for k in (1, 2)]


def test_presets_are_in_timms_list():
    names = zoo.list_models()
    assert len(names) == 20
    assert names == sorted(f"{base}_dcn" for base in PRESETS)
    assert set(names) <= set(timm.list_models("*_dcn"))
    assert all(timm.is_model(name) for name in names)
    assert {"dcn", *PRESETS} <= set(timm.list_models())


@pytest.mark.parametrize("pattern", ["resnet*", "*_b?_dcn", "resnet50_dcn", "nothing*", "resnet50"])
def test_list_takes_a_glob(pattern):
    assert zoo.list_models(pattern) == [name for name in zoo.list_models() if fnmatchcase(name, pattern)]
    assert zoo.list_models("resnet1*") == ["resnet101_dcn", "resnet18_dcn"]


def test_a_filter_is_a_glob():
    with pytest.raises(TypeError, match=r'expected a glob such as "resnet\*" for filter, got 3'):
        zoo.list_models(3)


@pytest.mark.parametrize("base", PRESETS)
def test_preset_converts_what_it_says(base):
    config = PRESETS[base]
    model = without_data(f"{base}_dcn")
    layers = deformable(model)
    assert layers
    assert {kind(layer) for layer in layers.values()} <= set(config.kinds)
    if config.kernels is not None:
        assert {layer.kernel_size[0] for layer in layers.values()} <= set(config.kernels)
    stages = stage_by_name(model)
    if stages is not None:  # HRNet's follow from strides.
        assert {stages[name] for name in layers} == set(config.stages or (2, 3, 4))
    assert model.pretrained_cfg["architecture"] == base


def test_arguments_reach_the_network():
    model = timm.create_model("resnet18_dcn", channels=(8, 16, 32, 64), num_classes=7, in_chans=4).eval()
    assert list(deformable(model)) == DEFAULT_LAYERS
    assert model(images(4)).shape == (2, 7)
    assert model.layer4[1].conv2.weight.shape == (64, 64, 3, 3)


def test_fresh_network_is_the_plain_one():
    torch.manual_seed(0)
    plain = timm.create_model("resnet18", **NARROW).eval()
    torch.manual_seed(0)
    model = timm.create_model("resnet18_dcn", **NARROW).eval()
    x = images()
    torch.testing.assert_close(model(x), plain(x))


def test_features_only_has_the_same_layers():
    model = timm.create_model("resnet18_dcn", features_only=True, out_indices=(2, 3, 4), **NARROW).eval()
    assert list(deformable(model)) == DEFAULT_LAYERS
    assert [feature.shape[1] for feature in model(images())] == [16, 32, 64]
    assert model.feature_info.reduction() == [8, 16, 32]


@pytest.mark.parametrize("as_dict", [True, False])
def test_config_overrides_the_preset(as_dict):
    config = {"stages": (3,), "kinds": ["depthwise"], "offset_bound": 2.0, "modulated": False}
    with torch.device("meta"):
        model = timm.create_model("mobilenetv2_100_dcn", dcn=config if as_dict else DCNConfig(**config))
    layers = deformable(model)
    assert list(layers) == [f"blocks.{i}.{j}.conv_dw" for i, n in ((3, 4), (4, 3)) for j in range(n)]
    assert {(layer.offset_bound, layer.modulated) for layer in layers.values()} == {(2.0, False)}


def test_any_base_is_converted():
    model = timm.create_model("dcn", base="test_convnext", num_classes=3).eval()
    expected = inject_(timm.create_model("test_convnext"))
    assert arguments(model) == arguments(expected)
    assert model(images()).shape == (2, 3)
    # A base of the presets comes with its preset, under a tag as well.
    with torch.device("meta"):
        tagged = timm.create_model("dcn", base="convnext_tiny.fb_in1k")
        assert arguments(tagged) == arguments(timm.create_model("convnext_tiny_dcn"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("how", [{"model_name": "resnet18_dcn"}, {"model_name": "dcn", "base": "resnet18"}])
def test_pretrained_loads_the_plain_weights_first(how, suffix, tmp_path, caplog):
    plain, path = perturbed("resnet18", **NARROW), str(tmp_path / f"plain.{suffix}")
    (save_file if suffix == "safetensors" else torch.save)(plain.state_dict(), path)
    overlay = {"file": path, "num_classes": 10}
    model = timm.create_model(**how, pretrained=True, pretrained_cfg_overlay=overlay, **NARROW).eval()
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    assert list(deformable(model)) == DEFAULT_LAYERS
    # Loaded into the plain network: no key is missing or ignored.
    assert not caplog.records


def test_pretrained_weights_take_another_head_and_input(tmp_path):
    plain, path = perturbed("resnet18", **NARROW), str(tmp_path / "plain.pth")
    torch.save(plain.state_dict(), path)
    overlay = {"file": path, "num_classes": 10}
    narrow = {"channels": NARROW["channels"], "num_classes": 3, "in_chans": 1}
    model = timm.create_model("resnet18_dcn", pretrained=True, pretrained_cfg_overlay=overlay, **narrow).eval()
    assert model(images(1)).shape == (2, 3)
    torch.testing.assert_close(model.conv1.weight, plain.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(model.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)


def test_pretrained_features_only(tmp_path):
    plain, path = perturbed("resnet18", **NARROW), str(tmp_path / "plain.pth")
    torch.save(plain.state_dict(), path)
    model = timm.create_model(
        "resnet18_dcn", pretrained=True, features_only=True, pretrained_cfg_overlay={"file": path}, **NARROW
    ).eval()
    x = images()
    torch.testing.assert_close(model(x)[-1], plain.forward_features(x))


def test_checkpoint_path_takes_a_converted_networks_weights(tmp_path):
    model = inject_(perturbed("resnet18", **NARROW))
    randomise_offsets(model)
    torch.save(model.state_dict(), tmp_path / "converted.pth")
    other = timm.create_model("resnet18_dcn", checkpoint_path=str(tmp_path / "converted.pth"), **NARROW)
    assert_same(model, other, images())


CONFIGS = {
    "default": DCNConfig(),
    "v1": DCNConfig(modulated=False),
    "where": DCNConfig(where=lambda name, conv: conv.stride == (2, 2)),
    "width": DCNConfig(offset_group_width=8),
    "bound": DCNConfig(stages=(4,), offset_bound=1.5, offset_groups=4),
    "separable": DCNConfig(separable_predictor=True, every=2),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loaded_network_computes_the_same_bits(config, tmp_path):
    model = saved(tmp_path, config)
    assert_same(model, zoo.load(tmp_path), images())
    assert_same(model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True), images())


@pytest.mark.parametrize("base", ["test_convnext", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_any_saved_base_computes_the_same_bits(base, tmp_path):
    model = inject_(perturbed(base, num_classes=5))
    randomise_offsets(model)
    zoo.save(model, tmp_path)
    assert_same(model, zoo.load(tmp_path), images())


def test_network_of_a_name_is_saved(tmp_path):
    model = timm.create_model("resnet18_dcn", dcn={"stages": (3,)}, global_pool="max", **NARROW)
    randomise_offsets(model)
    zoo.save(model, str(tmp_path))
    loaded = zoo.load(str(tmp_path))
    assert_same(model, loaded, images())
    assert loaded.global_pool.pool_type == "max"
    assert list(deformable(loaded)) == [name for name in DEFAULT_LAYERS if name.startswith("layer3")]


def test_folded_layers_stay_plain(tmp_path):
    model = inject_(perturbed("resnet18", **NARROW))
    nn.init.constant_(model.layer4[0].conv1.offset_bias, 0.5)
    zoo.fold_(model, [images()])
    zoo.save(model, tmp_path, BUILT)
    loaded = zoo.load(tmp_path)
    assert list(deformable(loaded)) == ["layer4.0.conv1"]
    assert_same(model, loaded, images())


def test_head_and_input_can_differ_at_load(tmp_path):
    model = saved(tmp_path)
    loaded = zoo.load(tmp_path, num_classes=3, in_chans=1).eval()
    assert loaded(images(1)).shape == (2, 3)
    torch.testing.assert_close(loaded.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    # All layers except the first convolution and the head, with the offsets.
    changed = {"conv1.weight", "fc.weight", "fc.bias"}
    for key, value in model.state_dict().items():
        assert key in changed or torch.equal(loaded.state_dict()[key], value), key
    headless = zoo.load(tmp_path, num_classes=0).eval()
    x = images()
    with torch.no_grad():
        assert torch.equal(headless(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_loaded_network_is_saved_again(tmp_path):
    saved(tmp_path / "first", DCNConfig(offset_group_width=8))
    model = zoo.load(tmp_path / "first", num_classes=3, in_chans=1)
    randomise_offsets(model)
    zoo.save(model, tmp_path / "second")
    again = zoo.load(tmp_path / "second")
    assert_same(model, again, images(1))
    zoo.save(again, tmp_path / "third")
    assert (tmp_path / "third/config.json").read_text() == (tmp_path / "second/config.json").read_text()


def test_save_overwrites(tmp_path):
    saved(tmp_path, DCNConfig(stages=(3,)))
    model = saved(tmp_path, DCNConfig(stages=(4,)))
    assert_same(model, zoo.load(tmp_path), images())


def test_save_leaves_the_network_alone(tmp_path):
    model = inject_(perturbed("resnet18", **NARROW)).train()
    before = (copy.deepcopy(model.pretrained_cfg), dict(vars(model)), list(model.state_dict()))
    zoo.save(model, tmp_path, BUILT)
    assert (model.pretrained_cfg, dict(vars(model)), list(model.state_dict())) == before
    assert model.training


def test_folder_has_the_hubs_shape_and_no_pickle(tmp_path):
    model = saved(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "dcn"
    assert config["num_classes"] == 10
    assert config["num_features"] == 64
    assert config["model_args"]["base"] == "resnet18"
    assert config["model_args"]["deformable"] == arguments(model)
    assert config["model_args"]["channels"] == [8, 16, 32, 64]
    cfg = config["pretrained_cfg"]
    assert cfg["num_classes"] == 10
    assert tuple(cfg["mean"]) == model.pretrained_cfg["mean"]
    # Nothing that leads timm to the plain network's weights.
    assert not {"url", "hf_hub_id", "file", "source"} & set(cfg)


def test_number_of_blocks_is_kept(tmp_path):
    model = inject_(perturbed("resnet18", layers=(1, 2, 1, 1), **NARROW))
    randomise_offsets(model)
    zoo.save(model, tmp_path / "once", {**BUILT, "layers": (1, 2, 1, 1)})
    zoo.save(zoo.load(tmp_path / "once"), tmp_path / "twice")
    assert_same(zoo.load(tmp_path / "twice"), model, images())


def test_data_config_of_a_default_network_is_kept(tmp_path):
    model = saved(tmp_path)
    assert resolve_model_data_config(zoo.load(tmp_path)) == resolve_model_data_config(model)


def test_fresh_process_loads_the_folder(tmp_path):
    model, x = saved(tmp_path, DCNConfig(offset_bound=2.0)), images()
    torch.save({"x": x, "y": model(x).detach()}, tmp_path / "data.pt")
    code = f"""
import timm, torch, zoo
data = torch.load({str(tmp_path / "data.pt")!r})
torch.set_num_threads(1)
model = timm.create_model("local-dir:{tmp_path}", pretrained=True).eval()
with torch.no_grad():
    assert torch.equal(model(data["x"]), data["y"])
"""
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True)


def test_refuses_what_it_cannot_rebuild(tmp_path):
    with pytest.raises(ValueError, match=r"expected a whole network of timm\.create_model, got Sequential"):
        zoo.save(nn.Sequential(DeformConv2d(3, 4, 3)), tmp_path / "a")
    with pytest.raises(ValueError, match="ResNet has no deformable layer"):
        zoo.save(timm.create_model("resnet18", **NARROW), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_refuses_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\.safetensors.*'.*nowhere'"):
        zoo.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        zoo.load(tmp_path)


def test_refuses_layers_that_the_base_lacks(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["deformable"]["layer9.conv"] = config["model_args"]["deformable"]["layer4.0.conv1"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"expected a convolution at 'layer9\.conv' of ResNet, got None"):
        zoo.load(tmp_path)


def test_refuses_a_config_that_fits_nothing():
    with pytest.raises(ValueError, match=r"dense, not in kinds=\('depthwise',\)"):
        timm.create_model("resnet18_dcn", dcn={"kinds": ("depthwise",)}, **NARROW)
    with pytest.raises(TypeError, match="colour"):
        timm.create_model("resnet18_dcn", dcn={"colour": 1}, **NARROW)
    with pytest.raises(TypeError, match="expected a DCNConfig, or a dict of its fields, got dcn='every=2'"):
        timm.create_model("resnet18_dcn", dcn="every=2", **NARROW)
    with pytest.raises(TypeError, match="base"):
        timm.create_model("dcn")


def test_what_changed_since_the_network_was_built_is_saved(tmp_path):
    model = timm.create_model("resnet18_dcn", dcn=DCNConfig(stages=(4,)), **NARROW).eval()
    model.reset_classifier(5)
    zoo.save(model, tmp_path)
    x = torch.randn(1, 3, 64, 64)
    loaded = zoo.load(tmp_path).eval()
    assert torch.equal(loaded(x), model(x))


def test_the_preprocessing_is_saved(tmp_path):
    model = timm.create_model("mobilenetv3_large_100_dcn.miil_in21k_ft_in1k")
    zoo.save(model, tmp_path)
    assert model.pretrained_cfg["mean"] == (0, 0, 0)
    assert tuple(zoo.load(tmp_path).pretrained_cfg["mean"]) == (0, 0, 0)


def test_a_saved_network_is_whole(tmp_path):
    features = timm.create_model("resnet18_dcn", features_only=True, **NARROW)
    with pytest.raises(ValueError, match="got FeatureListNet"):
        zoo.save(features, tmp_path)
    zoo.save(timm.create_model("resnet18_dcn", **NARROW), tmp_path)
    with pytest.raises(ValueError, match="without features_only"):
        zoo.load(tmp_path, features_only=True)
    with pytest.raises(ValueError, match="has its layers, but got dcn="):
        zoo.load(tmp_path, dcn={"every": 2})
