"""dcn-evaluate, dcn-visualize and dcn-predict of detectors and segmenters."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_masks, write_voc
from torchvision.transforms import functional
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Evaluate, InspectedData, Predict, Visualize
from zoo.scripts.inspect import evaluation, prediction, visualization
from zoo.scripts.networks import detectors
from zoo.scripts.storage import checkpoint
from zoo.scripts.training.run import run

MEAN, STD, CROP = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.95  # of timm's resnet18
TINY = [
    "data.img_size=64", "data.batch_size=4", "data.workers=0", "head.channels=32", "optim.epochs=1",
    "optim.warmup_epochs=0", "trackers=[]", "device=cpu", "report=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    write_voc(folder / "data")
    run(compose_train("task=detection", "data=voc", f"data.root={folder / 'data'}", *TINY), folder / "run")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    for split in ("train", "validation"):
        for name in ("disc", "square"):
            draw_noise(folder / "data" / split / name, [(40, 40)] * 4)
    tiny = [one for one in TINY if not one.startswith(("head.", "data.img_size"))]
    run(compose_train("data=folder", f"data.root={folder / 'data'}", "data.img_size=32", *tiny), folder / "run")
    return folder


def draw_noise(folder: Path, sizes: list[tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for i, size in enumerate(sizes):
        pixels = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")


def csv_of(folder: Path) -> list[list[str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter")
    write_masks(folder / "data")
    classes = "data.classes=[ground,disc,square]"
    run(
        compose_train("task=segmentation", "data=masks", f"data.root={folder / 'data'}", classes, *TINY),
        folder / "run",
    )
    return folder


def data_of(folder: Path, name: str):
    return InspectedData(
        name=name, root=str(folder / "data"), eval_split="val" if name == "voc" else "validation", img_size=None,
        in_chans=None, batch_size=4, workers=0,
    )  # fmt: skip


def weights(folder: Path, variant: str = "dcn") -> str:
    return str(folder / "run" / variant / "last.safetensors")


@pytest.mark.parametrize(
    ("kind", "name", "metric", "names"),
    [
        ("detector", "voc", "AP", ["disc", "square", "background"]),
        ("segmenter", "masks", "mIoU", ["ground", "disc", "square"]),
    ],
)
def test_evaluation_gives_the_metrics_of_the_training(
    kind: str,
    name: str,
    metric: str,
    names: list[str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(kind)
    config = Evaluate(
        weights(folder), against=[weights(folder, "plain")], data=data_of(folder, name), rounds=2, device="cpu",
        corruptions=["contrast", "jpeg"], severities=[1, 5],
    )  # fmt: skip
    evaluation.run(config, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["networks"]
    for variant in ("plain", "dcn"):
        (row,) = csv.DictReader((folder / "run" / variant / "metrics.csv").read_text().splitlines())
        assert found[variant][metric] == pytest.approx(float(row[f"eval/{metric}"]), abs=1e-3)
        corruptions = found[variant]["corruptions"]
        assert {key: len(values) for key, values in corruptions.items()} == {"contrast": 2, "jpeg": 2}
        rows = list(csv.reader((tmp_path / f"confusion-{variant}.csv").read_text().splitlines()))
        assert rows[0][1:] == [row[0] for row in rows[1:]] == names
        assert [[int(value) for value in row[1:]] for row in rows[1:]] == found[variant]["confusion"]["counts"]
        assert (tmp_path / f"confusion-{variant}.png").stat().st_size > 1000
    assert (tmp_path / "predictions.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("disc", "square", "images/s", "contrast", *names))


def test_a_corruption_that_moves_objects_is_refused(detector: Path, tmp_path: Path) -> None:
    config = Evaluate(weights(detector), data=data_of(detector, "voc"), corruptions=["jpeg", "rotate"])
    with pytest.raises(ValueError, match=r"^rotate would move objects away .*; expected .* gaussian_noise"):
        evaluation.run(config, tmp_path)


def test_the_score_decides_which_boxes_count(detector: Path, tmp_path: Path) -> None:
    """From a score of 0 on, boxes find more objects than from a score that no box has."""
    missed = []
    for score in (0.0, 1.0):
        config = Evaluate(
            weights(detector), data=data_of(detector, "voc"), corruptions=[], rounds=1, score=score, device="cpu"
        )
        evaluation.run(config, tmp_path)
        found = json.loads((tmp_path / "results.json").read_text())["networks"]["dcn"]
        missed.append(sum(row[-1] for row in found["confusion"]["counts"]))
    assert missed[0] < missed[1] == 8  # two in each of four images
    assert found["F1@50"] == 0


@pytest.mark.parametrize(("kind", "name"), [("detector", "voc"), ("segmenter", "masks")])
def test_visualize_draws_samples_and_predictions(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    config = Visualize(
        checkpoint=weights(folder), data=data_of(folder, name), images=2, field_images=2, device="cpu"
    )
    drawn = visualization.run(config, tmp_path)
    assert {"sampling", "offsets", "predictions"} <= set(drawn)
    assert all(path.stat().st_size > 1000 for path in drawn.values())


def test_predicted_boxes_are_in_the_pixels_of_each_image(
    detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers half of its input finds half of the padded image, whatever its size."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    for name, size in (("wide.png", (128, 32)), ("below/high.jpg", (64, 640))):
        Image.new("RGB", size, (9, 9, 9)).save(images / name)

    class Half(torch.nn.Module):
        score_thresh, detections_per_img = 0.05, 100

        def forward(self, batch: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            side = float(batch.shape[-1]) / 2
            boxes = torch.tensor([[0.0, 0.0, side, side], [0.0, 0.0, 1.0, 1.0]])
            found = {"boxes": boxes, "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.9, 0.1])}
            return [found] * len(batch)

    monkeypatch.setattr(prediction.checkpoint, "load", lambda *_: Half())
    assert prediction.run(Predict(weights(detector), str(images), device="cpu"), tmp_path) == 2
    found = {one["image"]: one["objects"] for one in json.loads((tmp_path / "predictions.json").read_text())}
    assert found["wide.png"] == [{"class": "square", "score": 0.9, "box": [0.0, 0.0, 64.0, 32.0]}]
    assert found["below/high.jpg"] == [{"class": "square", "score": 0.9, "box": [0.0, 0.0, 64.0, 320.0]}]
    rows = csv_of(tmp_path)
    assert rows[0] == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    assert ["wide.png", "square", "0.9", "0.0", "0.0", "64.0", "32.0"] in rows
    for name, (width, height) in (("wide.jpg", (128, 32)), ("below/high.jpg", (64, 640))):
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert picture.width == width
            assert height < picture.height < height + 50  # the names of the classes are below


@pytest.mark.parametrize("number", [1, 3])
def test_boxes_in_the_padding_take_no_place(
    number: int, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real FCOS, whose 200 best boxes are below the image, and whose next ones are in its upper half."""
    images = tmp_path / "images"
    images.mkdir()
    for name in ("wide.png", "as_wide.png"):
        Image.new("RGB", (128, 64)).save(images / name)  # the lower half of the square is padding
    model = checkpoint.load(Path(weights(detector)))
    model.detections_per_img = number

    def head(_: object, outputs: dict[str, torch.Tensor], anchors: object, sizes: object) -> object:
        rows = torch.arange(64.0).repeat(4)[:203]
        boxes = torch.stack([rows, rows * 0 + 40, rows + 0.9, rows * 0 + 60], 1)  # of 64 x 64: they overlap nowhere
        boxes[200:] = torch.tensor([[0.0, 0, 8, 8], [20, 0, 28, 40], [40, 8, 48, 16]])
        scores = torch.linspace(0.95, 0.5, 203)
        kept = (scores > model.score_thresh).nonzero()[: model.detections_per_img, 0]
        found = {"boxes": boxes[kept], "scores": scores[kept], "labels": torch.zeros(len(kept), dtype=torch.long)}
        return [found, found]

    monkeypatch.setattr(type(model), "postprocess_detections", head)
    monkeypatch.setattr(prediction.checkpoint, "load", lambda *_: model)
    prediction.run(Predict(weights(detector), str(images), device="cpu"), tmp_path)
    one, _ = json.loads((tmp_path / "predictions.json").read_text())
    expected = [[0.0, 0.0, 16.0, 16.0], [40.0, 0.0, 56.0, 64.0], [80.0, 16.0, 96.0, 32.0]][:number]
    assert [found["box"] for found in one["objects"]] == expected


