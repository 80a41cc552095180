"""dcn-train: which images of a folder it reads, as which class, and with which pixels."""

import io
import logging
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from zoo.scripts.config.schema import Data
from zoo.scripts.data import images
from zoo.scripts.data.folders import ClassFolders
from zoo.scripts.data.loaders import create_evaluation, create_splits, examples, spread
from zoo.scripts.data.pixels import to_mode

TRANSFORM = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(path)


def config(root: Path, **kwargs: Any) -> Data:
    return Data(**{"name": "", "root": str(root), "img_size": 8, "batch_size": 1, "workers": 0} | kwargs)


def classes(root: Path) -> tuple[str, ...] | None:
    return create_splits(config(root), TRANSFORM, seed=0).classes


def labels(root: Path) -> dict[str, str]:
    """Return the class of each image by its path."""
    reader = ClassFolders(str(root), "train", "data.train_split")
    names = list(reader.class_to_idx)
    return {str(Path(path).relative_to(root / "train")): names[label] for path, label in reader.samples}


def test_the_folder_below_the_split_is_the_class(tmp_path: Path) -> None:
    """Tiny-ImageNet has train/<class>/images/*; timm would read "images" as the only class."""
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "images" / "0.png" for name in ("n02", "n10", "n1")))
    assert classes(tmp_path) == ("n1", "n02", "n10")
    assert labels(tmp_path) == {f"{name}/images/0.png": name for name in ("n1", "n02", "n10")}


def test_folders_of_one_name_in_two_classes_stay_apart(tmp_path: Path) -> None:
    paths = ["tomato/healthy/0.png", "tomato/ill/1.png", "potato/healthy/0.png", "potato/0.png"]
    for split in ("train", "validation"):
        write(*(tmp_path / split / path for path in paths))
    assert classes(tmp_path) == ("potato", "tomato")
    assert labels(tmp_path) == {path: path.partition("/")[0] for path in paths}


def test_hidden_folders_and_files_are_left_out(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("cat", "dog")))
    write(tmp_path / "train" / ".ipynb_checkpoints" / "0.png", tmp_path / "train" / "cat" / ".trash" / "1.png")
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"of another system")
    assert classes(tmp_path) == ("cat", "dog")
    assert set(labels(tmp_path)) == {"cat/0.png", "dog/0.png"}


def test_an_image_outside_of_a_class_is_named(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("cat", "dog")))
    write(tmp_path / "train" / "lost.png")
    with pytest.raises(ValueError, match=r"1 images outside of a class, such as .*train/lost\.png"):
        classes(tmp_path)


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(tmp_path / split / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"two classes or more, got \('cat',\)"):
        classes(tmp_path)


