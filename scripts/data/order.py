"""The images of a training step and their distortions, as a function of only seed, epoch and index.

So a run that is resumed in the middle of an epoch, or that uses several processes or workers, gets the images of
the uninterrupted run in one process.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset, default_collate

Key = tuple[int, int]  # epoch, index


def seed_all(*entropy: int) -> None:
    """Seed Python's, NumPy's and torch's global generators with a hash of some integers."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed the global CPU generators, and restore them afterwards."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Keys(BatchSampler):
    """Batches of (epoch, index). With ``shuffle``, each epoch has a new order and drops an incomplete batch."""

    def __init__(
        self, size: int, batch_size: int, seed: int, shuffle: bool, max_batches: int | None = None
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.drop_last = shuffle
        self.epoch = 0
        whole, rest = divmod(size, batch_size)
        self.batches = min(whole + (rest > 0 and not shuffle), size if max_batches is None else max_batches)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Any]]:
        order = list(range(self.size))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = torch.randperm(self.size, generator=generator).tolist()
        for i in range(self.batches):
            yield [(self.epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the order; evaluation has the same order and distortions in each epoch."""
        self.epoch = epoch if self.shuffle else 0


class Keyed(Dataset[Any]):
    """A data set of (epoch, index): the randomness of an image depends on nothing else.

    Args:
        dataset: Any with ``__getitem__``.
        seed: For the random transforms.
        size: Number of images to use.
    """

    def __init__(self, dataset: Any, seed: int, size: int) -> None:
        self.dataset, self.seed, self.size = dataset, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: Key) -> Any:
        epoch, index = key
        with seeded(self.seed, epoch, index):
            return self.dataset[index]


def collate(samples: Sequence[Any], num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make one batch of samples; torch's own collation makes the labels int64.

    Raises:
        ValueError: If a label is not in 0 to ``num_classes`` - 1.
    """
    images, labels = default_collate(list(samples))
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"expected labels of 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}; set data.num_classes"
        )
    return images, labels
