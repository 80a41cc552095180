"""Options out of range, devices that don't exist, and layers that a network lacks: refused before the work."""

from pathlib import Path

import pytest
import torch
from zoo.scripts import devices
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Bench, Evaluate, InspectedData, Predict, Visualize
from zoo.scripts.data.folders import named_images
from zoo.scripts.inspect import checks, evaluation, prediction, visualization
from zoo.scripts.storage import checkpoint
from zoo.scripts.training.run import run as train

RECIPE = {
    "create_model": {"model_name": "resnet18", "in_chans": 1, "num_classes": 10, "channels": [8, 8, 8, 8]},
    "dcn": {"stages": [3]},
}
LAYERS = ["layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("dcn") / "last.safetensors"
    checkpoint.save(checkpoint.build(RECIPE), RECIPE, file)
    return str(file)


@pytest.mark.parametrize("score", [30, -0.1, 1.01, float("nan")])
def test_a_score_is_a_share(score: float, path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^expected a score in \[0, 1\], got score={score}$"):
        prediction.run(Predict(path, str(tmp_path), score=score), tmp_path)
    with pytest.raises(ValueError, match=rf"^expected a score in \[0, 1\], got score={score}$"):
        evaluation.run(Evaluate(path, data=InspectedData(name="mnist_rts"), score=score), tmp_path)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("gpu", "did you mean device=cuda?"),
        ("GPU:1", "did you mean device=cuda?"),
        ("cud", "did you mean device=cuda?"),
        ("metal", "did you mean device=mps?"),
        ("atuo", "did you mean device=auto?"),
        ("zzz", "expected one of auto, cpu, cuda, mps, xpu"),
    ],
)
def test_a_device_that_torch_does_not_know_gets_a_suggestion(
    name: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_missing", lambda _: None)
    with pytest.raises(ValueError, match="there is no device") as error:
        devices.chosen(name)
    assert str(error.value) == f"there is no device={name}; {mend}"


def test_a_suggested_device_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_missing", lambda device: RuntimeError() if device.type == "cuda" else None)
    with pytest.raises(ValueError, match="there is no device") as error:
        devices.chosen("gpu:1")
    mend = "did you mean device=cuda? This machine has no cuda: device=auto takes what there is"
    assert str(error.value) == f"there is no device=gpu:1; {mend}"


def test_a_device_that_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^there is no device=cuda:99 on this machine: .*device=auto or cpu$"):
        devices.chosen("cuda:99")
    with pytest.raises(ValueError, match=r"^there is no device=meta on this machine"):
        devices.chosen("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.chosen("auto") == devices.chosen("cpu") == torch.device("cpu")


def test_every_command_suggests_a_device(path: str, tmp_path: Path) -> None:
    answer = r"there is no device=gpu; did you mean device=cuda\?"
    data = InspectedData(name="mnist_rts")
    with pytest.raises(ValueError, match=answer):
        prediction.run(Predict(path, str(tmp_path), device="gpu"), tmp_path)
    with pytest.raises(ValueError, match=answer):
        evaluation.run(Evaluate(path, data=data, device="gpu"), tmp_path)
    with pytest.raises(ValueError, match=answer):
        checks.check(Visualize(checkpoint=path, data=data, device="gpu"))
    with pytest.raises(ValueError, match=answer):
        train(compose_train("device=gpu"), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "least"),
    [
        ("batch_size", 0, 1), ("max_batches", 0, 1), ("img_size", 0, 1), ("workers", -1, 0), ("eval_copies", 0, 1),
    ],
)  # fmt: skip
def test_numbers_of_the_data_have_a_least(key: str, value: int, least: int, path: str, tmp_path: Path) -> None:
    answer = rf"^expected data\.{key} of {least} or more, got data\.{key}={value}$"
    with pytest.raises(ValueError, match=answer):
        train(compose_train(f"data.{key}={value}"), tmp_path)
    data = InspectedData(**{"name": "mnist_rts", "in_chans": None, "img_size": None, key: value})
    with pytest.raises(ValueError, match=answer):
        evaluation.run(Evaluate(path, data=data, device="cpu"), tmp_path)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"rounds": 0}, "expected rounds of 1 or more, got rounds=0"),
        ({"corruption_batches": 0}, "expected corruption_batches of 1 or more, got corruption_batches=0"),
        (
            {"severities": []},
            "expected a severity or more, got severities=[]; or set corruptions=[]",
        ),
    ],
)
def test_an_evaluation_names_its_numbers(
    options: dict[str, object], answer: str, path: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        evaluation.run(Evaluate(path, data=InspectedData(name="mnist_rts"), **options), tmp_path)
    assert str(error.value) == answer


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"threads": []}, "expected threads of 1 or more"),
        ({"threads": [2, 0]}, "expected threads of 1 or more"),
        ({"batch": 0}, "expected batch of 1 or more, got batch=0"),
    ],
)
def test_a_benchmark_names_its_numbers(options: dict[str, object], answer: str) -> None:
    from zoo.scripts.benchmark.run import run

    with pytest.raises(ValueError, match=answer):
        run(Bench(**options))


