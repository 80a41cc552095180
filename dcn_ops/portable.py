"""Composition of core ATen for other runtimes: bilinear sampling as ``grid_sampler_2d``, contraction as a 1x1 conv.

Every tensor has rank 5 at most and no step is boolean arithmetic, so that ONNX Runtime, OpenVINO, ExecuTorch and
Core ML take it. ``grid_sampler_2d`` wants positions scaled to [-1, 1]: they are rounded to some 1e-7 of the image's
size. Its gradient at integer positions may be that of the other side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.geometry import Conv


def forward(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, G*K*2, Ho, Wo], per tap (y, x)
    weight: Tensor,  # [O, C / groups, kh, kw]
    bias: Tensor | None,  # [O]
    mask: Tensor | None,  # [N, G*K, Ho, Wo]
    conv: Conv,
) -> Tensor:  # [N, O, Ho, Wo]
    """Sample in float32 at least, contract in the input's dtype."""
    n, c, h, w = input.shape
    g, k, (ho, wo) = conv.offset_groups, conv.taps, conv.output_size((h, w))
    dtype = torch.promote_types(input.dtype, torch.float32)
    grid_y, grid_x = (
        grid.expand(*conv.kernel, ho, wo).reshape(1, k * ho, wo)
        for grid in conv.grid((0, ho), wo, dtype, input.device)
    )
    y = _scaled(grid_y + offset[:, 0::2].to(dtype).reshape(n * g, k * ho, wo), h)
    x = _scaled(grid_x + offset[:, 1::2].to(dtype).reshape(n * g, k * ho, wo), w)

    image = input.to(dtype).reshape(n * g, c // g, h, w)
    samples = F.grid_sample(image, torch.stack((x, y), 3), "bilinear", "zeros", align_corners=False)
    if mask is not None:
        samples = samples * mask.to(dtype).reshape(n * g, 1, k * ho, wo)
    unrolled = samples.to(input.dtype).reshape(n, c * k, ho, wo)
    return F.conv2d(unrolled, weight.reshape(weight.shape[0], -1, 1, 1), bias, groups=conv.groups)


def _scaled(position: Tensor, size: int) -> Tensor:
    """Map the centres of the first and the last pixel to 1 / size - 1 and 1 - 1 / size; NaN to the outside."""
    position = torch.where(position == position, position, -2).clamp(-2, size + 1)
    return (2 * position + 1) / size - 1
