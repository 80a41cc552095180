"""Scenes as a data set: images and targets through the same transforms."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..pixels import to_mode
from .scene import Split

Target = dict[str, Tensor]


class Scenes(Dataset[Any]):
    """Images [C, H, W] and targets: ``boxes`` [N, 4], ``labels`` [N], ``ignored`` [N], and ``masks`` [N, H, W].

    Args:
        split: The scenes.
        transform: Of image and target.
        mode: "L" or "RGB".
        masks: Whether the targets have masks.
        training: Leave out ignored objects.
    """

    def __init__(self, split: Split, transform: v2.Compose, mode: str, masks: bool, training: bool) -> None:
        self.split, self.transform, self.mode, self.masks, self.training = split, transform, mode, masks, training

    def __len__(self) -> int:
        return len(self.split.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.transform(*self.decode(index))
        return image, {name: value.as_subclass(Tensor) for name, value in target.items()}

    def decode(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """Return the whole image, and its target as torchvision's tv_tensors.

        Raises:
            ValueError: If a file can't be decoded.
        """
        scene = self.split.scenes[index]
        image = read_image(scene.image, self.mode)
        things = [thing for thing in scene.things if not (thing.ignored and self.training)]
        boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=scene.size),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "ignored": torch.tensor([thing.ignored for thing in things], dtype=torch.bool),
        }
        return image, target


def read_image(path: Path, mode: str) -> Image.Image:
    """Return an image in "L" or "RGB".

    Raises:
        ValueError: If it can't be decoded.
    """
    try:
        with Image.open(path) as image:
            return to_mode(image, mode)
    except Exception as error:  # Pillow may raise anything for a damaged image
        raise ValueError(f"can't read the image {path}: {error}; repair or delete it") from error


def scenes_of(dataset: Any) -> Scenes | None:
    """Return the scenes of a loader's data set; None if it has none."""
    inner = getattr(dataset, "dataset", dataset)
    return inner if isinstance(inner, Scenes) else None


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """Return images [N, C, H, W], and a list of their targets."""
    return torch.stack([image for image, _ in samples]), [target for _, target in samples]
