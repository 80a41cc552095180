"""Bilinear sampling as an embedding bag: the table of rows and weights, the bag, and their backwards.

A sample is a weighted sum of four rows of the channels-last image. ATen's embedding bag computes that,
with weights per sample, vectorised and on all threads, and has both gradients.

Legend: kh x kw kernel, K = kh * kw, G offset groups, D = C / G channels a row, H x W input size; n and h
count the images and the output rows of the chunk at hand, R = n * H * W * G its rows and
B = n * h * Wo * K * G its bags.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.geometry import Conv, Pair

_SUM = 0  # the embedding bag's mode
_INT32_LIMIT = 2**31


class Chunk(NamedTuple):
    """Images ``[n0, n1)`` and output rows ``[h0, h1)``."""

    n0: int
    n1: int
    h0: int
    h1: int

    def of(self, maps: Tensor) -> Tensor:  # [N, *, Ho, Wo] -> [n, *, h, Wo]
        """Return this chunk of an output-sized tensor, as a view."""
        return maps[self.n0 : self.n1, :, self.h0 : self.h1]


class Axis(NamedTuple):
    """The two neighbours of every sample along one axis: first dimension (lower, upper)."""

    at: Tensor  # integers [2, n, G, kh, kw, h, Wo], clamped into the image
    weight: Tensor  # 0 where the neighbour lies outside
    slope: Tensor  # derivative of the weight by the position


class Table(NamedTuple):
    """What the bags read, four entries each, and what the backward of the table needs."""

    row: Tensor  # [4 * B], in [0, R)
    weight: Tensor  # [4 * B], the mask multiplied in
    y: Axis
    x: Axis
    mask: Tensor | None  # [n, G, kh, kw, h, Wo]
    order: tuple[int, ...]


def make_table(
    chunk: Chunk, offset: Tensor, mask: Tensor | None, size: Pair, dtype: torch.dtype, conv: Conv
) -> Table:
    """Build the table of a chunk in ``dtype``, its bags in the order that the contraction reads."""
    shape = (conv.offset_groups, *conv.kernel)
    grid_y, grid_x = conv.grid((chunk.h0, chunk.h1), offset.shape[3], dtype, offset.device)
    displacement = chunk.of(offset).to(dtype).unflatten(1, (*shape, 2))  # [n, G, kh, kw, 2, h, Wo]
    integer = _index_dtype(chunk, offset, size, conv)
    y = _axis(grid_y + displacement[:, :, :, :, 0], size[0], integer)
    x = _axis(grid_x + displacement[:, :, :, :, 1], size[1], integer)
    weight_y = y.weight
    if mask is not None:
        mask = chunk.of(mask).to(dtype).unflatten(1, shape)
        weight_y = weight_y * mask
    weight = weight_y[:, None] * x.weight  # [2, 2, n, G, kh, kw, h, Wo]
    row, order = _row(y, x, size), _bag_order(conv)
    return Table(row.permute(order).flatten(), weight.permute(order).flatten(), y, x, mask, order)


def _bag_order(conv: Conv) -> tuple[int, ...]:
    """Permute (top/bottom, left/right, n, G, kh, kw, h, Wo) so that the unrolled image is [.., D] in memory."""
    if conv.groups == 1:
        return (2, 6, 7, 4, 5, 3, 0, 1)  # [n, h, Wo, kh, kw, G]: one row of a matrix per output position
    return (2, 6, 4, 7, 5, 3, 0, 1)  # [n, h, kh, Wo, kw, G]: an image kh times as high, kw times as wide


def _axis(position: Tensor, size: int, integer: torch.dtype) -> Axis:
    """Return the neighbours of positions along an axis of ``size`` pixels; NaN and infinity have none."""
    # -2 and size are out of reach of any pixel, and safe to cast to an integer.
    position = position.nan_to_num(-2).clamp(-2, size)
    lower = position.floor()
    fraction = position - lower
    index = torch.stack((lower, lower + 1)).to(integer)
    clamped = index.clamp(0, size - 1)
    exists = (index == clamped).to(position.dtype)
    weight = torch.stack((1 - fraction, fraction)) * exists
    return Axis(clamped, weight, torch.stack((-exists[0], exists[1])))


def _row(y: Axis, x: Axis, size: Pair) -> Tensor:
    """Return ``((i * H + y) * W + x) * G + g`` for image i and offset group g: [2, 2, n, G, kh, kw, h, Wo]."""
    _, images, groups = y.at.shape[:3]
    integer, device = y.at.dtype, y.at.device
    image = torch.arange(images, dtype=integer, device=device).view(-1, 1, 1, 1, 1, 1)
    group = torch.arange(groups, dtype=integer, device=device).view(-1, 1, 1, 1, 1)
    start = ((y.at + image * size[0]) * size[1]) * groups + group
    return start[:, None] + x.at * groups


def _index_dtype(chunk: Chunk, offset: Tensor, size: Pair, conv: Conv) -> torch.dtype:
    images = chunk.n1 - chunk.n0
    rows = images * size[0] * size[1] * conv.offset_groups
    entries = 4 * images * (chunk.h1 - chunk.h0) * offset.shape[3] * conv.taps * conv.offset_groups
    return torch.int32 if max(rows, entries) < _INT32_LIMIT else torch.int64


def unroll(rows: Tensor, table: Table) -> Tensor:
    """Return the samples, [B, D], of the image's rows [R, D]."""
    starts, _ = _layout(table)
    bag = torch.ops.aten._embedding_bag_forward_only
    return bag(rows, table.row, starts, False, _SUM, False, table.weight)[0]


def rows_backward(grad: Tensor, table: Table, rows: int) -> Tensor:
    """Return the gradient of the rows, [R, D], from that of the samples, [B, D]."""
    _, bag_of_entry = _layout(table)
    unused = table.row.new_empty(0)
    bag = torch.ops.aten._embedding_bag_dense_backward
    return bag(grad, table.row, bag_of_entry, unused, unused, rows, False, _SUM, table.weight)


def table_backward(grad: Tensor, rows: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return the gradients of offset, [n, G*K*2, h, Wo], and mask, [n, G*K, h, Wo], from that of the samples."""
    starts, bag_of_entry = _layout(table)
    bag = torch.ops.aten._embedding_bag_per_sample_weights_backward
    of_weight = bag(grad, rows, table.row, starts, bag_of_entry, _SUM)
    # From the order of the bags back to [2, 2, n, G, kh, kw, h, Wo].
    y, x, order = table.y, table.x, table.order
    shape = (2, *x.weight.shape)
    of_weight = of_weight.view([shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])

    through_x = (of_weight * x.weight).sum(1)  # [2, n, G, kh, kw, h, Wo]
    of_y = (through_x * y.slope).sum(0)
    of_x = ((of_weight * x.slope).sum(1) * y.weight).sum(0)
    of_offset = torch.stack((of_y, of_x), 4)
    if table.mask is not None:
        of_offset = of_offset * table.mask.unsqueeze(4)
    return of_offset.flatten(1, 4), (through_x * y.weight).sum(0).flatten(1, 3)


def _layout(table: Table) -> tuple[Tensor, Tensor]:
    """Return where each bag starts, [B], and to which bag each entry belongs, [4 * B]."""
    entry = torch.arange(table.row.shape[0], dtype=table.row.dtype, device=table.row.device)
    return entry[::4].contiguous(), entry >> 2
