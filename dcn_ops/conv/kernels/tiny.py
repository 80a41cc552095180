"""The composition for images of a few pixels: sampling is a matrix product, which needs few calls.

The bilinear weight of pixel (y, x) in a sample at (py, px) is ``hat(py - y) * hat(px - x)``, with
``hat(t) = max(0, 1 - |t|)``. These weights are a matrix with a row per pixel and a column per sample. The image
times that matrix gives the columns. The work grows with the number of pixels. For a few dozen pixels it costs less
than to start the many small kernels of ``columns``.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size, kh x kw kernel,
K = kh * kw, G offset groups, D = C / G, P = K * Ho * Wo samples of an offset group.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.geometry import Conv, Pair

# Most multiply-adds of the product. Up to there it takes no longer than the calls that it saves.
MAX_WORK = 2**22

NAME, IMPLEMENTATION, DETERMINISTIC = "tiny", "composition", True


class Grid(NamedTuple):
    """Tensors that depend only on the shapes."""

    position: Tensor  # [K, 2, Ho, Wo], (y, x): positions of the plain convolution's samples
    pixel: Tensor  # [max(H, W), 1, 1, 1, 1, 1]: 0, 1, ...
    distance: Tensor  # [max(H, W), 1, K, 2, Ho, Wo], from each row and column
    one: Tensor  # []


class Samples(NamedTuple):
    """The weight of each row and column of the image in each sample."""

    y: Tensor  # [H, N*G, K, Ho, Wo]
    x: Tensor  # [W, N*G, K, Ho, Wo]
    mask: Tensor | None  # [N*G, K, Ho, Wo]
    matrix: Tensor  # [N*G, H*W, P], multiplied by the mask


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept small products on the CPU: N * C * H * W * P for sampling, and the filters times every image.

    Pixels, mask and gradient must be finite: the product multiplies most of them by 0, which gives NaN for infinity
    and NaN.
    """
    input, offset, weight, _, mask, conv = problem
    if input.device.type != "cpu":
        return "it takes the CPU"
    sampling = input.numel() * conv.taps * offset.shape[2] * offset.shape[3]
    # The filters multiply each image separately. For several images these are thin products that read all filters.
    filters = weight.numel() if input.shape[0] == 1 else 8 * input.shape[0] * weight.numel()
    if not (0 < sampling <= MAX_WORK and filters <= MAX_WORK):
        return "it takes images of a few pixels"
    finite = _is_finite(input) and all(tensor is None or _is_finite(tensor) for tensor in (mask, grad))
    return None if finite else "it takes finite images, masks and gradients"


def _is_finite(tensor: Tensor) -> bool:
    return math.isfinite(tensor.sum().item())  # one small kernel; if the sum overflows, only time is lost


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    input, offset, weight, bias, mask, conv = problem
    batch, _, height, width = input.shape
    _, _, ho, wo = offset.shape
    image, offset, mask = _widen(input, offset, mask, conv)
    samples = _samples(offset, mask, (height, width), conv)
    columns, filters = _columns(image, samples, weight, batch, conv), _filters(weight, batch, conv)
    if bias is None:
        out = torch.bmm(filters, columns)
    else:
        out = torch.baddbmm(_per_image(bias.view(conv.groups, -1, 1), batch), filters, columns)
    return out.view(batch, -1, ho, wo).contiguous(memory_format=torch.channels_last)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    batch, _, height, width = input.shape
    image, wide_offset, wide_mask = _widen(input, offset, mask, conv)
    samples, filters = _samples(wide_offset, wide_mask, (height, width), conv), _filters(weight, batch, conv)
    grad_out = grad.reshape(*filters.shape[:2], -1)
    grad_input = grad_offset = grad_weight = grad_mask = None
    if need_weight:
        of_filters = torch.bmm(grad_out, _columns(image, samples, weight, batch, conv).mT)
        grad_weight = of_filters.view(batch, *weight.shape).sum(0, dtype=image.dtype).to(weight.dtype)
    if need_input or need_offset or need_mask:
        grad_columns = torch.bmm(filters.mT, grad_out).to(image.dtype).view(*image.shape[:2], -1)  # [N*G, D, P]
        if need_input:
            grad_input = torch.bmm(grad_columns, samples.matrix.mT).to(input.dtype).view(input.shape)
            grad_input = grad_input.contiguous(memory_format=torch.channels_last)
        if need_offset or need_mask:
            of_matrix = torch.bmm(image.mT, grad_columns)
            of_offset, of_mask = _samples_backward(of_matrix, wide_offset, samples, (height, width), conv)
            if need_offset:
                grad_offset = _as_maps(of_offset, offset)
            if mask is not None and need_mask:
                grad_mask = _as_maps(of_mask, mask)
    grad_bias = grad.sum((0, 2, 3), dtype=image.dtype).to(weight.dtype) if need_bias else None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask


