"""What a training asks of its task. The loop itself knows no loss and no metric."""

from typing import Any, Protocol

import torch
from torch import Tensor

Metrics = dict[str, float]


class Evaluation(Protocol):
    """The metrics of one pass over the evaluation split."""

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Take a batch of all processes together: the network's output in float32, and the targets."""

    def compute(self) -> Metrics:
        """Return the metrics over all batches, by the names that ``metrics.csv`` has after ``eval/``."""


class Task(Protocol):
    """What the network is trained for. The first: ``classification.Classification``."""

    @property
    def best(self) -> str:
        """Name of the metric that says which epoch is the best; the largest value is."""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.create_model`` that depend on the data, such as the number of classes."""

    def check(self, output: object, images: int) -> str | None:
        """Return what is wrong with the output of a network for so many images; None where nothing is."""

    def prepare(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network sees of a step's images and targets: mixed, for instance."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a part of a step, a scalar."""

    def show(self, metrics: Metrics) -> dict[str, str]:
        """Return what people see of an evaluation: by title a number with its unit."""

    def evaluation(self, device: torch.device) -> Evaluation:
        """Return metrics that have seen nothing yet."""
