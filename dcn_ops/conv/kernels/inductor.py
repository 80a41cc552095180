"""Depthwise convolution for the compiler, written so that Inductor fuses it into a few vectorised loops.

A loop over output positions and channels reads the four neighbours of every tap and adds them up, without columns
and pieces. Eager execution would need K times the memory, so this code is only traced.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, kh x kw kernel, K = kh * kw, G offset groups,
D = C / G, M = N * Ho * Wo output positions, P = Ho * Wo * G * K samples per image, R rows of the padded images.
"""

import torch
from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling import loops
from dcn_ops.sampling.bags import scatter, unpadded
from dcn_ops.sampling.geometry import Conv, Padded, wide_dtype
from dcn_ops.sampling.loops import rows_at
from dcn_ops.sampling.pieces import chunk_bytes, cut, is_known
from dcn_ops.sampling.table import sample_backward
from dcn_ops.torch_internals.compiler import stored

NAME, IMPLEMENTATION, DETERMINISTIC = "inductor", "composition", True


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept filters of one channel on the CPU, where Inductor writes such loops."""
    conv = problem.conv
    if problem.input.device.type != "cpu":
        return "it takes the CPU"
    depthwise = conv.groups > 1 and conv.groups == problem.input.shape[1] == problem.weight.shape[0]
    return None if depthwise else "it takes depthwise convolutions"


def forward(problem: Problem) -> Tensor:
    """Return [N, C, Ho, Wo] in channels_last."""
    input, offset, weight, bias, mask, conv = problem
    neighbours, table = _neighbours(input, conv), _table(input, offset, mask, conv)
    filters, row = _filters(weight, conv, wide_dtype(input)), _by_group(table.row, conv)
    weights = [w.view(row.shape)[..., None] for w in table.weights()]
    out = None
    for k in range(conv.taps):
        samples = sum(rows_at(n, [row[:, :, k]]) * w[:, :, k] for n, w in zip(neighbours, weights, strict=True))
        out = samples * filters[k] if out is None else out + samples * filters[k]  # [M, G, D]
    assert out is not None
    out = out.view(input.shape[0], *offset.shape[2:], weight.shape[0])
    out = out if bias is None else out + bias
    return out.to(input.dtype).permute(0, 3, 1, 2)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    wide, size = wide_dtype(input), input.shape[2:]
    neighbours, table = _neighbours(input, conv), _table(input, offset, mask, conv)
    filters, row = _filters(weight, conv, wide), _by_group(table.row, conv)
    depth = _depth(input, conv)
    grad_rows = stored(grad.permute(0, 2, 3, 1).to(wide).reshape(*row.shape[:2], depth))  # [M, G, D]
    grad_offset = grad_mask = grad_weight = grad_input = None
    if need_offset or need_mask:
        of_samples = grad_rows[:, :, None] * filters.transpose(0, 1)  # [M, G, K, D]
        of_weights = [stored((of_samples * rows_at(n, [row])).sum(-1)).view_as(table.y) for n in neighbours]
        grad_offset, grad_mask = _table_backward(of_weights, table, offset, mask)
    if need_weight:
        weights = [w.view(row.shape)[..., None] for w in table.weights()]
        samples = sum(rows_at(n, [row]) * w for n, w in zip(neighbours, weights, strict=True))  # [M, G, K, D]
        # First a sum per row of the output, which stays in the cache.
        products = (samples * grad_rows[:, :, None]).view(
            input.shape[0] * offset.shape[2], offset.shape[3], *samples.shape[1:]
        )
        of_filters = stored(products.sum(1)).sum(0)  # [G, K, D]
        grad_weight = of_filters.transpose(1, 2).reshape(weight.shape).to(weight.dtype).contiguous()
    if need_input:
        rows = _scatter(grad_rows, table, filters, input, conv)
        grad_input = unpadded(rows, input.shape[0], size).permute(0, 3, 1, 2).to(input.dtype)
        grad_input = grad_input.contiguous(memory_format=torch.channels_last)
    return (
        grad_input,
        grad_offset if need_offset else None,
        grad_weight,
        grad.sum((0, 2, 3), dtype=wide).to(weight.dtype) if need_bias else None,
        grad_mask if need_mask else None,
    )


def _neighbours(input: Tensor, conv: Conv) -> list[Tensor]:
    return loops.neighbours(input.permute(0, 2, 3, 1).to(wide_dtype(input)), conv.offset_groups)


def _layout(input: Tensor, conv: Conv) -> Padded:
    return Padded.of(input.shape[0], input.shape[2:], conv.offset_groups)


def _by_group(samples: Tensor, conv: Conv) -> Tensor:  # [N, P] -> [M, G, K]
    return loops.by_group(samples, conv.offset_groups, conv.taps)


def _depth(input: Tensor, conv: Conv) -> int:
    return input.shape[1] // conv.offset_groups


def _filters(weight: Tensor, conv: Conv, dtype: torch.dtype) -> Tensor:  # [C, 1, kh, kw] -> [K, G, D]
    return stored(weight.to(dtype).flatten(1).T).view(conv.taps, conv.offset_groups, -1)


def _table(input: Tensor, offset: Tensor, mask: Tensor | None, conv: Conv) -> loops.Table:
    wide, groups = wide_dtype(input), conv.offset_groups
    batch, (maps, ho, wo) = input.shape[0], offset.shape[1:]
    # [N, Ho, Wo, G, kh, kw, (y, x)], flat except for images and coordinates, for long loops without division.
    y, x = offset.permute(0, 2, 3, 1).to(wide).reshape(batch, ho * wo * maps // 2, 2).unbind(2)
    grid = []
    for axis in conv.grid((0, ho), wo, wide, offset.device):
        by_sample = stored(axis).expand(*conv.kernel_size, ho, wo).permute(2, 3, 0, 1)[:, :, None]
        grid.append(by_sample.expand(-1, -1, groups, -1, -1))
    if mask is not None:
        mask = mask.permute(0, 2, 3, 1).to(wide).reshape(batch, ho * wo * maps // 2)
    return loops.make_table((y, x), (grid[0], grid[1]), mask, input.shape[2:], groups, conv.taps)


def _table_backward(
    of_weights: list[Tensor], table: loops.Table, offset: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    of_y, of_x, of_mask = sample_backward(of_weights, table.y, table.x, table.mask)
    of_offset = _as_maps(torch.stack((of_y, of_x), -1), offset)
    return of_offset, None if mask is None else _as_maps(of_mask, mask)


def _as_maps(samples: Tensor, like: Tensor) -> Tensor:  # [N, P, ..] -> [N, *, Ho, Wo]
    n, channels, ho, wo = like.shape
    return samples.reshape(n, ho, wo, channels).to(like.dtype).permute(0, 3, 1, 2)


def _scatter(grad_rows: Tensor, table: loops.Table, filters: Tensor, input: Tensor, conv: Conv) -> Tensor:
    """Return the gradient of the padded rows, [R, C], one or several taps at a time."""
    layout, taps = _layout(input, conv), conv.taps
    padded = layout._replace(pixel=1).rows
    row = _by_group(table.row, conv)
    weights = [w.view(row.shape) for w in table.weights()]
    size = padded * input.shape[1] * grad_rows.dtype.itemsize  # per tap
    some_taps = cut(taps, size, chunk_bytes()) if is_known(size) else [(k, k + 1) for k in range(taps)]
    total = None
    for k0, k1 in some_taps:
        of_tap = torch.arange(k1 - k0, dtype=row.dtype, device=row.device) * layout.rows
        entries = torch.stack([row[:, :, k0:k1] + of_tap + s for s in layout.neighbours], -1).flatten()
        entry_weights = torch.stack([w[:, :, k0:k1] for w in weights], -1).flatten()
        copies = scatter(grad_rows.flatten(0, 1), entries, entry_weights, (k1 - k0) * layout.rows, k1 - k0)
        of_rows = (copies.view(-1, padded, *filters.shape[1:]) * filters[k0:k1, None]).sum(0)
        total = of_rows if total is None else total + of_rows
    assert total is not None
    return total.view(padded, -1)
