"""Backward of groups with more than one channel: one kernel for input, offset and mask, one for the weight.

*samples*: the gradient of the samples is a matrix product, [M, O] times [O, K * C]. Its tiles are used at once and
never stored. Four atomic additions per sample add it to the float32 gradient of the input. Its products with the
four neighbours, summed over channels, are the gradient of the bilinear weights, from which those of offset and mask
follow. A program owns BLOCK_M output positions, one tap and one offset group, so no other program writes the same
part of offset and mask.

*weight*: [O, M] times the samples, [M, K * C], which are sampled again. M is split into parts; the caller adds up
their float32 results in a fixed order.

``forward`` explains merged groups and segments.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import (
    MAP_SIZES,
    load_mask,
    load_weight,
    locate,
    offset_entry,
    store_map_gradients,
)
from dcn_ops.triton.primitives import (
    add_to_neighbours,
    bilinear,
    interpolate,
    load_neighbours,
    positions,
    sums_with,
)


@triton.jit(do_not_specialize=MAP_SIZES)
def samples_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    weight_ptr,  # [O, K, DEPTH]
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
    FILTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    MERGED: tl.constexpr,
    SEGMENT: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_OFFSET: tl.constexpr,
    NEED_MASK: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write or add the gradients that one tap of one offset group gives at some positions."""
    ENTRIES: tl.constexpr = CHANNELS // OFFSET_DEPTH * TAPS
    C_BLOCKS: tl.constexpr = (SEGMENT + BLOCK_C - 1) // BLOCK_C
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
    for step in range(OFFSET_DEPTH // SEGMENT * C_BLOCKS):
        segment_start = group_start + step // C_BLOCKS * SEGMENT
        in_segment = step % C_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
        channel, channel_exists = segment_start + in_segment, in_segment < SEGMENT
        group = segment_start // (MERGED * DEPTH)
        samples = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)  # their gradient
        for start in range(0, MERGED * WIDTH, BLOCK_N):
            in_group = start + tl.arange(0, BLOCK_N)
            filter, filter_exists = group * MERGED * WIDTH + in_group, in_group < MERGED * WIDTH
            grad = tl.load(
                grad_ptr + m[:, None] * FILTERS + filter[None, :],
                mask=valid[:, None] & filter_exists[None, :],
                other=0,
            )
            weight = load_weight(
                weight_ptr,
                filter[:, None],
                channel[None, :],
                tap,
                filter_exists[:, None] & channel_exists[None, :],
                DEPTH,
                WIDTH,
                TAPS,
                MERGED,
            )
            samples = tl.dot(grad, weight, samples, input_precision="tf32" if TF32 else "ieee")
        if NEED_INPUT:
            add_to_neighbours(
                grad_input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, channel_exists, samples, weights
            )
        if NEED_OFFSET or NEED_MASK:
            pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, channel_exists)
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
    parts_ptr,  # [SPLITS, O, K, DEPTH], float32; a single part may have the dtype of the weight
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
    FILTERS: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    MERGED: tl.constexpr,
    SEGMENT: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    SPLITS: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of the weights of one tap, some filters and some channels, from one part of M."""
    N_BLOCKS: tl.constexpr = (MERGED * WIDTH + BLOCK_N - 1) // BLOCK_N
    C_BLOCKS: tl.constexpr = (SEGMENT + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    # Programs that read the same positions run one after the other.
    n_block, program = program % N_BLOCKS, program // N_BLOCKS
    c_block, program = program % C_BLOCKS, program // C_BLOCKS
    segment, program = program % (CHANNELS // SEGMENT), program // (CHANNELS // SEGMENT)
    tap, split = program % TAPS, program // TAPS

    group = segment * SEGMENT // (MERGED * DEPTH)
    in_group, in_segment = n_block * BLOCK_N + tl.arange(0, BLOCK_N), c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    filter, filter_exists = group * MERGED * WIDTH + in_group, in_group < MERGED * WIDTH
    channel, channel_exists = segment * SEGMENT + in_segment, in_segment < SEGMENT
    entry = segment * SEGMENT // OFFSET_DEPTH * TAPS + tap

    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    blocks = (M + BLOCK_M - 1) // BLOCK_M
    share = (blocks + SPLITS - 1) // SPLITS
    for block in range(split * share, min((split + 1) * share, blocks)):
        m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
        in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
        moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
        first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
        scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
        pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, channel_exists)
        samples = interpolate(pixels, bilinear(dy, dx, scale))
        grad = tl.load(
            grad_ptr + m[:, None] * FILTERS + filter[None, :],
            mask=valid[:, None] & filter_exists[None, :],
            other=0,
        )
        total = tl.dot(tl.trans(grad), samples.to(grad.dtype), total, input_precision="tf32" if TF32 else "ieee")

    exists = filter_exists[:, None] & channel_exists[None, :]
    if MERGED > 1:
        exists &= filter[:, None] // WIDTH == channel[None, :] // DEPTH
    part = parts_ptr + tl.cast(split, tl.int64) * (FILTERS * TAPS * DEPTH)
    tl.store(part + (filter[:, None] * TAPS + tap) * DEPTH + channel[None, :] % DEPTH, total, mask=exists)
