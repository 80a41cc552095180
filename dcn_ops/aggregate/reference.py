"""The definition of the operator in plain torch: the oracle of the tests, differentiable to any order.

Wang et al., "InternImage", 2023 (DCNv3) and Xiong et al., "Efficient Deformable ConvNets", 2024 (DCNv4). For output
position p, tap t at grid position p_t, offset scale s and the group g of a channel::

    out[n, p, c] = sum_t mask[n, p, g, t] * x[n, :, c](p + s * (p_t + offset[n, p, g, t]))

x(·) interpolates bilinearly. A corner outside the image counts as 0, and so does a position that is not finite. p
is the centre of the window, and p_t is relative to it.
"""

import torch
from torch import Tensor

from dcn_ops.aggregate.window import Window


def forward(
    input: Tensor,  # [N, H, W, C]
    offset: Tensor,  # [N, Ho, Wo, G*K*2], per tap (x, y)
    mask: Tensor,  # [N, Ho, Wo, G*K]
    window: Window,
) -> Tensor:  # [N, Ho, Wo, C]
    """Compute in the widest dtype of the inputs, at least float32, and return the input's dtype."""
    n, height, width, c = input.shape
    g, k, (ho, wo) = window.groups, window.taps, offset.shape[1:3]
    dtype = torch.promote_types(torch.promote_types(input.dtype, offset.dtype), torch.float32)

    grid_y, grid_x = window.grid((0, ho), wo, dtype, input.device)
    displacement = window.offset_scale * offset.to(dtype).reshape(n, ho, wo, g, k, 2)
    x = grid_x[:, None] + displacement[..., 0]  # [N, Ho, Wo, G, K]
    y = grid_y[:, None, None] + displacement[..., 1]

    image = input.to(dtype).reshape(n, height, width, g, c // g)
    samples = _bilinear(image, y.permute(0, 3, 1, 2, 4).flatten(2), x.permute(0, 3, 1, 2, 4).flatten(2))
    samples = samples.reshape(n, g, ho, wo, k, c // g).permute(0, 2, 3, 1, 4, 5)  # [N, Ho, Wo, G, K, D]
    weighted = samples * mask.to(dtype).reshape(n, ho, wo, g, k, 1)
    return weighted.sum(4).reshape(n, ho, wo, c).to(input.dtype)


def _bilinear(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample image [N, H, W, G, D] at y, x [N, G, P] and return [N, G, P, D]."""
    height, width = image.shape[1:3]
    pixels = image.permute(0, 3, 1, 2, 4).flatten(2, 3)  # [N, G, H*W, D]
    # False for NaN and infinity: they must sample 0 and must not be converted to an integer.
    usable = (y >= -1) & (y < height) & (x >= -1) & (x < width)
    y, x = y.where(usable, -2), x.where(usable, -2)
    top, left = y.detach().floor(), x.detach().floor()
    fy, fx = y - top, x - left
    samples = []
    for row, weight_y in ((top, 1 - fy), (top + 1, fy)):
        for col, weight_x in ((left, 1 - fx), (left + 1, fx)):
            exists = (row >= 0) & (row < height) & (col >= 0) & (col < width)
            index = row.clamp(0, height - 1).long() * width + col.clamp(0, width - 1).long()
            corner = pixels.gather(2, index[..., None].expand(-1, -1, -1, pixels.shape[3]))
            corner = corner.where(exists[..., None], 0)
            samples.append(corner * (weight_y * weight_x)[..., None])
    return torch.stack(samples).sum(0)
