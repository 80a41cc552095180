"""Bilinear sampling as an embedding bag: the padded image, the table of rows and weights, the bag, its backwards.

A sample is a weighted sum of four rows of the channels-last image. ATen's embedding bag computes that,
with weights per sample, vectorised and on all threads. Its transpose is a bag as well, of the entries in
the order of the rows that they read.

Around the image lie two rows and columns of zeros, which neighbours share: a sample beyond the border reads
zeros, so that nothing is clamped or masked but the position itself, and the four rows are ``row + constant``.

Legend: kh x kw kernel, K = kh * kw, G offset groups, C channels, D = C / G channels a row, H x W input size;
n and h count the images and the output rows of the chunk at hand, R rows and S = n * h * Wo * G * K samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.sampling.geometry import Conv, Pair

_SUM = 0  # the embedding bag's mode
INT32_LIMIT = 2**31
BORDER = 2  # pixels: so that both neighbours of position -2 are zeros
_RADIX = 2**15  # integers, from which the CPU sorts by radix

_bag = torch.ops.aten._embedding_bag_forward_only
_bag_weight_backward = torch.ops.aten._embedding_bag_per_sample_weights_backward


class Chunk(NamedTuple):
    """Images ``[n0, n1)`` and output rows ``[h0, h1)``."""

    n0: int
    n1: int
    h0: int
    h1: int

    def of(self, maps: Tensor) -> Tensor:  # [N, *, Ho, Wo] -> [n, *, h, Wo]
        """Return this chunk of an output-sized tensor, as a view."""
        return maps[self.n0 : self.n1, :, self.h0 : self.h1]


class Table(NamedTuple):
    """What the samples read, four neighbours each: top left, top right, bottom left, bottom right."""

    row: Tensor  # [S * 4] integers in [0, R)
    weight: Tensor  # [S * 4], the mask multiplied in
    y: Tensor  # [*order], distance from the upper neighbours
    x: Tensor  # [*order], distance from the left neighbours
    mask: Tensor | None  # [*order]
    order: tuple[int, ...]


# How samples lie in memory, as a permutation of n, G, kh, kw, h, Wo, which is how offsets lie in theirs.
BY_POSITION = (0, 4, 5, 1, 2, 3)  # [n, h, Wo, G, kh, kw], as offsets that are channels_last
AS_IMAGE = (0, 4, 2, 5, 3, 1)  # [n, h, kh, Wo, kw, G], an image kh times as high and kw times as wide


def wide_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of interpolation and of sums over chunks, which never round to half."""
    return torch.promote_types(input.dtype, torch.float32)