def test_classes_that_differ_in_their_case_alone_have_one_order(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("b", "a", "B", "A")))
    assert classes(tmp_path) == ("A", "a", "B", "b")


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".TIFF", ".bmp", ".gif", ".ppm", ".JPG"])
def test_every_kind_of_image_that_pillow_reads_is_read(suffix: str, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / f"0{end}" for name in ("cat", "dog") for end in (".png", suffix)))
        write(tmp_path / split / "bird" / f"0{suffix}")
    splits = create_splits(config(tmp_path), TRANSFORM, seed=0)
    assert len(splits.train) == 5
    assert all(batch.shape == (1, 3, 8, 8) for batch, _ in splits.train)


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("cat", "dog")))
    for name in ("a.heic", "b.heic", "notes"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        classes(tmp_path)
    assert "train: ignored files whose suffix is no image's: 2 x .heic, 1 x no suffix" in caplog.text


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
# Pixel values in a file, by type and range; in each the darkest pixel is black and the lightest white.
RAMPS = {
    "16 bits": (RAMP * 65535).round().astype(np.uint16),
    "16 bits of 32": (RAMP * 65535).round().astype(np.int32),
    "8 bits of 32": (RAMP * 255).round().astype(np.int32),
    "32 bits": (RAMP * 2e9).round().astype(np.int32),
    "negative": (RAMP * 4000 - 1000).round().astype(np.int32),
    "float to 1": RAMP.astype(np.float32),
    "float to 255": (RAMP * 255).astype(np.float32),
    "float to 65535": (RAMP * 65535).astype(np.float32),
    "float of any range": (RAMP * 7e5 - 3e5).astype(np.float32),
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", RAMPS)
def test_images_of_more_than_8_bits_are_scaled(name: str, mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(RAMPS[name]).save(file, "TIFF")
    image = to_mode(Image.open(file), mode)
    assert image.mode == mode
    expected = RAMP if mode == "L" else np.stack([RAMP] * 3, 2)
    assert np.abs(np.asarray(image) / 255 - expected).max() < 1 / 255


@pytest.mark.parametrize("mode", ["I;16B", "I;16", "L", "LA", "RGBA", "CMYK", "1"])
def test_a_mode_keeps_its_brightness(mode: str) -> None:
    white = 65535 if mode.startswith("I") else 1 if mode == "1" else 255
    values = [Image.new(mode, (2, 2), 0), Image.new(mode, (2, 2), white)]
    if mode in ("RGBA", "CMYK", "LA"):
        values = [Image.new("RGB", (2, 2), color).convert(mode) for color in ("black", "white")]
    assert [np.asarray(to_mode(value, "L")).mean() for value in values] == pytest.approx([0, 255], abs=1)


def test_an_image_of_one_value_beyond_every_range_is_black() -> None:
    for value in (1e9, -5.0):
        image = Image.fromarray(np.full((2, 2), value, np.float32))
        assert np.asarray(to_mode(image, "L")).max() == 0


def test_an_image_of_nan_is_named(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("cat", "dog")))
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "train" / "cat" / "1.tif")
    with pytest.raises(ValueError, match=r"can't read the image .*train/cat/1\.tif: expected finite pixels"):
        list(create_splits(config(tmp_path), TRANSFORM, seed=0).train)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "torch/image_folder", "hfds/", "wds/"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_every_kind_of_data_set_scales_16_bits(kind: str, channels: int, tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    for split in ("train", "validation"):
        write(*(tmp_path / "data" / split / name / "0.png" for name in ("cat", "dog")))
        for path in (tmp_path / "data" / split).glob("*/*"):
            grey.save(path)
    keys: dict[str, Any] = {"name": "" if kind == "folder" else kind, "in_chans": channels, "num_classes": 2}
    root = tmp_path / "data"
    if kind == "hfds/":
        pytest.importorskip("datasets", reason="the hf extra is not installed")
        keys["name"], root = f"hfds/{root}", tmp_path / "cache"
    if kind == "wds/":
        pytest.importorskip("webdataset", reason="the wds extra is not installed")
        pack(root / "validation", root / "held-0.tar")
        keys["eval_split"] = "held-{0..0}.tar|2"
    loader, _, _ = create_evaluation(config(root, **keys), TRANSFORM, num_classes=2, seed=0)
    batch, _ = next(iter(loader))
    assert batch.shape == (1, channels, 8, 8)
    torch.testing.assert_close(batch, torch.zeros_like(batch), rtol=0, atol=0.01)  # 0.5 - mean


def test_examples_show_every_class_where_a_split_is_sorted_by_class(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(*(tmp_path / "validation" / name / f"{i}.png" for i in range(4)))
    loader, _, _ = create_evaluation(config(tmp_path), TRANSFORM, num_classes=3, seed=0)
    state = torch.get_rng_state()
    pictures, found = examples(loader, 3)
    assert found.tolist() == [0, 1, 2]
    assert pictures.shape == (3, 3, 8, 8)
    assert len(examples(loader, 100)[1]) == 12
    assert torch.equal(torch.get_rng_state(), state)  # else a training would differ


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the collector
def test_examples_of_a_stream_are_its_first_images(tmp_path: Path) -> None:
    pytest.importorskip("webdataset", reason="the wds extra is not installed")
    write(*(tmp_path / "images" / name / "0.png" for name in ("a", "b", "c")))
    pack(tmp_path / "images", tmp_path / "held-0.tar")
    keys = {"name": "wds/", "eval_split": "held-{0..0}.tar|3", "num_classes": 3}
    loader, _, _ = create_evaluation(config(tmp_path, **keys), TRANSFORM, num_classes=3, seed=0)
    pictures, found = examples(loader, 9)
    assert pictures.shape == (3, 3, 8, 8)
    assert found.tolist() == [0, 1, 2]


def test_indices_are_spread_over_all() -> None:
    assert spread(3, 12) == [2, 6, 10]
    assert spread(1, 5) == [2]
    assert spread(9, 4) == [0, 1, 2, 3]


def pack(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for label, image in enumerate(sorted(folder.glob("*/*.png"))):
            for suffix, content in ((".cls", str(label).encode()), (".png", image.read_bytes())):
                entry = tarfile.TarInfo(f"{label}{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"in_chans": 4}, r"data\.in_chans=1 or 3, got 4"),
        ({"name": "cifar10"}, r"begins with torch/, hfds/.* got 'cifar10'"),
        ({"name": "mnist_rst"}, r"expected data\.name=.*mnist_rts, .* got 'mnist_rst'"),
        ({"num_classes": 1}, r"the data have 2 classes, got data\.num_classes=1"),
        ({"kwargs": {"class_map": "x"}}, r"data\.kwargs go to the data sets of timm"),
    ],
)
def test_a_config_that_does_not_fit_the_data_is_refused(
    changes: dict[str, Any], answer: str, tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "0.png" for name in ("cat", "dog")))
    with pytest.raises(ValueError, match=answer):
        create_splits(config(tmp_path, **changes), TRANSFORM, seed=0)


def test_splits_of_a_torchvision_data_set_have_the_same_classes(tmp_path: Path) -> None:
    write(*(tmp_path / "train" / name / "0.png" for name in ("cat", "dog")))
    write(*(tmp_path / "validation" / name / "0.png" for name in ("dog", "horse")))
    with pytest.raises(ValueError, match=r"the same classes .*'horse'"):
        create_splits(config(tmp_path, name="torch/image_folder"), TRANSFORM, seed=0)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    from zoo.scripts.data.order import collate

    sample = torch.zeros(1, 2, 2)
    assert collate([(sample, 0), (sample, 4)], num_classes=5)[1].tolist() == [0, 4]
    with pytest.raises(ValueError, match=r"labels of 0 to 3, got 0 to 4; set data\.num_classes"):
        collate([(sample, 0), (sample, 4)], num_classes=4)


def test_counting_labels_needs_no_images(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write(*(tmp_path / split / name / "a" / "0.png" for name in ("cat", "dog")))
    assert images.count_classes(create_splits(config(tmp_path), TRANSFORM, seed=0).train.dataset) == {0: 1, 1: 1}