def _widen(input: Tensor, offset: Tensor, mask: Tensor | None, conv: Conv) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return [N*G, D, H*W], [N*G, K, 2, Ho, Wo] and [N*G, K, Ho, Wo], in float32 or wider."""
    batch, channels, height, width = input.shape
    groups, taps, output = conv.offset_groups, conv.taps, offset.shape[2:]
    image = input.reshape(batch * groups, channels // groups, height * width)
    offset = offset.reshape(batch * groups, taps, 2, *output)
    mask = None if mask is None else mask.reshape(batch * groups, taps, *output)
    if input.dtype.itemsize == 2:
        image, offset, mask = image.float(), offset.float(), None if mask is None else mask.float()
    return image, offset, mask


@lru_cache(maxsize=64)
def _grid(size: Pair, output: Pair, dtype: torch.dtype, conv: Conv) -> Grid:
    cpu = torch.device("cpu")  # Explicit, because the default device may be another.
    y, x = torch.broadcast_tensors(*conv.grid((0, output[0]), output[1], dtype, cpu))
    position = torch.stack((y, x), 2).view(conv.taps, 2, *output)
    pixel = torch.arange(max(size), dtype=dtype, device=cpu).view(-1, 1, 1, 1, 1, 1)
    return Grid(position, pixel, position - pixel, torch.ones((), dtype=dtype, device=cpu))


def _samples(offset: Tensor, mask: Tensor | None, size: tuple[int, int], conv: Conv) -> Samples:
    grid = _grid(size, offset.shape[3:], offset.dtype, conv)
    # Infinity weighs 0, and so must NaN.
    weight = (grid.one - (offset + grid.distance).abs_()).relu_().nan_to_num_()
    y, x = weight.unbind(3)
    if size[0] != size[1]:
        y, x = y[: size[0]], x[: size[1]]
    masked = y if mask is None else y * mask
    matrix = (masked.unsqueeze(1) * x).reshape(size[0] * size[1], offset.shape[0], -1)
    return Samples(y, x, mask, matrix.transpose(0, 1))


def _samples_backward(
    grad: Tensor, offset: Tensor, samples: Samples, size: tuple[int, int], conv: Conv
) -> tuple[Tensor, Tensor]:
    """Return the gradients of offset, [N*G, K, 2, Ho, Wo], and mask, [N*G, K, Ho, Wo], from that of the matrix."""
    y, x, mask, _ = samples
    grid = _grid(size, offset.shape[3:], y.dtype, conv)
    grad = grad.transpose(0, 1).reshape(*size, *y.shape[1:])  # [H, W, N*G, K, Ho, Wo]
    # The neighbours of a sample are the pixels floor(position) and the next one, also at integers (a kink of hat).
    lower = (offset + grid.position).floor() - grid.pixel
    slope_y, slope_x = ((lower == -1).to(y.dtype) - (lower == 0).to(y.dtype)).unbind(3)
    through_x = (grad * x).sum(1)
    through_y = (grad * y.unsqueeze(1)).sum(0)
    of_y = (through_x * slope_y[: size[0]]).sum(0)
    of_x = (through_y * slope_x[: size[1]]).sum(0)
    of_offset = torch.stack((of_y, of_x), 2)
    if mask is not None:
        of_offset = of_offset * mask.unsqueeze(2)
    return of_offset, (through_x * y).sum(0)


def _as_maps(samples: Tensor, like: Tensor) -> Tensor:  # -> [N, *, Ho, Wo]
    return samples.view(like.shape).to(like.dtype, memory_format=torch.channels_last)


def _columns(image: Tensor, samples: Samples, weight: Tensor, batch: int, conv: Conv) -> Tensor:
    """Return the columns, in the weight's dtype: [N*groups, C/groups*K, Ho*Wo]."""
    columns = torch.bmm(image, samples.matrix)
    if columns.dtype != weight.dtype:
        columns = columns.to(weight.dtype)
    return columns.view(batch * conv.groups, weight.shape[1] * conv.taps, -1)


def _filters(weight: Tensor, batch: int, conv: Conv) -> Tensor:  # [N*groups, O/groups, C/groups*K]
    return _per_image(weight.reshape(conv.groups, weight.shape[0] // conv.groups, -1), batch)


def _per_image(filters: Tensor, batch: int) -> Tensor:  # [groups, ...] -> [N*groups, ...]
    if batch == 1:
        return filters
    return filters.expand(batch, -1, -1) if filters.shape[0] == 1 else filters.repeat(batch, 1, 1)
