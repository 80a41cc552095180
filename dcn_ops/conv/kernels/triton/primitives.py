"""Functions that the convolution's kernels share: locations of samples, and the weights of filters.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, K taps, G offset groups,
M = N * Ho * Wo output positions in row-major order; BLOCK_* are the sides of a program's tile. Images are
channels_last, [N, H, W, C]. WINDOW holds the kernel, stride, padding and dilation, each (vertical, horizontal).
"""

import triton
import triton.language as tl

from dcn_ops.triton.primitives import around, gradients_of, neighbours

# Sizes of maps change with every image, so Triton shall not compile separate kernels for multiples of 16.
MAP_SIZES = ("H", "W", "Ho", "Wo", "M", *(f"{name}_{axis}" for name in ("offset", "mask") for axis in "nchw"))


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

    ``size`` is (H, W). See ``around``.
    """
    # The grid is exact in float32, so a position is rounded only once.
    grid_y = at[1] * WINDOW[2] - WINDOW[4] + tap // WINDOW[1] * WINDOW[6]
    grid_x = at[2] * WINDOW[3] - WINDOW[5] + tap % WINDOW[1] * WINDOW[7]
    y, x = grid_y.to(tl.float32) + moved[0].to(tl.float32), grid_x.to(tl.float32) + moved[1].to(tl.float32)
    return around(y, x, valid, size)


@triton.jit
def locate(moved, at, valid, tap, size, CHANNELS: tl.constexpr, WINDOW: tl.constexpr):
    """Return the index of the upper left neighbour's first channel, int64, which of the four exist, the distances.

    See ``place``.
    """
    _, top, left, dy, dx = place(moved, at, valid, tap, size, WINDOW)
    first = ((at[0] * size[0] + top) * size[1] + left) * CHANNELS
    return first, neighbours(top, left, size[0], size[1]), dy, dx


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
    ADD: tl.constexpr = False,
):
    """Store or add the gradients of offset and mask, from those of the four bilinear weights."""
    of_y, of_x, of_mask = gradients_of(sums, dy, dx)
    of_y, of_x = scale * of_y, scale * of_x
    if NEED_OFFSET:
        pointer = grad_offset_ptr + m * (2 * ENTRIES) + 2 * entry
        if ADD:
            of_y += tl.load(pointer, mask=valid, other=0)
            of_x += tl.load(pointer + 1, mask=valid, other=0)
        tl.store(pointer, of_y.to(grad_offset_ptr.dtype.element_ty), mask=valid)
        tl.store(pointer + 1, of_x.to(grad_offset_ptr.dtype.element_ty), mask=valid)
    if NEED_MASK:
        pointer = grad_mask_ptr + m * ENTRIES + entry
        if ADD:
            of_mask += tl.load(pointer, mask=valid, other=0)
        tl.store(pointer, of_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)
