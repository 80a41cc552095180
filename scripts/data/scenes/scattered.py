"""Scenes without a file: distorted MNIST digits, scattered on a canvas."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ...config.schema import Data
from ..digits import TRAINED, digits
from ..order import seeded
from .dataset import Objects
from .scene import Split, Thing

NAME = "scattered_digits"
CLASSES = tuple(str(digit) for digit in range(10))
EVALUATED = 300  # images
_INK = 0.25  # a brighter pixel belongs to the digit
_TRIES = 20  # to place a digit beside the others


class ScatteredDigits(Objects):
    """Images [C, S, S] of rotated, scaled and sheared digits whose boxes don't overlap, drawn anew in each epoch.

    ``__getitem__`` draws from torch's global generator, which ``Keyed`` seeds. Evaluation images show digits that
    no training image shows.

    Args:
        config: ``img_size`` is S, in pixels; ``rotation`` and ``shear`` are degrees either way; ``scale`` and
            ``objects``, the number of digits of an image, are ranges; ``images`` are those of an epoch.
        transform: Of image and target.
        training: Whether a network trains on them.
        masks: Whether targets have masks.
        seed: That of ``Keyed``, with which ``decode`` and ``annotated`` show the images of the first epoch.

    Raises:
        ValueError: If a number of the config can't be drawn.
    """

    def __init__(self, config: Data, transform: v2.Compose, training: bool, masks: bool, seed: int) -> None:
        super().__init__(Split((), CLASSES), transform, "L", training, masks)
        _check(config)
        self.config, self.seed = config, seed
        part = slice(TRAINED) if training else slice(TRAINED, None)
        self.digits, self.labels = (values[part] for values in digits())

    def __len__(self) -> int:
        return self.config.images if self.training else EVALUATED

    def decode(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """Return an image of the first epoch, and its target as torchvision's tv_tensors."""
        with seeded(self.seed, 0, index):
            image, target = self.drawn(index)
        return functional.to_pil_image(image), target

    def annotated(self, index: int) -> tuple[tuple[int, int], Sequence[Thing]]:
        """Return the size of an image of the first epoch, and its objects."""
        _, target = self.decode(index)
        pairs = zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True)
        return (self.config.img_size, self.config.img_size), [Thing(label, tuple(box)) for label, box in pairs]

    def drawn(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """Draw an image and its target; the index is not used."""
        side, (fewest, most) = self.config.img_size, self.config.objects
        chosen = torch.randint(len(self.digits), (int(torch.randint(fewest, most + 1, ())),))
        drawn = zip(_distorted(self.digits[chosen], self.config), self.labels[chosen].tolist(), strict=True)
        canvas, boxes, labels = torch.zeros(side, side), torch.zeros(0, 4), []
        for box, piece, label in _placed(drawn, side):
            x1, y1, x2, y2 = box
            canvas[y1:y2, x1:x2] = piece
            boxes = torch.cat([boxes, torch.tensor([box]).float()])
            labels.append(label)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(side, side)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "ignored": torch.zeros(len(labels), dtype=torch.bool),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(_masks(canvas, boxes))
        pixels = (255 * canvas.clamp(0, 1)).round().to(torch.uint8)
        return tv_tensors.Image(pixels.expand(self.config.in_chans, -1, -1).clone()), target


def _check(config: Data) -> None:
    objects, scale = tuple(config.objects), tuple(config.scale)
    if config.root is not None or (config.classes is not None and tuple(config.classes) != CLASSES):
        raise ValueError(
            "the digits are drawn, and their classes are 0 to 9; drop "
            f"data.root={config.root}, data.classes={config.classes}"
        )
    if not 1 <= objects[0] <= objects[1] or config.images < 1:
        raise ValueError(
            f"expected at least one digit and one image, got data.objects={objects}, data.images={config.images}"
        )
    if not 0 < scale[0] <= scale[1] or not 0 <= config.shear < 80:
        raise ValueError(
            f"expected a positive scale and a shear below 80 degrees, got data.scale={scale}, "
            f"data.shear={config.shear}"
        )


def _distorted(images: Tensor, config: Data) -> Tensor:
    """Return images [N, P, P] of digits [N, 1, 28, 28], each by its own map; P leaves room for all of them."""
    count, (low, high) = len(images), config.scale
    angle = math.radians(config.rotation) * (2 * torch.rand(count) - 1)
    shear = (math.radians(config.shear) * (2 * torch.rand(count) - 1)).tan()
    size = low + (high - low) * torch.rand(count)
    room = 2 * math.ceil(images.shape[-1] * high * (1 + math.tan(math.radians(config.shear))))
    # From the new pixels to the old ones: a rotation, and a shear along x.
    cos, sin = angle.cos() / size, angle.sin() / size
    back = torch.stack((cos + shear * sin, shear * cos - sin, sin, cos), 1).view(-1, 2, 2)
    theta = F.pad(back * (room / images.shape[-1]), (0, 1))
    grid = F.affine_grid(theta, [count, 1, room, room], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)[:, 0]


def _placed(
    drawn: Iterator[tuple[Tensor, int]], side: int
) -> Iterator[tuple[tuple[int, int, int, int], Tensor, int]]:
    """Yield the box, the pixels in it and the label of each digit for which there is a place."""
    taken: list[tuple[int, int, int, int]] = []
    for pixels, label in drawn:
        ink = pixels > _INK
        if not ink.any():
            continue
        x1, y1, x2, y2 = masks_to_boxes(ink[None])[0].int().tolist()
        piece = pixels[y1 : y2 + 1, x1 : x2 + 1]
        height, width = piece.shape
        for _ in range(_TRIES if max(height, width) <= side else 0):
            top, left = int(torch.randint(side - height + 1, ())), int(torch.randint(side - width + 1, ()))
            box = (left, top, left + width, top + height)
            if not any(_touch(box, other) for other in taken):
                taken.append(box)
                yield box, piece, label
                break


def _touch(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _masks(canvas: Tensor, boxes: Tensor) -> Tensor:
    """Return the bright pixels in each box, [N, S, S] uint8."""
    masks = torch.zeros(len(boxes), *canvas.shape, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = canvas[y1:y2, x1:x2] > _INK
    return masks
