"""The definition of the operator in plain torch: the oracle of the tests, differentiable to any order.

Dai et al., "Deformable Convolutional Networks", 2017 (v1, no mask) and Zhu et al., "Deformable
ConvNets v2", 2019 (mask). For output position p, tap k at grid position p_k and filter w::

    out[n, o, p] = bias[o] + sum_{c, k} w[o, c, k] * mask[n, g(c), k, p] * x[n, c](p_k + offset[n, g(c), k, p])

x(·) interpolates bilinearly. A corner outside the image counts as 0, and so does a position that is not finite.
"""

import torch
from torch import Tensor

from dcn_ops.sampling import bilinear
from dcn_ops.sampling.geometry import Conv


def forward(
    input: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, G*K*2, Ho, Wo], per tap (y, x)
    weight: Tensor,  # [O, C / groups, kh, kw]
    bias: Tensor | None,  # [O]
    mask: Tensor | None,  # [N, G*K, Ho, Wo]
    conv: Conv,
) -> Tensor:  # [N, O, Ho, Wo]
    """Compute in the widest dtype of the inputs, at least float32, and return the input's dtype."""
    n, c, h, w = input.shape
    g, (ho, wo) = conv.offset_groups, conv.output_size((h, w))
    dtype = torch.promote_types(torch.promote_types(input.dtype, offset.dtype), torch.float32)

    grid_y, grid_x = conv.grid((0, ho), wo, dtype, input.device)
    displacement = offset.to(dtype).reshape(n, g, *conv.kernel_size, 2, ho, wo)
    y = (grid_y + displacement[:, :, :, :, 0]).flatten(2)  # [N, G, K*Ho*Wo]
    x = (grid_x + displacement[:, :, :, :, 1]).flatten(2)

    pixels = input.to(dtype).reshape(n, g, c // g, h * w).transpose(2, 3)
    columns = bilinear.sample(pixels, (h, w), y, x).transpose(2, 3)  # [N, G, C/G, K*Ho*Wo]
    if mask is not None:
        columns = columns * mask.to(dtype).reshape(n, g, 1, conv.taps * ho * wo)
    depth = c // conv.groups * conv.taps
    columns = columns.reshape(n, conv.groups, depth, ho * wo)
    out = weight.to(dtype).reshape(conv.groups, -1, depth) @ columns  # [N, groups, O/groups, Ho*Wo]
    out = out.reshape(n, weight.shape[0], ho, wo)
    return (out if bias is None else out + bias.to(dtype).reshape(-1, 1, 1)).to(input.dtype)
