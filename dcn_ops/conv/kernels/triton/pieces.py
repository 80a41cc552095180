"""The pieces of a dense backward with columns: how much memory it may take, and how its work is cut to fit.

Images are in groups, whose samples are ordered together. A piece has the columns of one group and of some channels
of each offset group. So the gather writes each part of the image's gradient once, and the product each part of the
weight's. What is added up over pieces is small: the gradients of offset and mask over channels, that of the weight
over groups.

Legend: N batch, C channels, O filters, K taps, G offset groups, D = C / G, M output positions of all images.
"""

from functools import lru_cache
from typing import NamedTuple

# Bytes that a backward may always take, as on the CPU: less would cost small problems many launches.
LEAST = 16 * 2**20
_NARROWEST = 32  # channels of a piece, at least: half a cache line of pixels in half precision
SAMPLE_BYTES = 16  # of a sample in the lists: its row, position and mask


class Sizes(NamedTuple):
    """The numbers of a convolution that its memory depends on."""

    images: int
    channels: int
    filters: int
    groups: int
    taps: int
    offset_groups: int
    pixels: tuple[int, int]  # H, W
    positions: int  # Ho * Wo
    maps: int  # entries of offset and mask together, per tap and offset group: 2 or 3
    itemsize: int
    map_itemsize: int
    copies_weight: bool  # because its layout is not channels_last

    @property
    def weights(self) -> int:
        """The numbers in the weight."""
        return self.filters * self.taps * self.channels // self.groups

    @property
    def map_entries(self) -> int:
        """The numbers in offset and mask."""
        return self.images * self.positions * self.maps * self.taps * self.offset_groups

    def plain_bytes(self) -> int:
        """Return the bytes of a plain convolution's training: input, weight, output and their gradients."""
        height, width = self.pixels
        of_image = height * width * self.channels + self.positions * self.filters
        return 2 * self.itemsize * (self.images * of_image + self.weights)

    def map_bytes(self) -> int:
        """Return the bytes of offset, mask and their gradients."""
        return 2 * self.map_itemsize * self.map_entries


class Piece(NamedTuple):
    """The largest piece of a backward."""

    images: int  # of a group
    depth: int  # channels of each offset group


def room(sizes: Sizes) -> int:
    """Return the bytes that a backward may take: with offset, mask and their gradients 2/5 of ``plain_bytes``.

    cuDNN's convolution itself takes up to a third of them as its workspace (docs/gpu.md).
    """
    return max(LEAST, 2 * sizes.plain_bytes() // 5 - sizes.map_bytes())


def workspace(sizes: Sizes, piece: Piece) -> dict[str, int]:
    """Return the bytes of what is in memory at the same time, by name, for pieces of this size."""
    images, depth = piece
    samples = images * sizes.positions * sizes.taps * sizes.offset_groups
    lists = images * sizes.offset_groups * (sizes.pixels[0] + 1) * (sizes.pixels[1] + 1)
    share = sizes.weights * depth * sizes.offset_groups // sizes.channels
    sums = _is_narrow(sizes, piece) and sizes.map_itemsize < 4
    return {
        "columns": samples * depth * sizes.itemsize,
        "lists": samples * SAMPLE_BYTES + 4 * lists,
        "filters": 0 if _is_narrow(sizes, piece) or not sizes.copies_weight else sizes.itemsize * sizes.weights,
        "float32 maps": 4 * sizes.maps * samples if sums else 0,
        "float32 product": 4 * share,
        "float32 weight": 4 * sizes.weights if images < sizes.images else 0,
    }


def launches(sizes: Sizes, piece: Piece) -> int:
    """Return the number of kernels that a backward of such pieces launches."""
    narrow, groups = _is_narrow(sizes, piece), -(-sizes.images // piece.images)
    of_piece = 6 if narrow else 5  # filters, two products, gather, unroll, the sum of weights
    of_group = 5 + (2 if narrow and sizes.map_itemsize < 4 else 0)  # lists, and maps in their dtype
    return groups * (of_group + of_piece * (sizes.channels // sizes.offset_groups // piece.depth))


@lru_cache(1024)
def piece_of(sizes: Sizes, limit: int, whole_channels: bool = False) -> Piece:
    """Return the pieces that take the fewest launches within ``limit`` bytes; if none does, the smallest.

    Args:
        sizes: The convolution.
        limit: Bytes of ``workspace``.
        whole_channels: Whether a piece has all channels.
    """
    depth = sizes.channels // sizes.offset_groups
    depths = [depth] if whole_channels else _depths(depth)
    groups = dict.fromkeys(-(-sizes.images // parts) for parts in range(1, sizes.images + 1))
    found = [Piece(images, part) for images in groups for part in depths]
    within = [piece for piece in found if sum(workspace(sizes, piece).values()) <= limit]
    if within:
        return min(within, key=lambda piece: launches(sizes, piece))
    return min(found, key=lambda piece: sum(workspace(sizes, piece).values()))


def _is_narrow(sizes: Sizes, piece: Piece) -> bool:
    return piece.depth * sizes.offset_groups < sizes.channels


def _depths(depth: int) -> list[int]:
    """Return equal parts of the channels, whose pixels start at multiples of 16 bytes."""
    halves = (depth >> i for i in range(depth.bit_length()))
    return [depth, *(part for part in halves if _NARROWEST <= part < depth and depth % part == part % 16 == 0)]
