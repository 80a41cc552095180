"""dcn-evaluate and its corruptions: numbers that can be computed by hand, files, errors."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from zoo.scripts.config.command import register
from zoo.scripts.config.schema import Evaluate
from zoo.scripts.data.corruptions import CORRUPTIONS, corrupt
from zoo.scripts.inspect import evaluation
from zoo.scripts.inspect.evaluation import run, throughput
from zoo.scripts.inspect.scores import worst_class
from zoo.scripts.storage import checkpoint

RECIPE = {
    "create_model": {
        "model_name": "resnet18",
        "in_chans": 1,
        "num_classes": 10,
        "layers": [1, 1, 1, 1],
        "channels": [8, 8, 8, 8],
    },
    "dcn": None,
}
QUICK = ["data.eval_copies=1", "data.max_batches=2", "rounds=1", "corruption_batches=1"]


def composed(*overrides: str) -> Evaluate:
    register()
    with initialize_config_module("zoo.conf", version_base="1.3"):
        return OmegaConf.to_object(compose("evaluate", overrides=list(overrides)))


def saved(folder: Path, recipe: dict[str, object] = RECIPE, answer: int | None = None) -> Path:
    """Write a checkpoint; with ``answer``, of a network that always predicts this class."""
    model = checkpoint.build(recipe)
    if answer is not None:
        with torch.no_grad():
            model.fc.weight.zero_()
            model.fc.bias.copy_(torch.eye(model.num_classes)[answer])
    folder.mkdir()
    checkpoint.save(model, recipe, folder / "last.safetensors")
    return folder / "last.safetensors"


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(4, 3, 32, 32) * 0.6 + 0.2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_severity_and_depend_on_the_seed_alone(name: str, photos: Tensor) -> None:
    results = [corrupt(name, photos, s, torch.Generator().manual_seed(0)) for s in range(1, 6)]
    for result in results:
        assert result.shape == photos.shape
        assert 0 <= result.amin() <= result.amax() <= 1
    changes = [(result - photos).abs().mean().item() for result in results]
    assert 0.0 < changes[0] < changes[2] < changes[4]
    assert torch.equal(results[2], corrupt(name, photos, 3, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_take_digits(name: str) -> None:
    digits = torch.zeros(2, 1, 28, 28)
    digits[:, :, 6:22, 12:16] = 1.0
    result = corrupt(name, digits, 5, torch.Generator().manual_seed(0))
    assert result.isfinite().all()
    assert not torch.equal(result, digits)


def test_noise_blur_and_contrast_do_what_they_are_called(photos: Tensor) -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    noisy = corrupt("gaussian_noise", grey, 2, torch.Generator().manual_seed(0))
    assert noisy.std().item() == pytest.approx(0.12, rel=0.02)
    # Blurring keeps constant images, and the mean; contrast keeps the mean.
    torch.testing.assert_close(corrupt("gaussian_blur", grey, 5, torch.Generator()), grey)
    low = corrupt("contrast", photos, 3, torch.Generator())
    torch.testing.assert_close(low.mean((2, 3)), photos.mean((2, 3)))
    torch.testing.assert_close(low.std((2, 3)), 0.3 * photos.std((2, 3)))


def test_what_is_no_image_is_refused(photos: Tensor) -> None:
    with pytest.raises(ValueError, match="undo the normalisation"):
        corrupt("contrast", photos - 0.5, 1, torch.Generator())
    with pytest.raises(ValueError, match="got severity=6"):
        corrupt("contrast", photos, 6, torch.Generator())
    with pytest.raises(ValueError, match=r"elastic, got name='fog'"):
        corrupt("fog", photos, 1, torch.Generator())


def test_a_network_that_always_answers_three_is_measured_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = saved(tmp_path / "dcn", answer=3)
    out = tmp_path / "out"
    out.mkdir()
    config = composed(f"checkpoint={path}", "corruptions=[contrast,rotate]", "severities=[1,5]", *QUICK)
    result = run(config, out)["dcn"]
    confusion = torch.tensor(result.confusion)
    assert confusion.sum() == 200
    assert confusion[:, 3].sum() == 200
    assert result.top1 == pytest.approx(100 * confusion[3, 3].item() / 200)
    # Its four next predictions are those of lowest index: 0, 1, 2 and 4, because of ties.
    assert 30 < result.top5 < 70
    assert worst_class(result.confusion) == (0, 0.0)
    assert list(result.corruptions) == ["contrast", "rotate"]
    # Corruptions don't change a constant prediction: it is right as often as threes occur in the first 100.
    accuracies = {value for values in result.corruptions.values() for value in values}
    assert len(accuracies) == 1
    # The first results come before the corruptions, which take most of the time.
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("dcn: ")]
    assert said[0] == f"dcn: top-1 {result.top1:.2f} %"
    assert said[1] == "dcn: 2 corruptions of 2 severities on 100 images; corruptions=[] skips them"
    assert result.images_per_second > 0
    rows = list(csv.reader((out / "confusion-dcn.csv").read_text().splitlines()))
    assert [[int(n) for n in row] for row in rows] == result.confusion
    assert (out / "confusion-dcn.png").stat().st_size > 10_000
    report = json.loads((out / "results.json").read_text())
    assert report["networks"]["dcn"]["top1"] == result.top1
    assert report["versions"]["torch"]
    assert report["command"].startswith("dcn-evaluate")


def test_networks_are_compared_on_the_same_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = saved(tmp_path / "dcn", answer=3), saved(tmp_path / "plain", answer=5)
    results = run(composed(f"checkpoint={first}", f"against=[{second}]", "corruptions=[]", *QUICK), tmp_path)
    totals = [torch.tensor(result.confusion).sum(1) for result in results.values()]
    assert torch.equal(*totals)
    assert list(results) == ["dcn", "plain"]
    assert "images/s" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("confusion-*.csv")) == ["confusion-dcn.csv", "confusion-plain.csv"]


def test_networks_whose_folders_have_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = saved(tmp_path / "a" / "dcn"), saved(tmp_path / "b" / "dcn")
    results = run(composed(f"checkpoint={first}", f"against=[{second}]", "corruptions=[]", *QUICK), tmp_path)
    assert len(results) == 2
    assert len(list(tmp_path.glob("confusion-*.csv"))) == 2
    with pytest.raises(ValueError, match="expected different checkpoints"):
        run(composed(f"checkpoint={first}", f"against=[{first}]", *QUICK), tmp_path)


def test_throughput_counts_images() -> None:
    images = {name: torch.zeros(7, 1) for name in "ab"}
    speeds = throughput(dict.fromkeys("ab", lambda _: time.sleep(0.002)), images, rounds=3)
    assert 0 < min(speeds.values()) <= max(speeds.values()) <= 7 / 0.002


@pytest.mark.parametrize(
    ("overrides", "error", "answer"),
    [
        (["checkpoint=nowhere"], FileNotFoundError, "no checkpoint 'nowhere'"),
        (["checkpoint=PATH", "corruptions=[fog]"], ValueError, r"got \['fog'\]"),
        (["checkpoint=PATH", "severities=[0]"], ValueError, r"severities=\[0\]"),
    ],
)
def test_what_is_not_there_is_answered(
    overrides: list[str], error: type[Exception], answer: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "dcn")
    with pytest.raises(error, match=answer):
        run(composed(*(o.replace("PATH", str(path)) for o in overrides)), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "answer"),
    [
        ("num_classes", 7, "'dcn' has 7 classes, but the data have 10: set data="),
        ("in_chans", 3, "'dcn' reads 3 channels, the data have 1: set data="),
    ],
)
def test_a_network_that_does_not_fit_the_data_is_refused(key: str, value: int, answer: str, tmp_path: Path) -> None:
    recipe = {**RECIPE, "create_model": {**RECIPE["create_model"], key: value}}
    path = saved(tmp_path / "dcn", recipe)
    with pytest.raises(ValueError, match=answer):
        run(composed(f"checkpoint={path}", *QUICK), tmp_path)


def photos_of(root: Path, *classes: str, size: int = 64) -> Path:
    """Write three images of each class, and no split to train on."""
    for index, name in enumerate(classes):
        (root / "validation" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (size, size), (40 * index, 20 * i, 7)).save(root / "validation" / name / f"{i}.png")
    return root


def of_photos(folder: Path, answer: int, classes: list[str] | None, size: int = 48) -> Path:
    """Write the checkpoint of a network with three outputs that always predicts one class."""
    recipe = {"create_model": {**RECIPE["create_model"], "in_chans": 3, "num_classes": 3}, "dcn": None}
    names = {} if classes is None else {"label_names": classes}
    recipe["pretrained_cfg"] = {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3, **names}
    return saved(folder, recipe, answer)


PHOTOS = ["data=folder", "data.workers=0", "data.batch_size=2", "corruptions=[]", "rounds=1"]


@pytest.mark.parametrize(
    ("trained", "answer", "there", "top1"),
    [
        (["a", "b", "c"], 1, ["a", "b", "c"], 100 / 3),
        (["a", "b", "c"], 1, ["b"], 100),
        (["a", "b", "c"], 1, ["b", "c"], 50),  # by number it would be 50 too, of the other class
        (["a", "b", "c"], 0, ["b", "c"], 0),
        (["c", "b", "a"], 0, ["a", "c"], 50),
        (["2", "10", "1"], 1, ["10"], 100),
        (None, 2, ["a", "b", "c"], 100 / 3),
    ],
)
def test_classes_are_compared_by_their_names(
    trained: list[str] | None, answer: int, there: list[str], top1: float, tmp_path: Path
) -> None:
    path, root = of_photos(tmp_path / "dcn", answer, trained), photos_of(tmp_path / "photos", *there)
    result = run(composed(f"checkpoint={path}", f"data.root={root}", *PHOTOS), tmp_path)["dcn"]
    assert result.top1 == pytest.approx(top1)
    assert result.classes == (None if trained is None else tuple(trained))
    rows = [index for index, row in enumerate(result.confusion) if sum(row)]
    assert rows == ([0, 1, 2] if trained is None else sorted(trained.index(name) for name in there))
    assert all(row[answer] == sum(row) for row in result.confusion)


@pytest.mark.parametrize(
    ("trained", "answer"),
    [
        (["a", "b", "c"], r"'dcn' doesn't know the classes d of the data; it knows a, b, c"),
        (None, "'dcn' has 3 classes, but the data have 2"),
    ],
)
def test_classes_that_a_network_does_not_know_are_refused(
    trained: list[str] | None, answer: str, tmp_path: Path
) -> None:
    path, root = of_photos(tmp_path / "dcn", 0, trained), photos_of(tmp_path / "photos", "a", "d")
    with pytest.raises(ValueError, match=answer):
        run(composed(f"checkpoint={path}", f"data.root={root}", *PHOTOS), tmp_path)


@pytest.mark.parametrize(("override", "size"), [([], 48), (["data.img_size=32"], 32)])
def test_images_have_the_size_and_channels_that_the_network_was_trained_with(
    override: list[str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = of_photos(tmp_path / "dcn", 0, ["a", "b", "c"])
    grey = {"create_model": {**RECIPE["create_model"], "num_classes": 3}, "dcn": None}
    other = {"input_size": [1, 40, 40], "mean": [0.1], "std": [0.3], "label_names": ["c", "a", "b"]}
    second = saved(tmp_path / "plain", grey | {"pretrained_cfg": other})
    seen = []
    monkeypatch.setattr(evaluation, "throughput", lambda models, images, rounds: seen.append(images) or {})
    root = photos_of(tmp_path / "photos", "a", "b", "c")
    run(composed(f"checkpoint={first}", f"against=[{second}]", f"data.root={root}", *PHOTOS, *override), tmp_path)
    shapes = [tuple(images.shape[1:]) for images in seen[0].values()]
    assert shapes == [(3, size, size), (1, *((32, 32) if override else (40, 40)))]
    # Class a, image 0 is black except for a blue value of 7.
    assert seen[0]["plain"].amax().item() < 0 < seen[0]["plain"].amin().item() + 0.1 / 0.3 + 1e-3


def test_a_network_that_diverged_is_refused(tmp_path: Path) -> None:
    model = checkpoint.build(RECIPE)
    torch.nn.init.constant_(model.fc.bias, torch.nan)
    checkpoint.save(model, RECIPE, tmp_path / "last.safetensors")
    with pytest.raises(ValueError, match=r"last\.safetensors: weights that are not finite, such as fc\.bias"):
        run(composed(f"checkpoint={tmp_path / 'last.safetensors'}", *QUICK), tmp_path)


def test_a_machine_without_lscpu_and_git_gets_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path, root = of_photos(tmp_path / "dcn", 0, ["a", "b", "c"]), photos_of(tmp_path / "photos", "a", "b")
    run(composed(f"checkpoint={path}", f"data.root={root}", *PHOTOS), tmp_path)
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["commit"] == ""
    assert report["networks"]["dcn"]["classes"] == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "error: no checkpoint given; set checkpoint="),
        (["rouns=1"], "did you mean rounds?"),
        (["checkpoint=nowhere.safetensors"], "error: no checkpoint 'nowhere.safetensors'"),
    ],
)
def test_the_command_answers_mistakes(arguments: list[str], answer: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "zoo.scripts.evaluate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
