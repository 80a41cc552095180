"""Boundary IoU (Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", 2021).

The intersection over union of only those pixels of two masks that are close to their contours. It is as strict with
large regions as with small ones, whose inner pixels are few.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.scenes.transforms import NO_CLASS

SHARE = 0.02  # of the image's diagonal: the paper's width of a boundary


def width(height: int, columns: int) -> int:
    """Return the width of a boundary in pixels, which the paper derives from the image's diagonal."""
    return max(1, round(SHARE * math.hypot(height, columns)))


def boundary(mask: Tensor, distance: int) -> Tensor:
    """Return the pixels of masks [N, H, W] of bool whose distance to the contour is at most ``distance``.

    As in the paper's code, they are those that ``distance`` erosions by 3 x 3 pixels remove, and the border of the
    image is a contour.
    """
    outside = F.pad((~mask).float(), [distance] * 4, value=1.0)
    # A square's maximum is that of its columns' maxima.
    near = F.max_pool2d(F.max_pool2d(outside, (2 * distance + 1, 1), 1), (1, 2 * distance + 1), 1)
    return mask & (near > 0)


def counts(answers: Tensor, targets: Tensor, number: int) -> Tensor:
    """Return [number, 2]: intersection and union of each class's boundaries, in pixels.

    Pixels without a class count in neither. Their edge is a contour of both masks, so it favours no answer.

    Args:
        answers: Classes [N, H, W].
        targets: Classes [N, H, W], 255 for none.
        number: Number of the classes.
    """
    known, distance = targets != NO_CLASS, width(*targets.shape[-2:])
    found = torch.zeros(number, 2, dtype=torch.int64, device=targets.device)
    present = torch.cat([answers[known], targets[known]]).unique().tolist()
    for label in present:
        both = [boundary((classes == label) & known, distance) for classes in (answers, targets)]
        found[label, 0], found[label, 1] = (both[0] & both[1]).sum(), (both[0] | both[1]).sum()
    return found
