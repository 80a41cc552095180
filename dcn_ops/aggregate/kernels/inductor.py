"""Deformable aggregation for the compiler: written so that Inductor fuses it into a few vectorised loops.

A loop over positions and channels reads the four neighbours of every tap and adds them up, without columns and
pieces. Eager execution would need K times the memory, so this code is only traced.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, D = C / G, K taps, M = N * Ho * Wo
positions, P = Ho * Wo * G * K samples per image, R rows of D channels in the padded images.
"""

import torch
from torch import Tensor

from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling import loops
from dcn_ops.sampling.bags import unpadded
from dcn_ops.sampling.geometry import Padded, wide_dtype
from dcn_ops.sampling.loops import rows_at
from dcn_ops.sampling.table import sample_backward
from dcn_ops.torch_internals.compiler import stored

NAME, IMPLEMENTATION, DETERMINISTIC = "inductor", "composition", True


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Accept every call."""


def forward(problem: Problem) -> Tensor:
    """Return [N, Ho, Wo, C]."""
    input, offset, mask, window = problem
    neighbours = loops.neighbours(input.to(wide_dtype(input)), window.groups)
    table = _table(input, offset, mask, window)
    row = loops.by_group(table.row, window.groups, window.taps)
    weights = [w.view(row.shape)[..., None] for w in table.weights()]
    out = None
    for k in range(window.taps):
        for rows, weight in zip(neighbours, weights, strict=True):
            sample = rows_at(rows, [row[:, :, k]]) * weight[:, :, k]  # [M, G, D]
            out = sample if out is None else out + sample
    assert out is not None
    return out.view(*offset.shape[:3], input.shape[3]).to(input.dtype)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out."""
    input, offset, mask, window = problem
    need_input, need_offset, need_mask = needs
    neighbours = loops.neighbours(input.to(wide_dtype(input)), window.groups)
    table = _table(input, offset, mask, window)
    row = loops.by_group(table.row, window.groups, window.taps)
    grad_rows = stored(grad.to(wide_dtype(input)).reshape(*row.shape[:2], input.shape[3] // window.groups))
    grad_input = grad_offset = grad_mask = None
    if need_offset or need_mask:
        of_weights = [
            stored((grad_rows[:, :, None] * rows_at(rows, [row])).sum(-1)).view_as(table.y) for rows in neighbours
        ]
        of_y, of_x, of_mask = sample_backward(of_weights, table.y, table.x, table.mask)
        of_offset = torch.stack((of_x, of_y), -1) * window.offset_scale
        grad_offset = of_offset.reshape(offset.shape).to(offset.dtype).contiguous() if need_offset else None
        grad_mask = of_mask.reshape(mask.shape).to(mask.dtype).contiguous() if need_mask else None
    if need_input:
        rows = Padded.of(input.shape[0], input.shape[1:3], window.groups).rows
        parts = loops.scatter_parts(grad_rows.flatten(0, 1), table, rows, window.taps)
        # What reached a pixel as the neighbour right of or below another stands at that one.
        a, b, c, d = (
            unpadded(part.view(-1, input.shape[3]), input.shape[0], input.shape[1:3], back)
            for part, back in zip(parts, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
        )
        grad_input = (a + b + c + d).to(input.dtype).contiguous()
    return grad_input, grad_offset, grad_mask


def _table(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> loops.Table:
    wide, (batch, ho, wo) = wide_dtype(input), offset.shape[:3]
    shape = (ho, wo, window.groups, window.taps)
    samples = ho * wo * window.groups * window.taps
    grid_y, grid_x = (stored(axis) for axis in window.grid((0, ho), wo, wide, offset.device))
    x, y = offset.to(wide).reshape(batch, samples, 2).unbind(2)
    grid = grid_y[:, None, None].expand(shape), grid_x[None, :, None].expand(shape)
    mask, size = mask.to(wide).reshape(batch, samples), input.shape[1:3]
    return loops.make_table((y, x), grid, mask, size, window.groups, window.taps, window.offset_scale)
