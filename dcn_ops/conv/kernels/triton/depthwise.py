"""Depthwise convolution, one channel per group and WIDTH filters per channel: multiply-adds, no matrix products.

Nothing is contracted over channels, so tensor cores don't help, and the reading of neighbours takes most of the
time. A program owns BLOCK_M output positions and BLOCK_C filters or channels of one offset group.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import MAP_SIZES, load_mask, locate, offset_entry, store_map_gradients
from dcn_ops.triton.primitives import (
    add_to_neighbours,
    bilinear,
    interpolate,
    load_neighbours,
    positions,
    sums_with,
)


@triton.jit(do_not_specialize=MAP_SIZES)
def forward_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    weight_ptr,  # [O, K]
    bias_ptr,  # [O]
    output_ptr,  # [N, Ho, Wo, O]
    H,
    W,
    Ho,
    Wo,
    M,
    offset_n,
    offset_c,
    offset_h,
    offset_w,
    mask_n,
    mask_c,
    mask_h,
    mask_w,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the output of one tile: BLOCK_C filters."""
    C_BLOCKS: tl.constexpr = (OFFSET_DEPTH * WIDTH + BLOCK_C - 1) // BLOCK_C
    COLUMNS: tl.constexpr = CHANNELS // OFFSET_DEPTH * C_BLOCKS
    column, block = tl.program_id(0) % COLUMNS, tl.program_id(0) // COLUMNS
    offset_group = column // C_BLOCKS
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_group = column % C_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    filter, exists = offset_group * OFFSET_DEPTH * WIDTH + in_group, in_group < OFFSET_DEPTH * WIDTH

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for tap in range(TAPS):
        entry = offset_group * TAPS + tap
        in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
        moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
        first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
        scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
        pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, filter // WIDTH, exists)
        weight = tl.load(weight_ptr + filter * TAPS + tap, mask=exists, other=0).to(tl.float32)
        total += interpolate(pixels, bilinear(dy, dx, scale)) * weight[None, :]

    if HAS_BIAS:
        total += tl.load(bias_ptr + filter, mask=exists, other=0).to(tl.float32)[None, :]
    tl.store(
        output_ptr + m[:, None] * (CHANNELS * WIDTH) + filter[None, :],
        total.to(output_ptr.dtype.element_ty),
        mask=valid[:, None] & exists[None, :],
    )


@triton.jit(do_not_specialize=MAP_SIZES)
def samples_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    weight_ptr,  # [O, K]
    grad_ptr,  # [N, Ho, Wo, O]
    grad_input_ptr,  # [N, H, W, C], float32, zeros at first
    grad_offset_ptr,  # [N, Ho, Wo, G*K*2]
    grad_mask_ptr,  # [N, Ho, Wo, G*K]
    H,
    W,
    Ho,
    Wo,
    M,
    offset_n,
    offset_c,
    offset_h,
    offset_w,
    mask_n,
    mask_c,
    mask_h,
    mask_w,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_OFFSET: tl.constexpr,
    NEED_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write or add the gradients that one tap of one offset group gives at some positions."""
    ENTRIES: tl.constexpr = CHANNELS // OFFSET_DEPTH * TAPS
    entry, block = tl.program_id(0) % ENTRIES, tl.program_id(0) // ENTRIES
    tap, group_start = entry % TAPS, entry // TAPS * OFFSET_DEPTH
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
    first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
    scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
    weights = bilinear(dy, dx, scale)

    zeros = tl.zeros([BLOCK_M], tl.float32)
    sums = (zeros, zeros, zeros, zeros)
    for step in range(0, OFFSET_DEPTH, BLOCK_C):
        in_group = step + tl.arange(0, BLOCK_C)
        channel, exists = group_start + in_group, in_group < OFFSET_DEPTH
        samples = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)  # their gradient
        for i in tl.static_range(WIDTH):
            filter = channel * WIDTH + i
            grad = tl.load(
                grad_ptr + m[:, None] * (CHANNELS * WIDTH) + filter[None, :],
                mask=valid[:, None] & exists[None, :],
                other=0,
            )
            weight = tl.load(weight_ptr + filter * TAPS + tap, mask=exists, other=0).to(tl.float32)
            samples += grad.to(tl.float32) * weight[None, :]
        if NEED_INPUT:
            add_to_neighbours(
                grad_input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, exists, samples, weights
            )
        if NEED_OFFSET or NEED_MASK:
            pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, exists)
            sums = sums_with(sums, samples, pixels)

    store_map_gradients(
        grad_offset_ptr, grad_mask_ptr, m, valid, entry, ENTRIES, sums, dy, dx, scale, NEED_OFFSET, NEED_MASK
    )


@triton.jit(do_not_specialize=MAP_SIZES)
def weight_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    grad_ptr,  # [N, Ho, Wo, O]
    parts_ptr,  # [SPLITS, K, O], float32, zeros at first
    H,
    W,
    Ho,
    Wo,
    M,
    offset_n,
    offset_c,
    offset_h,
    offset_w,
    mask_n,
    mask_c,
    mask_h,
    mask_w,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Add up the gradient of BLOCK_C filters over one part of M, which belongs to this program alone."""
    FILTERS: tl.constexpr = CHANNELS * WIDTH
    C_BLOCKS: tl.constexpr = (OFFSET_DEPTH * WIDTH + BLOCK_C - 1) // BLOCK_C
    c_block, program = tl.program_id(0) % C_BLOCKS, tl.program_id(0) // C_BLOCKS
    offset_group, split = program % (CHANNELS // OFFSET_DEPTH), program // (CHANNELS // OFFSET_DEPTH)
    in_group = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    filter, exists = offset_group * OFFSET_DEPTH * WIDTH + in_group, in_group < OFFSET_DEPTH * WIDTH
    part = parts_ptr + tl.cast(split, tl.int64) * (FILTERS * TAPS)

    blocks = (M + BLOCK_M - 1) // BLOCK_M
    share = (blocks + SPLITS - 1) // SPLITS
    for block in range(split * share, min((split + 1) * share, blocks)):
        m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
        grad = tl.load(
            grad_ptr + m[:, None] * FILTERS + filter[None, :], mask=valid[:, None] & exists[None, :], other=0
        ).to(tl.float32)
        for tap in range(TAPS):  # the pixels that taps share stay in the multiprocessor's own cache
            entry = offset_group * TAPS + tap
            in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
            moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
            first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
            scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
            pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, filter // WIDTH, exists)
            sums = tl.sum(interpolate(pixels, bilinear(dy, dx, scale)) * grad, 0)
            # One thread per filter adds block after block, so the order is the same in every run.
            tl.atomic_add(part + tap * FILTERS + filter, sums, mask=exists, sem="relaxed")
