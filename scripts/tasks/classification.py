"""Image classification: one class for each image, by cross-entropy."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..config.schema import Optim
from .task import Metrics, compiled


class Classification:
    """Cross-entropy with label smoothing, mixup and cutmix; the best epoch has the largest top-1 accuracy.

    Args:
        config: Label smoothing, mixup and cutmix.
        num_classes: Number of the classes, equal to the number of the network's outputs.
    """

    best = "top1"

    def __init__(self, config: Optim, num_classes: int) -> None:
        self.num_classes = num_classes
        self.label_smoothing, self.mixup = config.label_smoothing, None
        if config.mixup or config.cutmix:  # Mixup smooths the labels itself
            smoothing, self.label_smoothing = config.label_smoothing, 0.0
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=num_classes)

    def arguments(self) -> dict[str, Any]:
        """Return the number of classes."""
        return {"num_classes": self.num_classes}

    def head(self) -> None:
        """Return None: timm's networks have classifiers."""

    def check(self, output: object, images: int) -> str | None:
        """Expect one score per class."""
        shape = getattr(output, "shape", None)
        if shape == (images, self.num_classes):
            return None
        found = "no tensor" if shape is None else list(shape)
        return f"a score for each of the {self.num_classes} classes, got an output of {found}"

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the whole network compiled."""
        return compiled(model)

    def prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images [N, C, H, W] and their labels [N], which become shares [N, classes]."""
        return self.mixup(images, targets) if self.mixup else (images, targets)

    def inputs(self, images: Tensor, targets: Tensor) -> tuple[Tensor]:
        """Return only the images."""
        return (images,)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of logits [N, classes] with labels [N] or shares [N, classes]."""
        return F.cross_entropy(output, targets, label_smoothing=self.label_smoothing)

    def picture(self, image: Tensor, answer: Tensor, classes: Sequence[str]) -> tuple[Tensor, str]:
        """Return the image [3, H, W] and the name of its class, a label, or scores [classes]."""
        label = int(answer if answer.ndim == 0 else answer.argmax())
        return image, classes[label] if classes else str(label)

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return the top-1 accuracy."""
        return {"top-1": f"{metrics['top1']:.2f} %"}

    def evaluation(self, device: torch.device) -> "Scores":
        """Return empty metrics."""
        return Scores(self.num_classes, device)


class Scores:
    """The mean cross-entropy, and the top-1 accuracy in percent."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        # Batches already contain those of all processes. By default the mean ignores NaN.
        self._loss = MeanMetric(nan_strategy="disable", sync_on_compute=False).set_dtype(torch.float64).to(device)
        self._top1 = MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False).to(device)

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Add logits [N, classes] and labels [N]."""
        # One value per image, because "disable" ignores weights.
        self._loss.update(F.cross_entropy(output, targets, reduction="none"))
        self._top1.update(output, targets)

    def compute(self) -> Metrics:
        """Return ``loss`` and ``top1``."""
        return {"loss": self._loss.compute().item(), "top1": percent(self._top1.compute())}


def percent(share: Tensor) -> float:
    """Convert a share of torchmetrics to percent; float32 has no more digits than these."""
    return round(100 * share.item(), 5)
