"""Places in images whose outputs dcn-visualize follows. Places are (y, x) in [0, 1] of the image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.scenes.transforms import NO_CLASS
from ..tasks.boundaries import boundary

FIXED = ((0.5, 0.5), (0.3, 0.3), (0.3, 0.7))
OF_BOXES = ("largest object", "smallest object", "background")
OF_CLASSES = ("object", "edge of an object", "background")


def named(place: Sequence[float]) -> tuple[str, Tensor]:
    """Return a label and the place [2], for a place (y, x)."""
    y, x = place
    return f"y {y:g}, x {x:g}", torch.tensor([y, x])


def of_targets(targets: Sequence[Any], size: tuple[int, int]) -> list[tuple[str, Tensor]]:
    """Return a label and places for each row of the picture.

    Args:
        targets: Of N images. A detector's have ``boxes`` [objects, 4] (x1, y1, x2, y2) in pixels, a segmenter's are
            classes [H, W], 0 for the background: each image then has places [N, 2] of its own, and the centre where
            there is no object. Others have the same three places [2] in every image.
        size: Height and width of the images.
    """
    if isinstance(targets[0], dict):
        found, labels = [_of_boxes(target["boxes"].cpu(), size) for target in targets], OF_BOXES
    elif targets[0].dim() == 2:
        found, labels = [_of_classes(target.cpu()) for target in targets], OF_CLASSES
    else:
        return [named(place) for place in FIXED]
    return list(zip(labels, torch.stack(found, 1), strict=True))


def _of_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:  # [3, 2]
    if not len(boxes):
        return torch.full((3, 2), 0.5)
    left, top, right, bottom = boxes.unbind(1)
    areas = (right - left) * (bottom - top)
    centres = torch.stack((top + bottom, left + right), 1) / 2
    free = torch.zeros(size, dtype=torch.bool)
    # Only between the objects: beyond all of them may be a border that fills up the batch.
    free[int(top.min()) : int(bottom.max()) + 1, int(left.min()) : int(right.max()) + 1] = True
    for x1, y1, x2, y2 in boxes.round().long().tolist():
        free[y1 : y2 + 1, x1 : x2 + 1] = False
    inner = [centres[areas.argmax()] / torch.tensor(size), centres[areas.argmin()] / torch.tensor(size)]
    return torch.stack([*inner, _deepest(free)])


def _of_classes(classes: Tensor) -> Tensor:  # [3, 2]
    objects, background = (classes != 0) & (classes != NO_CLASS), classes == 0
    edge = objects & (F.max_pool2d(background[None].float(), 3, 1, 1)[0] > 0)
    return torch.stack((_deepest(objects), _deepest(edge), _deepest(background)))


def _deepest(mask: Tensor) -> Tensor:
    """Return the place in a mask [H, W] of bool that the most erosions by 3 x 3 pixels leave, or the centre."""
    if not mask.any():
        return torch.tensor([0.5, 0.5])
    left, depth = mask, torch.zeros(mask.shape)
    while left.any():
        depth += left
        left = left & ~boundary(left[None], 1)[0]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return (torch.tensor([y, x]) + 0.5) / torch.tensor(mask.shape)
