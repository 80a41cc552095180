"""Folders of images and label maps: the number of an object, or of a class, in each pixel.

Both are found by name: ``root/images/NAME.*`` and ``root/instances/NAME.*`` or ``root/masks/NAME.*``. A split is a
folder below them, a list ``root/<split>.txt`` of names, or the rows of ``root/index.csv`` (name, split).

Pillow reads the maps: torchvision's decoder (0.29) returns packed bits for palettes of up to 16 colours.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..folders import SUFFIXES, natural
from .scene import Box, Scene, Split, Thing
from .source import Source, opened
from .transforms import NO_CLASS

Map = npt.NDArray[np.int64]


def read_instances(root: Path, split: str, key: str, classes: Sequence[str] | None) -> Split:
    """Return a split whose maps have 0 for the background and i for the object i, often in 16 bits.

    Args:
        root: The folder of ``images`` and ``instances``.
        split: Name of the split.
        key: The config's key for the split, for error messages.
        classes: The name of the one class.

    Raises:
        FileNotFoundError: If a folder or the split doesn't exist.
        ValueError: If there are several classes, which such maps can't tell apart.
    """
    known = tuple(classes or ("object",))
    if len(known) != 1:
        raise ValueError(f"maps of instances have one class, got data.classes={list(known)}; use COCO for more")
    scenes, problems = _scenes(root, "instances", split, key)
    found = []
    for scene in scenes:
        try:
            boxes = boxes_of(read_map(scene.source))
        except ValueError as error:
            problems.append(str(error))
            continue
        things = tuple(Thing(0, box, shape=number) for number, box in boxes.items())
        found.append(Scene(scene.image, scene.size, scene.source, things, scene.label_map))
    return Split(found, known, problems)


def read_foreground(root: Path, split: str, key: str, classes: Sequence[str] | None) -> Split:
    """Return a split of maps of instances as masks of two classes: the background, and the objects together.

    Args:
        root: The folder of ``images`` and ``instances``.
        split: Name of the split.
        key: The config's key for the split, for error messages.
        classes: Names of both classes.

    Raises:
        FileNotFoundError: If a folder or the split doesn't exist.
        ValueError: If there are not two classes.
    """
    known = tuple(classes or ("background", "object"))
    if len(known) != 2:
        raise ValueError(f"maps of instances have a background and one class, got data.classes={list(known)}")
    scenes, problems = _scenes(root, "instances", split, key)
    for scene in scenes:
        try:
            read_map(scene.source)
        except ValueError as error:
            problems.append(str(error))
    return Split(scenes, known, problems)


def read_masks(
    root: Path, split: str, key: str, classes: Sequence[str] | None, colors: Sequence[str] | None
) -> Split:
    """Return a split whose maps have a class in each pixel: its number, or its colour; 255 is none.

    Args:
        root: The folder of ``images`` and ``masks``.
        split: Name of the split.
        key: The config's key for the split, for error messages.
        classes: Names of the classes, in the order of their numbers or colours.
        colors: "#rrggbb" of each class; None for maps of numbers.

    Raises:
        FileNotFoundError: If a folder or the split doesn't exist.
        ValueError: If colours and classes don't fit.
    """
    scenes, problems = _scenes(root, "masks", split, key)
    return checked_masks(scenes, problems, str(root), classes, colors)


def checked_masks(
    scenes: list[Scene],
    problems: list[str],
    where: str,
    classes: Sequence[str] | None,
    colors: Sequence[str] | None,
) -> Split:
    """Return a split of scenes with masks of classes, all of which are read.

    Args:
        scenes: Their ``label_map`` is the mask.
        problems: What is already known to be wrong.
        where: Name of the data, for error messages.
        classes: As in ``read_masks``.
        colors: As in ``read_masks``.

    Raises:
        ValueError: As ``read_masks``.
    """
    if colors is not None and classes is not None and len(colors) != len(classes):
        raise ValueError(
            f"expected a colour for each class, got {len(colors)} data.colors, {len(classes)} data.classes"
        )
    palette = None if colors is None else [rgb(color) for color in colors]
    seen: dict[Source, set[int]] = {}
    for scene in scenes:
        try:
            seen[scene.source] = set(np.unique(read_map(scene.source, palette)).tolist())
        except ValueError as error:
            problems.append(str(error))
    every = set().union(*seen.values())
    if palette is None and every == {0, NO_CLASS}:
        raise ValueError(
            f"the masks in {where} have the values 0 and 255, and 255 means no class: for two classes set "
            "data.colors=['#000000','#ffffff']"
        )
    known = tuple(classes or colors or (str(i) for i in range(1 + max(every - {NO_CLASS}, default=0))))
    for path, values in seen.items():
        if strange := sorted(values - {NO_CLASS} - set(range(len(known)))):
            problems.append(f"{path}: the class {strange[0]} is none of 0 to {len(known) - 1}; see data.classes")
    return Split(scenes, known, problems)


def read_map(path: Source, palette: Sequence[tuple[int, int, int]] | None = None) -> Map:
    """Return the number [H, W] of each pixel: a palette's index, a grey value, or a colour's number.

    Raises:
        ValueError: If the file can't be decoded, or has colours that are not in the palette.
    """
    try:
        with opened(path) as image:
            if palette is not None:
                return _numbers(np.asarray(image.convert("RGB")), palette)
            values = np.asarray(image).astype(np.int64)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # Pillow may raise anything for a damaged image
        raise ValueError(f"{path}: {error}; repair or delete it") from error
    if values.ndim != 2:
        raise ValueError(
            f"{path}: has {values.shape[2]} channels, expected one number for each pixel; see data.colors"
        )
    return values


def boxes_of(numbers: Map) -> dict[int, Box]:
    """Return the box of each object in a map of instances, by its number."""
    rows, columns = np.nonzero(numbers)
    objects, which = np.unique(numbers[rows, columns], return_inverse=True)
    low, high = np.full((len(objects), 2), numbers.size), np.zeros((len(objects), 2), dtype=np.int64)
    for axis, places in enumerate((columns, rows)):
        np.minimum.at(low[:, axis], which, places)
        np.maximum.at(high[:, axis], which, places + 1)
    return {
        int(number): (float(x1), float(y1), float(x2), float(y2))
        for number, (x1, y1), (x2, y2) in zip(objects, low, high, strict=True)
    }


def _numbers(pixels: npt.NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> Map:
    codes = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    numbers = np.full(codes.shape, -1, dtype=np.int64)
    for number, (red, green, blue) in enumerate(palette):
        numbers[codes == 65536 * red + 256 * green + blue] = number
    if (numbers < 0).any():
        raise ValueError(f"the colour #{codes[numbers < 0][0]:06x} is none of data.colors")
    return numbers


def rgb(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of "#rrggbb".

    Raises:
        ValueError: If it is no such text.
    """
    try:
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
    except ValueError as error:
        raise ValueError(f"expected data.colors such as '#ff0000', got '{color}'") from error
    return red, green, blue


