"""Files that are no checkpoint, code in pickles, and checkpoints of another network."""

import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import timm
import torch
from safetensors.torch import save_file
from sources import FORK, MMCV_V2, PREDICTING, renamed, resnet
from test_networks import TINY, tiny
from torch import nn

import zoo
from zoo import DCNConfig, inject_, migrate


@pytest.fixture(scope="module")
def weights():
    weights = resnet(MMCV_V2, **TINY).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith("fc.")}


def pickled(content, file):
    arrays = {key: value.numpy() for key, value in content["state_dict"].items()}
    file.write_bytes(pickle.dumps({**content, "state_dict": arrays}))


class Code:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


class Command:
    def __reduce__(self):
        return os.system, ("exit 3",)


@pytest.mark.parametrize("write", [torch.save, pickled])
def test_code_in_a_pickle_is_named_and_not_run(write, weights, tmp_path):
    file, evil = tmp_path / "model.pkl", tmp_path / "evil"
    for code in (Code(evil), Command()):
        write({"state_dict": weights, "hook": code}, file)
        with pytest.raises(
            ValueError, match=r"model.pkl' holds more than tensors: (posix.system|.*pathlib|.*getattr)"
        ):
            migrate.read(file)
    assert not evil.exists()


def test_a_whole_pickled_network_is_no_checkpoint(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"torch.nn.modules.conv.Conv2d.*torch.save\(model.state_dict\(\), file\)"):
        migrate.load_(tiny(), tmp_path / "model.pth")


def test_records_of_a_training_run_are_passed_over(weights, tmp_path):
    """mmengine stores its history and random states beside the weights; its classes need not be installed."""
    code = "\n".join(
        [
            "import sys, types, torch, numpy",
            "class HistoryBuffer:",
            "    def __init__(self): self.values = numpy.zeros(3); self.names = ['loss']",
            "class ConfigDict(dict):",
            "    def __reduce_ex__(self, protocol): return ConfigDict, (dict(self),)",
            "for name in ('mmengine', 'mmengine.logging', 'mmengine.config'):",
            "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = []",
            "for name, cls in (('mmengine.logging.history_buffer', HistoryBuffer),",
            "                  ('mmengine.config.config', ConfigDict)):",
            "    sys.modules[name] = types.ModuleType(name); cls.__module__ = name",
            "    setattr(sys.modules[name], cls.__name__, cls)",
            "weights = torch.load(sys.argv[1])",
            "hub = {'log_scalars': {'loss': HistoryBuffer()}, 'at': numpy.float64(2)}",
            "torch.save({'message_hub': hub, 'cfg': ConfigDict(a=1), 'state_dict': weights}, sys.argv[1])",
        ]
    )
    torch.save(weights, tmp_path / "last.pth")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "last.pth")], check=True)
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(tmp_path / "last.pth", weights_only=True)
    assert len(migrate.read(tmp_path / "last.pth").layers) == 3


def test_detectron2s_pickles_of_arrays(weights, tmp_path):
    arrays = {key: value.numpy() for key, value in weights.items()}
    content = {"model": arrays, "__author__": "detectron2", "matching_heuristics": True}
    for protocol in (2, 4):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
        found = migrate.read(tmp_path / "model.pkl").weights
        assert torch.equal(found["layer2.0.conv2.offset_bias"], weights["layer2.0.conv2.conv_offset.bias"])
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"w": numpy.array([Command()])}}))
    with pytest.raises(ValueError, match=r"posix\.system"):
        migrate.read(tmp_path / "model.pkl")


