"""The preprocessing of images: torchvision's transforms, and timm's automatic augmentations."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import InterpolationMode, v2

from ..config.schema import Data

_AUTO = {
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
    "autoaugment": v2.AutoAugment,
    "augmix": v2.AugMix,
}
_EXPECTED = f"expected data.auto_augment among {', '.join(_AUTO)}, or a timm string such as rand-m9-mstd0.5"


def transform_config(config: Data, pretrained: dict[str, Any]) -> dict[str, Any]:
    """Return mean, std, interpolation, crop_pct and input_size; one channel gets the averages of three."""
    chosen = {key: pretrained[key] for key in ("mean", "std", "interpolation", "crop_pct")}
    if config.in_chans == 1:
        chosen |= {key: (sum(chosen[key]) / len(chosen[key]),) for key in ("mean", "std")}
    return chosen | {"input_size": (config.in_chans, config.img_size, config.img_size)}


def create_transform(config: Data, transform: dict[str, Any], training: bool) -> v2.Compose:
    """Build torchvision's transforms, by default as strong as timm's; evaluation images equal timm's.

    Raises:
        ValueError: If ``data.auto_augment`` is unknown.
    """
    size, mode = config.img_size, InterpolationMode(transform["interpolation"])
    steps: list[Any]
    if training:
        steps = [v2.RandomResizedCrop(size, scale=tuple(config.crop_scale), interpolation=mode)]
        steps += [v2.RandomHorizontalFlip(config.hflip)]
        if config.auto_augment:
            steps += [_auto_augment(config.auto_augment, size, transform)]
        elif config.color_jitter:
            steps += [v2.ColorJitter(*[config.color_jitter] * 3)]
    else:
        steps = [v2.Resize(int(size / transform["crop_pct"]), mode), v2.CenterCrop(size)]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize(list(transform["mean"]), list(transform["std"]))]
    if training and config.erasing:
        steps += [v2.RandomErasing(config.erasing)]
    return v2.Compose([*steps, v2.ToPureTensor()])


def _auto_augment(text: str, size: int, transform: dict[str, Any]) -> Any:
    if text in _AUTO:
        return _AUTO[text](interpolation=InterpolationMode.BILINEAR)
    found = {"mean": transform["mean"], "interpolation": transform["interpolation"]}
    try:
        _, augmentation, _ = transforms_imagenet_train(size, auto_augment=text, **found, separate=True)
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(f"{_EXPECTED}, got '{text}': {error}") from error
    for step in _operations(augmentation):
        if step.name.startswith("Posterize"):
            step.level_fn = partial(_bits, step.level_fn)
    return augmentation


def _operations(augmentation: Any) -> Iterator[Any]:
    for part in augmentation.transforms:
        yield from part.ops if hasattr(part, "ops") else chain(*getattr(part, "policy", ()))


def _bits(level_to_bits: Any, level: float, hparams: dict[str, Any]) -> tuple[int]:
    """Keep at least one bit: timm may ask for none, which Pillow refuses since version 13."""
    (bits,) = level_to_bits(level, hparams)
    return (max(1, bits),)
