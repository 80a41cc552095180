"""The splits of a data set of scenes."""

import difflib
import logging
from pathlib import Path
from typing import Any, Literal

from ...config.schema import Data
from ...networks.segmenters import SEGMENTERS
from .. import layouts
from . import coco, hub, label_maps, scattered, voc
from .dataset import Objects, Pixels, Scenes
from .scattered import ScatteredDigits
from .scene import Split
from .transforms import create_transform

Targets = Literal["boxes", "masks", "pixels"]  # of objects, of objects with masks, and the class of each pixel
_log = logging.getLogger(__name__)
_MODES = {1: "L", 3: "RGB"}
_READ = {"voc": voc.read, "coco": coco.read, "instances": label_maps.read_instances}
# The formats of each task.
BOXES = (*_READ, scattered.NAME, hub.NAME)
PIXELS = ("masks", "instances", hub.NAME)
FORMATS = (*_READ, scattered.NAME, hub.NAME, "masks")
EVALUATION_SEED = 2**31  # of what is drawn for an evaluation: no training's seed


def targets_of(head: str | None) -> Targets | None:
    """Return what a head learns from; None without a head."""
    if head is None:
        return None
    return "pixels" if head in SEGMENTERS else "masks" if head == "mask_rcnn" else "boxes"


def create_datasets(config: Data, transform: dict[str, Any], targets: Targets, seed: int) -> tuple[Scenes, Scenes]:
    """Read and check both splits.

    Args:
        config: The data group of the config.
        transform: mean, std, interpolation.
        targets: What the network learns from.
        seed: Of the training images, if they are drawn.

    Raises:
        FileNotFoundError: If a folder or a file of annotations doesn't exist.
        ValueError: If anything is wrong with an annotation, or the splits share an image.
    """
    if config.name == scattered.NAME:
        return _drawn(config, transform, targets, seed), _drawn(config, transform, targets)
    train = _read(config, config.train_split, "data.train_split", config.classes, targets).checked()
    evaluate = _read(config, config.eval_split, "data.eval_split", list(train.classes), targets).checked()
    if shared := {scene.image for scene in train.scenes} & {scene.image for scene in evaluate.scenes}:
        _log.warning("%d images are in both splits, such as %s", len(shared), min(map(str, shared)))
    return _scenes(train, config, transform, targets, True), _scenes(evaluate, config, transform, targets, False)


def create_evaluation(config: Data, transform: dict[str, Any], targets: Targets) -> Scenes:
    """Read and check the evaluation split."""
    if config.name == scattered.NAME:
        return _drawn(config, transform, targets)
    split = _read(config, config.eval_split, "data.eval_split", config.classes, targets).checked()
    return _scenes(split, config, transform, targets, False)


def _scenes(split: Split, config: Data, transform: dict[str, Any], targets: Targets, training: bool) -> Scenes:
    boxes = targets != "pixels"
    steps, mode = create_transform(config, transform, training, boxes), _MODES[config.in_chans]
    if not boxes:
        return Pixels(split, steps, mode, training, config.colors, instances=config.name == "instances")
    if targets == "masks":
        _check_shapes(split)
    return Objects(split, steps, mode, training, targets == "masks")


def _drawn(config: Data, transform: dict[str, Any], targets: Targets, seed: int | None = None) -> ScatteredDigits:
    """Return the images of a training's seed, or those of the evaluation, which are the same for all seeds."""
    _check_channels(config)
    training = seed is not None
    steps = create_transform(config, transform, training, boxes=True)
    return ScatteredDigits(config, steps, training, targets == "masks", EVALUATION_SEED if seed is None else seed)


def _check_channels(config: Data) -> None:
    if config.in_chans not in _MODES:
        raise ValueError(f"images are grey or RGB: expected data.in_chans=1 or 3, got {config.in_chans}")


def _check_shapes(split: Split) -> None:
    for scene in split.scenes:
        if any(thing.shape is None for thing in scene.things):
            raise ValueError(f"{scene.source}: an object in {scene.image} has no mask, which head=mask_rcnn needs")


def _read(config: Data, split: str, key: str, classes: list[str] | None, targets: Targets) -> Split:
    _check_channels(config)
    if twice := {name for name in classes or () if (classes or []).count(name) > 1}:
        raise ValueError(
            f"expected each class once, got data.classes={classes} with {', '.join(sorted(twice))} twice"
        )
    if config.colors is not None and (targets != "pixels" or config.name == "instances"):
        raise ValueError(f"data.colors={config.colors} are for data=masks; drop them")
    if config.name == hub.NAME:
        return hub.read(config, split, key, classes, targets == "pixels")
    if config.root is None or not Path(config.root).is_dir():
        cure = "set it to a path" if config.root is None else "no such folder"
        raise FileNotFoundError(f"expected a folder of images and annotations, got data.root={config.root}; {cure}")
    with layouts.advising(config.root, config.name):
        if config.name == "masks":
            return label_maps.read_masks(Path(config.root), split, key, classes, config.colors)
        read = label_maps.read_foreground if targets == "pixels" else _READ[config.name]
        return read(Path(config.root), split, key, classes)


def check_format(config: Data, task: str, formats: tuple[str, ...]) -> None:
    """Raise ``ValueError`` if a task doesn't read this format."""
    if config.name not in formats:
        guess = difflib.get_close_matches(config.name, formats, n=1)
        mend = f"; did you mean data={guess[0]}?" if guess else ""
        raise ValueError(f"task={task} reads data={', '.join(formats)}, got data.name='{config.name}'{mend}")
