"""Grids of pictures with titles: augmented images, and outputs beside the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..storage.files import uninterrupted

Picture = tuple[Tensor, str]  # [3, H, W] uint8, title


def as_bytes(images: Tensor, transform: dict[str, Any]) -> Tensor:
    """Convert images [N, C, H, W] of a network's input to [N, 3, H, W] uint8.

    Args:
        images: Normalised, with 1 or 3 channels.
        transform: ``mean`` and ``std`` of the normalisation.
    """
    mean, std = (torch.tensor(transform[key], device=images.device).view(1, -1, 1, 1) for key in ("mean", "std"))
    pictures = (images * std + mean).clamp(0, 1)
    colour = pictures if pictures.shape[1] == 3 else pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return (255 * colour).round().to(torch.uint8).cpu()


def draw(
    rows: Sequence[Sequence[Picture]], path: Path, side: float = 1.5, legend: Sequence[tuple[str, str]] = ()
) -> None:
    """Write rows of pictures as a PNG, whose pictures are ``side`` inches wide, above the names of some colours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = max(len(row) for row in rows)
    figure, axes = pyplot.subplots(
        len(rows),
        columns,
        figsize=(side * columns, (side + 0.2) * len(rows) + (0.3 if legend else 0)),
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for row, pictures in zip(axes, rows, strict=True):
        for axis, (picture, title) in zip(row, pictures, strict=False):
            axis.imshow(picture.movedim(0, -1).numpy())
            axis.set_title(title, fontsize=8)
    bottom = 0.3 / figure.get_figheight() if legend else 0
    figure.tight_layout(rect=(0, bottom, 1, 1), h_pad=2)
    if legend:
        boxes = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for _, colour in legend]
        names = [name for name, _ in legend]
        figure.legend(boxes, names, loc="lower center", ncols=len(names), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with uninterrupted():
        figure.savefig(path, dpi=100)
    pyplot.close(figure)
