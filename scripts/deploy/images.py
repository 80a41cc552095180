"""Real images to verify and calibrate with."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import resolve_data_config
from torch import Tensor, nn
from torchvision.transforms import v2

_log = logging.getLogger(__name__)

# In scikit-image's package, not fetched from elsewhere.
_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "hubble_deep_field")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}


@dataclass(frozen=True)
class Photos:
    """Images and, where each lies in a folder of its class, their classes."""

    images: list[Image.Image]
    labels: list[int] | None = None
    classes: int = 0


def read(folder: str | None, limit: int) -> Photos:
    """Return the images of a folder, or the photos that scikit-image ships; none where neither is there.

    Args:
        folder: Holds images, or a folder of images for each class, as for dcn-train.
        limit: At most so many images.

    Raises:
        FileNotFoundError: For a folder that is not there or holds no image.
    """
    if folder is None:
        return Photos(list(_photos())[:limit])
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"expected a folder with images ({', '.join(sorted(_SUFFIXES))}), got {folder!r}")
    classes = sorted({path.parent for path in files})
    # Evenly over the sorted names, so that all classes take part.
    chosen = files[:: -(-len(files) // limit)]
    labels = [classes.index(path.parent) for path in chosen] if Path(folder) not in classes else None
    return Photos([_opened(path) for path in chosen], labels, len(classes))


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


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
    out = torch.stack([transform(images[i % len(images)]) for i in range(count)])
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
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if names and len(names) == classes:
        known["label_names"] = list(names)
    return {name: json.dumps(value) for name, value in known.items()}


def _for(values: tuple[float, ...], channels: int) -> list[float]:
    mean = sum(values) / len(values)
    return list(values) if len(values) == channels else [mean] * channels
