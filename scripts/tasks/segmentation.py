"""Semantic segmentation: one class for each pixel, by cross-entropy."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from ..config.schema import Head
from ..data.scenes.transforms import NO_CLASS
from . import boundaries, drawing
from .task import Confusion, Metrics, compiled


class Segmentation:
    """Cross-entropy of each pixel that has a class; the best epoch has the largest mean IoU.

    Args:
        head: The segmenter.
        classes: Names of the classes.
        label_smoothing: Of the cross-entropy.
    """

    best, kind = "mIoU", "pixels"

    def __init__(self, head: Head, classes: Sequence[str], label_smoothing: float = 0.0) -> None:
        self.classes, self.config, self.label_smoothing = tuple(classes), head, label_smoothing

    def arguments(self) -> dict[str, Any]:
        """Return the number of classes."""
        return {"num_classes": len(self.classes)}

    def head(self) -> dict[str, Any]:
        """Return the segmenter's recipe."""
        return {"name": self.config.name, "channels": self.config.channels, "kwargs": dict(self.config.kwargs)}

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the whole network compiled."""
        return compiled(model)

    def check(self, output: object, images: int) -> str | None:
        """Expect a score for each class and pixel."""
        shape = getattr(output, "shape", ())
        if len(shape) == 4 and tuple(shape[:2]) == (images, len(self.classes)):
            return None
        return f"scores [N, {len(self.classes)}, H, W], got an output of {list(shape)}"

    def prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged."""
        return images, targets

    def inputs(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        """Return only the images."""
        return (images,)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of scores [N, C, H, W] and classes [N, H, W], over all N H W.

        The mean over pixels with a class would weigh the images of processes and parts by their number of them.
        """
        total = F.cross_entropy(
            output.float(), targets, ignore_index=NO_CLASS, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return total / targets.numel()

    def picture(self, image: Tensor, answer: Tensor, classes: Sequence[str]) -> tuple[Tensor, str]:
        """Draw a mask [H, W], or the best of scores [C, H, W]."""
        return drawing.pixels(image, (answer if answer.ndim == 2 else answer.argmax(0)).cpu(), classes)

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return the mean IoU, and the share of right pixels."""
        return {"mIoU": f"{metrics['mIoU']:.2f} %", "pixels": f"{metrics['pixels']:.2f} %"}

    def evaluation(self, device: torch.device) -> "Overlaps":
        """Return empty metrics."""
        return Overlaps(self.classes, device)


class Overlaps:
    """Intersection over union (IoU) of each class and of its boundary in percent; the share of right pixels."""

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = classes
        self._confusion = MulticlassConfusionMatrix(
            len(classes), ignore_index=NO_CLASS, sync_on_compute=False, validate_args=False
        ).to(device)
        self._boundaries = torch.zeros(len(classes), 2, dtype=torch.int64, device=device)

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Add scores [N, C, H, W] and classes [N, H, W]."""
        answers = output.argmax(1)
        self._confusion.update(answers, targets)
        self._boundaries += boundaries.counts(answers, targets, len(self.classes))

    def compute(self) -> Metrics:
        """Return means over the classes that occur, ``pixels``, and the IoU of each class, NaN without a pixel.

        They are ``mIoU`` and ``IoU/<class>``, and ``boundary/mIoU`` and ``boundary/IoU/<class>``.
        """
        counts = self._confusion.compute().double()
        both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        return {
            "pixels": _percent(both.sum(), counts.sum()),
            **self._of_classes("", both, either),
            **self._of_classes("boundary/", *self._boundaries.double().unbind(1)),
        }

    def confusion(self) -> Confusion:
        """Return the confusion of the pixels' classes."""
        return Confusion(tuple(self.classes), self._confusion.compute().cpu(), "pixels")

    def _of_classes(self, prefix: str, both: Tensor, either: Tensor) -> Metrics:
        shares = {name: _percent(b, e) for name, b, e in zip(self.classes, both, either, strict=True)}
        found = [value for value in shares.values() if not math.isnan(value)]
        mean = round(sum(found) / len(found), 5) if found else math.nan
        return {f"{prefix}mIoU": mean, **{f"{prefix}IoU/{name}": value for name, value in shares.items()}}


def _percent(part: Tensor, whole: Tensor) -> float:
    return math.nan if not whole else round(100 * (part / whole).item(), 5)
