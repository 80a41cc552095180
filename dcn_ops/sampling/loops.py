"""The table of samples for the compiler, written so that Inductor makes vectorised loops of it.

``stored`` stops Inductor from computing values again in the loops that read them. (Otherwise the padding, for
example, becomes a condition in the innermost loop, which takes six times as long.) A loop is vectorised if it reads
and writes stretches of memory, and divides no index. So the coordinates of the offsets are stored apart, and so is
what repeats in each image: the positions of the taps, the numbers of the groups.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, K taps, G offset groups, D = C / G,
M = N * Ho * Wo output positions, P = Ho * Wo * G * K samples per image, R rows of the padded images.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_ops.sampling.bags import bounds, sort_rows, sum_sorted
from dcn_ops.sampling.geometry import BORDER, Padded, Pair
from dcn_ops.sampling.table import corner_weights
from dcn_ops.torch_internals.compiler import stored

rows_at = torch.ops.aten._unsafe_index  # doesn't check every index


class Table(NamedTuple):
    """Where samples read: the row of the upper left neighbour, the distances from it, and the mask."""

    row: Tensor  # [N, P] integers in [0, R * G)
    y: Tensor  # [N, P]
    x: Tensor  # [N, P]
    mask: Tensor | None  # [N, P]

    def weights(self) -> tuple[Tensor, ...]:
        """Return the weights of the four neighbours, multiplied by the mask, [N * P] each."""
        return tuple(stored(weight) for weight in corner_weights(self.y, self.x, self.mask))


def padded_rows(images: Tensor) -> Tensor:
    """Return the rows, [R, C], of images [N, H, W, C], as ``bags.padded_rows`` does.

    Inductor would make a condition on every element of that function's copy into a view.
    """
    batch, height, width, channels = images.shape
    rows = F.pad(images, (0, 0, BORDER, 0, BORDER, 0)).view(-1, channels)
    return stored(F.pad(rows, (0, 0, 0, Padded.of(batch, (height, width)).rows - rows.shape[0])))


def neighbours(images: Tensor, groups: int) -> list[Tensor]:
    """Return four views, [.., D], of the padded rows. The same index gives one of the four neighbours in each."""
    rows = padded_rows(images).view(-1, images.shape[3] // groups)
    steps = Padded.of(images.shape[0], images.shape[1:3], groups).neighbours
    count = rows.shape[0] - steps[-1]
    return [rows.as_strided((count, rows.shape[1]), rows.stride(), step * rows.shape[1]) for step in steps]


def make_table(
    displacement: tuple[Tensor, Tensor],
    grid: tuple[Tensor, Tensor],
    mask: Tensor | None,
    size: Pair,
    groups: int,
    taps: int,
    scale: float = 1.0,
) -> Table:
    """Build the table.

    Args:
        displacement: y and x of every sample, [N, P] each, in the order Ho, Wo, G, K.
        grid: y and x of the taps without offsets, views of P elements in that order.
        mask: [N, P].
        size: (H, W).
        groups: G.
        taps: K.
        scale: By what displacements are multiplied.
    """
    (batch, samples), device = displacement[0].shape, displacement[0].device
    lower, distance = [], []
    for moved, fixed, pixels in zip(displacement, grid, size, strict=True):
        position = stored(moved) * scale + stored(fixed.reshape(-1))
        # Positions far outside and NaN read only zeros.
        position = torch.where(position == position, position, -BORDER).clamp(-BORDER, pixels)
        lower.append(position.floor())
        distance.append(stored(position - lower[-1]))
    padded = Padded.of(batch, size, groups)
    integer = padded.index_dtype(4 * batch * samples)
    image = torch.arange(batch, dtype=integer, device=device) * padded.image + padded.origin
    row = lower[0].to(integer) * padded.line + lower[1].to(integer) * padded.pixel + image[:, None]
    if groups > 1:
        group = torch.arange(groups, dtype=integer, device=device)[:, None]
        row = row + stored(group.expand(samples // (groups * taps), groups, taps).reshape(-1))
    return Table(stored(row), distance[0], distance[1], mask)


def scatter_parts(grad: Tensor, table: Table, rows: int, samples: int) -> list[Tensor]:
    """Return the gradient of the rows from each of the four neighbours, [R, D], at the upper left one's row.

    Args:
        grad: Of the sums of samples, [B, D].
        table: Its masks are needed.
        rows: R.
        samples: Number of samples in a sum.
    """
    by_row, order = sort_rows(table.row.flatten(), rows)
    # Vectors divide no integers. Half a sample more, and no rounding reaches another integer.
    bag = stored(((order.to(torch.float64) + 0.5) * (1 / samples)).floor().to(by_row.dtype))
    firsts = bounds(by_row, rows)
    assert table.mask is not None
    y, x, mask = (rows_at(values.flatten(), [order]) for values in (table.y, table.x, table.mask))
    return [sum_sorted(grad, bag, firsts, weight) for weight in Table(by_row, y, x, mask).weights()]


def by_group(samples: Tensor, groups: int, taps: int) -> Tensor:
    """Return samples [N, P] as [M, G, K]."""
    return samples.view(samples.shape[0] * (samples.shape[1] // (groups * taps)), groups, taps)
