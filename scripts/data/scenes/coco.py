"""COCO's JSON: boxes, polygons and run-length codes (RLE)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .scene import Scene, Split, Thing

_LISTS = ("images", "annotations", "categories")


def read(root: Path, split: str, key: str, classes: Sequence[str] | None) -> Split:
    """Return a split.

    Args:
        root: The folder of annotations and images.
        split: Its name; ``_json_of`` and ``_folder_of`` say where its files may be.
        key: The config's key for the split, for error messages.
        classes: Names of the categories to use, in order; None for all, in the order of their ids.

    Raises:
        FileNotFoundError: If there is no JSON of the split.
        ValueError: If the JSON is damaged, or lacks a list.
    """
    path = _json_of(root, split, key)
    images, annotations, categories = _lists(path)
    problems = [f"{path}: {problem}" for problem in _ids_twice(images, annotations, categories)]
    try:
        names = {one["id"]: str(one["name"]) for one in sorted(categories, key=lambda one: one["id"])}
        known = tuple(classes or names.values())
        problems += [f"{path}: {problem}" for problem in _strangers(images, annotations, names, known)]
        by_image: dict[Any, list[Thing]] = {image["id"]: [] for image in images}
        for one in annotations:
            name = names.get(one["category_id"])
            if name in known and one["image_id"] in by_image:
                by_image[one["image_id"]].append(_thing(one, known.index(name)))
        folder = _folder_of(root, split, path, [str(image["file_name"]) for image in images])
        scenes = [
            Scene(folder / image["file_name"], _size(image), path, tuple(by_image[image["id"]])) for image in images
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON of COCO: {error!r}") from error
    problems += [f"{path}: {problem}" for scene in scenes for problem in _shapes_of_another_size(scene)]
    return Split(scenes, known, problems)


def mask_of(shape: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode polygons, or a code of runs, to [height, width] of 0 and 1."""
    from pycocotools import mask

    code = shape
    if isinstance(shape, list):
        code = mask.merge(mask.frPyObjects(shape, height, width))
    elif isinstance(shape["counts"], list):
        code = mask.frPyObjects(shape, height, width)
    return np.asarray(mask.decode(code), dtype=np.uint8)


def _json_of(root: Path, split: str, key: str) -> Path:
    """Return COCO's own place, a shorter one, or that of Roboflow."""
    tried = [
        root / "annotations" / f"instances_{split}.json",
        root / "annotations" / f"{split}.json",
        root / f"{split}.json",
        root / split / "_annotations.coco.json",
    ]
    for path in tried:
        if path.is_file():
            return path
    raise FileNotFoundError(f"expected one of {', '.join(map(str, tried))}; see data.root and {key}={split}")


def _folder_of(root: Path, split: str, path: Path, files: list[str]) -> Path:
    folders = [root / split, root / "images" / split, root / "images", path.parent, root]
    return next((folder for folder in folders if files and (folder / files[0]).is_file()), folders[0])


def _lists(path: Path) -> list[list[dict[str, Any]]]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON: {error}") from error
    missing = [name for name in _LISTS if not isinstance(found, dict) or not isinstance(found.get(name), list)]
    if missing:
        raise ValueError(f"expected the lists {', '.join(_LISTS)} in {path}, got none of {', '.join(missing)}")
    return [found[name] for name in _LISTS]


def _ids_twice(*lists: list[dict[str, Any]]) -> list[str]:
    problems = []
    for name, entries in zip(_LISTS, lists, strict=True):
        seen: set[Any] = set()
        for identity in (entry.get("id") for entry in entries):
            if identity in seen:
                problems.append(f"the id {identity} is twice in {name}")
            seen.add(identity)
    return problems


def _strangers(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: dict[Any, str], known: Sequence[str]
) -> list[str]:
    """Return annotations of an image or a class that is not declared."""
    there = {image["id"] for image in images}
    problems = []
    for one in annotations:
        if one["image_id"] not in there:
            problems.append(f"the annotation {one.get('id')} is of the image {one['image_id']}, which is not there")
        name = names.get(one["category_id"])
        if name is None:
            problems.append(f"the annotation {one.get('id')} has the category {one['category_id']}, not declared")
        elif name not in known:
            problems.append(f"the class '{name}' of the annotation {one.get('id')} is none of {', '.join(known)}")
    return problems


def _thing(one: dict[str, Any], label: int) -> Thing:
    x, y, width, height = (float(value) for value in one["bbox"])
    return Thing(label, (x, y, x + width, y + height), bool(one.get("iscrowd")), one.get("segmentation") or None)


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return int(image["height"]), int(image["width"])


def _shapes_of_another_size(scene: Scene) -> list[str]:
    sizes = [tuple(thing.shape["size"]) for thing in scene.things if isinstance(thing.shape, dict)]
    return [
        f"a mask of {size[1]}x{size[0]} pixels for {scene.image}, of {scene.size[1]}x{scene.size[0]}"
        for size in sizes
        if size != scene.size
    ]
