"""The aggregation of DCNv3 and DCNv4 in core ATen for other runtimes: bilinear samples, weighted and summed.

As in ``portable``, every tensor has rank 5 at most, and no step is boolean arithmetic.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, K taps; B = N * G, P = Ho * Wo.
"""

import torch
from torch import Tensor

from dcn_ops.aggregate.window import Window
from dcn_ops.interop.portable import contiguous_reshape, sample


def forward(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, Ho, Wo, G*K*2], per tap (x, y)
    mask: Tensor,  # [N, Ho, Wo, G*K]
    window: Window,
    sampling: str,  # one of portable.SAMPLING
    finite: bool,  # whether to assume that offsets are finite
) -> Tensor:  # [N, Ho, Wo, C]
    """Sample and sum in float32 at least."""
    n, h, w, c = input.shape
    g, k, (ho, wo) = window.groups, window.taps, offset.shape[1:3]
    dtype = torch.promote_types(input.dtype, torch.float32)
    grid_y, grid_x = window.grid((0, ho), wo, dtype, input.device)
    x, y = grid_x[None].expand(ho, wo, k), grid_y[:, None].expand(ho, wo, k)
    grid = torch.stack((x, y), 3).reshape(1, ho * wo, k, 2)
    # [N, P, G, K*2] -> [B, P, K, 2]
    by_group = contiguous_reshape(offset.to(dtype), n, ho * wo, g, k * 2).permute(0, 2, 1, 3)
    by_group = contiguous_reshape(by_group, n * g, ho * wo, k, 2)
    position = by_group * window.offset_scale + grid
    if not finite:
        position = torch.where(position == position, position, -2)  # NaN
    x, y = position.unbind(3)
    x, y = x.clamp(-2, w + 1), y.clamp(-2, h + 1)  # these limits are outside, where samples are 0

    image = contiguous_reshape(input.to(dtype).permute(0, 3, 1, 2), n * g, c // g, h, w)
    samples = sample(image, y, x, sampling)  # [B, C/G, P, K]
    weights = contiguous_reshape(mask.to(dtype), n, ho * wo, g, k).permute(0, 2, 1, 3)
    weights = contiguous_reshape(weights, n * g, 1, ho * wo, k)
    sums = (samples * weights).sum(3)  # [B, C/G, P]
    return sums.reshape(n, c, ho, wo).permute(0, 2, 3, 1).to(input.dtype).contiguous()