def test_a_benchmark_takes_two_devices() -> None:
    from zoo.scripts.benchmark.run import run

    with pytest.raises(ValueError, match="expected device=cpu or device=cuda, got device=gpu"):
        run(Bench(device="gpu"))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"levels": 0}, "expected levels of 1 or more, got levels=0"),
        ({"images": 0}, "expected images of 1 or more, got images=0"),
        ({"field_images": -2}, "expected field_images of 1 or more, got field_images=-2"),
        ({"points": [[2.0, 0.5]]}, "expected points=[[y,x],...] with y and x in [0, 1], got points=[[2.0, 0.5]]"),
        ({"points": []}, "expected points=[[y,x],...] with y and x in [0, 1], got points=[]"),
        ({"before": "nowhere"}, "no checkpoint before=nowhere; there are: none under runs/"),
        (
            {"layer": "layer3.0.cov2"},
            f"PATH has the deformable layers {', '.join(LAYERS)}, got layer=layer3.0.cov2; did you mean "
            "layer=layer3.0.conv2?",
        ),
    ],
)
def test_visualize_names_its_options(
    options: dict[str, object], answer: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without checkpoints
    config = Visualize(checkpoint=path, data=InspectedData(name="mnist_rts"), device="cpu", **options)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        checks.check(config)
    assert str(error.value) == answer.replace("PATH", path)


def test_the_layers_are_those_that_can_be_followed(path: str, tmp_path: Path) -> None:
    config = Visualize(checkpoint=path, data=InspectedData(name="mnist_rts", max_batches=1), device="cpu")
    config.data.img_size, config.data.in_chans = None, None
    config.data.batch_size, config.field_images, config.images, config.layer = 2, 2, 1, LAYERS[1]
    checks.check(config)
    assert "sampling" in visualization.run(config, tmp_path)


def test_a_plain_network_has_no_layer_to_follow() -> None:
    config = Visualize(name="resnet18", data=InspectedData(name="mnist_rts"), layer="layer3.0.conv1", device="cpu")
    with pytest.raises(ValueError, match=r"resnet18 has no deformable layer, got layer=layer3\.0\.conv1; drop it"):
        checks.check(config)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("missing", "expected a folder of images, got images=missing, which doesn't exist"),
        (
            "notes.txt",
            "expected a folder of images, got images=notes.txt, which is a file (no image)",
        ),
        ("in/a.png", "expected a folder of images, got images=in/a.png, which is a file (an image); set images=in"),
        ("empty", "expected images in images=empty, got none; images are .apng"),
    ],
)
def test_what_holds_no_images_is_named(
    name: str, answer: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "empty"):
        Path(folder).mkdir()
    for file in ("notes.txt", "in/a.png"):
        Path(file).touch()
    with pytest.raises(FileNotFoundError) as error:
        prediction.run(Predict(path, name, device="cpu"), tmp_path)
    assert str(error.value).startswith(answer)
    assert named_images("in") == ["in/a.png"]
