"""Fast composition of ATen kernels, for the CPU and for any device without kernels of its own.

1. *table*: four row indices and four weights per sample, from offset and mask;
2. *unroll*: a bag of four rows per sample gives the columns (im2col with offsets);
3. *contract*: dense filters multiply the columns as a matrix; with groups an ordinary convolution of
   stride = kernel reads it.

The backward keeps the inputs alone: it unrolls again for the weight, and sends the gradient of the
columns back through the bags. Work goes in chunks of output rows, so that the columns, K times the input, never
stand in memory as a whole.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size, kh x kw
kernel, K = kh * kw, G offset groups, D = C / G; n and h count the images and output rows of one chunk,
R rows of the padded images, S = n * h * Wo * G * K samples and M = n * h * Wo output positions.
"""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from dcn_ops.conv.kernels.kernel import Gradients, Problem
from dcn_ops.sampling.bags import (
    AS_IMAGE,
    BORDER,
    BY_POSITION,
    Chunk,
    Table,
    even_step,
    gather,
    make_table,
    padded_count,
    padded_rows,
    scatter,
    scatter_onto,
    stored,
    table_backward,
    unpadded,
    weight_backward,
    wide_dtype,
)
from dcn_ops.sampling.geometry import Conv, Pair, empty_channels_last
from dcn_ops.sampling.pieces import chunk_bytes
from dcn_ops.torch_internals.compiler import is_functional
from dcn_ops.torch_internals.cpu import has_fast_half

_LARGE = 2**18  # filters' elements, from which the 1x1 convolution takes longer to reorder them than it saves
_SORT_BYTES = 128  # of a sample: its four entries, their order by row, and what the radix sort takes
_TABLE_BYTES = 64  # of a sample: rows, weights, their gradients, and what they are made of
NAME, IMPLEMENTATION, DETERMINISTIC = "columns", "composition", True


def _keep_freed_memory() -> None:
    # glibc returns freed memory to the system beyond twice the largest block freed so far, and page faults then
    # take up to two thirds of the time of a chunk. One block of nearly the largest size that counts, never touched.
    # That is for the whole process, so it can be switched off.
    if os.environ.get("DCN_OPS_KEEP_MEMORY") != "0":
        torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


