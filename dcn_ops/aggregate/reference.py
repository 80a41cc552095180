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
from dcn_ops.sampling import bilinear


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

    pixels = input.to(dtype).reshape(n, height * width, g, c // g).transpose(1, 2)
    y, x = (positions.permute(0, 3, 1, 2, 4).flatten(2) for positions in (y, x))
    samples = bilinear.sample(pixels, (height, width), y, x)  # [N, G, Ho*Wo*K, D]
    samples = samples.reshape(n, g, ho, wo, k, c // g).permute(0, 2, 3, 1, 4, 5)  # [N, Ho, Wo, G, K, D]
    weighted = samples * mask.to(dtype).reshape(n, ho, wo, g, k, 1)
    return weighted.sum(4).reshape(n, ho, wo, c).to(input.dtype)
