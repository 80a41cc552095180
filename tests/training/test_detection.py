"""dcn-train task=detection: heads train, are saved whole, and go on after a crash."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from interrupted import after_first_state
from safetensors.torch import load_file, save_file
from scenes import write_voc
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Head
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.networks import build
from zoo.scripts.storage import checkpoint
from zoo.scripts.tasks.detection import AveragePrecision, Detection
from zoo.scripts.training.run import run

from dcn_ops import DeformConv2d

QUICK = [
    "task=detection", "data=voc", "data.img_size=64", "data.batch_size=4", "data.workers=0", "head.channels=32",
    "optim.epochs=2", "optim.warmup_epochs=0", "trackers=[]", "device=cpu",
]  # fmt: skip
ONE = ["variants=[dcn]", "report=false"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_voc(folder)
    return folder


def train(root: Path, folder: Path, *overrides: str):
    return run(compose_train(*QUICK, f"data.root={root}", *overrides), folder)


def metrics(folder: Path, variant: str = "dcn") -> list[dict[str, float]]:
    rows = csv.DictReader((folder / variant / "metrics.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("name", ["fcos", "retinanet", "faster_rcnn", "mask_rcnn"])
def test_the_compiled_parts_of_a_detector_change_no_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # one graph of each; no code
    task = Detection(Head(name=name, channels=32), ["disc", "square"])
    network = {"model_name": "resnet18", "num_classes": 2, "layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}
    model = checkpoint.build({"create_model": network, "head": task.head(), "dcn": {"stages": [3, 4]}}).eval()
    images, parts = torch.randn(2, 3, 64, 64), dict(model.named_children())
    with torch.inference_mode():
        expected, found = model(images), task.compiled(model)(images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)
    assert dict(model.named_children()) == parts


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_pictures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(root, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["variant"] for row in found] == ["plain", "dcn"]
    for row in found:
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP/disc", "AP/square"} <= set(row)
        assert row["eager_ms"] > 0
        assert row["compiled_ms"] > 0
        assert row["APl"] is None  # there are no such objects
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("AP50", "AP75", "eager, ms"))
    for name in ("predictions.png", "sampling.png"):
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster_rcnn"])
def test_a_checkpoint_rebuilds_the_whole_detector(head: str, root: Path, tmp_path: Path) -> None:
    train(root, tmp_path, *ONE, f"head={head}", "head.channels=32", "optim.epochs=1")
    path = tmp_path / "dcn" / "last.safetensors"
    model = checkpoint.load(path)
    assert any(isinstance(module, DeformConv2d) for module in model.backbone.body.modules())
    assert not any(isinstance(module, DeformConv2d) for module in model.backbone.fpn.modules())
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in load_file(path).items()
    }
    assert model.pretrained_cfg["label_names"] == ("disc", "square")
    splits = create_splits(compose_train(*QUICK, f"data.root={root}").data, dict(model.pretrained_cfg), seed=0)
    evaluation = AveragePrecision(splits.classes, masks=False)
    with torch.no_grad():
        for images, targets in splits.evaluate:
            evaluation.update(model(images), targets)
    assert evaluation.compute()["AP"] == pytest.approx(metrics(tmp_path)[-1]["eval/AP"], abs=1e-4)


def test_average_precision_is_by_class_and_in_percent() -> None:
    boxes = torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1]), "ignored": torch.tensor([False, False])}
    # The first is found, the second is found with 40 x 25 of 40 x 40 pixels: an IoU of 0.625, at 3 of 10 limits.
    found = torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 75]])
    evaluation = AveragePrecision(("one", "two", "three"), masks=False)
    evaluation.update(
        [{"boxes": found, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}], [target]
    )
    values = evaluation.compute()
    assert values["AP/one"] == pytest.approx(100)
    assert values["AP/two"] == pytest.approx(30)
    assert math.isnan(values["AP/three"])
    assert (values["AP"], values["AP50"], values["AP75"]) == pytest.approx((65, 100, 50))
    assert values["APm"] == pytest.approx(65)
    assert math.isnan(values["APs"])


def test_an_ignored_object_is_neither_right_nor_wrong() -> None:
    boxes = torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 0]), "ignored": torch.tensor([False, True])}
    for found in (boxes, boxes[:1]):
        evaluation = AveragePrecision(("one",), masks=False)
        count = len(found)
        answer = {"boxes": found, "labels": torch.zeros(count).long(), "scores": torch.full((count,), 0.9)}
        evaluation.update([answer], [target])
        assert evaluation.compute()["AP"] == pytest.approx(100)


def test_rcnn_counts_classes_from_zero() -> None:
    """torchvision's class 0, the background, stays inside of the network."""
    torch.manual_seed(0)
    network = {"model_name": "resnet18", "in_chans": 3, "num_classes": 2}
    model = build.create(network, {"name": "faster_rcnn", "channels": 32, "kwargs": {"box_score_thresh": 0.0}})
    seen = []
    model.roi_heads.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    image = torch.rand(1, 3, 64, 64)
    target = {"boxes": torch.tensor([[4.0, 4, 30, 30]]), "labels": torch.tensor([1])}
    model(image, [target])
    assert seen[0][0]["labels"].tolist() == [2]
    assert target["labels"].tolist() == [1]
    labels = model.eval()(image)[0]["labels"]
    assert len(labels)
    assert set(labels.tolist()) <= {0, 1}


