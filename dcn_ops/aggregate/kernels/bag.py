"""The composition: four embedding bags of K rows for each position and group add up to the output.

There is a bag for each neighbour, and all four read the same table, from other first rows. There are no columns.
The table needs the time and memory, so the work is cut into pieces of some images or rows. The gradients of mask
and offsets come from the bags' gradients of their weights, and that of the image from the transposed bags.

Legend: N batch, C channels, Ho x Wo output size, G groups, D = C / G, K taps, n images and h output rows of the
current chunk, R rows of D channels in their padded images, S = n * h * Wo * G * K samples.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.bags import corner_weights_backward, gather_corners, padded_rows, scatter_corners, unpadded
from dcn_ops.sampling.geometry import BORDER, Padded, Pair, wide_dtype
from dcn_ops.sampling.pieces import Chunk, chunk_bytes, cut
from dcn_ops.sampling.table import corner_weights, sample_backward

NAME, IMPLEMENTATION, DETERMINISTIC = "bag", "composition", True

_TABLE_BYTES = 56  # per sample: rows, weights, and the intermediate results
_SORT_BYTES = 80  # per sample, with the gradient of the image: also the order of its entries by row


class _Table(NamedTuple):
    """Where samples read, with four neighbours each: top left, top right, bottom left, bottom right."""

    row: Tensor  # [S] integers in [0, R), the top left ones
    weights: tuple[Tensor, ...]  # four of [S], multiplied by the mask
    y: Tensor  # [S], distance from the upper neighbours
    x: Tensor  # [S], distance from the left neighbours
    mask: Tensor  # [S]


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Accept every call."""


def forward(problem: Problem) -> Tensor:
    """Return [N, Ho, Wo, C]."""
    input, offset, mask, window = problem
    out, steps = input.new_empty((*offset.shape[:3], input.shape[3])), _steps(input, window)
    for rows, chunks in _blocks(input, offset.shape[1:3], window, _TABLE_BYTES):
        for chunk in chunks:
            table = _table(chunk, offset, mask, input, window)
            target = _of(chunk, out)
            sums = gather_corners(rows, table.row, table.weights, steps, window.taps)
            target.copy_(sums.view(target.shape))
            del table  # before the next table needs the same memory
    return out


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out."""
    input, offset, mask, window = problem
    need_input, need_offset, need_mask = needs
    grad_input, grad_offset, grad_mask = (
        tensor.new_empty(tensor.shape) if needed else None
        for tensor, needed in zip((input, offset, mask), needs, strict=True)
    )
    steps = _steps(input, window)
    bytes_per_sample = _SORT_BYTES if need_input else _TABLE_BYTES
    for rows, chunks in _blocks(input, offset.shape[1:3], window, bytes_per_sample) if any(needs) else ():
        total = None
        for chunk in chunks:
            table = _table(chunk, offset, mask, input, window)
            sums = _of(chunk, grad).to(rows.dtype).reshape(-1, rows.shape[1])
            if need_offset or need_mask:
                of_weights = corner_weights_backward(sums, rows, table.row, steps, window.taps)
                _put(grad_offset, grad_mask, of_weights, table, chunk, window)
                del of_weights
            if need_input:
                total = torch.zeros_like(rows) if total is None else total
                scatter_corners(total, sums, table.row, table.weights, steps, window.taps)
            del table
        if grad_input is not None and total is not None:
            images, (height, width) = chunk.n1 - chunk.n0, input.shape[1:3]
            image = unpadded(total.view(-1, input.shape[3]), images, (height, width))
            grad_input[chunk.n0 : chunk.n1].copy_(image)
    return grad_input, grad_offset, grad_mask


def _put(
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
    of_weights: list[Tensor],
    table: _Table,
    chunk: Chunk,
    window: Window,
) -> None:
    """Write the gradients of a chunk's offsets and masks."""
    of_y, of_x, of_mask = sample_backward(of_weights, table.y, table.x, table.mask)
    if grad_offset is not None:
        part = _interleaved(of_x, of_y)
        if window.offset_scale != 1:
            part.mul_(window.offset_scale)
        target = _of(chunk, grad_offset)
        target.copy_(part.view(target.shape))
    if grad_mask is not None:
        target = _of(chunk, grad_mask)
        target.copy_(of_mask.view(target.shape))


