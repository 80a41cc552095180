"""Functions that kernels of all operators share: neighbours of samples, interpolation, and its gradients.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, M = N * Ho * Wo output positions in row-major
order; BLOCK_* are the sides of a program's tile. Images are channels_last, [N, H, W, C].

Numbers that change with the image are separate arguments, because Inductor has no type for a tuple of them (torch
2.11 to 2.14: TypeError in ``signature_of``). The numbers of a layer are constants and may be a tuple.
Indices that can pass 2**31, positions times a stride, are int64 before they are multiplied.
"""

import triton
import triton.language as tl


@triton.jit
def positions(block, BLOCK_M: tl.constexpr, M, Ho, Wo):
    """Return a block's output positions, int64, whether each exists, and its (image, row, column)."""
    m = tl.cast(block, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    line = m // Wo
    return m, m < M, (line // Ho, (line % Ho).to(tl.int32), (m % Wo).to(tl.int32))


@triton.jit
def positions_in_strips(block, BLOCK_M: tl.constexpr, M, Ho, Wo):
    """Return what ``positions`` does, in another order: strips of 8 rows, column by column."""
    index = tl.cast(block, tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    image, inside = index // (Ho * Wo), (index % (Ho * Wo)).to(tl.int32)
    strip, inside = inside // (8 * Wo), inside % (8 * Wo)
    height = tl.minimum(Ho - 8 * strip, 8)
    row, column = 8 * strip + inside % height, inside // height
    return (image * Ho + row) * Wo + column, index < M, (image, row, column)


@triton.jit
def around(y, x, valid, size):
    """Return what lies around samples at rows ``y`` and columns ``x``, float32, of images of ``size`` (H, W).

    These are: whether a neighbour exists; row and column of the upper left neighbour, int32; the distances from it.
    """
    # False for NaN. Positions that are not finite or out of reach become -2, which has no neighbour, before the
    # conversion to integers.
    usable = valid & (y >= -1) & (y < size[0]) & (x >= -1) & (x < size[1])
    y, x = tl.where(usable, y, -2.0), tl.where(usable, x, -2.0)
    top, left = tl.floor(y), tl.floor(x)
    return usable, top.to(tl.int32), left.to(tl.int32), y - top, x - left


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
def load_neighbours(
    image_ptr,
    first,
    row_stride,
    CHANNELS: tl.constexpr,
    exist,
    channel,
    channel_exists,
    VECTOR: tl.constexpr = 0,
):
    """Return the four neighbours in float32, [BLOCK_M, BLOCK_C]; ``first`` is the index of the upper left pixel.

    If VECTOR is not 0, a load reads at most so many channels.
    """
    pointer = image_ptr + first[:, None] + channel[None, :]
    if VECTOR:
        pointer = tl.max_contiguous(pointer, [1, VECTOR])
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
def gradients_of(sums, dy, dx):
    """Return the gradients of row, column and weight of samples, from those of the four bilinear weights.

    That of row and column is for a weight of 1.
    """
    of_y = (sums[2] - sums[0]) * (1 - dx) + (sums[3] - sums[1]) * dx
    of_x = (sums[1] - sums[0]) * (1 - dy) + (sums[3] - sums[2]) * dy
    above, below = sums[0] * (1 - dx) + sums[1] * dx, sums[2] * (1 - dx) + sums[3] * dx
    return of_y, of_x, above * (1 - dy) + below * dy
