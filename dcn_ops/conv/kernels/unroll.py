"""The composition of ATen kernels, for eager calls (``columns``) and for the compiler (``traced``).

1. *table*: four row indices and four weights per sample, from offset and mask;
2. *unroll*: an embedding bag of four rows per sample gives the im2col columns;
3. *contract*: the filters multiply the columns.

The backward keeps only the inputs. It unrolls again for the gradient of the weight, and sends the gradient of the
columns back through the bags. The work is cut into chunks of output rows, because all columns together would need K
times the memory of the input. Eager calls and the compiler assemble the results of the chunks in different ways.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size, K taps,
G offset groups, D = C / G, n images and h output rows of one chunk, R rows of the padded images, S samples.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dcn_ops.conv.kernels.contraction import Contraction
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.bags import gather, unpadded
from dcn_ops.sampling.geometry import Conv, Padded, wide_dtype
from dcn_ops.sampling.pieces import Chunk, blocks
from dcn_ops.sampling.table import Table, make_table, table_backward

SORT_BYTES = 128  # per sample: its four entries, their order by row, and the memory of the radix sort


class Assembled(Protocol):
    """A tensor [N, *, H, W] in channels_last that is assembled from chunks in their order."""

    def add(self, part: Tensor, chunk: Chunk) -> None:
        """Add the next chunk, [n, *, h, W]."""

    def whole(self) -> Tensor:
        """Return the tensor."""


class Way(NamedTuple):
    """The steps that differ between eager calls and the compiler."""

    assembled: Callable[[Tensor, Sequence[int]], Assembled]  # from a tensor with the dtype, and a shape
    padded: Callable[[Tensor], Tensor]  # images [n, H, W, C] -> their rows with a border, [R, C]
    # Adds the gradient of the rows, from that of samples, [S, D], their rows and weights, to a total; None is
    # zeros. The flag says whether these are all samples.
    scattered: Callable[[Tensor | None, Tensor, Tensor, Tensor, int, bool], Tensor]
    weight_backward: Callable[[Tensor, Tensor, Tensor], Tensor]  # as of ``bags``


def forward(problem: Problem, way: Way) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    input, offset, weight, bias, _, conv = problem
    output, contraction = offset.shape[2:], Contraction(weight, conv)
    bias = None if bias is None else bias.to(contraction.dtype)
    out = way.assembled(input, (input.shape[0], weight.shape[0], *output))
    for images, chunks in blocks(input, output, conv):
        rows = _by_group(way.padded(images.to(wide_dtype(input))), conv)
        for chunk, pieces in chunks:
            table = _table(chunk, problem, contraction)
            for piece in pieces:
                row, entry_weight = _entries(table, chunk, piece, problem)
                columns = contraction.columns(gather(rows, row, entry_weight), piece, output[1])
                out.add(contraction.forward(columns, bias), piece)
                del columns
            del table  # before the next table needs the same memory
    return out.whole()


def backward(grad: Tensor, problem: Problem, needs: list[bool], way: Way) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    need_samples = need_input or need_offset or need_mask
    wo, wide, contraction = grad.shape[3], wide_dtype(input), Contraction(weight, conv)
    grad_input = _ImageGradient(input, grad.shape[2], conv, way) if need_input else None
    # The gradient of the weight is a sum over all chunks, so it uses the wider dtype.
    grad_filters = contraction.no_gradient(wide) if need_weight else None
    grad_maps = tuple(
        way.assembled(t, t.shape) if t is not None and needed else None
        for t, needed in ((offset, need_offset), (mask, need_mask))
    )

    sort_bytes = SORT_BYTES if need_input else 0
    for images, chunks in blocks(input, grad.shape[2:], conv, sort_bytes) if need_samples or need_weight else ():
        rows = _by_group(way.padded(images.to(wide)), conv)
        for chunk, pieces in chunks:
            table, of_weight = _table(chunk, problem, contraction), []
            for piece in pieces:
                row, entry_weight = _entries(table, chunk, piece, problem)
                grad_out = contraction.gradient(piece.of(grad))
                if grad_filters is not None:
                    columns = contraction.columns(gather(rows, row, entry_weight), piece, wo)
                    contraction.add_gradient(grad_filters, grad_out, columns)
                    del columns  # before their gradient needs the same memory
                if not need_samples:
                    continue
                samples = contraction.samples_backward(grad_out).to(wide).reshape(-1, rows.shape[1])
                if need_offset or need_mask:
                    of_weight.append(way.weight_backward(samples, rows, row))
                if grad_input is not None:
                    grad_input.add(samples, row, entry_weight, piece, piece.n0 - chunk.n0)
                del samples
            if of_weight:
                _add_maps(grad_maps, table_backward(torch.cat(of_weight), table), chunk)
            del table

    grad_offset, grad_mask = (None if total is None else total.whole() for total in grad_maps)
    return (
        None if grad_input is None else grad_input.total.whole(),
        grad_offset,
        None if grad_filters is None else contraction.weight_gradient(grad_filters),
        grad.sum((0, 2, 3), dtype=wide).to(weight.dtype) if need_bias else None,
        grad_mask,
    )


def _add_maps(totals: Iterable[Assembled | None], parts: Iterable[Tensor], chunk: Chunk) -> None:
    for total, part in zip(totals, parts, strict=True):
        if total is not None:
            total.add(part, chunk)


def _table(chunk: Chunk, problem: Problem, contraction: Contraction) -> Table:
    input, offset, _, _, mask, conv = problem
    mask = None if mask is None else chunk.of(mask)
    size, dtype = input.shape[2:], wide_dtype(input)
    return make_table(chunk, chunk.of(offset), mask, size, dtype, conv, contraction.order)


def _entries(table: Table, chunk: Chunk, piece: Chunk, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return rows and weights of a piece, four per sample."""
    conv = problem.conv
    entries = chunk.entries(piece, 4 * problem.offset.shape[3] * conv.taps * conv.offset_groups)
    return table.row[entries], table.weight[entries]


def _by_group(rows: Tensor, conv: Conv) -> Tensor:  # [.., C] -> [R, D]
    return rows.view(-1, rows.shape[1] // conv.offset_groups)


class _ImageGradient:
    """The gradient of the input, from pieces of whole images, or of rows of one image, in order."""

    def __init__(self, input: Tensor, output_height: int, conv: Conv, way: Way) -> None:
        self.total = way.assembled(input, input.shape)
        self.shape, self.output_height, self.conv, self.way = input.shape, output_height, conv, way
        self.rows: Tensor | None = None  # of the current images, padded

    def add(self, samples: Tensor, row: Tensor, weight: Tensor, piece: Chunk, before: int) -> None:
        """Add the gradient of a piece's samples, [S, D]; their rows start ``before`` images before the piece."""
        images, (_, channels, height, width) = piece.n1 - piece.n0, self.shape
        layout = Padded.of(images, (height, width), self.conv.offset_groups)
        if before:
            row = row - before * layout.image
        is_first, is_last = piece.h0 == 0, piece.h1 == self.output_height
        rows = None if is_first else self.rows
        self.rows = self.way.scattered(rows, samples, row, weight, layout.rows, is_first and is_last)
        if is_last:
            image = unpadded(self.rows.view(-1, channels), images, (height, width))
            self.total.add(image.permute(0, 3, 1, 2), Chunk(piece.n0, piece.n1, 0, height))
