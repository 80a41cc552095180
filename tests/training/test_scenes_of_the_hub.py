"""data=hf_scenes: Hugging Face data sets as the hub has them, written here and read without a network."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import CLASSES, Painted, box_of, numbers_of, paint
from zoo.scripts.config.command import compose_train
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.data.scenes.dataset import scenes_of
from zoo.scripts.training.run import run

datasets = pytest.importorskip("datasets", reason="the hf extra is not installed")
NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "crop_pct": 0.9}
TINY = ["data=hf_scenes", "data.img_size=64", "data.batch_size=4", "data.workers=0"]


def splits_of(root: Path, *overrides: str, targets: str = "boxes"):
    config = compose_train(f"data.root={root}", *TINY, *overrides)
    return create_splits(config.data, NORMAL, 0, targets)


def box(mask: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = box_of(mask)
    return [x1, y1, x2 + 1 - x1, y2 + 1 - y1]


def of_boxes(scenes: list[Painted], lists: bool) -> Any:
    """Return a table of objects, as an object of lists or as a list of objects."""
    label = datasets.ClassLabel(names=["square", "disc"])
    number = [label.str2int(name) for name in CLASSES]
    rows = [
        [{"bbox": box(mask), "category": number[CLASSES.index(name)]} for name, mask in scene.objects]
        for scene in scenes
    ]
    four = datasets.Sequence(datasets.Value("float32"), length=4)
    if lists:
        feature: Any = {"bbox": datasets.Sequence(four), "category": datasets.Sequence(label)}
        rows = [{key: [one[key] for one in row] for key in ("bbox", "category")} for row in rows]
    else:
        feature = [{"bbox": four, "category": label}]
    content = {"image": [Image.fromarray(scene.pixels) for scene in scenes], "objects": rows}
    return datasets.Dataset.from_dict(
        content, features=datasets.Features({"image": datasets.Image(), "objects": feature})
    )


def of_masks(scenes: list[Painted]) -> Any:
    def mask(scene: Painted) -> Image.Image:
        values = [1 + CLASSES.index(name) for name, _ in scene.objects]
        return Image.fromarray(numbers_of(scene, values).astype(np.uint8))

    content = {"annotation": list(map(mask, scenes)), "image": [Image.fromarray(scene.pixels) for scene in scenes]}
    features = datasets.Features({"annotation": datasets.Image(), "image": datasets.Image()})
    return datasets.Dataset.from_dict(content, features=features)


def save(root: Path, train: Any, validation: Any) -> None:
    datasets.DatasetDict({"train": train, "validation": validation}).save_to_disk(root)


@pytest.mark.parametrize("lists", [True, False])
def test_boxes_and_names_are_those_of_the_table(lists: bool, tmp_path: Path) -> None:
    scenes = paint(6)
    save(tmp_path, of_boxes(scenes[:4], lists), of_boxes(scenes[4:], lists))
    splits = splits_of(tmp_path)
    assert splits.classes == ("square", "disc")  # in the table's order
    for index, original in enumerate(scenes[:4]):
        image, target = scenes_of(splits.train.dataset).decode(index)
        assert np.array_equal(np.asarray(image), original.pixels)
        for i, (name, mask) in enumerate(original.objects):
            x, y, width, height = box(mask)
            assert target["boxes"][i].tolist() == [x, y, x + width, y + height]
            assert splits.classes[target["labels"][i]] == name


def test_parquet_files_are_read_as_the_hub_keeps_them(tmp_path: Path) -> None:
    scenes = paint(6)
    (tmp_path / "data").mkdir()
    for name, part in (("train", scenes[:4]), ("validation", scenes[4:])):
        of_boxes(part, lists=True).to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
    splits = splits_of(tmp_path, f"+data.kwargs.cache_dir={tmp_path / 'cache'}")
    assert len(splits.train.dataset) == 4
    _, targets = next(iter(splits.evaluate))
    assert [len(target["boxes"]) for target in targets] == [2, 2]


def test_masks_are_read_from_the_second_image(tmp_path: Path) -> None:
    scenes = paint(6)
    save(tmp_path, of_masks(scenes[:4]), of_masks(scenes[4:]))
    splits = splits_of(tmp_path, targets="pixels")
    assert splits.num_classes == 3
    for index, original in enumerate(scenes[:4]):
        image, target = scenes_of(splits.train.dataset).decode(index)
        assert np.array_equal(np.asarray(image), original.pixels)
        assert np.array_equal(target["mask"].numpy(), numbers_of(original, [1, 2]))
    images, masks = next(iter(splits.evaluate))
    assert (images.shape, masks.shape, masks.dtype) == ((2, 3, 64, 64), (2, 64, 64), torch.int64)


def outside(rows: list[dict[str, Any]]) -> None:
    rows[1]["objects"]["bbox"][0][2] = 99.0


def damaged(rows: list[dict[str, Any]]) -> None:
    content = io.BytesIO()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(content, "PNG")
    rows[1]["image"] = {"bytes": content.getvalue()[:60], "path": None}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(outside, r"train\[1\]\.image: the box \(.*\) is outside of the image"), (damaged, r"train\[1\]\.image")],
)
def test_what_is_wrong_is_named_by_its_row(spoil: Any, message: str, tmp_path: Path) -> None:
    table = of_boxes(paint(4), lists=True)
    rows = [dict(row) for row in table.cast_column("image", datasets.Image(decode=False))]
    spoil(rows)
    changed = datasets.Dataset.from_list(rows, features=table.features)
    save(tmp_path, changed, of_boxes(paint(2), lists=True))
    with pytest.raises(ValueError, match=message):
        run(compose_train("task=detection", *TINY, f"data.root={tmp_path}", "dry_run=true"), tmp_path / "out")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    save(tmp_path / "boxes", of_boxes(paint(2), True), of_boxes(paint(2), True))
    with pytest.raises(FileNotFoundError, match=r"there is no data\.train_split=fit of data\.root="):
        splits_of(tmp_path / "boxes", "data.train_split=fit")
    with pytest.raises(ValueError, match=r"boxes train has no second column of images, only image, objects"):
        splits_of(tmp_path / "boxes", targets="pixels")
    save(tmp_path / "masks", of_masks(paint(2)), of_masks(paint(2)))
    with pytest.raises(ValueError, match=r"masks train has no column 'objects', only annotation, image"):
        splits_of(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"train\[0\]\.image: the class 'disc' is none of cat; see data\.classes"):
        splits_of(tmp_path / "boxes", "data.classes=[cat]")


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'data=hf_scenes needs pip install "dcn-zoo\[hf\]"'):
        splits_of(tmp_path)


@pytest.mark.parametrize(("task", "table"), [("detection", "boxes"), ("segmentation", "masks")])
def test_both_tasks_train_on_them(task: str, table: str, tmp_path: Path) -> None:
    make = of_masks if table == "masks" else lambda scenes: of_boxes(scenes, True)
    save(tmp_path / "data", make(paint(4)), make(paint(4, seed=1)))
    overrides = [
        f"task={task}", *TINY, f"data.root={tmp_path / 'data'}", "head.channels=32", "optim.epochs=1",
        "optim.warmup_epochs=0", "trackers=[]", "device=cpu", "variants=[dcn]", "report=false",
    ]  # fmt: skip
    run(compose_train(*overrides), tmp_path / "run")
    assert (tmp_path / "run" / "dcn" / "last.safetensors").is_file()
