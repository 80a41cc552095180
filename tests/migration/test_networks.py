"""Whole checkpoints become networks of timm's with the source's features."""

import copy

import timm
import torch
from helpers import deformable
from sources import (
    FORK,
    MMCV_V1,
    MMCV_V2,
    PREDICTING,
    features,
    of_detectron2,
    of_mmdetection,
    renamed,
    resnet,
)

import zoo
from zoo import migrate

THIRTEEN = [f"layer{s}.{i}.conv2" for s, count in ((2, 4), (3, 6), (4, 3)) for i in range(count)]
TINY = {"layers": (1, 1, 1, 1)}  # no architecture of timm's: for load_ into a ResNet of the caller's


def images():
    return torch.randn(1, 3, 64, 64, dtype=torch.float64)


def assert_same_features(model, source, x=None):
    x = images() if x is None else x
    with torch.no_grad():
        expected = features(source, x)
        _, *found = model.double().eval().forward_intermediates(x, intermediates_only=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * float(theirs.abs().max()))


def tiny(**kwargs):
    block = timm.models.resnet.Bottleneck
    return timm.models.resnet.ResNet(block, (1, 1, 1, 1), **{"num_classes": 0, **kwargs}).double()


def test_mmdetections_faster_rcnn(tmp_path):
    source = resnet(MMCV_V2)
    checkpoint = of_mmdetection(source.state_dict())
    config = "model = dict(backbone=dict(type='ResNet', style='pytorch', dcn=dict(type='DCNv2')))"
    torch.save({"meta": {"config": config}, "state_dict": checkpoint, "optimizer": {}}, tmp_path / "frcnn.pth")
    model, result = migrate.build(tmp_path / "frcnn.pth")
    assert list(deformable(model)) == list(result.layers) == THIRTEEN
    assert (type(model), model.num_classes) == (timm.models.ResNet, 0)
    assert_same_features(model, source)
    assert result.rest.keys() == {key for key in checkpoint if not key.startswith("backbone.")}
    assert torch.equal(
        result.rest["roi_head.bbox_head.fc_reg.weight"], checkpoint["roi_head.bbox_head.fc_reg.weight"]
    )
    assert result.renamed["backbone.layer3.5.conv2.conv_offset.bias"] == "layer3.5.conv2.offset_bias"
    assert set(result.loaded) == set(model.state_dict())
    assert not result.kept
    assert result.source == "mmdetection"
    assert "left out: 30 tensors of neck, roi_head, rpn_head" in str(result)


def test_detectron2_in_caffes_style(tmp_path):
    source = resnet(MMCV_V2, offset_groups=2, caffe=True)
    weights = of_detectron2(source.state_dict()) | {"roi_heads.box_head.fc1.weight": torch.rand(8, 8)}
    torch.save({"model": weights}, tmp_path / "model_final.pth")
    model, result = migrate.build(tmp_path / "model_final.pth")
    assert list(deformable(model)) == THIRTEEN
    assert_same_features(model, source)
    assert list(result.rest) == ["roi_heads.box_head.fc1.weight"]
    assert result.source == "detectron2"
    assert any("images are BGR" in note for note in result.notes)
    assert result.renamed["backbone.bottom_up.res4.0.shortcut.norm.weight"] == "layer3.0.downsample.1.weight"
    assert model.pretrained_cfg["architecture"] == "resnet50_caffe"
    assert abs(255 * model.pretrained_cfg["mean"][0] - 103.53) < 1e-9
    # In a folder, and back.
    zoo.save(model.float(), tmp_path / "folder")
    x = images().float()
    assert torch.equal(zoo.load(tmp_path / "folder").eval()(x), model(x))


def test_detectron2_with_weights_of_torchvision():
    source = resnet(MMCV_V1)
    model, result = migrate.build(of_detectron2(source.state_dict()), caffe=False)
    assert_same_features(model, source)
    assert not result.notes


def test_mmsegmentations_resnet_v1c_with_dilation():
    source = resnet(MMCV_V2, deep=True, replace_stride_with_dilation=(False, True, True))
    backbone = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    checkpoint = renamed(backbone, (r"^bn1\.", "stem.7."), (r"^conv1\.", "stem."), prefix="backbone.")
    checkpoint["decode_head.conv_seg.weight"] = torch.rand(19, 512, 1, 1)
    model, result = migrate.build({"state_dict": checkpoint}, output_stride=8)
    assert model.pretrained_cfg["architecture"] == "resnet50c"
    assert list(deformable(model)) == THIRTEEN
    assert_same_features(model, source)
    assert list(result.rest) == ["decode_head.conv_seg.weight"]
    assert result.source == "mmsegmentation"