def _of(chunk: Chunk, maps: Tensor) -> Tensor:  # [N, Ho, Wo, *] -> [n, h, Wo, *]
    return maps[chunk.n0 : chunk.n1, chunk.h0 : chunk.h1]


def _blocks(
    input: Tensor, output: Pair, window: Window, bytes_per_sample: int
) -> Iterator[tuple[Tensor, list[Chunk]]]:
    """Yield the rows of some images, [R, D], with the chunks of their output: whole images, or rows of one."""
    batch, channels = input.shape[0], input.shape[3]
    ho, wo = output
    table_bytes = wo * window.groups * window.taps * bytes_per_sample  # per row of the output
    for n0, n1 in cut(batch, _image_bytes(input) + ho * table_bytes, chunk_bytes()):
        rows = padded_rows(input[n0:n1].to(wide_dtype(input))).view(-1, channels // window.groups)
        yield rows, [Chunk(n0, n1, h0, h1) for h0, h1 in cut(ho, (n1 - n0) * table_bytes, chunk_bytes())]


def _interleaved(*tensors: Tensor) -> Tensor:
    """Return the tensors [S], with 4 or 8 bytes per element, as columns.

    ATen would copy floats one by one, which takes four times as long as copying integers of the same width.
    """
    integer = torch.int32 if tensors[0].dtype.itemsize == 4 else torch.int64
    return torch.stack([tensor.view(integer) for tensor in tensors], 1).view(tensors[0].dtype)


def _image_bytes(input: Tensor) -> int:
    return Padded.of(1, input.shape[1:3]).rows * input.shape[3] * wide_dtype(input).itemsize


def _table(chunk: Chunk, offset: Tensor, mask: Tensor, input: Tensor, window: Window) -> _Table:
    dtype, size = wide_dtype(input), input.shape[1:3]
    grid_y, grid_x = window.grid((chunk.h0, chunk.h1), offset.shape[2], dtype, offset.device)
    # The shape for one image, [h, Wo, G, K], so that the loops over samples are long.
    shape = (grid_y.shape[0], grid_x.shape[0], window.groups, window.taps)
    displacement = _of(chunk, offset).to(dtype).reshape(chunk.n1 - chunk.n0, -1, 2)  # [n, h * Wo * G * K, 2]
    left, x = _axis(displacement[..., 0], grid_x[None, :, None].expand(shape), size[1], window)
    upper, y = _axis(displacement[..., 1], grid_y[:, None, None].expand(shape), size[0], window)
    weights = _of(chunk, mask).to(dtype).reshape(-1)
    row = _row(upper, left, size, window)
    return _Table(row, corner_weights(y, x, weights), y.flatten(), x.flatten(), weights)


def _steps(input: Tensor, window: Window) -> tuple[int, ...]:
    """Return how many rows the four neighbours lie after the upper left one."""
    return Padded.of(1, input.shape[1:3], window.groups).neighbours


def _axis(displacement: Tensor, grid: Tensor, size: int, window: Window) -> tuple[Tensor, Tensor]:
    """Return the lower neighbours along an axis of ``size`` pixels and the distances from them: [n, h*Wo*G*K]."""
    position = torch.add(grid.reshape(-1), displacement, alpha=window.offset_scale)
    # At -2 and at the image's end both neighbours are zeros. Far positions and NaN go there.
    position.nan_to_num_(-BORDER).clamp_(-BORDER, size)
    lower = position.floor()
    return lower, position.sub_(lower)


def _row(upper: Tensor, left: Tensor, size: Pair, window: Window) -> Tensor:
    """Return the rows, [S], of the upper left neighbours, which are at ``upper`` and ``left``."""
    images, device = upper.shape[0], upper.device
    padded = Padded.of(images, size, window.groups)
    integer = padded.index_dtype(4 * upper.numel())
    image = torch.arange(images, dtype=integer, device=device) * padded.image + padded.origin
    row = upper.to(integer).mul_(padded.line).add_(left.to(integer), alpha=padded.pixel).add_(image[:, None])
    if window.groups > 1:
        group = torch.arange(window.groups, dtype=integer, device=device).repeat_interleave(window.taps)
        row = row.view(-1, group.shape[0]).add_(group)
    return row.view(-1)
