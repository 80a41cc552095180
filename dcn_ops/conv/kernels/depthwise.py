"""Depthwise convolution: one embedding bag per output position, without samples or columns in memory.

The filters multiply the image before it is sampled, which gives a copy of the image for each tap. An output
position is then a weighted sum of 4K rows of those copies, which is one bag. The transposed bag gives the gradient
of the copies. Times the filters it is the gradient of the image, times the image the gradient of the filters. Large
kernels are computed a few rows of taps at a time.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, K taps, G offset groups, n images and h output
rows of the current chunk, T taps of the current kernel rows, R rows of C channels in the padded images.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.bags import eager_weight_backward, gather, padded_rows, scatter, unpadded
from dcn_ops.sampling.geometry import BORDER, Conv, Pair, empty_channels_last, wide_dtype
from dcn_ops.sampling.pieces import Chunk, chunk_bytes, cut
from dcn_ops.sampling.table import Table, make_table, table_backward

_BYTES_PER_SAMPLE = 160  # for the table, its intermediate results and its sort

NAME, IMPLEMENTATION, DETERMINISTIC = "depthwise", "composition", True


class Piece(NamedTuple):
    """Some rows of the kernel, some images and some rows of the output."""

    taps: slice
    conv: Conv  # a convolution with those rows of the kernel
    chunk: Chunk

    def of(self, maps: Tensor, conv: Conv) -> Tensor:  # [N, G*K*c, Ho, Wo] -> [n, G, T, c, h, Wo]
        """Return a view of this piece of an offset or a mask."""
        return self.chunk.of(maps).unflatten(1, (conv.offset_groups, conv.taps, -1))[:, :, self.taps]


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept filters of one channel with many taps; with few taps, columns are faster."""
    conv, filters = problem.conv, problem.weight.shape[0]
    if not (conv.groups > 1 and conv.groups == problem.input.shape[1] == filters):
        return "it takes depthwise convolutions"
    return None if conv.taps > 9 else "it takes more than nine taps, columns are faster below"


