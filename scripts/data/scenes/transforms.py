"""The preprocessing of scenes: every image becomes a square, and its boxes and masks go with it."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from ...config.schema import Data

NO_CLASS = 255  # of a pixel, in masks of classes
_SMALLEST = 2.0  # pixels; a box that a crop leaves narrower shows nothing


class Square(v2.Transform):  # type: ignore[misc]
    """Pad to the right and below until an image is a square, so that resizing keeps its shape.

    Args:
        fill: The colour of the border, in 0 to 255.
        mask_fill: The value of a mask's border.
    """

    def __init__(self, fill: list[float], mask_fill: int) -> None:
        super().__init__()
        self.fill, self.mask_fill = fill, mask_fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the padding: left, top, right, below."""
        height, width = v2.query_size(flat_inputs)
        side = max(height, width)
        return {"padding": [0, 0, side - width, side - height]}

    def transform(self, value: Any, params: dict[str, Any]) -> Any:
        """Pad an image, its boxes or its masks."""
        fill: Any = self.mask_fill if isinstance(value, tv_tensors.Mask) else self.fill
        return functional.pad(value, padding=params["padding"], fill=fill)


def create_transform(config: Data, transform: dict[str, Any], training: bool, boxes: bool) -> v2.Compose:
    """Build the transforms of image and target.

    In training: a random square of ``data.crop_scale`` of the padded image's area, resized to ``data.img_size``.
    In evaluation: the whole padded image, resized.

    Args:
        config: The data group of the config.
        transform: mean, std and interpolation.
        training: Whether to augment.
        boxes: Whether targets have boxes, with masks of objects or without; else they have one mask of classes.

    Raises:
        ValueError: If the config sets an augmentation that moves no boxes.
    """
    if config.auto_augment or config.erasing:
        raise ValueError(
            "data.auto_augment and data.erasing change an image without its boxes and masks; drop "
            f"data.auto_augment={config.auto_augment}, data.erasing={config.erasing}"
        )
    size, mode = config.img_size, InterpolationMode(transform["interpolation"])
    steps: list[Any] = [
        v2.ToImage(),
        Square([255 * float(value) for value in transform["mean"]], 0 if boxes else NO_CLASS),
    ]
    if training:
        scale = (config.crop_scale[0], config.crop_scale[1])
        steps += [v2.RandomResizedCrop(size, scale=scale, ratio=(1.0, 1.0), interpolation=mode, antialias=True)]
        steps += [v2.RandomHorizontalFlip(config.hflip)]
        if config.color_jitter:
            steps += [v2.ColorJitter(*[config.color_jitter] * 3)]
    else:
        steps += [v2.Resize((size, size), mode, antialias=True)]
    if boxes:
        steps += [v2.ClampBoundingBoxes()]
        steps += [v2.SanitizeBoundingBoxes(_SMALLEST, labels_getter=_beside)] if training else []
    steps += [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
    steps += [v2.Normalize(list(transform["mean"]), list(transform["std"]))]
    return v2.Compose([*steps, v2.ToPureTensor()])


def _beside(sample: tuple[Any, dict[str, Tensor]]) -> tuple[Tensor, ...]:
    """Return what has an entry for each box."""
    return sample[1]["labels"], sample[1]["ignored"]