_keep_freed_memory()


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Take every call."""


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    input, offset, weight, bias, mask, conv = problem
    size = input.shape[2:]
    ho, wo = conv.output_size(size)
    dtype = _contraction_dtype(input, conv)
    kernel, bias = _contraction_weight(weight.to(dtype), conv), None if bias is None else bias.to(dtype)
    out = _Assembled(empty_channels_last(input, (input.shape[0], weight.shape[0], ho, wo)))
    for images, chunks in _blocks(input, (ho, wo), conv):
        rows = _rows(images, conv)
        for chunk, pieces in chunks:
            table = _table(chunk, offset, mask, input, conv)
            for piece in pieces:
                entries = _entries(piece, chunk, conv, wo)
                samples = gather(rows, table.row[entries], table.weight[entries]).to(dtype)
                out.add(_contract(_as_image(samples, piece, wo, conv), kernel, bias, conv), piece)
                del samples
            del table  # before the next takes as much
    return out.whole()


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    need_samples = need_input or need_offset or need_mask
    output, wide = grad.shape[2:], wide_dtype(input)
    dtype = _contraction_dtype(input, conv)
    kernel = _contraction_weight(weight.to(dtype), conv)
    image_gradient = _ImageGradient(input, output[0], conv) if need_input else None
    # All chunks add up in the weight: in the wider dtype.
    grad_kernel = _zero_kernel(kernel, wide, conv) if need_weight else None
    grad_offset, grad_mask = _gradient_of(offset, need_offset), _gradient_of(mask, need_mask)

    blocks = _blocks(input, output, conv, _SORT_BYTES if need_input else 0)
    for images, chunks in blocks if need_samples or need_weight else ():
        rows = _rows(images, conv)
        for chunk, pieces in chunks:
            table = _table(chunk, offset, mask, input, conv)
            of_weight: list[Tensor] = []
            for piece in pieces:
                entries = _entries(piece, chunk, conv, output[1])
                row, entry_weight = table.row[entries], table.weight[entries]
                grad_out = piece.of(grad).to(dtype)
                if conv.groups > 1:
                    grad_out = _well_strided(grad_out)
                if grad_kernel is not None:
                    samples = gather(rows, row, entry_weight).to(dtype)
                    _add_kernel_gradient(grad_kernel, grad_out, _as_image(samples, piece, output[1], conv), conv)
                    del samples  # before their gradient takes as much
                if not need_samples:
                    continue
                samples = _samples_backward(grad_out, kernel, conv).to(wide).reshape(-1, rows.shape[1])
                if need_offset or need_mask:
                    of_weight.append(weight_backward(samples, rows, row))
                if image_gradient is not None:
                    image_gradient.add(samples, row, entry_weight, piece, piece.n0 - chunk.n0)
                del samples
            if of_weight:
                _add_table_gradient((grad_offset, grad_mask), torch.cat(of_weight), table, chunk)
            del table

    return (
        _whole(image_gradient),
        _whole(grad_offset),
        None if grad_kernel is None else _weight_from_contraction(grad_kernel, weight, conv),
        grad.sum((0, 2, 3), dtype=wide).to(weight.dtype) if need_bias else None,
        _whole(grad_mask),
    )


class _Assembled:
    """A tensor [N, *, H, W] of chunks that come in order: copied into it, or for a compiler concatenated.

    Inductor lowers copies into slices to a select over all slices, for each element.
    """

    def __init__(self, total: Tensor) -> None:
        self.total, self.traced = total, is_functional(total)
        self.parts: list[Tensor] = []

    def add(self, part: Tensor, chunk: Chunk) -> None:
        """Add the next chunk, [n, *, h, W]."""
        if self.traced:
            self.parts.append(part.to(self.total.dtype).permute(0, 2, 3, 1).flatten(0, 2))
        else:
            chunk.of(self.total).copy_(part)

    def whole(self) -> Tensor:
        """Return the tensor; concatenated, it is channels_last."""
        if not self.parts:
            return self.total
        batch, channels, height, width = self.total.shape
        return torch.cat(self.parts).view(batch, height, width, channels).permute(0, 3, 1, 2)


def _gradient_of(tensor: Tensor | None, needed: bool) -> _Assembled | None:
    return _Assembled(empty_channels_last(tensor)) if tensor is not None and needed else None


def _whole(gradient: "_Assembled | _ImageGradient | None") -> Tensor | None:
    return None if gradient is None else gradient.whole()


def _add_table_gradient(
    totals: tuple[_Assembled | None, ...], of_weight: Tensor, table: Table, chunk: Chunk
) -> None:
    for total, part in zip(totals, table_backward(of_weight, table), strict=True):
        if total is not None:
            total.add(part, chunk)


class _ImageGradient:
    """The gradient of the input, from pieces that come image by image, or row by row of one image."""

    def __init__(self, input: Tensor, output_height: int, conv: Conv) -> None:
        self.total = _Assembled(empty_channels_last(input))
        self.output_height, self.conv = output_height, conv
        self.rows: Tensor | None = None  # of the images at hand, padded

    def add(self, samples: Tensor, row: Tensor, weight: Tensor, piece: Chunk, before: int) -> None:
        """Add the gradient of a piece's samples, [S, D], whose rows count from so many images before its own."""
        images, (_, channels, height, width) = piece.n1 - piece.n0, self.total.total.shape
        if before:
            row = row - before * (height + BORDER) * (width + BORDER) * self.conv.offset_groups
        count = padded_count(images, (height, width)) * self.conv.offset_groups
        is_whole = piece.h0 == 0 and piece.h1 == self.output_height
        if is_whole or self.total.traced or row.device.type != "cpu":
            rows = scatter(samples, row, weight, count)
            self.rows = rows if piece.h0 == 0 or self.rows is None else self.rows.add_(rows)
        else:
            if piece.h0 == 0 or self.rows is None:
                self.rows = samples.new_zeros(count, samples.shape[1])
            scatter_onto(self.rows, samples, row, weight)
        if piece.h1 == self.output_height:
            image = unpadded(self.rows.view(-1, channels), images, (height, width))
            self.total.add(image.permute(0, 3, 1, 2), Chunk(piece.n0, piece.n1, 0, height))

    def whole(self) -> Tensor:
        return self.total.whole()


