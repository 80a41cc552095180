"""Bilinear sampling as an embedding bag: the padded image, the bag and its backward passes.

A sample is a weighted sum of four rows of the channels-last image. ATen's embedding bag computes this sum
with weights per sample, vectorised and on all threads. The transpose is an embedding bag too: its entries are
sorted by the rows that they read.

The image has a border of two rows and two columns of zeros, which it shares with the next image. A sample beyond
the border reads zeros. So only the position is clamped and masked, and the four rows are ``row + constant``.

Legend: H x W input size, C channels, D channels per row, n images of the current call, R rows, S samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.sampling.geometry import BORDER, Padded, Pair
from dcn_ops.sampling.pieces import is_known
from dcn_ops.sampling.sparse import prefers_sparse, sparse_products

_SUM = 0  # the embedding bag's mode
_RADIX = 2**15  # from this many integers on, the CPU uses radix sort

_bag = torch.ops.aten._embedding_bag_forward_only
_bag_weight_backward = torch.ops.aten._embedding_bag_per_sample_weights_backward


def padded_rows(images: Tensor) -> Tensor:
    """Return the rows, [R, C], of images [n, H, W, C] with a border of zeros."""
    n, height, width, channels = images.shape
    rows = images.new_zeros(Padded.of(n, (height, width)).rows, channels)
    unpadded(rows, n, (height, width)).copy_(images)
    return rows


def unpadded(rows: Tensor, images: int, size: Pair, back: Pair = (0, 0)) -> Tensor:
    """Return the images, [n, H, W, C], of the rows that ``padded_rows`` returns, as a view.

    With ``back``, of (1, 1) at most, it is the view of the pixels so many lines above and pixels to the left.
    """
    layout = Padded.of(images, size)
    padded = rows[: images * layout.image].view(images, layout.height, layout.width, rows.shape[1])
    y, x = BORDER - back[0], BORDER - back[1]
    return padded[:, y : y + size[0], x : x + size[1]]


def gather(rows: Tensor, row: Tensor, weight: Tensor, samples: int = 1) -> Tensor:
    """Sample the rows [R, D] and return the sums, [B, D], of ``samples`` samples each."""
    firsts = torch.arange(0, row.shape[0], 4 * samples, dtype=row.dtype, device=row.device)
    return _bag(rows, row, firsts, False, _SUM, False, weight)[0]


def gather_corners(
    rows: Tensor, row: Tensor, weights: Sequence[Tensor], steps: Sequence[int], samples: int = 1
) -> Tensor:
    """Sample the rows [R, D], with a bag for each of the four neighbours, and return the sums, [B, D].

    Args:
        rows: [R, D].
        row: Rows of the upper left neighbours, [S].
        weights: Of the neighbours, four of [S].
        steps: In rows, from the upper left neighbour to all four.
        samples: Number of samples in a sum.
    """
    firsts = torch.arange(0, row.shape[0], samples, dtype=row.dtype, device=row.device)
    total, *others = (
        _bag(rows[step:], row, firsts, False, _SUM, False, weight)[0]
        for step, weight in zip(steps, weights, strict=True)
    )
    for other in others:
        total += other
    return total


def scatter(grad: Tensor, row: Tensor, weight: Tensor, rows: int, samples: int = 1) -> Tensor:
    """Return the gradient of the rows, [R, D], from that of the sums, [B, D], and a table, with a bag per row."""
    return _sum_by_row(grad, weight, *sort_rows(row, rows), rows, samples)


def scatter_onto(total: Tensor, grad: Tensor, row: Tensor, weight: Tensor) -> None:
    """Add the gradient of the rows, [R, D], to ``total``, with memory for the rows from the first to the last."""
    by_row, entry = sort_rows(row, total.shape[0])
    first, count = int(by_row[0]), int(by_row[-1] - by_row[0]) + 1
    total[first : first + count] += _sum_by_row(grad, weight, by_row.sub_(first), entry, count, 1)


def scatter_corners(
    total: Tensor, grad: Tensor, row: Tensor, weights: Sequence[Tensor], steps: Sequence[int], samples: int = 1
) -> None:
    """Add the gradient of the rows, [R, D], to ``total``, from the table that ``gather_corners`` takes.

    One sort of the upper left neighbours is enough for all four.
    """
    by_row, order = sort_rows(row, total.shape[0])
    first, count = int(by_row[0]), int(by_row[-1] - by_row[0]) + 1
    firsts = bounds(by_row.sub_(first), count)
    bag = order.to(by_row.dtype).div_(samples, rounding_mode="floor")
    for step, weight in zip(steps, weights, strict=True):
        part = sum_sorted(grad, bag, firsts, weight.index_select(0, order))
        total[first + step : first + step + count] += part


def sum_sorted(grad: Tensor, bag: Tensor, firsts: Tensor, weight: Tensor) -> Tensor:
    """Return for each row, [R, D], the sum of its entries: weighted gradients of the bags that they belong to.

    Args:
        grad: [B, D].
        bag: Bag of each entry, [S], sorted by row.
        firsts: Where the entries of each row begin and end, as ``bounds`` returns.
        weight: Of each entry, [S].
    """
    return _bag(grad, bag, firsts, False, _SUM, False, weight, True)[0]


def _sum_by_row(grad: Tensor, weight: Tensor, by_row: Tensor, entry: Tensor, rows: int, samples: int) -> Tensor:
    firsts, integer = bounds(by_row, rows), by_row.dtype
    del by_row
    bag, weight = entry.to(integer).div_(4 * samples, rounding_mode="floor"), weight.index_select(0, entry)
    del entry
    return sum_sorted(grad, bag, firsts, weight)


def sort_rows(row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Return row indices below ``rows`` in order, and the entries that they come from.

    Indices that come last pad the entries to the size of radix sort. Radix sort takes a fifth of the
    time of a comparison sort of nearly as many entries.
    """
    entries = row.shape[0]
    if not is_known(entries, rows) or not _RADIX // 4 <= entries < _RADIX or row.device.type != "cpu":
        return row.sort(stable=True)
    by_row, entry = F.pad(row, (0, _RADIX - entries), value=rows).sort(stable=True)
    return by_row[:entries], entry[:entries]