def even_step(total: int, limit: int) -> int:
    """Return a step of at most ``limit``, but one at least, that cuts ``total`` into pieces of nearly one size."""
    pieces = -(-total // max(1, limit))
    return -(-total // pieces) if pieces else 1


def stored(tensor: Tensor) -> Tensor:
    """Return the same tensor; Inductor computes it once, into memory of its own, before anything reads it."""
    tensor = tensor.contiguous()
    return tensor.as_strided(tensor.shape, tensor.stride())


def padded_rows(images: Tensor) -> Tensor:
    """Return the rows, [R, C], of images [n, H, W, C] within a border of zeros."""
    n, height, width, channels = images.shape
    rows = images.new_zeros(padded_count(n, (height, width)), channels)
    unpadded(rows, n, (height, width)).copy_(images)
    return rows


def padded_count(images: int, size: Pair) -> int:
    """Return R, the number of rows of so many images of ``size`` (H, W) within their border."""
    # After the last image, its lower border, and the right neighbour of the last pixel there.
    return (images * (size[0] + BORDER) + BORDER) * (size[1] + BORDER) + BORDER


def unpadded(rows: Tensor, images: int, size: Pair) -> Tensor:
    """Return the images, [n, H, W, C], of rows as ``padded_rows`` returns them: a view."""
    height, width = size[0] + BORDER, size[1] + BORDER
    padded = rows[: images * height * width].view(images, height, width, rows.shape[1])
    return padded[:, BORDER:, BORDER:]


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
    """Build the table of a chunk, whose own offset and mask these are, in ``dtype``, its samples in ``order``.

    With ``tap_rows``, tap k reads an image of its own, so many rows after that of the tap before.
    """
    taps = (conv.offset_groups, *conv.kernel)
    displacement = offset.to(dtype).unflatten(1, (*taps, 2))  # [n, G, kh, kw, 2, h, Wo]
    grid = conv.grid((chunk.h0, chunk.h1), offset.shape[3], dtype, offset.device)
    upper, y = _axis(displacement.select(4, 0), grid[0], size[0], order)
    left, x = _axis(displacement.select(4, 1), grid[1], size[1], order)
    if mask is not None:
        mask = mask.to(dtype).unflatten(1, taps).permute(order).contiguous()
    row = _row(upper, left, size, conv, order, tap_rows)
    return Table(row, _weight(y, x, mask), y, x, mask, order)


def _axis(displacement: Tensor, grid: Tensor, size: int, order: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the lower neighbours along an axis of ``size`` pixels, and the distances from them: [*order].

    Args:
        displacement: [n, G, kh, kw, h, Wo].
        grid: Positions that broadcast to [kh, kw, h, Wo].
        size: Pixels along the axis.
        order: Order of the result.
    """
    # In two steps, each along stretches of memory much longer than a row of the kernel.
    first = grid[:, :, :1]
    within = first.expand(*displacement.shape[1:4], 1, -1)[None].expand(-1, -1, -1, -1, -1, displacement.shape[5])
    position = (displacement.permute(order) + within.permute(order).contiguous()).contiguous()
    if grid.shape[2] != 1:
        position.add_((grid - first)[None, None, :1, :1].permute(order))
    # At -2 and at the image's end both neighbours are zeros: what is far outside and what is not a number.
    position.nan_to_num_(-BORDER).clamp_(-BORDER, size)
    lower = position.floor()
    return lower, position.sub_(lower)


def _row(upper: Tensor, left: Tensor, size: Pair, conv: Conv, order: tuple[int, ...], tap_rows: int) -> Tensor:
    """Return ((i * (H + 2) + y + 2) * (W + 2) + x + 2) * G + g for image i, offset group g and its neighbours."""
    images, groups, device = upper.shape[0], conv.offset_groups, upper.device
    height, width = size[0] + BORDER, size[1] + BORDER
    largest = max(4 * upper.numel(), (images + 1) * height * (width + 1) * groups, conv.taps * tap_rows)
    integer = torch.int32 if largest < INT32_LIMIT else torch.int64

    image = torch.arange(images, dtype=integer, device=device) * (height * width) + BORDER * (width + 1)
    row = upper.to(integer).mul_(width).add_(left.to(integer)).add_(image.view(-1, 1, 1, 1, 1, 1))
    if groups > 1:
        group = torch.arange(groups, dtype=integer, device=device).view(1, -1, 1, 1, 1, 1)
        row.mul_(groups).add_(group.permute(order))
    if tap_rows:
        tap = torch.arange(conv.taps, dtype=integer, device=device).view(1, 1, *conv.kernel, 1, 1)
        row.add_(tap.mul_(tap_rows).permute(order).contiguous())
    row = row.flatten()  # Vectors are stacked four times as fast as what has more dimensions.
    below = row + width * groups
    return torch.stack((row, row + groups, below, below + groups), -1).flatten()


def _weight(y: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:  # -> [S * 4]
    lower, right = y.flatten(), x.flatten()
    upper, left = 1 - lower, 1 - right
    if mask is not None:
        upper, lower = upper.mul_(mask.flatten()), lower * mask.flatten()
    return torch.stack((upper * left, upper * right, lower * left, lower * right), -1).flatten()


def gather(rows: Tensor, row: Tensor, weight: Tensor, samples: int = 1) -> Tensor:
    """Return the sums, [B, D], of so many samples at a time of the rows [R, D]."""
    firsts = torch.arange(0, row.shape[0], 4 * samples, dtype=row.dtype, device=row.device)
    return _bag(rows, row, firsts, False, _SUM, False, weight)[0]


def scatter(grad: Tensor, row: Tensor, weight: Tensor, rows: int, samples: int = 1) -> Tensor:
    """Return the gradient of the rows, [R, D], from that of the sums, [B, D], and a table: a bag for every row."""
    return _sum_by_row(grad, weight, *sort_rows(row, rows), rows, samples)


def scatter_onto(total: Tensor, grad: Tensor, row: Tensor, weight: Tensor) -> None:
    """Add the gradient of the rows, [R, D], to ``total``: in memory of the rows between the first and the last."""
    by_row, entry = sort_rows(row, total.shape[0])
    first, count = int(by_row[0]), int(by_row[-1] - by_row[0]) + 1
    total[first : first + count] += _sum_by_row(grad, weight, by_row.sub_(first), entry, count, 1)


def _sum_by_row(grad: Tensor, weight: Tensor, by_row: Tensor, entry: Tensor, rows: int, samples: int) -> Tensor:
    firsts, integer = _firsts(by_row, rows), by_row.dtype
    del by_row
    bag, weight = entry.to(integer).div_(4 * samples, rounding_mode="floor"), weight.index_select(0, entry)
    del entry
    return _bag(grad, bag, firsts, False, _SUM, False, weight, True)[0]


def sort_rows(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return row indices below ``rows`` in order, and the entries that they come from.

    By radix, in a fifth of the time that comparisons of nearly as many take: indices that come last fill up.
    """
    entries = row.shape[0]
    known = isinstance(entries, int) and isinstance(rows, int)
    if not known or not _RADIX // 4 <= entries < _RADIX or row.device.type != "cpu":
        return row.sort(stable=True)
    by_row, entry = F.pad(row, (0, _RADIX - entries), value=rows).sort(stable=True)
    return by_row[:entries], entry[:entries]


def _firsts(by_row: Tensor, rows: int) -> Tensor:
    """Return where each row's entries begin and end among sorted ones, [R + 1]."""
    narrow = by_row.dtype == torch.int32
    if isinstance(rows, int):
        return torch.ops.aten._convert_indices_from_coo_to_csr(by_row, rows, out_int32=narrow)
    # The other would take a symbolic number of rows as a constant.
    every = torch.arange(rows + 1, dtype=by_row.dtype, device=by_row.device)
    return torch.searchsorted(by_row, every, out_int32=narrow)


def weight_backward(grad: Tensor, rows: Tensor, row: Tensor, samples: int = 1) -> Tensor:
    """Return the gradient of the weights, [S * 4], from that of the sums, [B, D]."""
    entry = torch.arange(row.shape[0], dtype=row.dtype, device=row.device)
    firsts = entry[:: 4 * samples].contiguous()
    bag = entry.div_(4 * samples, rounding_mode="floor")
    return _bag_weight_backward(grad, rows, row, firsts, bag, _SUM)


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