def _blocks(
    input: Tensor, output: Pair, conv: Conv, sample_bytes: int = 0
) -> Iterator[tuple[Tensor, list[tuple[Chunk, list[Chunk]]]]]:
    """Yield images, as a view [n, H, W, C], with chunks of their output, of one table each, and their pieces.

    A sample counts with its D channels, and with ``sample_bytes`` at least.
    """
    batch, channels, height, width = input.shape
    ho, wo = output
    images = input.permute(0, 2, 3, 1)
    if not all(isinstance(size, int) for size in (batch, ho, wo)):
        # Symbolic sizes: a number of chunks would be a guess, and every other one a recompilation.
        whole = Chunk(0, batch, 0, ho)
        yield images, [(whole, [whole])]
        return
    table_bytes = wo * conv.taps * conv.offset_groups * _TABLE_BYTES  # a row of the output
    row_bytes = channels // conv.offset_groups * wide_dtype(input).itemsize
    column_bytes = wo * conv.taps * conv.offset_groups * max(row_bytes, sample_bytes)
    image_bytes = padded_count(1, (height, width)) * channels * wide_dtype(input).itemsize
    step = even_step(batch, chunk_bytes() // (image_bytes + ho * table_bytes))
    for n0 in range(0, batch, step):
        n1 = min(n0 + step, batch)
        chunks = _split(Chunk(n0, n1, 0, ho), table_bytes)
        yield images[n0:n1], [(chunk, _split(chunk, column_bytes)) for chunk in chunks]


def _split(chunk: Chunk, bytes_per_row: int) -> list[Chunk]:
    """Cut into pieces of nearly one size that fit in ``chunk_bytes()``: whole images, or rows of one image."""
    images, rows = chunk.n1 - chunk.n0, chunk.h1 - chunk.h0
    step = even_step(images, chunk_bytes() // (bytes_per_row * rows))
    height = even_step(rows, chunk_bytes() // (bytes_per_row * step))
    return [
        Chunk(n0, min(n0 + step, chunk.n1), h0, min(h0 + height, chunk.h1))
        for n0 in range(chunk.n0, chunk.n1, step)
        for h0 in range(chunk.h0, chunk.h1, height)
    ]


def _entries(piece: Chunk, chunk: Chunk, conv: Conv, wo: int) -> slice:
    """Return where the entries of a piece lie in the table of its chunk: four a sample."""
    by_row = 4 * wo * conv.taps * conv.offset_groups
    first = (piece.n0 - chunk.n0) * (chunk.h1 - chunk.h0) + piece.h0 - chunk.h0
    return slice(first * by_row, (first + (piece.n1 - piece.n0) * (piece.h1 - piece.h0)) * by_row)


def _table(chunk: Chunk, offset: Tensor, mask: Tensor | None, input: Tensor, conv: Conv) -> Table:
    mask = None if mask is None else chunk.of(mask)
    return make_table(chunk, chunk.of(offset), mask, input.shape[2:], wide_dtype(input), conv, _order(conv))


def _rows(images: Tensor, conv: Conv) -> Tensor:  # [n, H, W, C] -> [R, D]
    rows = padded_rows(images.to(wide_dtype(images))).view(-1, images.shape[3] // conv.offset_groups)
    # Inductor would pad the images for every piece again.
    return stored(rows) if is_functional(images) else rows


# A dense convolution reads the columns as [n, G*K*D, h, Wo]: a 1x1 convolution, or a matrix product. With
# groups it reads [n, C, h*kh, Wo*kw], stride = kernel, for which the library has grouped kernels.


def _order(conv: Conv) -> tuple[int, ...]:
    return BY_POSITION if conv.groups == 1 else AS_IMAGE


def _as_image(samples: Tensor, chunk: Chunk, wo: int, conv: Conv) -> Tensor:  # [S, D] -> NCHW, channels_last
    (kh, kw), n, h = conv.kernel, chunk.n1 - chunk.n0, chunk.h1 - chunk.h0
    height, width = (h, wo) if conv.groups == 1 else (h * kh, wo * kw)
    return samples.view(n, height, width, -1).permute(0, 3, 1, 2)


def _contraction_weight(weight: Tensor, conv: Conv) -> Tensor:
    if conv.groups > 1:
        return _well_strided(weight)
    by_group = weight.unflatten(1, (conv.offset_groups, -1))  # [O, G, D, kh, kw]
    return by_group.permute(0, 1, 3, 4, 2).flatten(1)[:, :, None, None]  # [O, G*K*D, 1, 1]


def _well_strided(tensor: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels_last, with the usual strides of dimensions of size 1 as well.

    ``contiguous()`` keeps an unusual stride of such a dimension, since no element depends on it. Torch's
    convolutions read the memory format off these strides, and then compute something else.
    """
    rows = tensor.permute(0, 2, 3, 1)
    return rows.flatten().view(rows.shape).permute(0, 3, 1, 2)


def _zero_kernel(kernel: Tensor, dtype: torch.dtype, conv: Conv) -> Tensor:
    """Return the zero gradient of the kernel: a dense one as a matrix, [O, G*K*D]."""
    return kernel.new_zeros(kernel.shape[:2] if conv.groups == 1 else kernel.shape, dtype=dtype)


def _weight_from_contraction(kernel: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Undo ``_contraction_weight`` for the gradient; the result is contiguous."""
    if conv.groups == 1:
        by_tap = kernel.view(weight.shape[0], conv.offset_groups, *conv.kernel, -1)  # [O, G, kh, kw, D]
        kernel = by_tap.permute(0, 1, 4, 2, 3).flatten(1, 2)
    return kernel.to(weight.dtype).contiguous()


def _contraction_dtype(input: Tensor, conv: Conv) -> torch.dtype:
    if input.device.type != "cpu" or input.dtype not in (torch.bfloat16, torch.float16):
        return input.dtype
    # Matrix units multiply nothing grouped: with AMX, depthwise bfloat16 takes up to five times what float32 does.
    # And in torch 2.11 to 2.15 one of those convolutions, 1xk with one output column, reads unwritten memory.
    return input.dtype if conv.groups == 1 and has_fast_half(input.dtype) else torch.float32


def _contract(columns: Tensor, kernel: Tensor, bias: Tensor | None, conv: Conv) -> Tensor:
    if conv.groups > 1:
        return F.conv2d(columns, kernel, bias, conv.kernel, groups=conv.groups)
    if kernel.numel() < _LARGE:
        return F.conv2d(columns, kernel, bias)
    return F.linear(columns.permute(0, 2, 3, 1), kernel.flatten(1), bias).permute(0, 3, 1, 2)


def _add_kernel_gradient(total: Tensor, grad: Tensor, columns: Tensor, conv: Conv) -> None:
    if conv.groups > 1:
        total += conv2d_weight(columns, total.shape, grad, conv.kernel, groups=conv.groups)
        return
    columns, grad = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (columns, grad))  # [M, G*K*D], [M, O]
    if total.dtype == columns.dtype:
        total.addmm_(grad.T, columns)
    else:
        total += grad.T @ columns


def _samples_backward(grad: Tensor, kernel: Tensor, conv: Conv) -> Tensor:  # -> [n, height, width, channels]
    if conv.groups == 1:
        return grad.permute(0, 2, 3, 1) @ kernel.flatten(1)
    # Windows don't overlap: the transposed convolution is the gradient, in the layout of the columns.
    samples = F.conv_transpose2d(grad, kernel, stride=conv.kernel, groups=conv.groups)
    return samples.permute(0, 2, 3, 1)
