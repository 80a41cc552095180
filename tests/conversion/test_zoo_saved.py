"""Saved networks: every saved folder loads again, and a folder can't choose other files to read."""

import json
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import timm
import torch
from helpers import BUILT, NARROW, assert_same, images, perturbed, randomise_offsets, saved
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

import zoo
from zoo import DCNConfig, inject_


def converted(name="resnet18", **kwargs):
    model = inject_(perturbed(name, **kwargs)).eval()
    randomise_offsets(model)
    return model


def changed(folder, change):
    """Rewrite the config.json of a folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_channels_last_network_is_saved(tmp_path):
    model = converted(**NARROW).to(memory_format=torch.channels_last)
    zoo.save(model, tmp_path, BUILT)
    assert_same(zoo.load(tmp_path), model.to(memory_format=torch.contiguous_format), images())
    assert not model.layer4[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_shared_modules_and_views_are_saved_under_all_their_names(tmp_path):
    model = converted("coat_lite_mini", img_size=64, num_classes=5)
    # A weight that is a part of a larger tensor.
    model.head.weight.data = torch.randn(9, 512)[2:7]
    zoo.save(model, tmp_path, {"img_size": 64})
    weights = load_file(tmp_path / "model.safetensors")
    assert list(weights) == sorted(model.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    loaded = zoo.load(tmp_path)
    assert_same(loaded, model, images())
    assert loaded.crpe1.conv_list[0] is loaded.serial_blocks1[0].factoratt_crpe.crpe.conv_list[0]


def test_a_network_that_timm_pruned_is_saved(tmp_path):
    model = converted("efficientnet_b1_pruned", num_classes=5)
    zoo.save(model, tmp_path)
    assert_same(zoo.load(tmp_path), model, images())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_dtype_is_saved_and_loads_in_float32(dtype, tmp_path):
    model = converted(**NARROW).to(dtype)
    zoo.save(model, tmp_path, BUILT)
    assert_same(zoo.load(tmp_path), model.float(), images())


def narrower(model):
    """Remove four filters from a convolution, as pruning does, with all parameters that belong to them."""
    block = model.layer4[0]
    for layer, names in ((block.conv1, ["weight"]), (block.bn1, ["weight", "bias", "running_mean", "running_var"])):
        for name in names:
            getattr(layer, name).data = getattr(layer, name).data[4:]
    for name in ("weight", "offset_weight"):
        getattr(block.conv2, name).data = getattr(block.conv2, name).data[:, 4:]
    block.conv1.out_channels = block.conv2.in_channels = 60


def fused(model):
    zoo.fuse_batch_norm_(model, images())


def pruned(model):
    prune.random_unstructured(model.layer4[0].conv2, "weight", amount=0.5)


def other_activation(model):
    model.layer4[1].act2 = nn.SiLU()


CHANGES = {
    narrower: r"layer4\.0\.conv1\.weight has the shape \[60, 32, 3, 3\], rebuilt \[64, 32, 3, 3\]",
    fused: r"bn1\.weight|conv1\.bias",
    pruned: r"layer4\.0\.conv2\.weight_orig has the shape \[64, 64, 3, 3\], rebuilt None",
    other_activation: r"it computes aten\.silu.*, rebuilt it computes aten\.relu",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_rebuilt_is_refused_before_anything_is_written(change, tmp_path):
    first = saved(tmp_path)
    model = converted(**NARROW)
    with torch.no_grad():
        change(model)
    assert model(images()).shape == (2, 10)
    with pytest.raises(ValueError, match=rf"ResNet can't be rebuilt as 'resnet18' with .*: .*({CHANGES[change]})"):
        zoo.save(model, tmp_path, BUILT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(zoo.load(tmp_path), first, images())


def test_a_network_without_data_is_refused(tmp_path):
    with torch.device("meta"):
        model = timm.create_model("resnet18_dcn", **NARROW)
    with pytest.raises(ValueError, match="ResNet has weights on the meta device, which hold no data"):
        zoo.save(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_arguments_are_a_dict(tmp_path):
    with pytest.raises(
        TypeError, match=r"a dict of the arguments of timm\.create_model for model_args, got \['channels'\]"
    ):
        zoo.save(converted(**NARROW), tmp_path, ["channels"])


def test_pruned_weights_are_saved_once_they_are_plain(tmp_path):
    model = converted(**NARROW)
    pruned(model)
    prune.remove(model.layer4[0].conv2, "weight")
    zoo.save(model, tmp_path, BUILT)
    x = images()
    assert torch.equal(zoo.load(tmp_path).eval()(x), model(x))


@pytest.mark.parametrize("arguments", [{"act_layer": "silu"}, {"output_stride": 16}, {"stem_type": "deep"}, BUILT])
def test_arguments_that_nobody_recorded_are_asked_for(arguments, tmp_path):
    model = inject_(perturbed("resnet18", num_classes=10, **arguments), DCNConfig(stages=(4,)))
    vars(model).pop("_model_args", None)
    with pytest.raises(ValueError, match=r"can't be rebuilt as 'resnet18' with .*model_args=\{\.\.\.\}"):
        zoo.save(model, tmp_path)
    # All arguments of create_model may be given.
    zoo.save(model, tmp_path, {"num_classes": 10, "pretrained": False, **arguments})
    assert_same(zoo.load(tmp_path), model, images())
    with pytest.raises(ValueError, match="unexpected keyword argument 'colour'"):
        zoo.save(model, tmp_path, {"colour": 1, **arguments})


def test_arguments_that_timm_records_are_not_asked_for(tmp_path):
    model = inject_(perturbed("resnet18", **NARROW))
    records = hasattr(timm.create_model("test_resnet"), "_model_args")
    with nullcontext() if records else pytest.raises(ValueError, match="model_args="):
        zoo.save(model, tmp_path)
        assert_same(zoo.load(tmp_path), model, images())


def test_arguments_that_json_cannot_hold_are_asked_for_by_name(tmp_path):
    model = timm.create_model("resnet18_dcn", act_layer=nn.SiLU, **NARROW)
    with pytest.raises(ValueError, match=r"got act_layer=<class .*SiLU'> .*model_args=\{'act_layer': \.\.\.\}"):
        zoo.save(model, tmp_path)
    zoo.save(model, tmp_path, {"act_layer": "silu"})
    assert_same(zoo.load(tmp_path), model, images())


@pytest.mark.parametrize("classes", [0, 7])
def test_head_pool_and_channels_are_the_networks_own(classes, tmp_path):
    model = timm.create_model("resnet18_dcn", in_chans=4, **NARROW)
    randomise_offsets(model)
    model.reset_classifier(classes, "max")
    zoo.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == classes
    assert (config["model_args"]["in_chans"], config["model_args"]["global_pool"]) == (4, "max")
    assert config["pretrained_cfg"]["input_size"] == [4, 224, 224]
    loaded = zoo.load(tmp_path)
    assert_same(loaded, model, images(4))
    assert loaded.pretrained_cfg["input_size"] == (4, 224, 224)


def test_channels_that_cannot_be_adapted_are_refused(tmp_path):
    zoo.save(timm.create_model("resnet18_dcn", in_chans=4, **NARROW), tmp_path)
    with pytest.raises(ValueError, match=r"expected in_chans=4 as saved, got in_chans=3, .*conv1\.weight"):
        zoo.load(tmp_path, in_chans=3)


def test_the_config_builds_the_network_as_other_libraries_do(tmp_path):
    # transformers' TimmWrapperForImageClassification passes the number of classes in addition to model_args.
    model = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "num_classes" not in config["model_args"]
    other = timm.create_model(
        config["architecture"], pretrained=False, num_classes=config["num_classes"], **config["model_args"]
    )
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert_same(other, model, images())


def test_both_files_can_be_read_by_the_same_people(tmp_path):
    old = os.umask(0o022)
    try:
        saved(tmp_path)
    finally:
        os.umask(old)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "config.json": 0o644,
        "model.safetensors": 0o644,
    }


class Bomb:
    """Unpickling it creates a file, which shows that it was unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "saved")
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "unpickled")))
    yield tmp_path / "saved"
    assert not (tmp_path / "unpickled").exists()


