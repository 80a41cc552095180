"""Scenes as a data set: images and targets through the same transforms."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from ..pixels import to_mode
from . import coco, label_maps
from .scene import Scene, Split, Thing
from .source import Source, opened

Target = dict[str, Tensor]


class Scenes(Dataset[Any], ABC):
    """Images [C, H, W] with their targets.

    Args:
        split: The scenes.
        transform: Of image and target.
        mode: "L" or "RGB".
        training: Whether a network trains on them.
    """

    def __init__(self, split: Split, transform: v2.Compose, mode: str, training: bool) -> None:
        self.split, self.transform, self.mode, self.training = split, transform, mode, training

    def __len__(self) -> int:
        return len(self.split.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.transform(*self.drawn(index))
        return image, {name: value.as_subclass(Tensor) for name, value in target.items()}

    def decode(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """Return the whole image, and its target as torchvision's tv_tensors.

        Raises:
            ValueError: If a file can't be decoded.
        """
        scene = self.split.scenes[index]
        return read_image(scene.image, self.mode), self.target_of(scene)

    def drawn(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Return the image for the transform, and its target; of data without files another one in each epoch."""
        return self.decode(index)

    def annotated(self, index: int) -> tuple[tuple[int, int], Sequence[Thing]]:
        """Return the height and width of an image, and its objects."""
        scene = self.split.scenes[index]
        return scene.size, scene.things

    @abstractmethod
    def target_of(self, scene: Scene) -> dict[str, Any]:
        """Return the target of the whole image."""


class Objects(Scenes):
    """Targets of ``boxes`` [N, 4], ``labels`` [N], ``ignored`` [N], and ``masks`` [N, H, W] uint8 if there are any.

    Those that a network trains on lack ignored objects, and have the boxes of their masks.
    """

    def __init__(self, split: Split, transform: v2.Compose, mode: str, training: bool, masks: bool) -> None:
        super().__init__(split, transform, mode, training)
        self.masks = masks

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = super().__getitem__(index)
        if self.masks and self.training:  # a crop may leave less of an object than of its box
            target = {name: value[target["masks"].bool().flatten(1).any(1)] for name, value in target.items()}
            last = torch.tensor([0, 0, 1, 1])  # masks_to_boxes returns the last pixels
            target["boxes"] = (masks_to_boxes(target["masks"]) + last).reshape(-1, 4)
        return image, target

    def target_of(self, scene: Scene) -> dict[str, Any]:
        """Return boxes, and masks."""
        things = [thing for thing in scene.things if not (thing.ignored and self.training)]
        boxes = torch.tensor([thing.box for thing in things], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=scene.size),
            "labels": torch.tensor([thing.label for thing in things], dtype=torch.int64),
            "ignored": torch.tensor([thing.ignored for thing in things], dtype=torch.bool),
        }
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.from_numpy(_masks(scene, things)))
        return target


class Pixels(Scenes):
    """Targets of one ``mask`` [H, W]: the class of each pixel, 255 for none.

    Args:
        split: The scenes.
        transform: Of image and target.
        mode: "L" or "RGB".
        training: Whether a network trains on them.
        colors: Of the classes in the masks; None for numbers.
        instances: Whether the masks have numbers of objects, which are together one class, 1.
    """

    def __init__(
        self,
        split: Split,
        transform: v2.Compose,
        mode: str,
        training: bool,
        colors: Sequence[str] | None,
        instances: bool = False,
    ) -> None:
        super().__init__(split, transform, mode, training)
        self.instances = instances
        self.palette = None if colors is None else [label_maps.rgb(color) for color in colors]

    def target_of(self, scene: Scene) -> dict[str, Any]:
        """Return the mask."""
        numbers = label_maps.read_map(scene.source, self.palette)
        numbers = np.minimum(numbers, 1) if self.instances else numbers
        return {"mask": tv_tensors.Mask(torch.from_numpy(numbers.astype(np.uint8)))}


def _masks(scene: Scene, things: list[Thing]) -> npt.NDArray[np.uint8]:
    if scene.label_map is None:
        found = [coco.mask_of(thing.shape, *scene.size) for thing in things]
    else:
        numbers = label_maps.read_map(scene.label_map)
        found = [(numbers == thing.shape).astype(np.uint8) for thing in things]
    return np.stack(found) if found else np.zeros((0, *scene.size), dtype=np.uint8)


def read_image(path: Source, mode: str) -> Image.Image:
    """Return an image in "L" or "RGB".

    Raises:
        ValueError: If it can't be decoded.
    """
    try:
        with opened(path) as image:
            return to_mode(image, mode)
    except Exception as error:  # Pillow may raise anything for a damaged image
        raise ValueError(f"can't read the image {path}: {error}; repair or delete it") from error


def scenes_of(dataset: Any) -> Scenes | None:
    """Return the scenes of a loader's data set; None if it has none."""
    inner = getattr(dataset, "dataset", dataset)
    return inner if isinstance(inner, Scenes) else None


def collate(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, Any]:
    """Return images [N, C, H, W], and masks of classes [N, H, W] int64, or else a list of their targets."""
    images, targets = torch.stack([image for image, _ in samples]), [target for _, target in samples]
    if "mask" in targets[0]:
        return images, torch.stack([target["mask"] for target in targets]).long()
    return images, targets