@pytest.mark.parametrize("kind", ["fcos", "retinanet", "faster_rcnn"])
def test_without_its_limit_a_detector_finds_the_same_best_objects(kind: str) -> None:
    """From a score of one of them on: exactly those that torchvision finds, and those that its limit dropped."""
    prefix = "box_" if kind == "faster_rcnn" else ""
    kwargs = {f"{prefix}detections_per_img": 7, f"{prefix}score_thresh": 0.0}
    recipe = {
        "create_model": {"model_name": "resnet18", "num_classes": 2, "channels": [8, 8, 16, 16]},
        "head": {"name": kind, "channels": 32, "kwargs": kwargs},
        "dcn": None,
    }
    model, images = checkpoint.build(recipe).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        limited = model(images)
        score = limited[0]["scores"][4].item()
        assert detectors.without_limit(model, score) == 7
        free = model(images)
    assert torch.equal(free[0]["boxes"][:5], limited[0]["boxes"][:5])
    assert (free[0]["scores"] >= score).all()
    assert len(free[0]["scores"]) >= 5
    assert torch.equal(free[1]["scores"][:7], limited[1]["scores"][limited[1]["scores"] >= score])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_labels_are_those_of_the_network(batch_size: int, classifier: Path, tmp_path: Path) -> None:
    """By torchvision's plain functions, one image at a time."""
    images = tmp_path / "images"
    draw_noise(images, [(60, 60), (80, 50), (50, 90)])
    config = Predict(weights(classifier), str(images), batch_size=batch_size, device="cpu")
    assert prediction.run(config, tmp_path) == 3
    model = checkpoint.load(Path(weights(classifier)))
    rows = csv_of(tmp_path)
    assert rows[0] == ["image", "class", "score"]
    found = json.loads((tmp_path / "predictions.json").read_text())
    for one, row in zip(found, rows[1:], strict=True):
        with Image.open(images / one["image"]) as image:
            size = image.size
            resized = functional.resize(image, int(32 / CROP), functional.InterpolationMode.BICUBIC)
            pixels = functional.to_tensor(functional.center_crop(resized, 32))
        scores = model(functional.normalize(pixels, MEAN, STD)[None]).softmax(1)[0]
        best = scores.argmax().item()
        assert one["classes"][0] == {
            "class": ["disc", "square"][best],
            "score": pytest.approx(scores[best].item(), abs=1e-3),
        }
        assert row == [one["image"], one["classes"][0]["class"], str(one["classes"][0]["score"])]
        with Image.open(tmp_path / "pictures" / one["image"].replace("png", "jpg")) as picture:
            assert picture.size[0] >= size[0]
            assert picture.size[1] > size[1]


