"""Sums of samples and their gradients. A program owns a tile of rows; locations exist only in its registers.

A row is an output position and a group. Of each position a tile holds GROUPS_EACH groups, whose channels share a
cache line, so its positions lie in one or a few lines of the image, and rows, maps and pixels are read together.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, D = C / G channels per group (DEPTH),
K taps, M = N * Ho * Wo output positions in row-major order. WINDOW holds the kernel, stride, padding and dilation,
each (vertical, horizontal), and the index of the centre if it is removed, else K.
"""

import triton
import triton.language as tl

from dcn_ops.triton.primitives import (
    add_to_neighbours,
    around,
    bilinear,
    gradients_of,
    interpolate,
    load_neighbours,
    neighbours,
    sums_with,
)

# They change with every image, so Triton shall not compile separate kernels for multiples of 16.
SIZES = ("H", "W", "Ho", "Wo", "M")


@triton.jit
def positions_from(first, step, M, Ho, Wo):
    """Return the output positions ``first + step``, int64, whether each exists, and its (image, row, column).

    Only ``first``, a single number, is divided in 64 bits, which takes many instructions.
    """
    line, column = first // Wo, (first % Wo).to(tl.int32) + step
    row = (line % Ho).to(tl.int32) + column // Wo
    m = first + step
    return m, m < M, (line // Ho + row // Ho, row % Ho, column % Wo)


@triton.jit
def locate(moved, at, valid, tap, size, CHANNELS: tl.constexpr, WINDOW: tl.constexpr, SCALE: tl.constexpr):
    """Return the index of the upper left pixel's first channel, which neighbours exist, and the distances from it.

    ``moved`` are the offsets (x, y) of a tap at output positions ``at``, where these are ``valid``. ``size`` is
    (H, W). Kernels load the offsets themselves: of a function that reads memory and returns an address, torch
    assumes that it also writes there.
    """
    if WINDOW[8] < WINDOW[0] * WINDOW[1]:
        tap += tl.cast(tap >= WINDOW[8], tl.int32)
    HALF_H: tl.constexpr = WINDOW[6] * (WINDOW[0] - 1) // 2
    HALF_W: tl.constexpr = WINDOW[7] * (WINDOW[1] - 1) // 2
    # Integers are exact in float32. Taps go down the columns of the kernel.
    down, right = tap % WINDOW[0] * WINDOW[6] - HALF_H, tap // WINDOW[0] * WINDOW[7] - HALF_W
    centre_y, centre_x = at[1] * WINDOW[2] - WINDOW[4] + HALF_H, at[2] * WINDOW[3] - WINDOW[5] + HALF_W
    y = centre_y.to(tl.float32) + SCALE * (tl.cast(down, tl.float32) + moved[1].to(tl.float32))
    x = centre_x.to(tl.float32) + SCALE * (tl.cast(right, tl.float32) + moved[0].to(tl.float32))
    _, top, left, dy, dx = around(y, x, valid, size)
    first = ((at[0] * size[0] + top) * size[1] + left) * CHANNELS
    return first, neighbours(top, left, size[0], size[1]), dy, dx


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, Ho, Wo, G*K*2]
    mask_ptr,  # [N, Ho, Wo, G*K]
    output_ptr,  # [N, Ho, Wo, C]
    H,
    W,
    Ho,
    Wo,
    M,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS_EACH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_C: tl.constexpr,  # channels
):
    """Write the sums of one tile of rows and channels, tap after tap."""
    GROUPS: tl.constexpr = CHANNELS // DEPTH
    C_BLOCKS: tl.constexpr = (DEPTH + BLOCK_C - 1) // BLOCK_C
    COLUMNS: tl.constexpr = GROUPS // GROUPS_EACH * C_BLOCKS
    column, block = tl.program_id(0) % COLUMNS, tl.program_id(0) // COLUMNS
    row = tl.arange(0, BLOCK_M)
    start = tl.cast(block, tl.int64) * (BLOCK_M // GROUPS_EACH)
    m, valid, at = positions_from(start, row // GROUPS_EACH, M, Ho, Wo)
    group = column // C_BLOCKS * GROUPS_EACH + row % GROUPS_EACH
    channel = column % C_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < DEPTH

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for tap in tl.range(0, TAPS, loop_unroll_factor=3):  # the loads of three taps are under way together
        entry = (m * GROUPS + group) * TAPS + tap
        in_x = offset_ptr + 2 * entry
        moved = tl.load(in_x, mask=valid, other=0), tl.load(in_x + 1, mask=valid, other=0)
        first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW, SCALE)
        weight = tl.load(mask_ptr + entry, mask=valid, other=0).to(tl.float32)
        own = first + group * DEPTH
        pixels = load_neighbours(input_ptr, own, W * CHANNELS, CHANNELS, exist, channel, exists)
        total += interpolate(pixels, bilinear(dy, dx, weight))
    tl.store(
        output_ptr + (m * CHANNELS + group * DEPTH)[:, None] + channel[None, :],
        total.to(output_ptr.dtype.element_ty),
        mask=valid[:, None] & exists[None, :],
    )


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, Ho, Wo, G*K*2]
    mask_ptr,  # [N, Ho, Wo, G*K]
    grad_ptr,  # [N, Ho, Wo, C]
    grad_input_ptr,  # [N, H, W, C], float32, zeros at first
    grad_offset_ptr,  # [N, Ho, Wo, G*K*2]
    grad_mask_ptr,  # [N, Ho, Wo, G*K]
    H,
    W,
    Ho,
    Wo,
    M,
    CHANNELS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUPS_EACH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_OFFSET: tl.constexpr,
    NEED_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,  # rows
    BLOCK_C: tl.constexpr,  # channels
):
    """Write or add the gradients that the samples of BLOCK_M rows give, BLOCK_M samples at a time."""
    GROUPS: tl.constexpr = CHANNELS // DEPTH
    COLUMNS: tl.constexpr = GROUPS // GROUPS_EACH
    column, block = tl.program_id(0) % COLUMNS, tl.program_id(0) // COLUMNS
    start = tl.cast(block, tl.int64) * (BLOCK_M // GROUPS_EACH)
    for step in range(TAPS):
        # A row's samples lie side by side in memory, so all taps together are read and written without gaps.
        sample = step * BLOCK_M + tl.arange(0, BLOCK_M)
        row, tap = sample // TAPS, sample % TAPS
        m, valid, at = positions_from(start, row // GROUPS_EACH, M, Ho, Wo)
        group = column * GROUPS_EACH + row % GROUPS_EACH
        entry = (m * GROUPS + group) * TAPS + tap
        in_x = offset_ptr + 2 * entry
        moved = tl.load(in_x, mask=valid, other=0), tl.load(in_x + 1, mask=valid, other=0)
        first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW, SCALE)
        weight = tl.load(mask_ptr + entry, mask=valid, other=0).to(tl.float32)
        weights, own = bilinear(dy, dx, weight), first + group * DEPTH

        zeros = tl.zeros([BLOCK_M], tl.float32)
        sums = (zeros, zeros, zeros, zeros)
        for depth in range(0, DEPTH, BLOCK_C):
            channel = depth + tl.arange(0, BLOCK_C)
            exists = channel < DEPTH
            grad = tl.load(
                grad_ptr + (m * CHANNELS + group * DEPTH)[:, None] + channel[None, :],
                mask=valid[:, None] & exists[None, :],
                other=0,
            ).to(tl.float32)
            if NEED_INPUT:
                add_to_neighbours(
                    grad_input_ptr, own, W * CHANNELS, CHANNELS, exist, channel, exists, grad, weights
                )
            if NEED_OFFSET or NEED_MASK:
                pixels = load_neighbours(input_ptr, own, W * CHANNELS, CHANNELS, exist, channel, exists)
                sums = sums_with(sums, grad, pixels)

        of_y, of_x, of_mask = gradients_of(sums, dy, dx)
        if NEED_OFFSET:
            pointer, factor = grad_offset_ptr + 2 * entry, weight * SCALE
            tl.store(pointer, (factor * of_x).to(grad_offset_ptr.dtype.element_ty), mask=valid)
            tl.store(pointer + 1, (factor * of_y).to(grad_offset_ptr.dtype.element_ty), mask=valid)
        if NEED_MASK:
            tl.store(grad_mask_ptr + entry, of_mask.to(grad_mask_ptr.dtype.element_ty), mask=valid)
