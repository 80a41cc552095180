"""The interface between a training and its task. The loop itself has no loss and no metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

Metrics = dict[str, float]
Targets = Any  # labels [N], masks [N, H, W], or a list of dicts: what the task's data set makes
Output = Any  # scores [N, ...], or a list of dicts, one for each image


BACKGROUND = "background"  # an object that no output found, or an output where no object is


@dataclass(frozen=True)
class Confusion:
    """What was answered for what."""

    names: tuple[str, ...]  # of rows and columns
    counts: Tensor  # [names, names] int64; rows: truth, columns: answers
    unit: str  # what is counted


class Evaluation(Protocol):
    """The metrics of one pass over the evaluation split."""

    def update(self, output: Output, targets: Targets) -> None:
        """Add a batch of all processes together: the network's output in float32, and the targets."""

    def compute(self) -> Metrics:
        """Return the metrics over all batches, with the names that ``metrics.csv`` has after ``eval/``."""


def compiled(model: nn.Module) -> nn.Module:
    """Return a network, or a part of one, compiled whole."""
    return cast(nn.Module, torch.compile(model, fullgraph=True))


class Task(Protocol):
    """What the network is trained for: ``Classification``, ``Detection`` or ``Segmentation``.

    In training mode the network gets ``inputs``, and ``loss`` its output; in eval mode it gets only the images.
    """

    @property
    def best(self) -> str:
        """Name of the metric that defines the best epoch, by its largest value."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` that depend on the data, such as the number of classes."""

    def head(self) -> dict[str, Any] | None:
        """Return the recipe of the head around the timm network; None for timm's own classifier."""

    def check(self, output: object, images: int) -> str | None:
        """Return what is wrong with a network's output for so many images; None if nothing is."""

    def prepare(self, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Return a step's images and targets as the network gets them, for instance mixed."""

    def inputs(self, images: Tensor, targets: Targets) -> tuple[Any, ...]:
        """Return the arguments of the network in training mode for a part of a step; the images come first."""

    def loss(self, output: Output, targets: Targets) -> Tensor:
        """Return the loss of a part of a step, a scalar."""

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return the network with what torch.compile takes of it compiled; the network itself stays as it is."""

    def picture(self, image: Tensor, answer: Any, classes: Sequence[str]) -> tuple[Tensor, str]:
        """Draw a target, or the output for one image.

        Args:
            image: [3, H, W] uint8.
            answer: What belongs to this image.
            classes: Names of the classes.

        Returns:
            The picture [3, H, W] uint8, and its title.
        """

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return the numbers of an evaluation for display: each with its unit, by title."""

    def evaluation(self, device: torch.device) -> Evaluation:
        """Return empty metrics."""
