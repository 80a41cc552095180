"""Bilinear sampling in plain torch, differentiable to any order: what the references of the operators share."""

import torch
from torch import Tensor


def sample(pixels: Tensor, size: tuple[int, int], y: Tensor, x: Tensor) -> Tensor:
    """Interpolate bilinearly; a corner outside the image counts as 0, and so does a position that is not finite.

    Args:
        pixels: [N, G, H * W, D], the pixels of an image row by row.
        size: H and W.
        y: [N, G, P], vertical positions in pixels.
        x: [N, G, P], horizontal positions in pixels.

    Returns:
        [N, G, P, D], in the dtype of ``pixels``.
    """
    height, width = size
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
