"""Deformable aggregation for the compiler: written so that Inductor fuses it into a few vectorised loops.

A loop over positions and channels reads the four neighbours of every tap and adds them up, without columns and
pieces. Eager execution would need K times the memory, so this code is only traced. ``stored`` stops Inductor from
computing values again in the inner loop.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, D = C / G, K taps, M = N * Ho * Wo
positions, P = Ho * Wo * G * K samples per image, R rows of D channels in the padded images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.bags import padded_rows, scatter_parts, unpadded
from dcn_ops.sampling.geometry import BORDER, Padded, wide_dtype
from dcn_ops.sampling.table import sample_backward
from dcn_ops.torch_internals.compiler import stored

NAME, IMPLEMENTATION, DETERMINISTIC = "inductor", "composition", True

_rows_at = torch.ops.aten._unsafe_index  # without a check of every index


class _Table(NamedTuple):
    """Where samples read: the row of the upper left neighbour, the distances from it, and the mask."""

    row: Tensor  # [N, P] integers
    y: Tensor  # [N, P]
    x: Tensor  # [N, P]
    mask: Tensor  # [N, P]

    def weights(self) -> tuple[Tensor, ...]:  # of the four neighbours, [N, P]
        upper, lower = (1 - self.y) * self.mask, self.y * self.mask
        return tuple(stored(a * b) for a in (upper, lower) for b in (1 - self.x, self.x))


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Accept every call."""


def forward(problem: Problem) -> Tensor:
    """Return [N, Ho, Wo, C]."""
    input, offset, mask, window = problem
    neighbours, table = _neighbours(input, window), _table(input, offset, mask, window)
    row = _by_group(table.row, window)
    weights = [_by_group(w, window)[..., None] for w in table.weights()]
    out = None
    for k in range(window.taps):
        for rows, weight in zip(neighbours, weights, strict=True):
            sample = _rows_at(rows, [row[:, :, k]]) * weight[:, :, k]  # [M, G, D]
            out = sample if out is None else out + sample
    assert out is not None
    return out.view(*offset.shape[:3], input.shape[3]).to(input.dtype)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out."""
    input, offset, mask, window = problem
    need_input, need_offset, need_mask = needs
    neighbours, table = _neighbours(input, window), _table(input, offset, mask, window)
    row = _by_group(table.row, window)
    grad_rows = stored(grad.to(wide_dtype(input)).reshape(*row.shape[:2], input.shape[3] // window.groups))
    grad_input = grad_offset = grad_mask = None
    if need_offset or need_mask:
        of_weights = [
            stored((grad_rows[:, :, None] * _rows_at(rows, [row])).sum(-1)).view_as(table.y) for rows in neighbours
        ]
        of_y, of_x, of_mask = sample_backward(of_weights, table.y, table.x, table.mask)
        of_offset = torch.stack((of_x, of_y), -1) * window.offset_scale
        grad_offset = of_offset.reshape(offset.shape).to(offset.dtype).contiguous() if need_offset else None
        grad_mask = of_mask.reshape(mask.shape).to(mask.dtype).contiguous() if need_mask else None
    if need_input:
        padded = _padded(input, window)
        weights = torch.stack(table.weights(), -1).flatten()
        parts = scatter_parts(grad_rows.flatten(0, 1), table.row.flatten(), weights, padded.rows, window.taps)
        shifted = [
            F.pad(part[: padded.rows - step], (0, 0, step, 0))
            for step, part in zip(padded.neighbours, parts, strict=True)
        ]
        total = (shifted[0] + shifted[1] + shifted[2] + shifted[3]).view(-1, input.shape[3])
        grad_input = unpadded(total, input.shape[0], input.shape[1:3]).to(input.dtype).contiguous()
    return grad_input, grad_offset, grad_mask


def _neighbours(input: Tensor, window: Window) -> list[Tensor]:
    """Return four views [.., D] of the padded rows; one index reads the four neighbours in the four views."""
    rows = stored(padded_rows(input.to(wide_dtype(input))).reshape(-1, input.shape[3] // window.groups))
    steps = _padded(input, window).neighbours
    count = rows.shape[0] - steps[-1]
    return [rows.as_strided((count, rows.shape[1]), rows.stride(), step * rows.shape[1]) for step in steps]


def _padded(input: Tensor, window: Window) -> Padded:
    return Padded.of(input.shape[0], input.shape[1:3], window.groups)


def _by_group(samples: Tensor, window: Window) -> Tensor:  # [N, P] -> [M, G, K]
    positions = samples.shape[0] * (samples.shape[1] // (window.groups * window.taps))
    return samples.view(positions, window.groups, window.taps)


def _table(input: Tensor, offset: Tensor, mask: Tensor, window: Window) -> _Table:
    wide, (batch, ho, wo) = wide_dtype(input), offset.shape[:3]
    shape = (ho, wo, window.groups, window.taps)
    grid_y, grid_x = window.grid((0, ho), wo, wide, offset.device)
    positions = offset.to(wide).reshape(batch, ho * wo * window.groups * window.taps, 2)
    lower, distance = [], []
    for axis, (grid, size) in enumerate(
        zip((grid_x[None, :, None], grid_y[:, None, None]), (input.shape[2], input.shape[1]), strict=True)
    ):
        position = positions[..., axis] * window.offset_scale + stored(grid.expand(shape).reshape(-1))
        # Positions far outside and NaN read only zeros.
        position = torch.where(position == position, position, -BORDER).clamp(-BORDER, size)
        lower.append(position.floor())
        distance.append(position - lower[-1])
    row = _row(lower[1], lower[0], input, window)
    return _Table(row, distance[1], distance[0], mask.to(wide).reshape(row.shape))


def _row(upper: Tensor, left: Tensor, input: Tensor, window: Window) -> Tensor:
    """Return the row of the upper left neighbour, [N, P], at ``upper`` and ``left``."""
    padded, device = _padded(input, window), input.device
    integer = padded.index_dtype(4 * upper.numel())
    image = torch.arange(input.shape[0], dtype=integer, device=device) * padded.image + padded.origin
    row = upper.to(integer) * padded.line + left.to(integer) * padded.pixel + image[:, None]
    group = torch.arange(window.groups, dtype=integer, device=device)[:, None].expand(-1, window.taps)
    row = row.view(row.shape[0], row.shape[1] // (window.groups * window.taps), window.groups, window.taps) + group
    return stored(row.view(upper.shape))
