"""Functions that kernels share: locations of samples, their neighbours, and the weights of filters.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, K taps, G offset groups,
M = N * Ho * Wo output positions in row-major order; BLOCK_* are the sides of a program's tile. Images are
channels_last, [N, H, W, C]. WINDOW holds the kernel, stride, padding and dilation, each (vertical, horizontal).

Numbers that change with the image are separate arguments, because Inductor has no type for a tuple of them (torch
2.11 to 2.14: TypeError in ``signature_of``). The numbers of a layer are constants and may be a tuple.
Indices that can pass 2**31, positions times a stride, are int64 before they are multiplied.
"""

import triton
import triton.language as tl

# Sizes of maps change with every image, so Triton shall not compile separate kernels for multiples of 16.
MAP_SIZES = ("H", "W", "Ho", "Wo", "M", *(f"{name}_{axis}" for name in ("offset", "mask") for axis in "nchw"))


@triton.jit
def positions(block, BLOCK_M: tl.constexpr, M, Ho, Wo):
    """Return a block's output positions, int64, whether each exists, and its (image, row, column)."""
    m = tl.cast(block, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    line = m // Wo
    return m, m < M, (line // Ho, (line % Ho).to(tl.int32), (m % Wo).to(tl.int32))


@triton.jit
def map_entry(pointer, strides, at, entry):
    """Return pointers to entry ``entry`` of an offset or a mask, of strides (n, c, h, w), at positions ``at``."""
    pointer += at[0] * strides[0] + tl.cast(entry, tl.int64) * strides[1]
    return pointer + tl.cast(at[1], tl.int64) * strides[2] + tl.cast(at[2], tl.int64) * strides[3]


@triton.jit
def offset_entry(pointer, strides, at, entry):
    """Return pointers to the vertical and the horizontal offset of an entry at positions ``at``.

    Kernels load from them themselves: torch assumes that a function which returns addresses also writes to them.
    """
    vertical = map_entry(pointer, strides, at, 2 * tl.cast(entry, tl.int64))
    return vertical, vertical + strides[1]


@triton.jit
def load_mask(mask_ptr, strides, at, valid, entry, HAS_MASK: tl.constexpr):
    """Return the mask of an entry at positions ``at``, or 1 if there is no mask."""
    scale = tl.full(valid.shape, 1.0, tl.float32)
    if HAS_MASK:
        scale = tl.load(map_entry(mask_ptr, strides, at, entry), mask=valid, other=0).to(tl.float32)
    return scale


@triton.jit
def place(moved, at, valid, tap, size, WINDOW: tl.constexpr):
    """Return the locations of the samples of output positions ``at``, for one tap and its offsets, ``moved``.

    These are: whether a neighbour exists; row and column of the upper left neighbour, int32; the distances from it.
    ``size`` is (H, W).
    """
    # The grid is exact in float32, so a position is rounded only once.
    grid_y = at[1] * WINDOW[2] - WINDOW[4] + tap // WINDOW[1] * WINDOW[6]
    grid_x = at[2] * WINDOW[3] - WINDOW[5] + tap % WINDOW[1] * WINDOW[7]
    y, x = grid_y.to(tl.float32) + moved[0].to(tl.float32), grid_x.to(tl.float32) + moved[1].to(tl.float32)
    # False for NaN. Positions that are not finite or out of reach become -2, which has no neighbour, before the
    # conversion to integers.
    usable = valid & (y >= -1) & (y < size[0]) & (x >= -1) & (x < size[1])
    y, x = tl.where(usable, y, -2.0), tl.where(usable, x, -2.0)
    top, left = tl.floor(y), tl.floor(x)
    return usable, top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def locate(moved, at, valid, tap, size, CHANNELS: tl.constexpr, WINDOW: tl.constexpr):
    """Return the index of the upper left neighbour's first channel, int64, which of the four exist, the distances.

    See ``place``.
    """
    _, top, left, dy, dx = place(moved, at, valid, tap, size, WINDOW)
    first = ((at[0] * size[0] + top) * size[1] + left) * CHANNELS
    return first, neighbours(top, left, size[0], size[1]), dy, dx


@triton.jit
def neighbours(top, left, H, W):
    """Return which of the four neighbours exist: top left, top right, bottom left, bottom right."""
    above, below = (top >= 0) & (top < H), (top >= -1) & (top < H - 1)
    before, after = (left >= 0) & (left < W), (left >= -1) & (left < W - 1)
    return above & before, above & after, below & before, below & after


@triton.jit
def bilinear(dy, dx, scale):
    """Return the weights of the four neighbours, times ``scale``."""
    above, below = (1 - dy) * scale, dy * scale
    return above * (1 - dx), above * dx, below * (1 - dx), below * dx


@triton.jit
def load_neighbours(image_ptr, first, row_stride, CHANNELS: tl.constexpr, exist, channel, channel_exists):
    """Return the four neighbours in float32, [BLOCK_M, BLOCK_C]; ``first`` is the index of the upper left pixel."""
    pointer = image_ptr + first[:, None] + channel[None, :]
    top_left = tl.load(pointer, mask=exist[0][:, None] & channel_exists[None, :], other=0)
    top_right = tl.load(pointer + CHANNELS, mask=exist[1][:, None] & channel_exists[None, :], other=0)
    pointer += row_stride
    bottom_left = tl.load(pointer, mask=exist[2][:, None] & channel_exists[None, :], other=0)
    bottom_right = tl.load(pointer + CHANNELS, mask=exist[3][:, None] & channel_exists[None, :], other=0)
    return (
        top_left.to(tl.float32),
        top_right.to(tl.float32),
        bottom_left.to(tl.float32),
        bottom_right.to(tl.float32),
    )


@triton.jit
def interpolate(pixels, weights):
    """Return samples, [BLOCK_M, BLOCK_C], in float32."""
    samples = pixels[0] * weights[0][:, None] + pixels[1] * weights[1][:, None]
    return samples + pixels[2] * weights[2][:, None] + pixels[3] * weights[3][:, None]


@triton.jit
def load_weight(
    weight_ptr,
    filter,
    channel,
    tap,
    exists,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    MERGED: tl.constexpr,
):
    """Load a tile of weights, [O, K, DEPTH], for filters and channels that broadcast.

    If groups are merged, a tile holds several. It is zero if filter and channel belong to different groups.
    """
    if MERGED > 1:
        exists &= filter // WIDTH == channel // DEPTH
    return tl.load(weight_ptr + (filter * TAPS + tap) * DEPTH + channel % DEPTH, mask=exists, other=0)


@triton.jit
def add_to_neighbours(
    image_ptr, first, row_stride, CHANNELS: tl.constexpr, exist, channel, channel_exists, samples, weights
):
    """Add the gradient of samples, [BLOCK_M, BLOCK_C], to that of their four neighbours, atomically in float32."""
    pointer = image_ptr + first[:, None] + channel[None, :]
    for i in tl.static_range(4):
        tl.atomic_add(
            pointer + (i // 2 * row_stride + i % 2 * CHANNELS),
            samples * weights[i][:, None],
            mask=exist[i][:, None] & channel_exists[None, :],
            sem="relaxed",
        )


@triton.jit
def sums_with(sums, samples, pixels):
    """Add, per position, the products of the samples' gradient with each neighbour, summed over channels."""
    return (
        sums[0] + tl.sum(samples * pixels[0], 1),
        sums[1] + tl.sum(samples * pixels[1], 1),
        sums[2] + tl.sum(samples * pixels[2], 1),
        sums[3] + tl.sum(samples * pixels[3], 1),
    )


@triton.jit
def store_map_gradients(
    grad_offset_ptr,  # [M, 2 * ENTRIES]
    grad_mask_ptr,  # [M, ENTRIES]
    m,
    valid,
    entry,
    ENTRIES: tl.constexpr,  # G * K
    sums,
    dy,
    dx,
    scale,
    NEED_OFFSET: tl.constexpr,
    NEED_MASK: tl.constexpr,
):
    """Store the gradients of offset and mask, from those of the four bilinear weights."""
    if NEED_OFFSET:
        of_y = scale * ((sums[2] - sums[0]) * (1 - dx) + (sums[3] - sums[1]) * dx)
        of_x = scale * ((sums[1] - sums[0]) * (1 - dy) + (sums[3] - sums[2]) * dy)
        pointer = grad_offset_ptr + m * (2 * ENTRIES) + 2 * entry
        tl.store(pointer, of_y.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(pointer + 1, of_x.to(grad_offset_ptr.dtype.element_ty), mask=valid)
    if NEED_MASK:
        above, below = sums[0] * (1 - dx) + sums[1] * dx, sums[2] * (1 - dx) + sums[3] * dx
        of_mask = above * (1 - dy) + below * dy
        tl.store(grad_mask_ptr + m * ENTRIES + entry, of_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)
