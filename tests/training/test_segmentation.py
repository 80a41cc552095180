"""dcn-train task=segmentation: heads train, metrics are per class, a checkpoint rebuilds the whole."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from interrupted import after_first_state
from scenes import write_coco, write_masks
from torch.testing import assert_close
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Head
from zoo.scripts.inspect import cascade
from zoo.scripts.networks import build
from zoo.scripts.networks.segmenters import SEGMENTERS
from zoo.scripts.storage import checkpoint
from zoo.scripts.tasks.segmentation import Overlaps, Segmentation
from zoo.scripts.training.run import run

from dcn_ops import DeformConv2d

QUICK = [
    "task=segmentation", "data=masks", "data.classes=[ground,disc,square]", "data.img_size=64", "data.batch_size=4",
    "data.workers=0", "head.channels=32", "optim.epochs=2", "optim.warmup_epochs=0", "trackers=[]", "device=cpu",
    "variants=[dcn]", "report=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_masks(folder)
    return folder


def train(root: Path, folder: Path, *overrides: str):
    return run(compose_train(*QUICK, f"data.root={root}", *overrides), folder)


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((folder / "dcn" / "metrics.csv").read_text().splitlines())
    return [{key: float(value) for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_segmenter_learns_and_a_checkpoint_rebuilds_it(root: Path, tmp_path: Path) -> None:
    train(root, tmp_path, "optim.epochs=12", "optim.label_smoothing=0")
    rows = metrics(tmp_path)
    assert {"eval/mIoU", "eval/pixels", "eval/IoU/ground", "eval/IoU/disc", "eval/IoU/square"} <= set(rows[0])
    assert rows[-1]["train/loss"] < 0.6 * rows[0]["train/loss"]
    assert rows[-1]["eval/pixels"] > 85
    model = checkpoint.load(tmp_path / "dcn" / "last.safetensors")
    assert any(isinstance(module, DeformConv2d) for module in model.encoder.modules())
    assert not any(isinstance(module, DeformConv2d) for module in model.decoder.modules())
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def test_the_report_has_a_table_and_pictures(root: Path, tmp_path: Path) -> None:
    train(root, tmp_path, "variants=[plain]", "report=true", "optim.epochs=1")
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= row["mIoU"] <= 100
    assert (tmp_path / "predictions.png").stat().st_size > 1000


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_head_gives_a_score_for_each_pixel(name: str) -> None:
    network = {"model_name": "resnet18", "in_chans": 1, "num_classes": 5}
    model = build.create(network, {"name": name, "channels": 64, "kwargs": {}}).eval()
    assert model(torch.zeros(2, 1, 64, 96)).shape == (2, 5, 64, 96)


def test_overlaps_are_per_class_and_leave_out_pixels_without_one() -> None:
    classes = torch.tensor([[[0, 0, 1, 1, 255, 255]]])
    answers = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    evaluation = Overlaps(("a", "b", "c"), torch.device("cpu"))
    evaluation.update(torch.nn.functional.one_hot(answers, 3).movedim(-1, 1).float(), classes)
    found = evaluation.compute()
    assert found["IoU/a"] == pytest.approx(50)
    assert found["IoU/b"] == pytest.approx(200 / 3, abs=1e-4)
    assert math.isnan(found["IoU/c"])
    assert found["mIoU"] == pytest.approx((50 + 200 / 3) / 2, abs=1e-4)
    assert found["pixels"] == pytest.approx(75)


def test_parts_of_a_step_give_the_loss_of_the_whole() -> None:
    """Also if one part has fewer pixels with a class."""
    task = Segmentation(Head(name="unet"), ("a", "b"))
    scores, classes = torch.randn(4, 2, 8, 8), torch.randint(0, 2, (4, 8, 8))
    classes[:2, :6] = 255
    halves = [task.loss(scores[i : i + 2], classes[i : i + 2]) for i in (0, 2)]
    assert_close(torch.stack(halves).mean(), task.loss(scores, classes))


def test_a_run_goes_on_from_the_middle_of_an_epoch(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(root, tmp_path / "whole", "checkpoint_every=1")
    with after_first_state(monkeypatch):
        train(root, tmp_path / "parts", "checkpoint_every=1")
    train(root, tmp_path / "log", "checkpoint_every=1", f"resume={tmp_path / 'parts'}")
    for row, expected in zip(metrics(tmp_path / "parts"), metrics(tmp_path / "whole"), strict=True):
        assert row == pytest.approx(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=coco"], r"task=segmentation reads data=masks, .*, got data\.name='coco'"),
        (["head=fcos"], r"task=segmentation has the heads unet, .*, got head\.name=fcos"),
        (["head=smp_fpn", "head.channels=32"], r"expected head\.channels as a multiple of 64 for smp_fpn, got 32"),
        (["optim.cutmix=1"], r"mixup and cutmix are for classification"),
    ],
)
def test_what_does_not_fit_is_refused(overrides: list[str], message: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(root, tmp_path, *overrides)


def test_mask_rcnn_trains_and_measures_masks(tmp_path: Path) -> None:
    write_coco(tmp_path / "data", train=2, evaluate=1)
    overrides = [
        "task=detection", "head=mask_rcnn", "head.channels=32", "data=coco", f"data.root={tmp_path / 'data'}",
        "data.img_size=64", "data.batch_size=2", "data.workers=0", "optim.epochs=1", "optim.warmup_epochs=0",
        "trackers=[]", "device=cpu", "variants=[dcn]", "report=false", "dcn.parts=[backbone,head]",
    ]  # fmt: skip
    run(compose_train(*overrides), tmp_path / "run")
    (row,) = metrics(tmp_path / "run")
    assert {"eval/AP", "eval/mask/AP", "eval/mask/AP/square"} <= set(row)
    model = checkpoint.load(tmp_path / "run" / "dcn" / "last.safetensors")
    assert any(isinstance(module, DeformConv2d) for module in model.roi_heads.modules())
    # Layers of the head run on regions, which belong to no place of the picture.
    rows = cascade.of_each_layer(model, torch.zeros(2, 3, 64, 64), torch.tensor([0.5, 0.5]))
    assert all(len(row.points) == 2 for row in rows)
