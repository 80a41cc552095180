"""Checks of tensors that operators share: each raises an error that names the argument, its value and the cure."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dcn_ops.messages import shown
from dcn_ops.sampling.geometry import Pair


class Kind(Protocol):
    """What a check reads of a tensor."""

    @property
    def shape(self) -> torch.Size:
        """The sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""

    @property
    def device(self) -> torch.device:
        """The device."""

    @property
    def layout(self) -> torch.layout:
        """The layout, such as ``torch.strided``."""


def shape_of(name: str, tensor: Kind) -> str:
    """Return the shape of an argument as messages show it."""
    return f"{name}.shape={list(tensor.shape)}"


def check_is_tensor(name: str, tensor: object) -> None:
    """Raise TypeError for anything but a tensor."""
    if not isinstance(tensor, Tensor):
        kind, text = type(tensor).__name__, shown(tensor)
        got = text if text.startswith(kind) else f"{kind} {text}"
        raise TypeError(f"expected {name} to be a torch.Tensor, got {got}")


def check_rank(name: str, tensor: Kind, expected: str, rank: int, batched: bool = True) -> None:
    """Raise TypeError for a tensor that is not dense, ValueError for another rank.

    Args:
        name: The argument's name.
        tensor: Its value.
        expected: What the message expects.
        rank: The rank.
        batched: Whether the first dimension is the batch, which callers may have left out.
    """
    if tensor.layout != torch.strided:
        raise TypeError(f"expected {name} to be dense, got {name}.layout={tensor.layout}; use {name}.to_dense()")
    if len(tensor.shape) != rank:
        hint = "; add a batch dimension with unsqueeze(0)" if batched and len(tensor.shape) == rank - 1 else ""
        raise ValueError(f"expected {name} {expected}, got {shape_of(name, tensor)}{hint}")


def check_output(size: Sequence[int], input: Kind, kernel: Pair, dilation: Pair, padding: Pair) -> None:
    """Raise ValueError if the output (Ho, Wo) would be empty."""
    if size[0] < 1 or size[1] < 1:
        raise ValueError(
            f"the output would be empty, {list(size)}: the kernel {list(kernel)} with "
            f"dilation={list(dilation)} and padding={list(padding)} doesn't fit {shape_of('input', input)}; "
            f"pad more or use a larger input"
        )


def check_gradient(grad: Tensor, input: Tensor, expected: Sequence[int]) -> None:
    """Raise ValueError or TypeError for a gradient that doesn't fit the output of shape ``expected``."""
    if list(grad.shape) != list(expected):
        raise ValueError(f"expected grad of the output's shape {list(expected)}, got {shape_of('grad', grad)}")
    if grad.dtype != input.dtype:
        raise TypeError(f"expected grad of the input's dtype {input.dtype}, got {grad.dtype=}")


def check_dtypes_and_devices(input: Kind, others: dict[str, tuple[Kind | None, bool]]) -> None:
    """Compare dtypes and devices with the input's.

    Args:
        input: The features.
        others: The other tensors by name, None for what is absent, and whether they may be float32 beside features
            in half precision: positions and masks may, as under autocast.

    Raises:
        TypeError: For features of a dtype that is not floating or has one byte, and for another dtype beside them.
        ValueError: For another device.
    """
    dtype = input.dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(f"expected input of dtype float16, bfloat16, float32 or float64, got {dtype}")
    for name, (tensor, may_be_wider) in others.items():
        if tensor is None:
            continue
        allowed = (dtype, torch.float32) if may_be_wider and dtype.itemsize == 2 else (dtype,)
        if tensor.dtype not in allowed:
            raise TypeError(
                f"expected {name} of dtype {' or '.join(map(str, allowed))}, as the input's, "
                f"got {name}.dtype={tensor.dtype}; convert it with {name}.to(input.dtype)"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"expected {name} on the input's device {input.device}, got {name}.device={tensor.device}; "
                f"move it with {name}.to(input.device)"
            )