def _scenes(root: Path, maps: str, split: str, key: str) -> tuple[list[Scene], list[str]]:
    """Return the scenes of a split, and what is wrong with their files."""
    for folder in (root / "images", root / maps):
        if not folder.is_dir():
            raise FileNotFoundError(f"expected the folder {folder}; see data.root")
    images, labels = (_by_name(root / folder) for folder in ("images", maps))
    names = _names(root, split, key, sorted(images, key=natural))
    scenes, problems = (
        [],
        [f"{name} is twice in {key}={split}" for name in {n for n in names if names.count(n) > 1}],
    )
    for name in dict.fromkeys(names):
        if name not in images or name not in labels:
            problems.append(f"expected {root}/images/{name}.* and {root}/{maps}/{name}.*; one is missing")
            continue
        try:
            with Image.open(labels[name]) as label:
                scenes.append(
                    Scene(images[name], (label.height, label.width), labels[name], label_map=labels[name])
                )
        except Exception as error:  # Pillow may raise anything for a damaged image
            problems.append(f"{labels[name]}: {error}")
    return scenes, problems


def _by_name(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by their path in it, without suffix."""
    found = (
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}


def _names(root: Path, split: str, key: str, there: list[str]) -> list[str]:
    if below := [name for name in there if name.startswith(f"{split}/")]:
        return below
    if (listed := root / f"{split}.txt").is_file():
        return [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    splits: dict[str, list[str]] = {}
    if (index := root / "index.csv").is_file():
        with index.open(newline="") as file:
            for row in csv.DictReader(file):
                splits.setdefault(str(row.get("split")), []).append(str(row.get("name")))
    if split not in splits:
        raise FileNotFoundError(
            f"expected a folder {root}/images/{split}, a list {listed}, or rows of the split in {index}, which has "
            f"{', '.join(splits) or 'none'}; set {key}"
        )
    return splits[split]