def bounds(by_row: Tensor, rows: int) -> Tensor:
    """Return where the entries of each row begin and end after sorting, [R + 1]."""
    narrow = by_row.dtype == torch.int32
    if is_known(rows):
        return torch.ops.aten._convert_indices_from_coo_to_csr(by_row, rows, out_int32=narrow)
    # The function above would treat a symbolic number of rows as a constant.
    every = torch.arange(rows + 1, dtype=by_row.dtype, device=by_row.device)
    return torch.searchsorted(by_row, every, out_int32=narrow)


def weight_backward(grad: Tensor, rows: Tensor, row: Tensor, samples: int = 1) -> Tensor:
    """Return the gradient of the weights, [S * 4], from that of the sums, [B, D]."""
    return _bag_products(grad, rows, row, 4 * samples)


def eager_weight_backward(grad: Tensor, rows: Tensor, row: Tensor, samples: int = 1) -> Tensor:
    """Return the same as ``weight_backward``, on the CPU in less time; the compiler can't trace it."""
    return _products(grad, rows, row, 4 * samples)


def corner_weights_backward(
    grad: Tensor, rows: Tensor, row: Tensor, steps: Sequence[int], samples: int = 1
) -> list[Tensor]:
    """Return the gradients of the weights of ``gather_corners``, four of [S], from that of the sums, [B, D]."""
    return [_products(grad, rows[step:], row, samples) for step in steps]


def _products(grad: Tensor, rows: Tensor, row: Tensor, entries: int) -> Tensor:
    products = sparse_products if prefers_sparse(rows) else _bag_products
    return products(grad, rows, row, entries)


def _bag_products(grad: Tensor, rows: Tensor, row: Tensor, entries: int) -> Tensor:
    # Expanded instead of divided: integer division takes ten times as long.
    bag = torch.arange(grad.shape[0], dtype=row.dtype, device=row.device)
    firsts = bag * entries
    bag = bag[:, None].expand(-1, entries).reshape(-1).contiguous()  # for one sum, reshape gives a view
    return _bag_weight_backward(grad, rows, row, firsts, bag, _SUM)
