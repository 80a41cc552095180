"""The argument check of the operator for its real and fake kernels, and the checks for Python callers before it.

The operator's own check reads only sizes, dtypes, devices and layouts, so its results can be cached.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from dcn_ops.arguments import as_pair
from dcn_ops.checks import Kind, check_dtypes_and_devices, check_is_tensor, check_output, check_rank, shape_of
from dcn_ops.sampling.geometry import Conv, Pair


def check_tensors(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    """Raise TypeError for anything but a tensor, ValueError for a wrong rank or a weight without elements.

    The count of groups needs these checks; the operator does the others.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # Now sizes are tensors. The operator checks them when they are numbers.
    _check_tensor("input", input, 4)
    _check_tensor("offset", offset, 4)
    _check_tensor("weight", weight, 4)
    if bias is not None:
        _check_tensor("bias", bias, 1)
    if mask is not None:
        _check_tensor("mask", mask, 4)
    _check_weight(weight)


def check_maps(name: str, tensor: Tensor, channels: int = 0) -> None:
    """Raise TypeError or ValueError for an input or offset that a layer can't use.

    Args:
        name: Of the argument.
        tensor: Should be [N, channels, H, W].
        channels: Their number, or 0 for any.
    """
    if not (torch.jit.is_scripting() or torch.jit.is_tracing() or has_torch_function((tensor,))):  # type: ignore[attr-defined]
        _check_tensor(name, tensor, 4)
        if channels and tensor.shape[1] != channels:
            raise ValueError(f"expected {name} with {channels} channels, got {shape_of(name, tensor)}")


def _check_tensor(name: str, tensor: Tensor, rank: int) -> None:
    check_is_tensor(name, tensor)
    _check_rank(name, tensor, rank)


def _check_rank(name: str, tensor: Kind, rank: int) -> None:
    check_rank(name, tensor, f"with {rank} dimensions", rank, batched=name in ("input", "offset", "mask"))


def _check_weight(weight: "_Kind | Tensor") -> None:
    if weight.numel() == 0:
        raise ValueError(f"expected filters, channels and taps, got {shape_of('weight', weight)}")


def count_groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return the weight groups and the offset groups; the operator's check raises if channels don't divide."""
    return input.size(1) // weight.size(1), offset.size(1) // (2 * weight.size(2) * weight.size(3))


class _Kind(NamedTuple):
    """The properties of a tensor that the check reads."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    layout: torch.layout

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)


class _Kinds(NamedTuple):
    """These properties of each of the operator's tensors."""

    input: _Kind
    offset: _Kind
    weight: _Kind
    bias: _Kind | None
    mask: _Kind | None


def check_arguments(
    kinds: tuple[tuple[Any, ...] | None, ...], pairs: tuple[Pair, ...], groups: int, offset_groups: int
) -> Conv:
    """Return the integers of the convolution, or raise an error that names the argument and the fix.

    Args:
        kinds: Shape, dtype, device and layout of input, offset, weight, bias and mask; None for an absent one.
        pairs: Stride, padding and dilation.
        groups: Weight groups.
        offset_groups: Offset groups.

    Raises:
        ValueError: For a rank, shape, channel count, integer or device that doesn't fit the others.
        TypeError: For a layout that is not dense, or a dtype that is not floating or doesn't fit the input's.
    """
    tensors = _Kinds(*(None if kind is None else _Kind(*kind) for kind in kinds))  # type: ignore[arg-type]
    _check_ranks(tensors)
    names = ("stride", "padding", "dilation")
    stride, padding, dilation = (
        tuple(pair if len(pair) == 2 else as_pair(name, list(pair)))
        for name, pair in zip(names, pairs, strict=True)
    )
    for name, pair, least in zip(names, (stride, padding, dilation), (1, 0, 1), strict=True):
        if pair[0] < least or pair[1] < least:
            raise ValueError(f"expected {name} of two integers >= {least}, got {name}={pair}")
    conv = Conv(tuple(tensors.weight.shape[2:]), stride, padding, dilation, groups, offset_groups)
    _check_channels(tensors, conv)
    _check_maps(tensors, conv)
    check_dtypes_and_devices(
        tensors.input,
        {
            "offset": (tensors.offset, True),
            "weight": (tensors.weight, False),
            "bias": (tensors.bias, False),
            "mask": (tensors.mask, True),
        },
    )
    return conv


def _check_ranks(tensors: _Kinds) -> None:
    for name, kind in zip(tensors._fields, tensors, strict=True):
        if kind is not None:
            _check_rank(name, kind, 1 if name == "bias" else 4)
    _check_weight(tensors.weight)


def _check_channels(tensors: _Kinds, conv: Conv) -> None:
    input, offset, weight, bias, _ = tensors
    channels, filters = input.shape[1], weight.shape[0]
    if conv.groups < 1 or weight.shape[1] * conv.groups != channels:
        raise ValueError(
            f"expected weight of shape [O, C / groups, kh, kw] for C={channels} input channels, "
            f"got {shape_of('weight', weight)} with groups={conv.groups} (where it is no argument: "
            "C // weight.shape[1])"
        )
    if filters % conv.groups:
        raise ValueError(f"expected groups={conv.groups} to divide the filters, got {shape_of('weight', weight)}")
    if conv.offset_groups < 1:
        raise ValueError(
            f"expected offset with a multiple of 2 * kh * kw = {2 * conv.taps} channels for the kernel "
            f"{list(conv.kernel_size)}, got {shape_of('offset', offset)}, offset_groups={conv.offset_groups} "
            "(where it is no argument: offset.shape[1] // (2 * kh * kw))"
        )
    if channels % conv.offset_groups:
        raise ValueError(
            f"expected offset_groups={conv.offset_groups} to divide the input channels, "
            f"got {shape_of('input', input)} and {shape_of('offset', offset)}"
        )
    if bias is not None and bias.shape[0] != filters:
        raise ValueError(f"expected bias of shape [{filters}], one per filter, got {shape_of('bias', bias)}")


def _check_maps(tensors: _Kinds, conv: Conv) -> None:
    input, offset, _, _, mask = tensors
    if input.shape[2] == 0 or input.shape[3] == 0:
        raise ValueError(f"expected an image with pixels, got {shape_of('input', input)}")
    size = conv.output_size(input.shape[2:])
    check_output(size, input, conv.kernel_size, conv.dilation, conv.padding)
    for name, tensor, layout in (
        ("offset", offset, "offset_groups * kh * kw * 2"),
        ("mask", mask, "offset_groups * kh * kw"),
    ):
        channels = conv.offset_groups * conv.taps * (2 if name == "offset" else 1)
        expected = (input.shape[0], channels, *size)
        if tensor is not None and tensor.shape != expected:
            raise ValueError(
                f"expected {name} of shape {list(expected)}, [N, {layout}, Ho, Wo] with "
                f"offset_groups={conv.offset_groups} and the kernel {list(conv.kernel_size)}, "
                f"got {shape_of(name, tensor)}"
            )
