"""Real images for verification and calibration."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import v2

from ..data import folders
from ..data.loaders import spread
from ..data.pixels import to_mode
from ..data.scenes.transforms import Square

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# They are part of scikit-image's package, which downloads others.
_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "hubble_deep_field")


@dataclass(frozen=True)
class Photos:
    """Images, and their classes if each is in a folder of its class."""

    images: list[Image.Image]
    classes: list[str] | None = None  # of each image


def read(folder: str | None, limit: int, *, classes: bool = True) -> Photos:
    """Return the images of a folder, or the photos that scikit-image ships; none without both.

    Args:
        folder: Contains images, or a folder of images for each class, as for dcn-train.
        limit: At most so many images.
        classes: Whether folders in it may be classes.

    Raises:
        FileNotFoundError: If the folder doesn't exist or contains no image.
        ValueError: If a class has no images, or an image can't be read.
    """
    if folder is None:
        return Photos(list(_photos())[:limit])
    root, files = Path(folder).resolve(), folders.named_images(folder)
    if not classes or any(Path(file).resolve().parent == root for file in files):
        return opened(files, limit)
    split = folders.ClassFolders(str(root.parent), root.name, "images")
    names, chosen = list(split.class_to_idx), _spread(split.samples, limit)
    return Photos([_opened(file) for file, _ in chosen], [names[label] for _, label in chosen])


def opened(files: list[Any], limit: int) -> Photos:
    """Return at most ``limit`` of these image files, evenly spread.

    Raises:
        ValueError: If an image can't be read.
    """
    return Photos([_opened(file) for file in _spread(files, limit)])


def _spread(files: list[_T], limit: int) -> list[_T]:
    """Return at most ``limit`` files, evenly spread, so that all classes are represented."""
    return [files[i] for i in spread(limit, len(files))]


def _opened(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return to_mode(image, "RGB")
    except Exception as error:  # Pillow may raise anything for a damaged image
        raise ValueError(f"can't read the image {path}: {error}; repair or delete it") from error


def labels_of(photos: Photos, model: nn.Module, scores: int) -> list[int] | None:
    """Return the index of each image's class among the network's scores; None if unknown.

    Classes are matched by name if the network has names, as a checkpoint of dcn-train does. Otherwise they are
    numbered as dcn-train numbers folders, if the number of folders fits.
    """
    if photos.classes is None:
        return None
    names = _label_names(model, scores)
    if names is None:
        names = sorted(set(photos.classes), key=folders.natural)
        return [names.index(name) for name in photos.classes] if len(names) == scores else None
    if unknown := sorted(set(photos.classes) - set(names)):
        some = ", ".join(names[:5])
        _log.warning("no accuracy: the network has no class %s; it has %s, ...", ", ".join(unknown[:5]), some)
        return None
    return [names.index(name) for name in photos.classes]


def _photos() -> Iterator[Image.Image]:
    try:
        import skimage.data
    except ImportError:
        return
    for name in _PHOTOS:
        yield Image.fromarray(np.asarray(getattr(skimage.data, name)()))


def batch(
    images: list[Image.Image], count: int, shape: tuple[int, int, int], model: nn.Module, *, square: bool = False
) -> Tensor:
    """Return [count, C, H, W] preprocessed as in the network's training; random values if there are no images.

    If there are fewer images than ``count``, they are repeated, mirrored every second time. With ``square`` they
    are padded to a square first, as detectors and segmenters read them.
    """
    channels, height, width = shape
    if not images or channels not in (1, 3):
        why = "pictures have 1 channel or 3" if images else "no pictures (images=FOLDER, or install scikit-image)"
        _log.warning("%s: verifying on random images", why)
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    config = preparation(shape, model)
    steps: list[nn.Module] = [
        v2.Grayscale(channels) if channels == 1 else v2.RGB(),
        *([Square([255 * value for value in config["mean"]], 0)] if square else []),
        v2.Resize((height, width), antialias=True),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(config["mean"], config["std"]),
    ]
    transform = v2.Compose(steps)
    ready = [transform(image) for image in images[:count]]
    out = torch.stack([ready[i % len(ready)] for i in range(count)])
    mirrored = torch.arange(count) // len(images) % 2 == 1
    out[mirrored] = out[mirrored].flip(-1)
    return out.as_subclass(Tensor)


def preparation(shape: tuple[int, int, int], model: nn.Module) -> dict[str, Any]:
    """Return the network's preprocessing with timm's names: input_size, mean and std per channel and so on."""
    config = resolve_data_config({"input_size": shape}, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {})
    named = {name: config[name] for name in ("interpolation", "crop_pct")}
    return {"input_size": list(shape), **{name: _for(config[name], shape[0]) for name in ("mean", "std")}, **named}


def facts(shape: tuple[int, int, int], model: nn.Module, classes: int, *, square: bool = False) -> dict[str, str]:
    """Return the metadata of a file in addition to its scores: the preprocessing, and the names of the classes.

    Args:
        shape: C, H, W of the images.
        model: A timm network; a checkpoint of dcn-train has the names of its classes.
        classes: Number of scores.
        square: Whether images are padded to a square.

    Returns:
        JSON by name: the keys of ``preparation``, and ``label_names`` if they are known. ``padding`` "square" says
        that images are padded to the right and below with the mean colour; there is then no ``crop_pct``.
    """
    known = preparation(shape, model)
    if names := _label_names(model, classes):
        known["label_names"] = names
    if square:
        known["padding"] = "square"
        del known["crop_pct"]
    return {name: json.dumps(value) for name, value in known.items()}


def _label_names(model: nn.Module, scores: int) -> list[str] | None:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    return list(names) if names and len(names) == scores else None


def _for(values: tuple[float, ...], channels: int) -> list[float]:
    mean = sum(values) / len(values)
    return list(values) if len(values) == channels else [mean] * channels