each_way = pytest.mark.parametrize(
    "load",
    [zoo.load, lambda folder: timm.create_model(f"local-dir:{folder}", pretrained=True)],
    ids=["zoo.load", "timm.create_model"],
)


@each_way
@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "model_name"),
        *("pretrained_strict", "pretrained_filter_fn", "feature_cfg", "kwargs_filter", "model_cfg", "model_cls"),
    ],
)
def test_arguments_of_loaders_are_refused(name, load, folder):
    path = str(folder.parent / "bomb.pth")
    value = {"file": path} if "cfg" in name else path
    changed(folder, lambda config: config["model_args"].update({name: value}))
    with pytest.raises((ValueError, TypeError), match=name):
        load(folder)


@each_way
@pytest.mark.parametrize(
    "base", ["hf-hub:timm/resnet18", "local-dir:{}", "{}", "../resnet18", "resnet999", 18, None]
)
def test_a_base_is_an_architecture_of_timms(base, load, folder):
    base = base.format(folder) if isinstance(base, str) else base
    changed(folder, lambda config: config["model_args"].update(base=base))
    with pytest.raises((ValueError, TypeError), match=r"architecture of timm's|\bbase\b"):
        load(folder)


@each_way
def test_weights_come_from_the_folder_alone(load, folder):
    path = str(folder.parent / "bomb.pth")
    strange = {"file": path, "url": f"file://{path}", "hf_hub_id": "a/b", "hf_hub_filename": "c.bin"}
    more = {"source": "url", "custom_load": "hf", "architecture": "resnet50", "state_dict": {}}
    expected = load(folder)
    changed(folder, lambda config: config["pretrained_cfg"].update(strange | more))
    loaded = load(folder)
    assert_same(loaded, expected, images())
    assert loaded.pretrained_cfg == expected.pretrained_cfg
    assert loaded.pretrained_cfg["architecture"] == "resnet18"