def test_safetensors_and_files_of_old_torch(weights, tmp_path):
    save_file({key: value.clone() for key, value in weights.items()}, tmp_path / "model.safetensors")
    torch.save({"state_dict": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("model.safetensors", "old.pth"):
        assert len(migrate.read(tmp_path / name).layers) == 3


CONTENTS = {
    "text": b"a readme\n",
    "nothing": b"",
    "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "half": pickle.dumps({"state_dict": {}})[:-3],
}


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    (tmp_path / "file.pth").write_bytes(CONTENTS[content])
    with pytest.raises(
        ValueError, match=r"expected a checkpoint of torch.save, safetensors or .* whole, got '.*file.pth'"
    ):
        migrate.read(tmp_path / "file.pth")


def test_damaged_files(weights, tmp_path):
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    (tmp_path / "cut.pth").write_bytes(buffer.getvalue()[:-1000])
    (tmp_path / "cut.safetensors").write_bytes(b"12345678 and more")
    for name in ("cut.pth", "cut.safetensors"):
        with pytest.raises(ValueError, match=name):
            migrate.read(tmp_path / name)


def test_no_file_and_no_tensors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint file, got '.*none.pth'"):
        migrate.read(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError):
        migrate.read(tmp_path)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="expected a checkpoint with tensors by name"):
        migrate.read(tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"expected a state_dict with tensors, got the keys \['epoch'\]"):
        migrate.read({"epoch": 3})
    with pytest.raises(TypeError, match="expected the path of a checkpoint, or a state_dict, got <class 'int'>"):
        migrate.read(3)


def changed(model, before):
    after = model.state_dict()
    return before.keys() != after.keys() or any(not torch.equal(after[key], value) for key, value in before.items())


def refused(model, checkpoint, match, **arguments):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        migrate.load_(model, checkpoint, **arguments)
    assert not changed(model, before)


def test_a_checkpoint_of_another_architecture(weights):
    refused(
        timm.create_model("resnet18"), weights, "another architecture than this ResNet: .* tensors are not in the"
    )
    deeper = weights | {
        f"layer2.1{key[8:]}": value for key, value in weights.items() if key.startswith("layer2.0.")
    }
    refused(tiny(), deeper, "in the checkpoint, but not in the network, such as layer2.1.")
    plugin = weights | {"layer3.0.context_block.conv.weight": torch.zeros(1, 1, 1, 1)}
    refused(tiny(), plugin, "not in the network, such as layer3.0.context_block.conv.weight")
    with pytest.raises(ValueError, match=r"timm has no ResNet with \(1, 1, 1, 1\) blocks, of 64 channels"):
        migrate.build(weights)


def test_missing_keys_and_wrong_shapes(weights):
    refused(
        tiny(),
        {k: v for k, v in weights.items() if k != "layer3.0.bn2.bias"},
        "not in the .* such as layer3.0.bn2.bias",
    )
    wrong = weights | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    refused(
        tiny(),
        wrong,
        r"of other shapes in the checkpoint, such as conv1.weight \[64, 1, 7, 7\], not \[64, 3, 7, 7\]",
    )


def test_transformers(weights):
    swin = {f"backbone.stages.0.blocks.{i}.attn.w_msa.qkv.weight": torch.zeros(2, 2) for i in range(4)}
    refused(tiny(), swin, "found no ResNet or ResNeXt among 4 tensors .a transformer's, such as backbone.stages")
    vit = timm.create_model("vit_tiny_patch16_224", depth=1)
    refused(vit, weights, "another architecture than this VisionTransformer")


def test_two_resnets(weights):
    both = renamed(weights, prefix="teacher.") | renamed(weights, prefix="student.")
    refused(tiny(), both, "expected one ResNet in the checkpoint, got 2, at 'teacher.', 'student.'; pass a dict")


def test_a_network_that_is_deformable_elsewhere(weights):
    model = inject_(tiny(), DCNConfig(stages=(1,)), input_size=(3, 64, 64))
    refused(model, weights, "layer1.0.conv2 is deformable in the network, but not in the checkpoint")
    with pytest.raises(TypeError, match="expected a network"):
        migrate.load_("resnet50", weights)


def test_caffes_style_needs_bottlenecks(weights):
    model = tiny()
    migrate.load_(model, weights, caffe=True)
    assert [m.layer2[0].conv1.stride for m in (model, tiny())] == [(2, 2), (1, 1)]
    with pytest.raises(ValueError, match="expected bottlenecks for caffe's style, got 'resnet18'"):
        migrate.load_(timm.create_model("resnet18"), timm.create_model("resnet18").state_dict(), caffe=True)
    built = timm.create_model("resnet50_caffe", num_classes=3)
    with pytest.raises(ValueError, match="the network is in caffe's style and the checkpoint is not"):
        migrate.load_(built, timm.create_model("resnet50", num_classes=3).state_dict())
    with pytest.raises(ValueError, match="timm has no weights for resnet50_caffe"):
        timm.create_model("resnet50_caffe", pretrained=True)


def test_a_layer_of_another_library_wants_replace_first():
    source = nn.Sequential(OrderedDict(up=PREDICTING["fork"]()))
    refused(
        source, source.state_dict(), r"expected a convolution at 'up' .* call zoo.migrate.replace_\(model\) first"
    )
    migrate.replace_(source)
    weights = nn.Sequential(OrderedDict(up=FORK())).state_dict()
    migrate.load_(source, weights)
    assert torch.equal(source.up.offset_weight, weights["up.conv_offset_mask.weight"])


def test_folders_of_earlier_versions_have_masks_of_two(tmp_path):
    import json

    model = timm.create_model("resnet18_dcn", channels=(8, 16, 32, 64), num_classes=3)
    zoo.save(model, tmp_path, {"channels": (8, 16, 32, 64)})
    config = json.loads((tmp_path / "config.json").read_text())
    for arguments in config["model_args"]["deformable"].values():
        assert arguments.pop("mask_scale") == 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = [m for m in zoo.load(tmp_path).modules() if hasattr(m, "mask_scale")]
    assert {layer.mask_scale for layer in layers} == {2}
