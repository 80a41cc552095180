"""Real images to verify and calibrate with."""

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
from ..data.pixels import to_mode

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

# In scikit-image's package, not fetched from elsewhere.
_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "hubble_deep_field")


@dataclass(frozen=True)
class Photos:
    """Images and, where each lies in a folder of its class, their classes."""

    images: list[Image.Image]
    classes: list[str] | None = None  # of each image


def read(folder: str | None, limit: int) -> Photos:
    """Return the images of a folder, or the photos that scikit-image ships; none where neither is there.

    Args:
        folder: Holds images, or a folder of images for each class, as for dcn-train.
        limit: At most so many images.

    Raises:
        FileNotFoundError: For a folder that is not there or holds no image.
        ValueError: For a class without images, and for an image that can't be read.
    """
    if folder is None:
        return Photos(list(_photos())[:limit])
    root, files = Path(folder).resolve(), folders.images_in(folder)
    if not files:
        raise FileNotFoundError(f"expected a folder with images, got {folder!r}; {folders.SUFFIXES_READ}")
    if any(Path(file).resolve().parent == root for file in files):
        return Photos([_opened(file) for file in _spread(files, limit)])
    split = folders.ClassFolders(str(root.parent), root.name, "images")
    names, chosen = list(split.class_to_idx), _spread(split.samples, limit)
    return Photos([_opened(file) for file, _ in chosen], [names[label] for _, label in chosen])


def _spread(files: list[_T], limit: int) -> list[_T]:
    """Return at most ``limit``, evenly over all, so that all classes take part."""
    return files[:: -(-len(files) // limit)]


def _opened(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return to_mode(image, "RGB")
    except Exception as error:  # whatever a damaged image raises in Pillow
        raise ValueError(f"can't read the image {path}: {error}; mend or delete it") from error


def labels_of(photos: Photos, model: nn.Module, scores: int) -> list[int] | None:
    """Return the index of each image's class among the network's scores; None where that is not known.

    By the names of the classes where the network has them, as a checkpoint of dcn-train has; else in the order in
    which dcn-train would number the folders, where there are as many.
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


def batch(images: list[Image.Image], count: int, shape: tuple[int, int, int], model: nn.Module) -> Tensor:
    """Return [count, C, H, W] as the network was trained on; random where there are no images.

    From the second time on an image is taken mirrored, and then again.
    """
    channels, height, width = shape
    if not images or channels not in (1, 3):
        why = "pictures have 1 channel or 3" if images else "no pictures (images=FOLDER, or install scikit-image)"
        _log.warning("%s: verifying on random images", why)
        return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    config = preparation(shape, model)
    steps: list[nn.Module] = [
        v2.Grayscale(channels) if channels == 1 else v2.RGB(),
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
    """Return how images are made for a network, by timm's names: input_size, mean and std by channel and so on."""
    config = resolve_data_config({"input_size": shape}, pretrained_cfg=getattr(model, "pretrained_cfg", None) or {})
    named = {name: config[name] for name in ("interpolation", "crop_pct")}
    return {"input_size": list(shape), **{name: _for(config[name], shape[0]) for name in ("mean", "std")}, **named}


def facts(shape: tuple[int, int, int], model: nn.Module, classes: int) -> dict[str, str]:
    """Return what a file says of its network beside the scores: how images are made for it, and its classes' names.

    Args:
        shape: C, H, W of the images.
        model: A network of timm; a checkpoint of dcn-train has the names of its classes.
        classes: Number of scores.

    Returns:
        JSON by name: those of ``preparation``, and ``label_names`` where they are known.
    """
    known = preparation(shape, model)
    if names := _label_names(model, classes):
        known["label_names"] = names
    return {name: json.dumps(value) for name, value in known.items()}


def _label_names(model: nn.Module, scores: int) -> list[str] | None:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    return list(names) if names and len(names) == scores else None


def _for(values: tuple[float, ...], channels: int) -> list[float]:
    mean = sum(values) / len(values)
    return list(values) if len(values) == channels else [mean] * channels
