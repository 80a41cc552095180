"""Data loaders for all data sets of timm, and for the distorted digits of the default run."""

import os
from collections.abc import Callable, Sized
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..config.ranges import check_least
from ..config.schema import Data
from . import images
from .digits import TRAINED, DistortedDigits, digits
from .distortions import DISTORTIONS, MNIST_MEAN, MNIST_STD
from .order import Keyed, Keys, collate
from .scenes import dataset as scenes
from .scenes import splits as scene_splits
from .transforms import transform_config

Batch = tuple[Tensor, Any]  # images [N, C, H, W] float32; labels [N] int64, or a list of targets
Loader = DataLoader[Any]  # of Batch


_LEAST = {
    "batch_size": 1, "max_batches": 1, "img_size": 1, "workers": 0, "eval_copies": 1, "num_classes": 1, "images": 1,
}  # fmt: skip


class Splits(NamedTuple):
    """The two splits of a data set. A batch is that of all processes together; accelerate splits it."""

    train: Loader
    evaluate: Loader
    num_classes: int
    classes: tuple[str, ...] | None  # names, if the data set has them
    transform: dict[str, Any]  # preprocessing of the images, with timm's names: mean, std, interpolation, ...


def create_splits(
    config: Data, transform: dict[str, Any], seed: int, targets: scene_splits.Targets | None = None
) -> Splits:
    """Build the loaders.

    Args:
        config: The data group of the config.
        transform: timm's ``resolve_data_config`` of the model: mean, std, interpolation, crop_pct.
        seed: For the order and the distortions.
        targets: What a network learns from scenes; None for boxes, or what the format has.

    Raises:
        FileNotFoundError: If a folder of images doesn't exist.
        ValueError: If the data set has no known number of classes, less than two, or more than
            ``data.num_classes``; if its splits have different classes; or if it has less than a batch to train on.
    """
    check_least(config, _LEAST, "data.")
    if config.name in DISTORTIONS:
        splits = _digits_of(config, seed)
    elif config.name in scene_splits.FORMATS:
        splits = _scenes_of(config, transform_config(config, transform), seed, targets)
    else:
        transform = transform_config(config, transform)
        train, evaluate = images.create_datasets(config, transform)
        number, classes = _classes(train, config)
        loaders = [_loader_of(d, config, seed, d is train, number) for d in (train, evaluate)]
        splits = Splits(loaders[0], loaders[1], number, classes, transform)
    if splits.num_classes < 2 and config.name not in scene_splits.FORMATS:
        raise ValueError(f"expected two classes or more, got {splits.classes or splits.num_classes}")
    if len(splits.train) == 0:
        raise ValueError(
            f"less than a batch to train on: lower data.batch_size={config.batch_size}, there are "
            f"{len(cast(Sized, splits.train.dataset))} images"
        )
    return splits


def create_evaluation(
    config: Data,
    transform: dict[str, Any],
    num_classes: int,
    seed: int,
    targets: scene_splits.Targets | None = None,
) -> tuple[Loader, tuple[str, ...] | None, dict[str, Any]]:
    """Build the loader of only the evaluation split.

    Args:
        config: The data group of the config.
        transform: As in ``create_splits``.
        num_classes: Upper bound of the labels if the data set has no known number of classes.
        seed: For the order and the distortions.
        targets: As in ``create_splits``.

    Returns:
        The loader, the names of the classes if the data set has them, and the preprocessing of the images.

    Raises:
        FileNotFoundError: If a folder of images doesn't exist.
        ValueError: As in ``create_splits``.
    """
    check_least(config, _LEAST, "data.")
    if config.name in DISTORTIONS:
        splits = _digits_of(config, seed)
        return splits.evaluate, splits.classes, splits.transform
    transform = transform_config(config, transform)
    if config.name in scene_splits.FORMATS:
        held = scene_splits.create_evaluation(config, transform, targets or _only(config))
        return _loader_of_scenes(held, config, seed), held.split.classes, transform
    dataset = images.create_evaluation(config, transform)
    names = images.class_names(dataset)
    loader = _loader_of(dataset, config, seed, False, len(names or ()) or config.num_classes or num_classes)
    return loader, names, transform


def examples(loader: Loader, count: int) -> Batch:
    """Return images and targets from all over a split that is evaluated, so that folders show more than one class.

    Args:
        loader: Of the split. One that can only be read from its start gives its first images.
        count: How many; fewer if the split has fewer.
    """
    if isinstance(loader.dataset, IterableDataset):
        return _first(loader, count)
    keys = [(0, index) for index in spread(count, len(cast(Sized, loader.dataset)))]
    # A generator of its own: a loader draws a seed, which the training would miss.
    only = DataLoader(loader.dataset, batch_sampler=[keys], collate_fn=loader.collate_fn, generator=Generator())
    return cast(Batch, next(iter(only)))


