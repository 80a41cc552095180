"""Conversion of integers and pairs of integers that callers pass."""

import operator
from collections.abc import Sequence
from contextlib import suppress

import torch

from dcn_ops.messages import shown


def as_integer(name: str, value: object) -> int:
    """Return ``value`` as an integer, from Python, NumPy or a symbol of torch, for the argument ``name``.

    Raises:
        TypeError: For anything else, also for True and False.
    """
    if not isinstance(value, bool):
        if isinstance(value, int | torch.SymInt):
            return value  # type: ignore[return-value]
        with suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise TypeError(f"expected {name} to be an integer, got {name}={shown(value)}")


def as_pair(name: str, value: int | Sequence[int]) -> list[int]:
    """Return a list of two integers, from one or two of them, like ``torch.nn.functional.conv2d``.

    Raises:
        ValueError: For anything else.
    """
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return [value[0], value[1]]  # the usual case
    values = list(value) if isinstance(value, Sequence) else [value]
    try:
        integers = [as_integer(name, v) for v in values]
    except TypeError:
        integers = []
    if len(integers) not in (1, 2):
        raise ValueError(f"expected {name} to be an integer or a pair of integers, got {name}={shown(value)}")
    return [integers[0], integers[-1]]
