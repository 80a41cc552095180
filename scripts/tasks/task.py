"""The interface between a training and its task. The loop itself has no loss and no metric."""

from typing import Any, Protocol

import torch
from torch import Tensor

Metrics = dict[str, float]


class Evaluation(Protocol):
    """The metrics of one pass over the evaluation split."""

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Add a batch of all processes together: the network's output in float32, and the targets."""

    def compute(self) -> Metrics:
        """Return the metrics over all batches, with the names that ``metrics.csv`` has after ``eval/``."""


class Task(Protocol):
    """What the network is trained for. The first task is ``classification.Classification``."""

    @property
    def best(self) -> str:
        """Name of the metric that defines the best epoch, by its largest value."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` that depend on the data, such as the number of classes."""

    def check(self, output: object, images: int) -> str | None:
        """Return what is wrong with a network's output for so many images; None if nothing is."""

    def prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step's images and targets as the network gets them, for instance mixed."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a part of a step, a scalar."""

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return the numbers of an evaluation for display: each with its unit, by title."""

    def evaluation(self, device: torch.device) -> Evaluation:
        """Return empty metrics."""