def spread(count: int, size: int) -> list[int]:
    """Return at most ``count`` of ``size`` indices, in order and evenly apart."""
    count = min(count, size)
    return [(2 * i + 1) * size // (2 * count) for i in range(count)]


def _first(loader: Loader, count: int) -> Batch:
    images, targets = list[Tensor](), list[Tensor]()
    for some, of_some in loader:
        images.append(some)
        targets.append(of_some)
        if sum(map(len, images)) >= count:
            break
    return torch.cat(images)[:count], torch.cat(targets)[:count]


def _only(config: Data) -> scene_splits.Targets:
    return "pixels" if config.name == "masks" else "boxes"


def _scenes_of(config: Data, transform: dict[str, Any], seed: int, targets: scene_splits.Targets | None) -> Splits:
    train, evaluate = scene_splits.create_datasets(config, transform, targets or _only(config), seed)
    names = train.split.classes
    if config.num_classes not in (None, len(names)):
        raise ValueError(
            f"the data have the classes {', '.join(names)}, got data.num_classes={config.num_classes}; drop it"
        )
    loaders = [_loader_of_scenes(dataset, config, seed) for dataset in (train, evaluate)]
    return Splits(loaders[0], loaders[1], len(names), names, transform)


def _loader_of_scenes(dataset: scenes.Scenes, config: Data, seed: int) -> Loader:
    size = _limited(len(dataset), config, dataset.training)
    chosen = seed if dataset.training else scene_splits.EVALUATION_SEED
    return _loader(Keyed(dataset, chosen, size), size, config, seed, dataset.training, scenes.collate)


def _limited(size: int, config: Data, training: bool) -> int:
    """Return the number of images to use; of those that train, ``Keys`` limits the batches."""
    return size if training or config.max_batches is None else min(size, config.max_batches * config.batch_size)


def _classes(dataset: Any, config: Data) -> tuple[int, tuple[str, ...] | None]:
    """Return the number of classes, and their names if the data set has them."""
    classes = images.class_names(dataset)
    number = config.num_classes or len(classes or ())
    if not number:
        raise ValueError(f"the data set '{config.name}' doesn't say its number of classes; set data.num_classes")
    if number < len(classes or ()):
        raise ValueError(f"the data have {len(classes or ())} classes, got data.num_classes={number}; drop it")
    counts = images.count_classes(dataset)
    if counts and max(counts) >= number:
        raise ValueError(f"the data have labels of 0 to {max(counts)}, got data.num_classes={number}; raise it")
    return number, classes


def _loader(
    dataset: Dataset[Any], size: int, config: Data, seed: int, training: bool, collate_fn: Callable[[Any], Batch]
) -> Loader:
    # More workers than cores would wait for each other; the digits are in memory.
    workers = 0 if isinstance(dataset, DistortedDigits) else min(config.workers, os.cpu_count() or 1)
    return DataLoader(
        dataset,
        batch_sampler=Keys(size, config.batch_size, seed, training, config.max_batches),
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate_fn,
        worker_init_fn=_apart,
    )


def _apart(_: int) -> None:
    """Put a worker into a process group of its own.

    ``timeout``, launchers and terminals send a signal to a whole group. It then reaches only the training, which
    saves its state and ends its workers itself.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _loader_of(dataset: Any, config: Data, seed: int, training: bool, num_classes: int) -> Loader:
    """Load a timm data set with labels below ``num_classes``."""
    collate_fn = partial(collate, num_classes=num_classes)
    if isinstance(dataset, IterableDataset):
        return _stream(dataset, config, training, collate_fn)
    size = _limited(len(dataset), config, training)
    return _loader(Keyed(dataset, seed, size), size, config, seed, training, collate_fn)


def _stream(dataset: Any, config: Data, training: bool, collate_fn: Callable[[Any], Batch]) -> Loader:
    """Load a data set that can only be read from its start; timm's readers shuffle it."""
    if config.max_batches is not None:
        raise ValueError(f"data.max_batches={config.max_batches} is for data sets with an index; drop it")
    dataset.set_loader_cfg(num_workers=config.workers)
    return DataLoader(
        dataset,
        config.batch_size,
        num_workers=config.workers,
        drop_last=training,
        collate_fn=collate_fn,
        worker_init_fn=_apart,
    )


def _digits_of(config: Data, seed: int) -> Splits:
    if config.num_classes not in (None, 10):
        raise ValueError(f"{config.name} has 10 classes, got data.num_classes={config.num_classes}; drop it")
    if config.root is not None:
        raise ValueError(f"data.root={config.root} is not read by data.name={config.name}; add data=folder")
    pixels, labels = digits()
    limit = None if config.max_batches is None else config.max_batches * config.batch_size
    held = [x[TRAINED:].repeat(config.eval_copies, *[1] * (x.ndim - 1))[:limit] for x in (pixels, labels)]
    train = DistortedDigits(pixels[:TRAINED], labels[:TRAINED], config, seed)
    evaluate = DistortedDigits(held[0], held[1], config, None)
    loaders = [_loader(d, len(d), config, seed, d is train, _batch) for d in (train, evaluate)]
    names = tuple(str(digit) for digit in range(10))
    size = (1, config.img_size, config.img_size)
    return Splits(
        loaders[0], loaders[1], 10, names, {"mean": (MNIST_MEAN,), "std": (MNIST_STD,), "input_size": size}
    )


def _batch(batch: Batch) -> Batch:
    """Return the batch unchanged: the data set makes whole batches."""
    return batch