@each_way
def test_weights_are_safetensors(load, folder):
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pth", "model.bin"):
        (folder / name).write_bytes((folder.parent / "bomb.pth").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\.safetensors, got '.*saved'"):
        load(folder)


BROKEN = {
    "no JSON": (
        lambda path: path.write_text("{"),
        r"a config\.json of zoo\.save, got '.*config\.json': JSONDecode",
    ),
    "a list": (lambda path: path.write_text("[]"), r"a config\.json of zoo\.save, got .*TypeError"),
    "keys missing": (lambda path: path.write_text('{"architecture": "dcn"}'), r"zoo\.save, got .*KeyError"),
    "of a plain network": (
        lambda path: path.write_text(path.read_text().replace('"dcn"', '"resnet18"')),
        r"with the architecture 'dcn', got 'resnet18' in '.*'; timm",
    ),
    "an argument that the architecture lacks": (
        lambda path: path.write_text(path.read_text().replace('"channels"', '"colours"')),
        r"config\.json', with the arguments \{\}, describes no timm network: .*unexpected .* 'colours'",
    ),
    "arguments of another layer": (
        lambda path: path.write_text(path.read_text().replace('"modulated"', '"colour"')),
        r"expected the arguments offset_groups, modulated, .* of 'layer2\.0\.conv1', got .*colour",
    ),
    "weights of another network": (
        lambda path: path.write_text(path.read_text().replace('"resnet18"', '"resnet34"')),
        r"the weights are not those of the config\.json next to them: .*layer1\.2\.conv1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused(case, folder):
    spoil, message = BROKEN[case]
    spoil(folder / "config.json")
    with pytest.raises(ValueError, match=message):
        zoo.load(folder)


@each_way
def test_damaged_weights_are_refused_by_their_name(load, folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors' is damaged: .*; copy or download it again"):
        load(folder)


def test_a_name_that_timm_does_not_know_is_refused(folder):
    changed(folder, lambda config: config["model_args"].update(norm_layer="nonesuch"))
    with pytest.raises(ValueError, match=r"config\.json', .* describes no timm network: KeyError\('nonesuch'\)"):
        zoo.load(folder)


@pytest.mark.parametrize("name", ["pretrained", "pretrained_cfg", "model_name"])
def test_the_folder_says_what_is_loaded(name, folder):
    with pytest.raises(ValueError, match=f"the folder determines what is loaded, but got {name}; leave"):
        zoo.load(folder, **{name: False})


def test_what_is_no_path_is_refused(folder):
    model = zoo.load(folder)
    for call in (lambda: zoo.load(None), lambda: zoo.save(model, None)):
        with pytest.raises(TypeError, match="expected the path of a folder, got None"):
            call()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_saved_as_what_it_wraps(wrap, folder, tmp_path):
    model = zoo.load(folder)
    zoo.save(wrap(model), tmp_path / "again")
    assert_same(zoo.load(tmp_path / "again"), model, images())


def test_a_hub_repository_loads_from_its_safetensors(folder, tmp_path):
    # As the hub's client caches it; without a network.
    repository, revision = tmp_path / "hub" / "models--someone--network", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    x = images()
    torch.save({"x": x, "y": zoo.load(folder).eval()(x).detach()}, tmp_path / "data.pt")
    folder.rename(repository / "snapshots" / revision)
    code = f"""
import timm, torch, zoo
torch.set_num_threads(1)
data = torch.load({str(tmp_path / "data.pt")!r})
model = timm.create_model("hf-hub:someone/network", pretrained=True).eval()
with torch.no_grad():
    assert torch.equal(model(data["x"]), data["y"])
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize("given", ["last.safetensors", ""])
def test_a_checkpoint_of_dcn_train_is_answered_with_what_reads_it(given, tmp_path):
    (tmp_path / "last.safetensors").touch()
    with pytest.raises(
        FileNotFoundError, match=r"if last\.safetensors is a checkpoint.*: dcn-share checkpoint=.*last"
    ):
        zoo.load(tmp_path / given)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file', which is a file"):
        zoo.save(converted(**NARROW), tmp_path / "file")
