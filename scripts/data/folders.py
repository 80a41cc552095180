"""Folders of images: the first folder below a split is the class, at any depth of its images."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ..config.schema import Data

_log = logging.getLogger(__name__)

# What Pillow reads. timm's reader knows only .png, .jpg and .jpeg, and silently ignores other files.
SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
SUFFIXES_READ = f"images are {' '.join(SUFFIXES)}"


class ClassFolders:
    """One split of a folder of images, as a reader of ``timm.data.ImageDataset``.

    timm's own reader uses the innermost folder's name as the class, so ``tomato/healthy`` and ``potato/healthy``
    would be one class. Hidden files and folders are ignored.

    Args:
        root: Contains a folder for each split, with a folder for each class in it.
        split: Name of the split.
        key: The config's key for the split, for error messages.

    Raises:
        FileNotFoundError: If root or split doesn't exist.
        ValueError: If a split has no classes, a class has no images, or images are outside of a class.
    """

    def __init__(self, root: str | None, split: str, key: str) -> None:
        folder = _folder_of(root, split, key)
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        if stray := [str(entry) for entry in entries if entry.is_file() and _is_image(entry.name)]:
            raise ValueError(
                f"{len(stray)} images outside of a class, such as {stray[0]}; move them into its folder"
            )
        names = sorted((entry.name for entry in entries if entry.is_dir()), key=natural)
        if not names:
            raise ValueError(f"expected a folder per class in {folder}, got none")
        self.class_to_idx = {name: index for index, name in enumerate(names)}
        files = {name: _files(folder / name) for name in names}
        images = {name: [path for path in found if _is_image(path)] for name, found in files.items()}
        if empty := [str(folder / name) for name, found in images.items() if not found]:
            raise ValueError(
                f"classes without an image; fill or delete these folders: {', '.join(empty)} ({SUFFIXES_READ})"
            )
        # In the order of timm's reader.
        samples = ((path, self.class_to_idx[name]) for name, found in images.items() for path in found)
        self.samples: list[tuple[str, int]] = sorted(samples, key=lambda sample: natural(sample[0]))
        _report_left_out(folder, (path for found in files.values() for path in found if not _is_image(path)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        return Path(path).open("rb"), label


def open_splits(config: Data) -> tuple[ClassFolders, ClassFolders]:
    """Return the training and the evaluation split.

    Raises:
        FileNotFoundError: As in ``ClassFolders``.
        ValueError: As in ``ClassFolders``, or if only one split has a class.
    """
    train = ClassFolders(config.root, config.train_split, "data.train_split")
    evaluate = open_evaluation(config)
    first, second = set(train.class_to_idx), set(evaluate.class_to_idx)
    if first != second:
        raise ValueError(
            f"expected the same classes in both splits of {config.root}, got {sorted(first - second)} only "
            f"in '{config.train_split}' and {sorted(second - first)} only in '{config.eval_split}'"
        )
    return train, evaluate


def open_evaluation(config: Data) -> ClassFolders:
    """Return the evaluation split, without reading the training split."""
    return ClassFolders(config.root, config.eval_split, "data.eval_split")


def _folder_of(root: str | None, split: str, key: str) -> Path:
    if not root or not Path(root).is_dir():
        missing = "" if root else "; set it to a path"
        if root and not Path(root).exists():
            missing = ", which doesn't exist"
        raise FileNotFoundError(
            f"expected a folder with a folder per split and class, got data.root={root}{missing}"
        )
    folder = Path(root, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder {folder}; {_cure(Path(root), split, key)}")
    return folder


def _cure(root: Path, split: str, key: str) -> str:
    """Return what to do about a split that doesn't exist."""
    if (root.resolve().parent / split).is_dir():  # root is itself a split
        return f"set data.root={root.parent}"
    folders = sorted((path for path in root.iterdir() if path.is_dir() and path.name[0] != "."), key=str)
    if any(_is_image(entry.name) for folder in folders for entry in folder.iterdir()):
        return f"the folders in {root} look like classes: each split needs a folder with these in it"
    other = "train" if key == "data.eval_split" else "val"  # "validation" too
    names = [folder.name for folder in folders if not folder.name.startswith(other)]
    return f"set {key} to one of {names}" if names else "make it, with a folder of images for each class"


def _files(folder: str | Path) -> list[str]:
    """Return the files at any depth below a folder that are not hidden."""
    found = []
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(path, name) for name in files if not name.startswith(".")]
    return found


def images_in(folder: str | Path) -> list[str]:
    """Return the images at any depth below a folder that are not hidden, in natural order."""
    return sorted(filter(_is_image, _files(folder)), key=natural)


def named_images(folder: str, key: str = "images") -> list[str]:
    """Return the images below a folder that the user names.

    Args:
        folder: The folder.
        key: The option that names it, for error messages.

    Raises:
        FileNotFoundError: If it doesn't exist, is a file, or there is no image in it.
    """
    if os.path.isfile(folder):
        kind = "an image" if _is_image(folder) else "no image"
        parent = os.path.dirname(folder) or "."
        raise FileNotFoundError(
            f"expected a folder of images, got {key}={folder}, which is a file ({kind}); set {key}={parent}"
        )
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"expected a folder of images, got {key}={folder}, which doesn't exist")
    if not (found := images_in(folder)):
        raise FileNotFoundError(f"expected images in {key}={folder}, got none; {SUFFIXES_READ}")
    return found


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def natural(name: str) -> tuple[list[int | str], str]:
    """Return a sort key that puts "img2" before "img10", as timm does, and "A" next to "a" in every process."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())], name


def _report_left_out(folder: Path, paths: Iterable[str]) -> None:
    suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    if suffixes:
        listed = ", ".join(f"{count} x {suffix}" for suffix, count in suffixes.most_common(5))
        _log.warning("%s: ignored files whose suffix is no image's: %s", folder, listed)