def test_predicted_masks_have_the_size_of_each_image(segmenter: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("L", (80, 50)).save(images / "grey.png")
    prediction.run(Predict(weights(segmenter), str(images), pictures=False, device="cpu"), tmp_path)
    with Image.open(tmp_path / "masks" / "grey.png") as mask:
        assert mask.size == (80, 50)
        assert set(np.unique(np.array(mask))) <= {0, 1, 2}
    assert not (tmp_path / "pictures").exists()


def test_predictions_of_another_run_are_not_replaced(classifier: Path, tmp_path: Path) -> None:
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    config = Predict(weights(classifier), str(tmp_path), device="cpu")
    prediction.run(config, tmp_path / "out")
    before = (tmp_path / "out" / "predictions.csv").read_text()
    with pytest.raises(ValueError, match=r"out/predictions\.csv is of another run: set hydra\.run\.dir=OTHER"):
        prediction.run(config, tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_text() == before


def test_what_cannot_be_predicted_is_refused(detector: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of images, got images=nowhere, which"):
        prediction.run(Predict(weights(detector), "nowhere"), tmp_path)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected one image or more in a batch, got batch_size=0"):
        prediction.run(Predict(weights(detector), "nowhere", batch_size=0), tmp_path)
    with pytest.raises(ValueError, match=r"can't read the image .*broken\.png"):
        prediction.run(Predict(weights(detector), str(tmp_path), device="cpu"), tmp_path)


def test_a_detector_does_not_evaluate_digits(detector: Path, tmp_path: Path) -> None:
    data = data_of(detector, "mnist_rts")
    data.root = None
    with pytest.raises(ValueError, match=r"is fcos, which doesn't read data=mnist_rts: set data="):
        evaluation.run(Evaluate(weights(detector), data=data, device="cpu"), tmp_path)