def test_a_run_goes_on_from_the_middle_of_an_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = [*ONE, "checkpoint_every=1", "optim.ema=0.5"]
    train(root, tmp_path / "whole", *recipe)
    with after_first_state(monkeypatch):
        train(root, tmp_path / "parts", *recipe)
    train(root, tmp_path / "log", *recipe, f"resume={tmp_path / 'parts'}")
    found, expected = metrics(tmp_path / "parts"), metrics(tmp_path / "whole")
    assert len(found) == 2
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, nan_ok=True)
    weights, expected = (load_file(tmp_path / name / "dcn" / "last.safetensors") for name in ("parts", "whole"))
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], r"task=detection reads data=voc.*, got data\.name=''"),
        (["head=classification"], r"task=detection has the heads fcos, .*, got head\.name=None"),
        (["optim.mixup=0.2"], r"mixup and cutmix are for classification; drop .*mixup=0\.2"),
        (["optim.label_smoothing=0.1"], r"detectors have no label smoothing; drop"),
        (["optim.layer_decay=0.8"], r"only timm's networks number their layers"),
        (["compile=true"], r"compile=true can't take detectors"),
        (["head.channels=40"], r"expected head\.channels=64, 128 or 256, got 40"),
        (["+head.kwargs.thresh=1"], r"FCOS has no argument thresh; close names: .*nms_thresh"),
        (["+head.kwargs.weights=x"], r"a head loads nothing, got weights"),
        (
            ["model=timm", "model.name=vit_tiny_patch16_224"],
            r"strides 8, 16, 32, and the network has none of 8, 32",
        ),
        (["task.name=detecton"], r"expected a task of classification, detection.*, got task\.name=detecton"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], message: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(root, tmp_path, *overrides)


def test_classification_does_not_read_boxes(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data=voc has boxes or masks: add task=detection"):
        run(compose_train("data=voc", f"data.root={root}"), tmp_path)


@pytest.mark.parametrize("head", ["fcos", "unet"])
def test_a_head_starts_from_weights_of_its_plain_backbone(head: str, tmp_path: Path) -> None:
    """They have a classifier of other classes, which a backbone has no place for."""
    network = {"model_name": "resnet18", "in_chans": 3, "channels": [8, 16, 24, 32]}
    plain = timm.create_model(**network, num_classes=7)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    recipe = {
        "create_model": {**network, "num_classes": 2},
        "head": {"name": head, "channels": 32, "kwargs": {}},
        "dcn": {"stages": [3, 4]},
    }
    model = checkpoint.build(recipe, start=tmp_path / "plain.safetensors")
    body = (model.backbone.body if head == "fcos" else model.encoder.model).state_dict()
    kept = [key for key in plain.state_dict() if key in body]
    assert set(plain.state_dict()) - set(kept) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(body[key], plain.state_dict()[key]) for key in kept)


def test_a_detector_starts_from_a_detector_of_other_classes(tmp_path: Path) -> None:
    recipe = {
        "create_model": {"model_name": "resnet18", "in_chans": 3, "channels": [8, 16, 24, 32], "num_classes": 5},
        "head": {"name": "fcos", "channels": 32, "kwargs": {}},
        "dcn": {"stages": [3, 4]},
    }
    first = checkpoint.build(recipe)
    checkpoint.save(first, recipe, tmp_path / "first.safetensors")
    other = {**recipe, "create_model": {**recipe["create_model"], "num_classes": 2}}
    model = checkpoint.build(other, start=tmp_path / "first.safetensors")
    own, before = model.state_dict(), first.state_dict()
    anew = {key for key in own if own[key].shape != before[key].shape or not torch.equal(own[key], before[key])}
    assert anew == {f"head.classification_head.cls_logits.{part}" for part in ("weight", "bias")}


def test_an_unknown_head_of_a_header_is_refused(tmp_path: Path) -> None:
    recipe = {
        "create_model": {"model_name": "resnet18"}, "dcn": None,
        "head": {"name": "unet", "channels": 32, "kwargs": {"pretrained_cfg_overlay": {"file": "/etc/passwd"}}},
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"a head loads nothing, got pretrained_cfg_overlay"):
        checkpoint.check_recipe(recipe)
    with pytest.raises(ValueError, match=r"expected a head of fcos, .*, got"):
        checkpoint.check_recipe({**recipe, "head": {"name": "mine", "channels": 32, "kwargs": {}}})
