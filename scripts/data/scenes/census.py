"""Counts of the objects of a split: by class, and by COCO's sizes."""

from collections import Counter

from .dataset import Scenes

# COCO's limits: areas below 32² are small, above 96² large; as AP by size, in pixels of the network's input.
SIZES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}


def count(scenes: Scenes, size: int) -> Counter[tuple[int, str]]:
    """Count the objects of each class and size.

    Args:
        scenes: A split.
        size: Side of the network's input, into which the longer side of an image is resized.
    """
    found: Counter[tuple[int, str]] = Counter()
    for index in range(len(scenes)):
        shape, things = scenes.annotated(index)
        scale = size / max(shape)
        for thing in things:
            x1, y1, x2, y2 = thing.box
            area = (x2 - x1) * (y2 - y1) * scale**2
            found[thing.label, max((limit, name) for name, limit in SIZES.items() if area >= limit)[1]] += 1
    return found
