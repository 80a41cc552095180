"""Tiny data sets of scenes: bright rectangles and discs of two classes on noise, in every format that is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
