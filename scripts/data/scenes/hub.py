"""Data sets of the Hugging Face hub: objects in boxes, or masks of classes.

The columns are those of the hub's own examples: ``image`` with ``objects`` of ``bbox`` (x, y, width, height, in
pixels) and ``category``, or ``image`` with a second image, such as ``annotation``. Images are decoded when they are
used.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...config.schema import Data
from . import label_maps
from .scene import Scene, Split, Thing
from .source import Cell, opened

NAME = "hf_scenes"
_BOX = ("bbox", "bboxes", "boxes")
_CLASS = ("category", "categories", "label", "labels", "category_id", "class")
_CROWD = ("iscrowd", "is_crowd")
_MASK = ("annotation", "mask", "label", "segmentation_mask", "semantic_segmentation")


def read(config: Data, split: str, key: str, classes: Sequence[str] | None, pixels: bool) -> Split:
    """Return a split.

    Args:
        config: ``root`` is the name of a data set, or a folder of ``save_to_disk``; ``kwargs`` go to
            ``datasets.load_dataset``.
        split: Name of the split.
        key: The config's key for the split, for error messages.
        classes: Names of the classes; None for those of the data set, or those that occur.
        pixels: Whether to read masks of classes instead of boxes.

    Raises:
        FileNotFoundError: If there is no such data set or split.
        ValueError: If ``datasets`` is not installed, or a column is missing.
    """
    table = _load(config, split, key)
    image = _images(table)
    if not image:
        raise ValueError(f"{config.root} has no column of images, only {', '.join(table.column_names)}")
    return (_masks if pixels else _objects)(table, f"{config.root} {split}", image, config, classes)


def _load(config: Data, split: str, key: str) -> Any:
    """Return a split whose images are not decoded."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f'data=hf_scenes needs pip install "dcn-zoo[hf]": {error}') from error
    root = str(config.root)
    try:
        if (Path(root) / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(root)[split]
        else:
            table = datasets.load_dataset(root, split=split, **config.kwargs)
    except (KeyError, ValueError, OSError) as error:
        raise FileNotFoundError(f"there is no {key}={split} of data.root={root}: {error}") from error
    for column in _images(table):
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _images(table: Any) -> list[str]:
    """Return the columns of images, first that of the pictures."""
    found = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    return sorted(found, key=lambda name: name not in ("image", "img", "pixel_values"))


def _objects(table: Any, name: str, images: list[str], config: Data, classes: Sequence[str] | None) -> Split:
    if "objects" not in table.column_names:
        raise ValueError(f"{name} has no column 'objects', only {', '.join(table.column_names)}")
    feature = _fields(table.features["objects"])
    box, label, crowd = (next((k for k in keys if k in feature), None) for keys in (_BOX, _CLASS, _CROWD))
    if box is None or label is None:
        raise ValueError(f"{name}: expected objects of {_BOX[0]} and {_CLASS[0]}, got {', '.join(feature)}")
    declared = _names(feature[label])
    rows = [list(_rows(objects, (box, label, crowd))) for objects in table["objects"]]
    labels = sorted({row[1] for objects in rows for row in objects})
    known = tuple(classes or declared or map(str, labels))
    problems, scenes = [], []
    for index, objects in enumerate(rows):
        cell, things = Cell(table, name, index, images[0]), []
        for (x, y, width, height), value, ignored in objects:
            text = declared[value] if declared else str(value)
            if text not in known:
                problems.append(f"{cell}: the class '{text}' is none of {', '.join(known)}; see data.classes")
                continue
            things.append(Thing(known.index(text), (x, y, x + width, y + height), bool(ignored)))
        with opened(cell) as image:
            scenes.append(Scene(cell, (image.height, image.width), cell, tuple(things)))
    return Split(scenes, known, problems)


def _masks(table: Any, name: str, images: list[str], config: Data, classes: Sequence[str] | None) -> Split:
    column = next((key for key in _MASK if key in images[1:]), images[1] if len(images) > 1 else None)
    if column is None:
        raise ValueError(f"{name} has no second column of images, only {', '.join(table.column_names)}")
    scenes = []
    for index in range(len(table)):
        mask = Cell(table, name, index, column)
        with opened(mask) as image:
            size = image.height, image.width
        scenes.append(Scene(Cell(table, name, index, images[0]), size, mask, label_map=mask))
    return label_maps.checked_masks(scenes, [], name, classes, config.colors)


def _fields(feature: Any) -> dict[str, Any]:
    """Return the features of an object, from a list of objects or an object of lists."""
    inner = getattr(feature, "feature", feature)  # of a list
    inner = inner[0] if isinstance(inner, list) else inner
    return dict(inner) if isinstance(inner, dict) else {}


def _names(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel``, maybe within a list."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner[0] if isinstance(inner, list) else inner, "names", None)
    return list(names) if names else None


def _rows(objects: Any, keys: Sequence[str | None]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each object; None for a key that there isn't."""
    if isinstance(objects, dict):
        count = len(objects[str(keys[0])])
        yield from zip(*(objects[key] if key else [None] * count for key in keys), strict=True)
    else:
        yield from (tuple(one[key] if key else None for key in keys) for one in objects)
