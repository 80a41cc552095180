"""The table of samples, with four rows and four weights each, made from offset and mask, and its backward.

Legend: kh x kw kernel, K = kh * kw, G offset groups, H x W input size, n images and h output rows of the current
chunk, R rows, S = n * h * Wo * G * K samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.sampling.geometry import BORDER, Conv, Padded, Pair
from dcn_ops.sampling.pieces import Chunk


class Table(NamedTuple):
    """The four neighbours that each sample reads: top left, top right, bottom left, bottom right."""

    row: Tensor  # [S * 4] integers in [0, R)
    weight: Tensor  # [S * 4], multiplied by the mask
    y: Tensor  # [*order], distance from the upper neighbours
    x: Tensor  # [*order], distance from the left neighbours
    mask: Tensor | None  # [*order]
    order: tuple[int, ...]


# The order of samples in memory, as a permutation of n, G, kh, kw, h, Wo, the order of offsets in memory.
BY_POSITION = (0, 4, 5, 1, 2, 3)  # [n, h, Wo, G, kh, kw], like offsets that are channels_last
AS_IMAGE = (0, 4, 2, 5, 3, 1)  # [n, h, kh, Wo, kw, G], an image kh times as high and kw times as wide


def make_table(
    chunk: Chunk,
    offset: Tensor,
    mask: Tensor | None,
    size: Pair,
    dtype: torch.dtype,
    conv: Conv,
    order: tuple[int, ...] = BY_POSITION,
    tap_rows: int = 0,
) -> Table:
    """Build the table of a chunk from the chunk's offset and mask, in ``dtype``, with samples in ``order``.

    With ``tap_rows``, each tap reads its own image, ``tap_rows`` rows after the image of the tap before.
    """
    taps = (conv.offset_groups, *conv.kernel_size)
    displacement = offset.to(dtype).unflatten(1, (*taps, 2))  # [n, G, kh, kw, 2, h, Wo]
    grid = conv.grid((chunk.h0, chunk.h1), offset.shape[3], dtype, offset.device)
    upper, y = _axis(displacement.select(4, 0), grid[0], size[0], order)
    left, x = _axis(displacement.select(4, 1), grid[1], size[1], order)
    if mask is not None:
        mask = mask.to(dtype).unflatten(1, taps).permute(order).contiguous()
    row = _row(upper, left, size, conv, order, tap_rows)
    weight = torch.stack(corner_weights(y, x, mask), -1).flatten()
    return Table(row, weight, y, x, mask, order)


def _axis(displacement: Tensor, grid: Tensor, size: int, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the lower neighbours along an axis of ``size`` pixels, and the distances from them: [*order].

    Args:
        displacement: [n, G, kh, kw, h, Wo].
        grid: Positions that broadcast to [kh, kw, h, Wo].
        size: Pixels along the axis.
        order: Order of the result.
    """
    # In two steps: each runs along stretches of memory much longer than a row of the kernel.
    first = grid[:, :, :1]
    within = first.expand(*displacement.shape[1:4], 1, -1)[None].expand(-1, -1, -1, -1, -1, displacement.shape[5])
    position = (displacement.permute(order) + within.permute(order).contiguous()).contiguous()
    if grid.shape[2] != 1:
        position.add_((grid - first)[None, None, :1, :1].permute(order))
    # At -2 and at the image's end both neighbours are zeros. Far positions and NaN go there.
    position.nan_to_num_(-BORDER).clamp_(-BORDER, size)
    lower = position.floor()
    return lower, position.sub_(lower)


def _row(upper: Tensor, left: Tensor, size: Pair, conv: Conv, order: tuple[int, ...], tap_rows: int) -> Tensor:
    """Return the rows of all neighbours, [S * 4], from the upper left ones at ``upper`` and ``left``, [*order]."""
    images, groups, device = upper.shape[0], conv.offset_groups, upper.device
    padded = Padded.of(images, size, groups)
    integer = padded.index_dtype(4 * upper.numel(), conv.taps * tap_rows)
    row = upper.to(integer).mul_(padded.line).add_(left.to(integer), alpha=padded.pixel)
    image = torch.arange(images, dtype=integer, device=device) * padded.image + padded.origin
    row.add_(image.view(-1, 1, 1, 1, 1, 1))
    if groups > 1:
        group = torch.arange(groups, dtype=integer, device=device).view(1, -1, 1, 1, 1, 1)
        row.add_(group.permute(order))
    if tap_rows:
        tap = torch.arange(conv.taps, dtype=integer, device=device).view(1, 1, *conv.kernel_size, 1, 1)
        row.add_(tap.mul_(tap_rows).permute(order).contiguous())
    row = row.flatten()  # Vectors are stacked four times as fast as tensors with more dimensions.
    below = row + padded.line
    return torch.stack((row, row + padded.pixel, below, below + padded.pixel), -1).flatten()


def corner_weights(y: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:  # -> four of [S]
    """Return the weights of the four neighbours, from the distances from the upper left one."""
    lower, right = y.flatten(), x.flatten()
    upper, left = 1 - lower, 1 - right
    if mask is not None:
        upper, lower = upper.mul_(mask.flatten()), lower * mask.flatten()
    return upper * left, upper * right, lower * left, lower * right


def table_backward(of_weight: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return the gradients of offset, [n, G*K*2, h, Wo], and mask, [n, G*K, h, Wo], from that of the weights."""
    of_neighbours = of_weight.view(*table.y.shape, 4).unbind(-1)
    of_y, of_x, of_mask = sample_backward(of_neighbours, table.y, table.x, table.mask)
    back = [table.order.index(i) for i in range(6)]
    of_offset = torch.stack((of_y, of_x), -1).permute(*back[:4], 6, *back[4:])
    return of_offset.flatten(1, 4), of_mask.permute(back).flatten(1, 3)


def sample_backward(
    of_neighbours: Sequence[Tensor], y: Tensor, x: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, x and mask from those of the four neighbours' weights, all of one shape."""
    top_left, top_right, bottom_left, bottom_right = of_neighbours
    top, bottom = torch.lerp(top_left, top_right, x), torch.lerp(bottom_left, bottom_right, x)
    left, right = torch.lerp(top_left, bottom_left, y), torch.lerp(top_right, bottom_right, y)
    of_y, of_x = bottom - top, right - left
    if mask is not None:
        of_y, of_x = of_y.mul_(mask), of_x.mul_(mask)
    return of_y, of_x, torch.lerp(top, bottom, y)
