"""Scenes for detection: what is read, that boxes stay on their objects, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import COLOR, box_of, write_voc
from zoo.scripts.config.command import compose_train
from zoo.scripts.data.loaders import create_splits
from zoo.scripts.data.scenes import census
from zoo.scripts.data.scenes.dataset import scenes_of
from zoo.scripts.training.run import run

NORMAL = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "crop_pct": 0.9}
SMALL = ["data.img_size=64", "data.batch_size=2", "data.workers=0"]


def splits_of(root: Path, *overrides: str, seed: int = 0):
    config = compose_train("task=detection", "data=voc", f"data.root={root}", *SMALL, *overrides)
    return create_splits(config.data, NORMAL, seed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_voc(tmp_path / "voc")
    return tmp_path / "voc"


def test_voc_counts_pixels_from_1_and_includes_the_last(tmp_path: Path) -> None:
    painted = write_voc(tmp_path)
    splits = splits_of(tmp_path)
    assert splits.classes == ("disc", "square")
    scenes = scenes_of(splits.train.dataset).split.scenes
    assert len(scenes) == 8
    for scene, original in zip(scenes, painted, strict=False):
        for thing, (_, mask) in zip(scene.things, original.objects, strict=True):
            x1, y1, x2, y2 = box_of(mask)
            assert thing.box == (x1, y1, x2 + 1, y2 + 1)


def test_declared_classes_keep_their_order(root: Path) -> None:
    assert splits_of(root, "data.classes=[square,disc]").classes == ("square", "disc")


def test_a_difficult_object_is_evaluated_as_ignored_and_not_trained_on(root: Path) -> None:
    for name in ("scene0", "scene8"):
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    splits = splits_of(root)
    _, trained = scenes_of(splits.train.dataset).decode(0)
    _, held = scenes_of(splits.evaluate.dataset).decode(0)
    assert trained["labels"].tolist() == [1]
    assert held["ignored"].tolist() == [True, False]


def visible_box(image: torch.Tensor, name: str) -> torch.Tensor:
    """Return the box of the pixels that have the colour of a class."""
    color = torch.tensor(COLOR[name]).view(3, 1, 1) / 255
    rows, columns = ((image - color).abs().amax(0) < 0.35).nonzero().unbind(1)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("split", ["train", "evaluate"])
def test_boxes_stay_on_their_objects(split: str, root: Path) -> None:
    splits = splits_of(root, "data.color_jitter=0", "data.crop_scale=[0.5,1]")
    seen = 0
    for images, targets in getattr(splits, split):
        assert images.shape == (2, 3, 64, 64)
        for image, target in zip(images, targets, strict=True):
            for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
                if (box[2:] - box[:2]).min() > 6:  # of an object that the crop cut off, few pixels remain
                    assert (box - visible_box(image, splits.classes[label])).abs().max() < 2
                    seen += 1
    assert seen > 5


def test_an_evaluation_image_keeps_its_shape(root: Path) -> None:
    images, _ = next(iter(splits_of(root).evaluate))
    assert torch.equal(images[:, :, 48:], torch.zeros(2, 3, 16, 64))  # the border has the mean's colour
    assert images[:, :, :48].amax((1, 2, 3)).min() > 0.9


def test_objects_are_counted_by_class_and_size(root: Path) -> None:
    scenes = scenes_of(splits_of(root).train.dataset)
    assert census.count(scenes, 64) == {(0, "small"): 8, (1, "small"): 8}
    assert census.count(scenes, 64 * 3) == {(0, "medium"): 8, (1, "medium"): 8}


def test_a_dry_run_draws_boxes_and_counts(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["task=detection", "data=voc", f"data.root={root}", *SMALL, "dry_run=true"]
    assert run(compose_train(*arguments), tmp_path / "out") == []
    shown = " ".join(capsys.readouterr().out.split())
    assert "objects in 8 and 4 images" in shown
    assert (tmp_path / "out" / "augmented.png").stat().st_size > 1000


def edit(root: Path, old: str, new: str, name: str = "scene3") -> None:
    path = root / "Annotations" / f"{name}.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


BROKEN = {
    "outside": (lambda root: edit(root, "<xmax>", "<xmax>9"), r"scene3\.xml: the box \(.*\) is outside of"),
    "no area": (lambda root: edit(root, "<xmax>", "<xmax>0.0"), r"scene3\.xml: the box \(.*\) has no area"),
    "another size": (
        lambda root: edit(root, "<width>64", "<width>65"), r"scene3\.xml: is for 65x48 pixels, .*png has 64x48",
    ),
    "no image": (
        lambda root: (root / "JPEGImages" / "scene3.png").unlink(), r"scene3\.xml: there is no image .*scene3",
    ),
    "no annotation": (
        lambda root: (root / "Annotations" / "scene3.xml").unlink(), r"No such file or directory: .*scene3\.xml",
    ),
    "no number": (lambda root: edit(root, "<xmin>", "<xmin>a"), r"scene3\.xml: could not convert .* 'a"),
    "not XML": (lambda root: (root / "Annotations" / "scene3.xml").write_text("<a"), r"scene3\.xml: unclosed"),
    "no image file": (
        lambda root: (root / "JPEGImages" / "scene3.png").write_bytes(b"x"), r"scene3\.png: cannot identify image",
    ),
    "twice": (
        lambda root: (root / "ImageSets/Main/train.txt").write_text("scene3\nscene1\nscene3\n"),
        r"train\.txt: scene3 is there twice",
    ),
    "a class of only the other split": (
        lambda root: edit(root, "disc", "ring", "scene9"), r"scene9\.xml: the class 'ring' is none of disc, square",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_annotation_is_refused_with_its_name(broken: str, root: Path) -> None:
    spoil, message = BROKEN[broken]
    spoil(root)
    with pytest.raises(ValueError, match=message):
        splits_of(root)


def test_a_class_that_is_not_declared_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"scene0\.xml: the class 'square' is none of disc; see data\.classes"):
        splits_of(root, "data.classes=[disc]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.train_split=missing"],
            r"expected the list .*missing\.txt; set data\.train_split to .*: train, val",
        ),
        (["data.root=nowhere"], r"expected a folder of images and annotations, got data\.root=nowhere"),
        (["data.auto_augment=randaugment"], r"change an image without its boxes"),
        (["data.num_classes=7"], r"the data have the classes disc, square, got data\.num_classes=7"),
        (["data.classes=[disc,disc]"], r"expected each class once, .* with disc twice"),
        (["data.batch_size=64"], r"less than a batch to train on: lower data\.batch_size=64"),
    ],
)
def test_options_that_do_not_fit_are_refused(overrides: list[str], message: str, root: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        splits_of(root, *overrides)


def test_an_image_is_augmented_alike_in_every_epoch_order(root: Path) -> None:
    """The augmentation of a scene depends on seed, epoch and index alone."""
    first, again, other = (next(iter(splits_of(root, seed=seed).train)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(first[1], again[1], strict=True))
    assert not np.array_equal(first[0], other[0])
