"""Checks of the zoo's arguments, before anything is done."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import nn

from dcn_ops.messages import shown
from zoo.config import DCNConfig

Size = tuple[int, int, int]


def check_network(model: object) -> None:
    """Raise a TypeError if the model is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"expected a network, an nn.Module, for model, got {shown(model)}; timm.create_model builds one"
        )


def check_configs(config: object) -> tuple[DCNConfig, ...]:
    """Return one or several configs as a tuple.

    Raises:
        TypeError: If the config is neither a DCNConfig nor a sequence of them.
        ValueError: If the sequence is empty.
    """
    configs = tuple(config) if isinstance(config, list | tuple) else (config,)
    if not all(isinstance(one, DCNConfig) for one in configs):
        raise TypeError(
            f"expected a DCNConfig, or a list of them, for config, got {shown(config)}; pass zoo.DCNConfig(...) "
            "with its fields"
        )
    if not configs:
        raise ValueError(f"expected at least one DCNConfig for config, got {config!r}")
    return configs


def check_folder(folder: object) -> None:
    """Raise a TypeError if the folder is no path."""
    if not isinstance(folder, str | PathLike):
        raise TypeError(f"expected the path of a folder, got {shown(folder)}")


def check_size(size: object) -> Size | None:
    """Return an image's size as a tuple, or None for None.

    Raises:
        TypeError: If the size is not made of integers.
        ValueError: If it has not three of them, or one is below 1.
    """
    if size is None:
        return None
    whole: Any = size
    if not isinstance(size, Sequence) or isinstance(size, str) or not all(type(side) is int for side in whole):
        raise TypeError(f"expected the integers (C, H, W) of an image for input_size, got {shown(size)}")
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"expected three positive integers (C, H, W) for input_size, got {shown(size)}")
    return tuple(whole)
