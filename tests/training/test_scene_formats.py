"""COCO's JSON and label maps: what is read, that masks stay on their objects, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import CLASSES, COLOR, box_of, numbers_of, write_coco, write_instances, write_masks
from zoo.scripts.config.command import compose_train
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.data.scenes import label_maps
from zoo.scripts.data.scenes.dataset import scenes_of

NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "crop_pct": 0.9}
WRITE = {"coco": write_coco, "instances": write_instances, "masks": write_masks}


def splits_of(root: Path, format: str, *overrides: str, masks: bool = True):
    config = compose_train(
        f"data={format}", f"data.root={root}", "data.img_size=64", "data.batch_size=2", "data.workers=0", *overrides
    )
    return create_splits(config.data, NORMAL, 0, "masks" if masks and format != "masks" else None)


def decoded(root: Path, format: str, index: int, *overrides: str) -> dict[str, Any]:
    return scenes_of(splits_of(root, format, *overrides).train.dataset).decode(index)[1]


def test_coco_reads_boxes_polygons_and_runs(tmp_path: Path) -> None:
    painted = write_coco(tmp_path)
    splits = splits_of(tmp_path, "coco")
    assert splits.classes == ("disc", "square")  # in the order of their ids
    for index, original in enumerate(painted[:8]):
        _, target = scenes_of(splits.train.dataset).decode(index)
        for i, (name, mask) in enumerate(original.objects):
            x1, y1, x2, y2 = box_of(mask)
            assert target["boxes"][i].tolist() == [x1, y1, x2 + 1, y2 + 1]
            assert CLASSES[target["labels"][i]] == name
            assert np.array_equal(target["masks"][i].numpy(), mask)


def test_a_crowd_is_evaluated_as_ignored_and_not_trained_on(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split in ("train", "val"):
        edit(tmp_path, lambda found: found["annotations"][0].update(iscrowd=1), split)
    splits = splits_of(tmp_path, "coco")
    assert scenes_of(splits.train.dataset).decode(0)[1]["labels"].tolist() == [1]
    assert scenes_of(splits.evaluate.dataset).decode(0)[1]["ignored"].tolist() == [True, False]


@pytest.mark.parametrize(
    "place", ["annotations/instances_{}.json", "annotations/{}.json", "{}/_annotations.coco.json"]
)
def test_coco_is_found_where_tools_write_it(place: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split in ("train", "val"):
        path = tmp_path / place.format(split)
        path.parent.mkdir(exist_ok=True)
        (tmp_path / f"{split}.json").rename(path)
    assert len(scenes_of(splits_of(tmp_path, "coco").train.dataset)) == 8


def test_instances_of_16_bits_are_told_apart(tmp_path: Path) -> None:
    painted = write_instances(tmp_path)
    for index, original in enumerate(painted[:8]):
        target = decoded(tmp_path, "instances", index)
        for i, (_, mask) in enumerate(original.objects):
            x1, y1, x2, y2 = box_of(mask)
            assert target["boxes"][i].tolist() == [x1, y1, x2 + 1, y2 + 1]
            assert np.array_equal(target["masks"][i].numpy(), mask)


@pytest.mark.parametrize("format", ["coco", "instances"])
def test_masks_and_boxes_of_objects_stay_together(format: str, tmp_path: Path) -> None:
    write_coco(tmp_path) if format == "coco" else write_instances(tmp_path)
    seen = 0
    for images, targets in splits_of(tmp_path, format, "data.color_jitter=0", "data.crop_scale=[0.2,0.6]").train:
        for image, target in zip(images, targets, strict=True):
            assert len(target["masks"]) == len(target["boxes"]) == len(target["labels"])
            for mask, box in zip(target["masks"], target["boxes"], strict=True):
                x1, y1, x2, y2 = box_of(mask.numpy())
                assert box.tolist() == [x1, y1, x2 + 1, y2 + 1]
                inside = image[:, mask.bool()].mean(1)
                nearest = min((torch.tensor(color) / 255 - inside).abs().max() for color in COLOR.values())
                assert nearest < 0.25
                seen += 1
    assert seen > 5


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def as_palette(root: Path, painted: list[Any]) -> list[str]:
    return []


def as_grey(root: Path, painted: list[Any]) -> list[str]:
    for path in (root / "masks").iterdir():
        Image.fromarray(pixels_of(path)).save(path)
    return []


def as_colours(root: Path, painted: list[Any]) -> list[str]:
    for path in (root / "masks").iterdir():
        with Image.open(path) as image:
            converted = image.convert("RGB")
        converted.save(path)
    colors = ["#000000", *(f"#{bytes(COLOR[name]).hex()}" for name in CLASSES)]
    return [f"data.colors={json.dumps(colors)}"]


@pytest.mark.parametrize("write", [as_palette, as_grey, as_colours])
def test_masks_of_classes_are_read(write: Any, tmp_path: Path) -> None:
    painted = write_masks(tmp_path)
    overrides = write(tmp_path, painted)
    splits = splits_of(tmp_path, "masks", "data.classes=[ground,disc,square]", *overrides)
    assert splits.classes == ("ground", "disc", "square")
    for index, original in enumerate(painted[:8]):
        _, target = scenes_of(splits.train.dataset).decode(index)
        assert np.array_equal(target["mask"].numpy(), numbers_of(original, [1, 2]))


def test_a_mask_stays_on_its_image_and_the_border_has_no_class(tmp_path: Path) -> None:
    write_masks(tmp_path)
    splits = splits_of(tmp_path, "masks", "data.color_jitter=0")
    for images, masks in splits.train:
        assert (masks.shape, masks.dtype) == ((2, 64, 64), torch.int64)
        for label, name in enumerate(CLASSES, 1):
            pixels = images.movedim(1, -1)[masks == label]
            assert (pixels - torch.tensor(COLOR[name]) / 255).abs().mean() < 0.2
    _, masks = next(iter(splits.evaluate))
    assert (masks[:, 48:] == 255).all()
    assert (masks[:, :48] < 3).all()


def test_boxes_of_a_map_are_those_of_its_objects() -> None:
    numbers = np.zeros((5, 7), dtype=np.int64)
    numbers[1, 2:5] = 70000
    numbers[4, 6] = 3
    assert label_maps.boxes_of(numbers) == {3: (6, 4, 7, 5), 70000: (2, 1, 5, 2)}
    assert label_maps.boxes_of(np.zeros((5, 7), dtype=np.int64)) == {}


def edit(root: Path, change: Any, split: str = "train") -> None:
    path = root / f"{split}.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def repaint(root: Path, folder: str, change: Any, name: str = "scene2") -> None:
    path = root / folder / f"{name}.png"
    Image.fromarray(change(pixels_of(path))).save(path)


def strange(pixels: np.ndarray) -> np.ndarray:
    pixels[0, 0] = 9
    return pixels


BROKEN: dict[str, tuple[str, Any, str]] = {
    "outside": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][2]["bbox"].__setitem__(2, 99)),
        r"train\.json: the box .* is outside of the image of 64x48",
    ),
    "a mask of another size": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][2]["segmentation"].update(size=[48, 65])),
        r"train\.json: a mask of 65x48 pixels for .*scene1\.png, of 64x48",
    ),
    "an image twice": (
        "coco", lambda root: edit(root, lambda f: f["images"].append(f["images"][1])),
        r"train\.json: the id 101 is twice in images",
    ),
    "an annotation twice": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][3].update(id=1)),
        r"train\.json: the id 1 is twice in annotations",
    ),
    "an unknown image": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][3].update(image_id=5)),
        r"train\.json: the annotation 3 is of the image 5, which is not there",
    ),
    "an unknown category": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][3].update(category_id=5)),
        r"train\.json: the annotation 3 has the category 5, not declared",
    ),
    "no box": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][3].pop("bbox")),
        r"train\.json is no JSON of COCO: KeyError\('bbox'\)",
    ),
    "no mask": (
        "coco", lambda root: edit(root, lambda f: f["annotations"][3].pop("segmentation")),
        r"train\.json: an object in .*scene1\.png has no mask",
    ),
    "no image": (
        "coco", lambda root: (root / "images" / "scene2.png").unlink(), r"there is no image .*scene2\.png",
    ),
    "no list": ("coco", lambda root: edit(root, lambda f: f.pop("images")), r"train\.json, got none of images"),
    "half": ("coco", lambda root: (root / "train.json").write_text('{"images": ['), r"train\.json is damaged"),
    "a map of another size": (
        "instances", lambda root: repaint(root, "instances", lambda p: p[:, :60]),
        r"scene2\.png: is for 60x48 pixels, and .*scene2\.png has 64x48",
    ),
    "a missing map": (
        "instances", lambda root: (root / "instances" / "scene2.png").unlink(), r"scene2\.\*; one is missing",
    ),
    "a damaged map": (
        "instances", lambda root: (root / "instances" / "scene2.png").write_bytes(b"x"), r"scene2\.png: cannot",
    ),
    "a class beyond": (
        "masks", lambda root: repaint(root, "masks", strange), r"scene2\.png: the class 9 is none of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_annotation_is_refused_with_its_name(broken: str, tmp_path: Path) -> None:
    format, spoil, message = BROKEN[broken]
    WRITE[format](tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        splits_of(tmp_path, format, *(["data.classes=[ground,disc,square]"] if format == "masks" else []))


def test_boxes_alone_need_no_masks(tmp_path: Path) -> None:
    write_coco(tmp_path)
    edit(tmp_path, lambda found: [one.pop("segmentation") for one in found["annotations"]])
    assert splits_of(tmp_path, "coco", masks=False).num_classes == 2


@pytest.mark.parametrize(
    ("format", "overrides", "message"),
    [
        (
            "coco",
            ["data.train_split=missing"],
            r"expected one of .*missing\.json, .*; see data\.root and data\.train_split",
        ),
        ("coco", ["data.classes=[disc]"], r"the class 'square' of the annotation 1 is none of disc"),
        ("instances", ["data.eval_split=val"], r"which has train, validation; set data\.eval_split"),
        ("instances", ["data.classes=[a,b]"], r"maps of instances have one class"),
        ("masks", ["data.colors=['#000000']"], r"scene0\.png: the colour #fa2828 is none of data\.colors"),
        ("masks", ["data.colors=[red]"], r"expected data\.colors such as '#ff0000', got 'red'"),
        ("coco", ["data.colors=['#000000']"], r"data\.colors=.* are for data=masks"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    format: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    WRITE[format](tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        splits_of(tmp_path, format, *overrides)


def test_masks_of_black_and_white_name_the_cure(tmp_path: Path) -> None:
    write_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.where(pixels_of(path) > 0, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"for two classes set data\.colors=\['#000000','#ffffff'\]"):
        splits_of(tmp_path, "masks")
    splits = splits_of(tmp_path, "masks", "data.colors=['#000000','#ffffff']")
    assert splits.num_classes == 2


def test_instances_are_together_the_foreground_of_a_segmentation(tmp_path: Path) -> None:
    painted = write_instances(tmp_path)
    config = compose_train(
        "task=segmentation", "data=instances", f"data.root={tmp_path}", "data.img_size=64", "data.batch_size=2",
        "data.workers=0", "data.classes=[background,cell]",
    )  # fmt: skip
    splits = create_splits(config.data, NORMAL, 0, "pixels")
    assert splits.classes == ("background", "cell")
    for index, original in enumerate(painted[:8]):
        mask = scenes_of(splits.train.dataset).decode(index)[1]["mask"].numpy()
        assert np.array_equal(mask, np.any([one for _, one in original.objects], axis=0))
    config.data.classes = ["cell"]
    with pytest.raises(ValueError, match=r"have a background and one class, got data\.classes=\['cell'\]"):
        create_splits(config.data, NORMAL, 0, "pixels")
