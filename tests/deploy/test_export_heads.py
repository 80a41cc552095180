"""dcn-export of detectors and segmenters, and the post-processing beside a detector's file."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scenes import write_masks, write_voc
from torch import nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms
from zoo.scripts.config.schema import Export
from zoo.scripts.deploy import answers, detections, guard, objects, photos, targets, training_data, verify
from zoo.scripts.deploy.detectors import OneStage, TwoStage
from zoo.scripts.deploy.report import Row
from zoo.scripts.deploy.run import run
from zoo.scripts.networks.build import HEADS
from zoo.scripts.networks.detectors import DETECTORS
from zoo.scripts.storage import checkpoint

from dcn_ops import DeformConv2d

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIZE = 64


def recipe_of(head: str) -> dict[str, Any]:
    kwargs = {"box_detections_per_img": 20} if head.endswith("rcnn") else {}
    kwargs |= {"detections_per_img": 20} if head in answers.ONE_STAGE else {}
    return {
        "create_model": {
            "model_name": "resnet18", "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8,
            "num_classes": 3, "in_chans": 3,
        },
        "head": {"name": head, "channels": 64, "kwargs": kwargs},
        "dcn": {"include": ("*layer3.0.conv1", "*layer4.0.conv2")},
        "pretrained_cfg": {
            "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, SIZE, SIZE], "label_names": ["a", "b", "c"],
        },
    }  # fmt: skip


def network_of(head: str) -> Any:
    """Return a network whose layers deform, and whose scores differ from place to place."""
    torch.manual_seed(0)
    model: Any = checkpoint.build(recipe_of(head)).eval()
    assert sum(isinstance(module, DeformConv2d) for module in model.modules()) == 2
    for name, module in model.named_modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.offset_weight, std=0.1)
            nn.init.normal_(module.offset_bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if name.endswith(("cls_logits", "cls_score", "bbox_reg", "mask_fcn_logits")):
            nn.init.normal_(module.weight, std=0.3)
    return model


def images_of(count: int) -> torch.Tensor:
    shape = (3, SIZE, SIZE)
    return photos.batch(photos.read(None, 8).images, count, shape, nn.Identity(), square=True)


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.safetensors"
    checkpoint.save(network_of(request.param), recipe_of(request.param), path)
    return path


def row_of(path: Path, target: str, **changes: object) -> Row:
    settings = {"plain": False, "rounds": 1, "threads": 1, "max_images": 4} | changes
    return run(Export(checkpoint=str(path), folder=str(path.parent / "files"), target=target, **settings))[-1]


# Saved and loaded


@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_checkpoint_computes_the_same_bits(head: str, tmp_path: Path) -> None:
    model, images = network_of(head), images_of(2)
    checkpoint.save(model, recipe_of(head), tmp_path / "whole.safetensors")
    loaded = checkpoint.load(tmp_path / "whole.safetensors")
    with torch.no_grad():
        ours, theirs = model(images), loaded(images)
    if head not in DETECTORS:
        assert torch.equal(ours, theirs)
        return
    assert sum(len(one["scores"]) for one in ours) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


# What a detector's file computes


@pytest.mark.parametrize("head", answers.ONE_STAGE)
def test_candidates_and_numpy_give_the_objects_of_torchvision(head: str) -> None:
    model, images = network_of(head), images_of(3)
    with torch.no_grad():
        expected = model(images)
        outputs = [tensor.numpy() for tensor in OneStage(model)(images)]
    keys = ("score_thresh", "nms_thresh", "topk_candidates", "detections_per_img")
    for limits in ({}, {"topk_candidates": 7}, {"score_thresh": 0.3}):
        for name, value in limits.items():
            setattr(model, name, value)
        with torch.no_grad():
            expected = model(images)
        settings = {key: getattr(model, key) for key in keys}
        found = detections.find(dict(zip(OneStage.outputs, outputs, strict=True)), **settings)
        assert len(found) == 3
        assert sum(len(one["scores"]) for one in found) > 3
        for one, other in zip(found, expected, strict=True):
            for name in ("boxes", "scores", "labels"):
                torch.testing.assert_close(torch.from_numpy(one[name]), other[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_a_detector_of_two_stages_with_tensors_of_constant_size_finds_the_objects_of_torchvision(
    head: str,
) -> None:
    model, images = network_of(head), images_of(3)
    with torch.no_grad():
        expected, whole = objects.of_eager(model, images), model(images)
        network = TwoStage(model)
        outputs = dict(zip(network.outputs, (t.numpy() for t in network(images)), strict=True))
    found = detections.find(outputs)
    assert len({len(one["scores"]) for one in found}) > 0
    for one, other, pasted in zip(found, expected, whole, strict=True):
        assert len(one["scores"]) > 0
        for name in other:
            torch.testing.assert_close(torch.from_numpy(one[name]), other[name], rtol=1e-5, atol=1e-4)
        if head == "mask_rcnn":
            masks = detections.paste(one["masks"], one["boxes"], SIZE, SIZE)
            torch.testing.assert_close(torch.from_numpy(masks), pasted["masks"][:, 0], rtol=1e-4, atol=1e-4)


def boxes_of(count: int, side: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    corners = random.uniform(-4, side - 8, (count, 2))
    return np.concatenate((corners, corners + random.uniform(2, side / 2, (count, 2))), 1).astype(np.float32)


def test_the_suppression_is_that_of_torchvision() -> None:
    random = np.random.default_rng(1)
    boxes, scores = boxes_of(200, 40), random.uniform(size=200).astype(np.float32)
    labels = random.integers(0, 3, 200)
    kept = detections.suppress(boxes, scores, labels, 0.2)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), 0.2)
    assert 10 < len(kept) < 150
    assert kept.tolist() == expected.tolist()


def test_masks_are_pasted_as_torchvision_pastes_them_over_the_border_too() -> None:
    boxes = np.concatenate((boxes_of(12, 50), np.float32([[3.2, 4.1, 3.3, 4.2], [40, 30, 90, 60]])))
    masks = np.random.default_rng(2).uniform(size=(len(boxes), 28, 28)).astype(np.float32)
    expected = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (50, 70))
    found = torch.from_numpy(detections.paste(masks, boxes, 50, 70))
    assert expected.any(-1).any(-1).sum() >= 12
    torch.testing.assert_close(found, expected[:, 0], rtol=1e-4, atol=1e-5)
    assert detections.paste(masks[:0], boxes[:0], 50, 70).shape == (0, 50, 70)


def test_an_image_without_objects_has_none() -> None:
    nothing = {"boxes": np.zeros((1, 5, 4), "f4"), "scores": np.zeros((1, 5, 3), "f4"), "levels": np.zeros(5, int)}
    (found,) = detections.find(nothing, score_thresh=0.1, nms_thresh=0.5, topk_candidates=10, detections_per_img=10)
    assert {name: value.shape for name, value in found.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


# Whether an export finds the same


def scene(**changes: Any) -> list[dict[str, torch.Tensor]]:
    one = {
        "boxes": torch.tensor([[10.0, 10, 30, 30], [10, 10, 30, 31], [50, 50, 60, 60]]),
        "scores": torch.tensor([0.9, 0.8, 0.1005]),
        "labels": torch.tensor([0, 1, 0]),
    }
    return [one | changes]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, 0),
        ({"boxes": torch.tensor([[10.0, 10, 30, 30.05], [10, 10, 30, 31], [50, 50, 60, 60]])}, 0),
        ({"boxes": torch.tensor([[10.0, 10, 30, 32], [10, 10, 30, 31], [50, 50, 60, 60]])}, 2),
        ({"scores": torch.tensor([0.9, 0.7, 0.1005])}, 2),
        ({"labels": torch.tensor([0, 0, 0])}, 2),
        ({"scores": torch.tensor([0.9, 0.8, float("nan")])}, 0),  # eager's own is at the limit
        ({"scores": torch.tensor([0.9, float("nan"), 0.1005])}, 1),
    ],
)
def test_objects_that_differ_are_counted(change: dict[str, torch.Tensor], wrong: int) -> None:
    matches = objects.Matches(tolerance=1e-3, least=0.1, most=100)
    matches.add(scene(**change), scene(), side=100)
    assert len(matches.missing) == wrong
    assert matches.count == 3
    if wrong:
        with pytest.raises(verify.VerificationError, match=rf"{wrong} objects differ from eager's 3 .* of class"):
            matches.check()


@pytest.mark.parametrize(("gone", "wrong"), [(2, 0), (1, 1)])
def test_only_an_object_at_the_limit_may_be_missing(gone: int, wrong: int) -> None:
    kept = torch.arange(3) != gone
    fewer = [{name: value[kept] for name, value in scene()[0].items()}]
    for found, expected in ((fewer, scene()), (scene(), fewer)):
        matches = objects.Matches(tolerance=1e-3, least=0.1, most=100)
        matches.add(found, expected, side=100)
        assert len(matches.missing) == wrong


# Files


@pytest.mark.parametrize("saved", ["unet"], indirect=True)
def test_a_segmenter_is_exported_for_every_size(saved: Path) -> None:
    rows = run(
        Export(
            checkpoint=str(saved), folder=str(saved.parent), target=["onnx", "torchscript"], dynamic="size",
            plain=False, rounds=1, threads=1, max_images=4,
        )
    )  # fmt: skip
    for row in rows:
        assert (row.reason, row.same) == (None, "pixels")
        assert row.relative <= 1e-3
        assert row.top1 > 0.99
    facts = onnxruntime.InferenceSession(rows[1].file).get_modelmeta().custom_metadata_map
    assert json.loads(facts["padding"]) == "square"
    assert json.loads(facts["label_names"]) == ["a", "b", "c"]


@pytest.mark.parametrize("saved", ["fcos"], indirect=True)
def test_a_user_finds_eagers_objects_with_the_file_and_the_script_beside_it(saved: Path) -> None:
    folder = saved.parent / "files"
    row = row_of(saved, "onnx")
    assert (row.reason, row.same, row.top1) == (None, "objects", 1)
    assert row.objects > 10
    assert {path.name for path in folder.iterdir()} == {"fcos.onnx", "fcos.onnx.json", "detections.py"}
    session = onnxruntime.InferenceSession(row.file)
    facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["detections"] == json.loads((folder / "fcos.onnx.json").read_text())["metadata"]["detections"]
    spec = importlib.util.spec_from_file_location("beside", folder / "detections.py")
    beside = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(beside)
    images = images_of(5)
    outputs = dict(zip(facts["outputs"], session.run(None, {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        expected = network_of("fcos")(images)
    for one, other in zip(beside.find(outputs, **facts["detections"]), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one["boxes"]), other["boxes"], rtol=1e-4, atol=1e-2)
        assert one["labels"].tolist() == other["labels"].tolist()


@pytest.mark.parametrize("saved", ["fcos"], indirect=True)
def test_a_detector_that_finds_other_objects_leaves_no_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(job: targets.Job, file: Path) -> None:
        job.model.anchors.cell1 += 1.0  # of one level
        targets._torchscript(job, file)

    monkeypatch.setitem(targets.TARGETS, "torchscript", targets.Target(".pt", write, library="whole"))
    row = row_of(saved, "torchscript")
    assert "objects differ from eager's" in row.reason
    assert not list((saved.parent / "files").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "target"),
    [
        *((head, "onnx") for head in ("smp_fpn", "deeplabv3plus", "upernet", "retinanet", "mask_rcnn")),
        ("faster_rcnn", "openvino"),
        ("mask_rcnn", "torchscript"),
        ("faster_rcnn", "torch-export"),
        ("fcos", "aoti"),
    ],
    indirect=["saved"],
)
def test_a_target_gives_eagers_answers(saved: Path, target: str) -> None:
    row = row_of(saved, target, dynamic="none" if saved.stem.endswith("rcnn") else "batch")
    assert row.reason is None
    assert row.relative <= 1e-3
    assert row.torchvision == (target in ("torchscript", "torch-export"))
    assert row.objects is None or row.objects > 10


# What is refused


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("two-stage", {}, "use dynamic=none batch=1, got dynamic='batch'"),
        ("two-stage", {"target": "compile", "dynamic": "none"}, "use target=torchscript or target=torch-export"),
        ("one-stage", {"dtype": "float16"}, "use dtype=float32 int8=false, got dtype='float16'"),
        ("one-stage", {"int8": True}, "detectors are exported in float32"),
        ("one-stage", {"target": "ncnn", "dynamic": "none"}, "use target=onnx or target=openvino, got target=ncnn"),
    ],
)
def test_what_a_detector_has_no_file_for_names_the_mend(kind: str, changes: dict, message: str) -> None:
    wish = {
        "target": "onnx",
        "dynamic": "batch",
        "dtype": "float32",
        "int8": False,
        "decompose": False,
        "sampling": "grid_sample",
        "opset": 20,
    }
    guard.check(guard.Wish(**wish, kind="one-stage"))
    guard.check(guard.Wish(**wish | {"dynamic": "none"}, kind="two-stage"))
    with pytest.raises(ValueError, match=message):
        guard.check(guard.Wish(**wish | changes, kind=kind))


@pytest.mark.parametrize("saved", ["fcos"], indirect=True)
def test_a_detector_that_finds_nothing_is_not_verified(saved: Path) -> None:
    model = network_of("fcos")
    nn.init.constant_(model.head.classification_head.cls_logits.bias, -100.0)
    checkpoint.save(model, recipe_of("fcos"), saved)
    with pytest.raises(ValueError, match=r"finds no object .* score_thresh of 0.05: .* set images= to a folder"):
        row_of(saved, "onnx")


# The images of the training


@pytest.mark.parametrize("kind", ["voc", "masks"])
def test_images_of_the_training_are_found(kind: str, tmp_path: Path) -> None:
    scenes = (write_voc if kind == "voc" else write_masks)(tmp_path / "data")
    weights = tmp_path / "run" / "dcn" / "last.safetensors"
    weights.parent.mkdir(parents=True)
    assert training_data.read(weights, 64) is None
    split = "val" if kind == "voc" else "validation"
    known = {"name": kind, "root": str(tmp_path / "data"), "eval_split": split, "in_chans": 3, "img_size": 64}
    if kind == "masks":
        known["classes"] = ["ground", "disc", "square"]
    record = tmp_path / "run" / "config.json"
    record.write_text(json.dumps({f"data.{key}": value for key, value in known.items()}))
    found = training_data.read(weights, 64)
    assert [np.asarray(image).tolist() for image in found.images] == [s.pixels.tolist() for s in scenes[8:]]
    assert len(training_data.read(weights, 2).images) == 2
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert training_data.read(weights, 64) is None
