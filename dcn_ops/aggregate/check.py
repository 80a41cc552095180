"""The argument check of the operator, which its real and its fake kernels call."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from dcn_ops.aggregate.window import Window
from dcn_ops.checks import check_dtypes_and_devices, check_is_tensor, check_output, check_rank, shape_of
from dcn_ops.sampling.geometry import Pair

_LAYOUT = {
    "input": "[N, H, W, C]",
    "offset": "[N, Ho, Wo, groups * taps * 2]",
    "mask": "[N, Ho, Wo, groups * taps]",
    "offset_mask": "[N, Ho, Wo, channels]",
}


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise TypeError if ``tensor`` is not a dense tensor, and ValueError for a wrong rank."""
    check_is_tensor(name, tensor)
    check_rank(name, tensor, f"of shape {_LAYOUT[name]}", 4)


def check_call(input: Tensor, group: int, group_channels: int, im2col_step: int) -> None:
    """Check the arguments of the public functions that the operator itself doesn't have.

    Raises:
        ValueError: If group * group_channels is not the number of the input's channels.
        TypeError: For a bool as im2col_step: the caller means remove_center.
    """
    if is_traced(input):
        return
    check_tensor("input", input)
    if isinstance(im2col_step, bool):
        raise TypeError(
            f"expected an integer, which is ignored, got {im2col_step=}; pass remove_center by its name"
        )
    if input.shape[3] != group * group_channels:
        raise ValueError(
            f"expected input with group * group_channels = {group} * {group_channels} channels in its last "
            f"dimension, got {shape_of('input', input)}"
        )


def check_image(input: Tensor, channels: int) -> None:
    """Raise TypeError or ValueError if the input is not a channels-last image with ``channels`` channels."""
    if is_traced(input):
        return
    check_tensor("input", input)
    if input.shape[3] != channels:
        first = "; for [N, C, H, W] wrap the layer in dcn_ops.ChannelsFirst" if input.shape[1] == channels else ""
        raise ValueError(f"expected input of shape [N, H, W, {channels}], got {shape_of('input', input)}{first}")


def check_packed(offset_mask: Tensor, group: int, taps: int) -> None:
    """Raise TypeError for a non-dense ``offset_mask``, ValueError for too few channels for offsets and masks."""
    if is_traced(offset_mask):
        return
    check_tensor("offset_mask", offset_mask)
    if group < 1 or taps < 1 or offset_mask.shape[3] < 3 * group * taps:
        raise ValueError(
            f"expected offset_mask with at least 3 * group * taps = 3 * {group} * {taps} channels in its last "
            f"dimension, got {shape_of('offset_mask', offset_mask)}"
        )


def check_arguments(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_scale: float,
    remove_center: bool,
) -> Window:
    """Return the numbers of the aggregation, or raise an error that names the argument and the fix.

    Raises:
        ValueError: For a rank, shape, number or device that doesn't fit the others.
        TypeError: For a dtype that is not floating or that doesn't fit the input's.
    """
    for name, tensor in (("input", input), ("offset", offset), ("mask", mask)):
        check_tensor(name, tensor)
    for name, pair, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        _check_pair(name, pair, least)
    if not math.isfinite(offset_scale):
        raise ValueError(f"expected a finite offset_scale, got {offset_scale=}")
    window = Window(
        tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, offset_scale, bool(remove_center)
    )
    _check_taps(window)
    _check_shapes(input, offset, mask, window)
    check_dtypes_and_devices(input, {"offset": (offset, True), "mask": (mask, True)})
    return window


def is_traced(tensor: Tensor) -> bool:
    """Tell whether sizes are not numbers yet; the operator checks them later, when they are."""
    return torch.jit.is_tracing() or has_torch_function((tensor,))  # type: ignore[attr-defined]


def _check_pair(name: str, pair: Sequence[int], least: int) -> None:
    if len(pair) != 2 or pair[0] < least or pair[1] < least:
        raise ValueError(f"expected {name} of two integers >= {least}, got {name}={tuple(pair)}")


def _check_taps(window: Window) -> None:
    kernel = list(window.kernel_size)
    if window.remove_center and (kernel[0] % 2 == 0 or kernel[1] % 2 == 0):
        raise ValueError(
            f"expected an odd kernel with remove_center, got {kernel=}: it has no centre; pass remove_center=False"
        )
    if window.taps < 1:
        raise ValueError(f"expected a tap beside the centre, got {kernel=}; pass remove_center=False")


def _check_shapes(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> None:
    batch, height, width, channels = input.shape
    if window.groups < 1 or channels % window.groups:
        raise ValueError(
            f"expected groups={window.groups} to divide the channels, the last dimension, "
            f"got {shape_of('input', input)}"
        )
    if height == 0 or width == 0 or channels == 0:
        raise ValueError(f"expected an image with pixels and channels, got {shape_of('input', input)}")
    size = window.output_size((height, width))
    check_output(size, input, window.kernel_size, window.dilation, window.padding)
    for name, tensor, each in (("offset", offset, 2), ("mask", mask, 1)):
        expected = [batch, *size, window.groups * window.taps * each]
        if list(tensor.shape) != expected:
            raise ValueError(
                f"expected {name} of shape {expected}, {_LAYOUT[name]} with groups={window.groups} and "
                f"{window.taps} taps, got {shape_of(name, tensor)}"
            )
