"""Pictures of boxes and masks over images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

# Of matplotlib's tab10, whose neighbours differ most.
COLORS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)


def objects(image: Tensor, answer: dict[str, Tensor], classes: Sequence[str]) -> tuple[Tensor, str]:
    """Draw boxes, and masks if there are any, in a colour for each class.

    Args:
        image: [3, H, W] uint8.
        answer: ``boxes`` [N, 4], ``labels`` [N]; optionally ``masks`` [N, H, W] and ``scores`` [N].
        classes: Names of the classes.

    Returns:
        The picture [3, H, W] uint8, and the number of objects of each class.
    """
    labels = answer["labels"].tolist()
    title = ", ".join(f"{labels.count(i)} {classes[i]}" for i in sorted(set(labels))) or "nothing"
    if not labels:
        return image, title
    colors = [COLORS[label % len(COLORS)] for label in labels]
    if "masks" in answer:
        image = draw_segmentation_masks(image, answer["masks"].bool(), alpha=0.5, colors=colors)
    width = max(1, image.shape[-1] // 200)
    return draw_bounding_boxes(image, answer["boxes"], colors=colors, width=width), title


def pixels(image: Tensor, mask: Tensor, classes: Sequence[str]) -> tuple[Tensor, str]:
    """Draw the class [H, W] of each pixel over an image [3, H, W] uint8, and return the classes' names.

    A first class of the name "background" has no colour.
    """
    present = [label for label in mask.unique().tolist() if label < len(classes)]
    if not present:
        return image, "nothing"
    title = ", ".join(classes[i] for i in present)
    coloured = [label for label in present if label or not _has_background(classes)]
    if not coloured:
        return image, title
    masks = torch.stack([mask == label for label in coloured])
    colors = [COLORS[label % len(COLORS)] for label in coloured]
    return draw_segmentation_masks(image, masks, alpha=0.5, colors=colors), title


def legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the name and the colour of each class; of the first ten, since the colours then repeat."""
    start = 1 if _has_background(classes) else 0
    return [(name, COLORS[i]) for i, name in enumerate(classes[: len(COLORS)])][start:]


def _has_background(classes: Sequence[str]) -> bool:
    return len(classes) > 1 and classes[0] == "background"