def forward(problem: Problem) -> Tensor:
    """Return [N, C, Ho, Wo] in channels_last."""
    input, offset, weight, bias, mask, conv = problem
    output, wide = conv.output_size(input.shape[2:]), wide_dtype(input)
    filters = _by_tap(weight).to(wide)
    out = input.new_zeros((input.shape[0], *output, input.shape[1]), dtype=wide)
    memory = None
    for rows, pieces in _pieces(input, output, conv):
        for taps, of_taps in pieces:
            copies = _copies(rows, filters[taps], memory)
            memory = copies if memory is None else memory
            for piece in of_taps:
                table = _table(piece, offset, mask, rows, input, conv)
                n0, n1, h0, h1 = piece.chunk
                target = out[n0:n1, h0:h1]
                target += gather(_by_group(copies, conv), table.row, table.weight, piece.conv.taps).view(
                    target.shape
                )
    if bias is not None:
        out += bias
    return out.to(input.dtype).permute(0, 3, 1, 2)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    size, wide = input.shape[2:], wide_dtype(input)
    filters = _by_tap(weight).to(wide)
    memory = None
    sums = grad.permute(0, 2, 3, 1).to(wide)  # [N, Ho, Wo, C]
    images = input.new_empty(input.shape[0], *size, input.shape[1]) if need_input else None
    grad_filters = torch.zeros_like(filters) if need_weight else None
    grad_offset = empty_channels_last(offset) if need_offset else None
    grad_mask = empty_channels_last(mask) if mask is not None and need_mask else None

    need_maps, need_copies = need_offset or need_mask, need_input or need_weight
    for rows, pieces in _pieces(input, grad.shape[2:], conv) if need_maps or need_copies else ():
        grad_rows = torch.zeros_like(rows) if need_input else None
        for taps, of_taps in pieces:
            copies = _copies(rows, filters[taps], memory) if need_maps else None
            memory = copies if memory is None else memory
            for piece in of_taps:
                n0, n1, h0, h1 = piece.chunk
                table = _table(piece, offset, mask, rows, input, conv)
                grad_sums = sums[n0:n1, h0:h1].reshape(-1, rows.shape[1] // conv.offset_groups)
                if copies is not None:
                    of_weight = eager_weight_backward(
                        grad_sums, _by_group(copies, conv), table.row, piece.conv.taps
                    )
                    _put((grad_offset, grad_mask), table_backward(of_weight, table), piece, conv)
                if need_copies:
                    count = piece.conv.taps * rows.shape[0] * conv.offset_groups
                    of_copies = scatter(grad_sums, table.row, table.weight, count, piece.conv.taps).view(
                        -1, *rows.shape
                    )  # [T, R, C]
                    _add_products(grad_rows, grad_filters, of_copies, rows, filters, taps)
        if images is not None and grad_rows is not None:
            n0, n1 = piece.chunk[:2]
            images[n0:n1].copy_(unpadded(grad_rows, n1 - n0, size))

    return (
        None if images is None else images.permute(0, 3, 1, 2),
        grad_offset,
        None if grad_filters is None else grad_filters.T.reshape(weight.shape).to(weight.dtype).contiguous(),
        grad.sum((0, 2, 3), dtype=wide).to(weight.dtype) if need_bias else None,
        grad_mask,
    )


def _put(
    totals: tuple[Tensor | None, Tensor | None], parts: tuple[Tensor, Tensor], piece: Piece, conv: Conv
) -> None:
    for total, part in zip(totals, parts, strict=True):
        if total is not None:
            target = piece.of(total, conv)
            target.copy_(part.unflatten(1, target.shape[1:4]))


def _add_products(
    grad_rows: Tensor | None,
    grad_filters: Tensor | None,
    of_copies: Tensor,
    rows: Tensor,
    filters: Tensor,
    taps: slice,
) -> None:
    """Add the gradients of image and filters from that of the copies, [T, R, C], which is overwritten."""
    if grad_rows is not None:
        for tap, of_copy in enumerate(of_copies.unbind(0), taps.start):
            grad_rows.addcmul_(of_copy, filters[tap])
    if grad_filters is not None:
        grad_filters[taps] += of_copies.mul_(rows).sum(1)


def _pieces(input: Tensor, output: Pair, conv: Conv) -> Iterator[tuple[Tensor, list[tuple[slice, list[Piece]]]]]:
    """Yield the rows of some images, [R, C], and pieces of their convolution, by rows of taps."""
    batch, channels, height, width = input.shape
    (kh, kw), (ho, wo), limit = conv.kernel_size, output, chunk_bytes()
    tap_row_bytes = (height + BORDER) * (width + BORDER) * channels * kw * wide_dtype(input).itemsize
    by_images = cut(batch, tap_row_bytes * kh, limit)
    n = by_images[0][1] if by_images else batch
    by_tap_rows = cut(kh, tap_row_bytes * n, limit)
    table_bytes = n * wo * kw * by_tap_rows[0][1] * conv.offset_groups * _BYTES_PER_SAMPLE  # per row of the output
    by_rows = cut(ho, table_bytes, limit)
    for n0, n1 in by_images:
        by_taps = []
        for k0, k1 in by_tap_rows:
            padding = (conv.padding[0] - k0 * conv.dilation[0], conv.padding[1])
            part, taps = conv._replace(kernel_size=(k1 - k0, kw), padding=padding), slice(k0 * kw, k1 * kw)
            by_taps.append((taps, [Piece(taps, part, Chunk(n0, n1, h0, h1)) for h0, h1 in by_rows]))
        yield padded_rows(input.permute(0, 2, 3, 1)[n0:n1].to(wide_dtype(input))), by_taps


def _table(piece: Piece, offset: Tensor, mask: Tensor | None, rows: Tensor, input: Tensor, conv: Conv) -> Table:
    offset = piece.of(offset, conv).flatten(1, 3)
    mask = None if mask is None else piece.of(mask, conv).flatten(1, 3)
    rows_of_tap = rows.shape[0] * conv.offset_groups
    return make_table(piece.chunk, offset, mask, input.shape[2:], rows.dtype, piece.conv, tap_rows=rows_of_tap)


def _by_tap(weight: Tensor) -> Tensor:  # [C, 1, kh, kw] -> [K, C]
    return weight.flatten(1).T.contiguous()


def _by_group(copies: Tensor, conv: Conv) -> Tensor:  # [T, R, C] -> [T * R * G, D]
    return copies.view(-1, copies.shape[2] // conv.offset_groups)


def _copies(rows: Tensor, filters: Tensor, memory: Tensor | None) -> Tensor:  # [R, C], [T, C] -> [T, R, C]
    # The first copies of a call are the largest. The others use their memory, which saves page faults.
    if memory is None:
        return rows * filters[:, None]
    out = memory.flatten()[: rows.numel() * len(filters)].view(-1, *rows.shape)
    return torch.mul(rows, filters[:, None], out=out)
