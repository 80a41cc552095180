"""Which outputs are which objects: F1 of instances, and the confusion of their classes.

An object is found if an output of its class overlaps it by at least a threshold. Outputs choose in the order of
their scores, each the object that it overlaps most, as in COCO's evaluation; pycocotools computes the overlaps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Overlaps = npt.NDArray[np.float64]  # [outputs, objects]


class Matches:
    """Counts of outputs and objects by class, at one threshold of the IoU.

    Args:
        number: Number of the classes.
        threshold: The least IoU of an output and its object.
    """

    def __init__(self, number: int, threshold: float) -> None:
        self.threshold = threshold
        # Rows: the class of an object; columns: of its output. Last are outputs without object, and the reverse.
        self.counts = torch.zeros(number + 1, number + 1, dtype=torch.int64)

    def add(self, overlaps: Overlaps, found: Tensor, wanted: Tensor, ignored: Tensor) -> None:
        """Add an image.

        Args:
            overlaps: Of outputs, in the order of their scores, and objects.
            found: Classes of the outputs.
            wanted: Classes of the objects.
            ignored: Whether an object is neither right nor wrong: an output of its class on it doesn't count.
        """
        real, background = ~ignored, len(self.counts) - 1
        same = found[:, None] == wanted[None]
        pairs = _pairs(overlaps, same & real, self.threshold)
        excused = ((torch.from_numpy(overlaps) >= self.threshold) & same & ignored).any(1)
        # What is left over of both is a confusion where it overlaps.
        rest = ~same & real & ~excused[:, None]
        for output, thing in pairs:
            rest[output], rest[:, thing] = False, False
        pairs += _pairs(overlaps, rest, self.threshold)
        for output, thing in pairs:
            self.counts[wanted[thing], found[output]] += 1
        for output in set(range(len(found))) - {output for output, _ in pairs}:
            if not excused[output]:
                self.counts[background, found[output]] += 1
        for thing in set(real.nonzero().flatten().tolist()) - {thing for _, thing in pairs}:
            self.counts[wanted[thing], background] += 1

    def f1(self) -> float | None:
        """Return 2 TP / (2 TP + FP + FN) over all classes; None without outputs and objects."""
        right = self.counts.trace()
        outputs, objects = self.counts[:, :-1].sum(), self.counts[:-1].sum()
        return None if not outputs + objects else (2 * right / (outputs + objects)).item()


def _pairs(overlaps: Overlaps, allowed: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Return pairs of output and object; each output in turn takes the free object that it overlaps most."""
    free = np.where(allowed.numpy(), overlaps, -1.0)
    pairs = []
    for output in range(free.shape[0] if free.shape[1] else 0):
        thing = int(free[output].argmax())
        if free[output, thing] >= threshold:
            pairs.append((output, thing))
            free[:, thing] = -1.0
    return pairs


def overlaps_of(outputs: dict[str, Tensor], objects: dict[str, Tensor], kind: str) -> Overlaps:
    """Return the IoU of each output with each object; of ignored objects the share of the output that they cover.

    Args:
        outputs: ``boxes`` [D, 4], or ``masks`` [D, H, W] of bool.
        objects: The same, and ``ignored`` [G].
        kind: "bbox" or "segm".
    """
    from pycocotools import mask

    shape = len(outputs["boxes"]), len(objects["boxes"])
    if not all(shape):
        return np.zeros(shape)
    shapes = [_boxes(one["boxes"]) if kind == "bbox" else _runs(one["masks"]) for one in (outputs, objects)]
    return np.asarray(mask.iou(*shapes, objects["ignored"].tolist()), dtype=np.float64)


def _boxes(boxes: Tensor) -> npt.NDArray[np.float64]:
    """Return COCO's x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().numpy()


def _runs(masks: Tensor) -> Sequence[Any]:
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(one.to(torch.uint8).numpy())) for one in masks]
