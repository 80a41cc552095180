"""Division of the work of a call into pieces: images, and rows of their output.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, K taps, G offset groups, n images and h output
rows of a chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from dcn_ops.sampling.geometry import Conv, Padded, Pair, wide_dtype
from dcn_ops.settings import current

# An unrolled piece, its gradient, the memory of the table, its sort and the contraction, and the allocator's holes.
CHUNKS = 5
TABLE_BYTES = 64  # per sample: rows, weights, their gradients, and the intermediate results


class Chunk(NamedTuple):
    """Images ``[n0, n1)`` and output rows ``[h0, h1)``."""

    n0: int
    n1: int
    h0: int
    h1: int

    def of(self, maps: Tensor) -> Tensor:  # [N, *, Ho, Wo] -> [n, *, h, Wo]
        """Return this chunk of an output-sized tensor, as a view."""
        return maps[self.n0 : self.n1, :, self.h0 : self.h1]

    def entries(self, piece: "Chunk", per_row: int) -> slice:
        """Return where the entries of a piece lie in this chunk, which has ``per_row`` entries per output row."""
        first = (piece.n0 - self.n0) * (self.h1 - self.h0) + piece.h0 - self.h0
        rows = (piece.n1 - piece.n0) * (piece.h1 - piece.h0)
        return slice(first * per_row, (first + rows) * per_row)


def chunk_bytes() -> int:
    """Return the bytes of an unrolled piece.

    With the default the piece has about the size of the last-level cache. It is large enough that the start of
    threads costs nearly nothing.
    """
    return current().workspace_limit // CHUNKS


def is_known(*sizes: int) -> bool:
    """Tell whether sizes are numbers; under a compiler they may be symbols."""
    return all(isinstance(size, int) for size in sizes)


def cut(total: int, size: int, limit: int) -> list[tuple[int, int]]:
    """Cut ``total`` things of ``size`` bytes into pieces of nearly equal size; return where each begins and ends.

    A piece has ``limit`` bytes at most, but always at least one thing. If sizes are symbols there is one piece: a
    number of pieces would be a guard, and every other number would cause a recompilation.
    """
    if not is_known(total, size):
        return [(0, total)]
    most = max(1, limit // size if size else total)
    step = -(-total // max(1, -(-total // most)))
    return [(first, min(first + step, total)) for first in range(0, total, max(1, step))]


def blocks(
    input: Tensor, output: Pair, conv: Conv, sample_bytes: int = 0
) -> Iterator[tuple[Tensor, list[tuple[Chunk, list[Chunk]]]]]:
    """Yield images, as a view [n, H, W, C], with the chunks of their output and the pieces of each chunk.

    A chunk has one table. A sample counts with the bytes of its C / G channels, and with ``sample_bytes`` at least.
    """
    batch, channels, height, width = input.shape
    item, samples = wide_dtype(input).itemsize, output[1] * conv.taps * conv.offset_groups  # per row of the output
    table_bytes = samples * TABLE_BYTES
    column_bytes = samples * max(channels // conv.offset_groups * item, sample_bytes)
    image_bytes = Padded.of(1, (height, width)).rows * channels * item + output[0] * table_bytes
    for n0, n1 in cut(batch, image_bytes, chunk_bytes()):
        chunks = _split(Chunk(n0, n1, 0, output[0]), table_bytes)
        yield input.permute(0, 2, 3, 1)[n0:n1], [(chunk, _split(chunk, column_bytes)) for chunk in chunks]


def _split(chunk: Chunk, bytes_per_row: int) -> list[Chunk]:
    """Cut into pieces of nearly equal size that fit in ``chunk_bytes()``: whole images, or rows of one image."""
    rows = chunk.h1 - chunk.h0
    by_image = cut(chunk.n1 - chunk.n0, bytes_per_row * rows, chunk_bytes())
    by_row = cut(rows, bytes_per_row * (by_image[0][1] - by_image[0][0]), chunk_bytes())
    return [
        Chunk(chunk.n0 + n0, chunk.n0 + n1, chunk.h0 + h0, chunk.h0 + h1)
        for n0, n1 in by_image
        for h0, h1 in by_row
    ]
