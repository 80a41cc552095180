"""dcn-train: the data that it reads, and its errors for data that can't be trained on."""

import gc
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform as timm_transform
from zoo.scripts.config.command import compose_train
from zoo.scripts.config.schema import Data
from zoo.scripts.data import images, transforms
from zoo.scripts.data.folders import open_evaluation
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.storage import checkpoint
from zoo.scripts.training.run import run

from dcn_ops import DeformConv2d

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "crop_pct": 0.9}


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 70))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with 4 images to train on and 3 to evaluate."""
    for split, count in (("train", 4), ("validation", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                photo(i).save(folder / f"{i}.png")
    return tmp_path / "images"


def folder_config(root: Path, **kwargs: Any) -> Data:
    return Data(**{"name": "", "root": str(root), "img_size": 32, "batch_size": 3, "workers": 0} | kwargs)


def test_evaluation_images_are_timms() -> None:
    config = Data(name="", img_size=64)
    ours = transforms.create_transform(config, TRANSFORM, training=False)(photo(0))
    timms = timm_transform(64, mean=MEAN, std=STD, interpolation="bicubic", crop_pct=0.9)
    torch.testing.assert_close(ours, timms(photo(0)), rtol=0, atol=1e-6)


OF_TIMM = ["rand-m9-mstd0.5-inc1", "rand-m9-n3", "augmix-m5-w4-d2", "original-mstd0.5", "v0r", "3a"]


@pytest.mark.parametrize("auto", [None, "randaugment", "trivialaugment", "autoaugment", "augmix", *OF_TIMM])
def test_augmentations_change_the_image_and_keep_its_shape(auto: str | None) -> None:
    config = Data(name="", img_size=32, auto_augment=auto, erasing=1.0)
    transform = transforms.create_transform(config, TRANSFORM, training=True)
    first, second = transform(photo(0)), transform(photo(0))
    assert first.shape == second.shape == (3, 32, 32)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("auto", OF_TIMM)
@pytest.mark.parametrize("channels", [1, 3])
def test_timms_augmentations_take_every_image(auto: str, channels: int) -> None:
    """Pillow refuses the posterisation to 0 bits that timm asks for."""
    config, source = Data(name="", img_size=24, auto_augment=auto, in_chans=channels), photo(0)
    steps = transforms.create_transform(config, transforms.transform_config(config, TRANSFORM), training=True)
    source = source if channels == 3 else source.convert("L")
    for _ in range(200):
        assert steps(source).shape == (channels, 24, 24)


@pytest.mark.parametrize("auto", ["fog", "rand-x3", "randm9", "v1"])
def test_an_unknown_augmentation_is_answered_with_the_known_ones(auto: str) -> None:
    with pytest.raises(ValueError, match=f"randaugment, trivialaugment.* got '{auto}'"):
        transforms.create_transform(Data(name="", auto_augment=auto), TRANSFORM, training=True)


def batches(root: Path, epoch: int = 0, **kwargs: Any) -> list[torch.Tensor]:
    splits = create_splits(folder_config(root, **kwargs), TRANSFORM, seed=0)
    splits.train.batch_sampler.set_epoch(epoch)
    return [x for batch in splits.train for x in batch]


def test_an_image_is_augmented_alike_in_every_process_but_not_in_every_epoch(root: Path) -> None:
    expected = batches(root)
    torch.rand(7), np.random.rand(7)  # whatever else draws numbers
    assert all(map(torch.equal, batches(root, workers=2), expected))
    assert not torch.equal(batches(root, epoch=1)[0], expected[0])


def test_one_channel_is_read_as_grey(root: Path) -> None:
    batch, _ = next(iter(create_splits(folder_config(root, in_chans=1), TRANSFORM, seed=0).train))
    assert batch.shape == (3, 1, 32, 32)


def test_a_torchvision_data_set_is_read(root: Path) -> None:
    config = folder_config(root, name="torch/image_folder")
    splits = create_splits(config, TRANSFORM, seed=0)
    assert splits.classes == ("cat", "dog")
    assert images.count_classes(splits.evaluate.dataset) == {0: 3, 1: 3}


def test_a_hugging_face_data_set_is_read(root: Path) -> None:
    pytest.importorskip("datasets", reason="the hf extra is not installed")
    config = folder_config(root.parent / "cache", name=f"hfds/{root}")
    splits = create_splits(config, TRANSFORM, seed=0)
    assert splits.num_classes == 2
    assert images.count_classes(splits.train.dataset) == {0: 4, 1: 4}
    assert next(iter(splits.train))[0].shape == (3, 3, 32, 32)


@pytest.fixture
def shards(root: Path) -> Path:
    """Pack the images of each split into one tar file, as WebDataset has them."""
    for split in ("train", "validation"):
        with tarfile.open(root / f"{split}-0.tar", "w") as tar:
            for path in sorted((root / split).glob("*/*.png")):
                label = str(int(path.parent.name == "dog")).encode()
                for suffix, content in ((".cls", label), (".png", path.read_bytes())):
                    entry = tarfile.TarInfo(f"{path.parent.name}{path.stem}{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return root


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_a_run_on_web_dataset_shards(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the wds extra is not installed")
    overrides = [
        "data=wds", f"data.root={shards}", "data.train_split='train-{0..0}.tar|8'", "data.batch_size=4",
        "data.eval_split='validation-{0..0}.tar|6'", "data.num_classes=2", "data.img_size=32", "data.workers=0",
        "model=timm", "model.name=test_resnet", "optim.epochs=2", "variants=[plain]", "report=false",
    ]  # fmt: skip
    run(compose_train(*overrides), tmp_path / "out")
    gc.collect()
    state = torch.load(tmp_path / "out" / "plain" / "state.pt", weights_only=True)
    assert (state["position"]["epoch"], state["position"]["step"]) == (1, 2)


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "efficientnet_b0"])
def test_a_preset_trains(name: str, root: Path, tmp_path: Path) -> None:
    overrides = [
        f"experiment=finetune_{name}", "model.pretrained=false", f"data.root={root}", "data.img_size=64",
        "data.batch_size=4", "data.workers=0", "optim.epochs=1", "optim.warmup_epochs=0",
        "optim.offset_warmup_steps=0", "report=false",
    ]  # fmt: skip
    run(compose_train(*overrides), tmp_path / "out")
    model = checkpoint.load(tmp_path / "out" / "dcn" / "last.safetensors")
    layers = [module for module in model.modules() if isinstance(module, DeformConv2d)]
    assert layers
    assert any(p.any() for layer in layers for p in layer.predictor_parameters())  # they start at zero


def test_a_run_on_a_folder_keeps_its_classes_and_preprocessing(root: Path, tmp_path: Path) -> None:
    overrides = [
        "data=folder", f"data.root={root}", "data.img_size=32", "data.batch_size=2", "data.workers=0",
        "model.name=resnet10t", "model.kwargs={}", "optim.epochs=1", "variants=[dcn]", "report=false",
    ]  # fmt: skip
    run(compose_train(*overrides), tmp_path / "out")
    model: Any = checkpoint.load(tmp_path / "out" / "dcn" / "last.safetensors")
    assert model.num_classes == 2
    assert model.pretrained_cfg["label_names"] == ("cat", "dog")
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    assert model.pretrained_cfg["crop_pct"] == 0.875


@pytest.mark.parametrize("name", ["", "mnist_rts"])
def test_a_dry_run_counts_and_draws(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group = ["data=folder", f"data.root={root}", "data.img_size=32", "data.batch_size=4"] if name == "" else []
    assert run(compose_train("dry_run=true", *group), tmp_path / "out") == []
    out = capsys.readouterr().out
    assert "cat" in out if name == "" else "3" in out
    assert ("2 steps of 4 images" if name == "" else "40 steps of 100 images") in out
    assert (tmp_path / "out" / "augmented.png").stat().st_size > 5_000
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["augmented.png"]


def spoiled(root: Path, how: str) -> None:
    match how:
        case "split":
            (root / "validation").rename(root / "held")
        case "empty":
            for path in (root / "train" / "dog").iterdir():
                path.rename(path.with_suffix(".txt"))
        case "classes":
            (root / "validation" / "dog").rename(root / "validation" / "bird")
        case "header":
            (root / "train" / "cat" / "1.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("split", r"validation; set data.eval_split to one of \['held'\]"),
        ("empty", r"classes without an image; .*train/dog"),
        ("classes", r"got \['dog'\] only in 'train' and \['bird'\] only in 'validation'"),
        ("header", r"1 of 8 images can't be read.*\n.*train/cat/1.png"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused_at_the_start(root: Path, how: str, answer: str) -> None:
    spoiled(root, how)
    with pytest.raises((ValueError, FileNotFoundError), match=answer):
        create_splits(folder_config(root), TRANSFORM, seed=0)


def test_a_folder_of_the_wrong_level_gets_the_right_cure(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"train/train; set data\.root={root}$"):
        create_splits(folder_config(root / "train"), TRANSFORM, seed=0)
    shutil.move(root / "train", root.parent / "classes")
    with pytest.raises(FileNotFoundError, match=r"the folders in .*classes look like classes: each split needs a"):
        create_splits(folder_config(root.parent / "classes"), TRANSFORM, seed=0)
    shutil.rmtree(root / "validation")
    (root / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="make it, with a folder of images for each class"):
        open_evaluation(folder_config(root))


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere"):
        create_splits(folder_config(tmp_path / "nowhere"), TRANSFORM, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_ends_early_is_named_instead_of_replaced(root: Path, workers: int) -> None:
    path = root / "train" / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:-2000])
    splits = create_splits(folder_config(root, workers=workers), TRANSFORM, seed=0)
    with pytest.raises(ValueError, match=r"can't read the image .*train/cat/2\.png"):
        list(splits.train)


def test_a_dry_run_finds_an_image_that_ends_early(root: Path, tmp_path: Path) -> None:
    path = root / "validation" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"validation/dog/0\.png"):
        run(compose_train("dry_run=true", "data=folder", f"data.root={root}", "data.batch_size=4"), tmp_path)
