"""Tiny data sets of scenes: bright rectangles and discs of two classes on noise, in every format that is read."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("disc", "square")
COLOR = {"disc": (250, 40, 40), "square": (40, 40, 250)}


@dataclass(frozen=True)
class Painted:
    """An image, and its objects: class, mask [H, W] of bool; their pixels don't overlap."""

    name: str
    pixels: np.ndarray
    objects: Sequence[tuple[str, np.ndarray]]


def paint(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[Painted]:
    """Return images with a disc in the left half and a square in the right half."""
    random, found = np.random.default_rng(seed), []
    y, x = np.mgrid[:height, :width]
    for index in range(count):
        pixels = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        side = int(random.integers(12, 20))
        top, left = int(random.integers(1, height - side)), int(random.integers(width // 2 + 1, width - side))
        radius = int(random.integers(6, 10))
        cy, cx = int(random.integers(radius, height - radius)), int(random.integers(radius, width // 2 - radius))
        masks = {
            "disc": (y - cy) ** 2 + (x - cx) ** 2 < radius**2,
            "square": (y >= top) & (y < top + side) & (x >= left) & (x < left + side),
        }
        for name, mask in masks.items():
            pixels[mask] = COLOR[name]
        found.append(Painted(f"scene{index}", pixels, list(masks.items())))
    return found


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first and the last pixel of a mask, which belongs to it: x1, y1, x2, y2."""
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def write_voc(root: Path, train: int = 8, evaluate: int = 4) -> list[Painted]:
    """Write Pascal VOC's folders, with pixels that count from 1."""
    scenes = paint(train + evaluate)
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for scene in scenes:
        Image.fromarray(scene.pixels).save(root / "JPEGImages" / f"{scene.name}.png")
        height, width = scene.pixels.shape[:2]
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
            + "".join(
                f"<{k}>{v + 1}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box_of(m), strict=True)
            )
            + "</bndbox></object>"
            for name, m in scene.objects
        )
        text = f"<annotation><size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
        (root / "Annotations" / f"{scene.name}.xml").write_text(text)
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_text("".join(f"{scene.name}\n" for scene in scenes[:train]))
    (lists / "val.txt").write_text("".join(f"{scene.name}\n" for scene in scenes[train:]))
    return scenes


def write_coco(root: Path, train: int = 8, evaluate: int = 4) -> list[Painted]:
    """Write COCO's JSON: discs as RLE, squares as polygons."""
    scenes = paint(train + evaluate)
    (root / "images").mkdir(parents=True)
    for split, part in (("train", scenes[:train]), ("val", scenes[train:])):
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "square"}, {"id": 3, "name": "disc"}],
        }
        for scene in part:
            Image.fromarray(scene.pixels).save(root / "images" / f"{scene.name}.png")
            height, width = scene.pixels.shape[:2]
            image = len(content["images"]) + 100
            content["images"].append(
                {"id": image, "file_name": f"{scene.name}.png", "width": width, "height": height}
            )
            for name, mask in scene.objects:
                x1, y1, x2, y2 = box_of(mask)
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]),
                        "image_id": image,
                        "category_id": 7 if name == "square" else 3,
                        "bbox": [x1, y1, x2 + 1 - x1, y2 + 1 - y1],
                        "segmentation": _polygon(mask) if name == "square" else _runs(mask),
                        "iscrowd": 0,
                    }
                )
        (root / f"{split}.json").write_text(json.dumps(content))
    return scenes


def _polygon(mask: np.ndarray) -> list[list[float]]:
    x1, y1, x2, y2 = box_of(mask)
    return [[x1, y1, x2 + 1, y1, x2 + 1, y2 + 1, x1, y2 + 1]]


def _runs(mask: np.ndarray) -> dict[str, list[int]]:
    """Return COCO's uncompressed RLE: lengths of runs down the columns, which begin with the background."""
    flat = mask.flatten(order="F").astype(int)
    starts = np.flatnonzero(np.diff(flat)) + 1
    edges = [0, *starts.tolist(), flat.size]
    counts = [b - a for a, b in itertools.pairwise(edges)]
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def write_instances(root: Path, train: int = 8, evaluate: int = 4) -> list[Painted]:
    """Write maps of instances in 16 bits, numbered above 8 bits, and index.csv."""
    scenes = paint(train + evaluate)
    _write_maps(root, "instances", scenes, lambda objects: 300 * np.arange(1, len(objects) + 1), np.uint16)
    rows = [f"{s.name},{'train' if i < train else 'validation'}\n" for i, s in enumerate(scenes)]
    (root / "index.csv").write_text("name,split\n" + "".join(rows))
    return scenes


def write_masks(root: Path, train: int = 8, evaluate: int = 4) -> list[Painted]:
    """Write masks of classes as palettes of 4 colours: 0 is the background, 1 a disc, 2 a square; and lists."""
    scenes = paint(train + evaluate)
    _write_maps(root, "masks", scenes, lambda objects: [1 + CLASSES.index(name) for name, _ in objects], np.uint8)
    (root / "train.txt").write_text("".join(f"{s.name}\n" for s in scenes[:train]))
    (root / "validation.txt").write_text("".join(f"{s.name}\n" for s in scenes[train:]))
    return scenes


def numbers_of(scene: Painted, values: Sequence[int]) -> np.ndarray:
    """Return the map [H, W] of a scene, with a number for each object."""
    found = np.zeros(scene.pixels.shape[:2], dtype=np.int64)
    for value, (_, mask) in zip(values, scene.objects, strict=True):
        found[mask] = value
    return found


def _write_maps(root: Path, folder: str, scenes: Sequence[Painted], values: Any, dtype: Any) -> None:
    for name in ("images", folder):
        (root / name).mkdir(parents=True)
    for scene in scenes:
        Image.fromarray(scene.pixels).save(root / "images" / f"{scene.name}.png")
        image = Image.fromarray(numbers_of(scene, values(scene.objects)).astype(dtype))
        if dtype is np.uint8:
            image = image.convert("P")
            image.putpalette([0, 0, 0, *COLOR["disc"], *COLOR["square"], 9, 9, 9])
        image.save(root / folder / f"{scene.name}.png")
