"""Composition of core ATen for other runtimes: bilinear sampling as ``grid_sampler_2d``, contraction as a 1x1 conv.

Every tensor has rank 5 at most, no slice has steps and no operation is boolean arithmetic. So ONNX Runtime,
OpenVINO, ExecuTorch, ncnn and Core ML accept it. ``grid_sampler_2d`` needs positions scaled to [-1, 1]: they are
rounded to some 1e-7 of the image's size. Its gradient at integer positions may be that of the other side.

Legend in addition to that of ``Problem``: B = N * G images, P = Ho * Wo positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.conv.problem import Problem

SAMPLING = ("grid_sample", "gather")


def forward(problem: Problem, sampling: str, finite: bool) -> Tensor:  # -> [N, O, Ho, Wo]
    """Sample in float32 or wider, and contract in the input's dtype.

    Args:
        problem: The call.
        sampling: How to sample, one of ``SAMPLING``.
        finite: Whether to assume that offsets are finite.
    """
    input, offset, weight, bias, mask, conv = problem
    n, c, h, w = input.shape
    g, k, (ho, wo) = conv.offset_groups, conv.taps, conv.output_size((h, w))
    dtype = torch.promote_types(input.dtype, torch.float32)
    parts = conv.grid((0, ho), wo, dtype, input.device)
    grid = torch.stack([part.expand(*conv.kernel_size, ho, wo) for part in parts], 2).reshape(1, k, 2, ho * wo)
    position = contiguous_reshape(offset.to(dtype), n * g, k, 2, ho * wo) + grid
    if not finite:
        position = torch.where(position == position, position, -2)  # NaN
    y, x = position.unbind(2)
    y, x = y.clamp(-2, h + 1), x.clamp(-2, w + 1)  # these limits are outside, where samples are 0

    image = input.to(dtype)
    if g > 1:
        image = contiguous_reshape(image, n * g, c // g, h, w)
    samples = sample(image, y, x, sampling)
    if mask is not None:
        samples = samples * contiguous_reshape(mask.to(dtype), n * g, 1, k, ho * wo)
    columns = samples.to(input.dtype).reshape(n, c * k, ho, wo)
    return F.conv2d(columns, weight.reshape(weight.shape[0], -1, 1, 1), bias, groups=conv.groups)


def contiguous_reshape(tensor: Tensor, *shape: int) -> Tensor:
    """Reshape the tensor so that the traced graph takes every memory layout.

    ``reshape`` alone is traced as a view where it is one of the example; another layout may have no such view.
    """
    return tensor.clone(memory_format=torch.contiguous_format).reshape(shape)


def sample(image: Tensor, y: Tensor, x: Tensor, sampling: str) -> Tensor:
    """Sample image [B, C/G, H, W] at y, x [B, K, P] and return [B, C/G, K, P]."""
    return _grid_sample(image, y, x) if sampling == "grid_sample" else _gather(image, y, x)


def _grid_sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample image [B, C/G, H, W] at y, x [B, K, P] and return [B, C/G, K, P]."""
    h, w = image.shape[2:]
    grid = torch.stack((_scaled(x, w), _scaled(y, h)), 3)
    return F.grid_sample(image, grid, "bilinear", "zeros", align_corners=False)


def _scaled(position: Tensor, size: int) -> Tensor:
    """Map the centres of the first and the last pixel to 1 / size - 1 and 1 - 1 / size."""
    return (2 * position + 1) / size - 1


def _gather(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Do the same as ``_grid_sample``, as a sum of four rows of a table of pixels."""
    (b, c, h, w), (_, k, p) = image.shape, y.shape
    height, width = h + 4, w + 4  # with a border of zeros, which samples outside read
    table = contiguous_reshape(F.pad(image, (2, 2, 2, 2)).permute(0, 2, 3, 1), b * height * width, c)
    y, x = y + 2, x + 2
    top, left = y.floor().clamp(max=height - 2), x.floor().clamp(max=width - 2)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    first = torch.arange(b, device=image.device).reshape(b, 1, 1) * (height * width)
    first = first + top.long() * width + left.long()

    def row(shift: int) -> Tensor:
        return table.index_select(0, (first + shift).reshape(-1)).reshape(b, k, p, c)

    upper = (1 - fx) * row(0) + fx * row(1)
    lower = (1 - fx) * row(width) + fx * row(width + 1)
    return ((1 - fy) * upper + fy * lower).permute(0, 3, 1, 2)