def test_torchvisions_names_with_a_classifier_and_resnext(tmp_path):
    source = resnet(MMCV_V2, offset_groups=4, groups=32, width_per_group=4)
    model, result = migrate.build(source.state_dict())
    assert model.pretrained_cfg["architecture"] == "resnext50_32x4d"
    assert {layer.groups for layer in deformable(model).values()} == {32}
    x = images()
    torch.testing.assert_close(model.double().eval()(x), source(x).detach(), rtol=1e-12, atol=1e-9)
    # Another number of classes keeps its classifier.
    other = timm.create_model("resnext50_32x4d", num_classes=7)
    result = migrate.load_(other, source.state_dict())
    assert result.kept == ("fc.weight", "fc.bias")
    assert result.rest.keys() == {"fc.weight", "fc.bias"}
    assert_same_features(other, source)
    zoo.save(other.float(), tmp_path)
    assert {layer.mask_scale for layer in deformable(zoo.load(tmp_path)).values()} == {1}


def test_yolact_plus_plus_has_biases():
    source = resnet(FORK, bias=True, **TINY)
    names = ((r"^layer(\d)", lambda found: f"layers.{int(found[1]) - 1}"),)
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    checkpoint = renamed(weights, *names, prefix="backbone.")
    model = tiny()
    result = migrate.load_(model, checkpoint)
    assert_same_features(model, source)
    assert result.source == "YOLACT++"
    assert "biases of layer2.0.conv2, layer3.0.conv2, layer4.0.conv2" in result.notes[0]


def test_centernets_neck_stays_available():
    source, up = resnet(FORK, **TINY), PREDICTING["fork"]()
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    checkpoint = weights | renamed(up.state_dict(), prefix="deconv_layers.0.")
    checkpoint = {"epoch": 140, "state_dict": renamed(checkpoint, prefix="module.")}
    result = migrate.load_(tiny(), checkpoint)
    assert result.source == "a DCNv2 fork"
    assert list(result.layers) == ["layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"]
    names = {"weight", "bias", "offset_weight", "offset_bias"}
    assert result.rest.keys() == {f"deconv_layers.0.{name}" for name in names}


def test_centernets_own_network_loads_whole():
    source = resnet(FORK, **TINY)
    source.deconv_layers = torch.nn.Sequential(PREDICTING["fork"]())
    checkpoint = {"state_dict": renamed(source.state_dict(), prefix="module.")}
    model = copy.deepcopy(source)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    migrate.replace_(model)
    result = migrate.load_(model, checkpoint)
    assert (len(result.layers), result.kept, result.rest) == (4, (), {})
    torch.testing.assert_close(model(x := images()), source(x), rtol=1e-12, atol=1e-12)
    layer = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(model.deconv_layers.float()(layer), source.deconv_layers.float()(layer))


def test_features_of_a_network_take_a_backbone_too():
    source = resnet(MMCV_V2)
    model = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3)).double().eval()
    result = migrate.load_(model, of_mmdetection(source.state_dict()))
    x = images()
    with torch.no_grad():
        for ours, theirs in zip(model(x), features(source, x)[:3], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-9)
    assert len(result.layers) == 10
    assert "backbone.layer4.2.conv2.offset_bias" in result.rest


def test_a_step_of_a_whole_network_is_the_sources():
    source = resnet(MMCV_V2, **TINY)
    model = tiny(num_classes=4)
    migrate.load_(model, source.state_dict())
    x, states = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for network in (source.train(), model.train()):
        torch.nn.functional.cross_entropy(network(x), torch.tensor([0, 3])).backward()
        torch.optim.SGD(network.parameters(), lr=0.1).step()
        states.append(renamed(network.state_dict(), (r"conv_offset\.", "offset_")))
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-12)


def test_imported_layers_that_never_moved_fold_into_half_the_weight():
    source = resnet(MMCV_V2, **TINY)
    weights = {k: torch.zeros_like(v) if "conv_offset" in k else v for k, v in source.state_dict().items()}
    source.load_state_dict(weights)
    model = tiny(num_classes=4)
    migrate.load_(model, weights)
    folding = zoo.fold_(model.eval(), [images()])
    assert len(folding.folded) == 3
    assert torch.equal(model.layer2[0].conv2.weight, weights["layer2.0.conv2.weight"] / 2)
    assert_same_features(model, source)
