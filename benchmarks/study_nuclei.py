"""Nuclei of the 2018 Data Science Bowl as masks of two classes, in splits to train, validate and test."""

import csv
from pathlib import Path

import numpy
from PIL import Image
from study_rows import RUNS


def prepare(root: Path) -> Path:
    """Write masks and splits, and return their folder.

    Args:
        root: ``images/NAME.png``, ``instances/NAME.png`` (0 is the background) and ``index.csv`` (name, split). Its
            split ``validation`` becomes the one to test; every fifth image of the others validates.
    """
    folder = RUNS / "nuclei"
    with (root / "index.csv").open() as file:
        names = [(row["name"], row["split"]) for row in csv.DictReader(file)]
    rest = [name for name, split in names if split != "validation"]
    splits = {
        "train": [name for i, name in enumerate(rest) if i % 5],
        "validation": rest[::5],
        "test": [name for name, split in names if split == "validation"],
    }
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for split, chosen in splits.items():
        for name in chosen:
            picture, mask = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
            if not picture.exists():
                picture.symlink_to((root / "images" / f"{name}.png").resolve())
            if not mask.exists():
                instances = numpy.asarray(Image.open(root / "instances" / f"{name}.png"))
                Image.fromarray((instances > 0).astype(numpy.uint8)).save(mask)
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
    return folder
