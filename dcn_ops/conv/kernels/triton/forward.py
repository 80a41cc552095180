"""Forward: a matrix product, [M, K * C] times [K * C, O], whose left side is sampled on the fly.

A program owns BLOCK_M output positions and BLOCK_N filters of one group. For each tap it locates its samples once.
For each block of channels it reads four neighbours, interpolates in float32 and multiplies on tensor cores. No
columns go through memory. If BLOCK_N covers all filters, each sample is computed once.

Groups of few channels are merged, so that no side of a product is tiny: MERGED groups share a tile of weights whose
off-diagonal blocks are zero. A block of channels lies within one segment. Its width is the largest that divides
both the channels of a (merged) group and those of an offset group.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import MAP_SIZES, load_mask, load_weight, locate, offset_entry
from dcn_ops.triton.primitives import bilinear, interpolate, load_neighbours, positions


@triton.jit(do_not_specialize=MAP_SIZES)
def forward_kernel(
    input_ptr,  # [N, H, W, C]
    offset_ptr,  # [N, G*K*2, Ho, Wo], any strides
    mask_ptr,  # [N, G*K, Ho, Wo], any strides
    weight_ptr,  # [O, K, DEPTH]
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
    FILTERS: tl.constexpr,
    DEPTH: tl.constexpr,  # channels of a group
    WIDTH: tl.constexpr,  # filters of a group
    MERGED: tl.constexpr,
    SEGMENT: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,  # channels of an offset group
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TF32: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the output of one tile."""
    N_BLOCKS: tl.constexpr = (MERGED * WIDTH + BLOCK_N - 1) // BLOCK_N
    COLUMNS: tl.constexpr = FILTERS // (MERGED * WIDTH) * N_BLOCKS
    # Tiles of the same positions run one after the other, because they read the same pixels.
    column, block = tl.program_id(0) % COLUMNS, tl.program_id(0) // COLUMNS
    group = column // N_BLOCKS
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_group = column % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    filter, filter_exists = group * MERGED * WIDTH + in_group, in_group < MERGED * WIDTH

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for segment in range(MERGED * DEPTH // SEGMENT):
        start = group * MERGED * DEPTH + segment * SEGMENT
        for tap in range(TAPS):
            entry = start // OFFSET_DEPTH * TAPS + tap
            in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
            moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
            first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
            scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
            weights = bilinear(dy, dx, scale)
            for step in range(0, SEGMENT, BLOCK_C):
                in_segment = step + tl.arange(0, BLOCK_C)
                channel, channel_exists = start + in_segment, in_segment < SEGMENT
                pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, channel_exists)
                weight = load_weight(
                    weight_ptr,
                    filter[None, :],
                    channel[:, None],
                    tap,
                    filter_exists[None, :] & channel_exists[:, None],
                    DEPTH,
                    WIDTH,
                    TAPS,
                    MERGED,
                )
                samples = interpolate(pixels, weights).to(weight.dtype)
                total = tl.dot(samples, weight, total, input_precision="tf32" if TF32 else "ieee")

    if HAS_BIAS:
        total += tl.load(bias_ptr + filter, mask=filter_exists, other=0).to(tl.float32)[None, :]
    tl.store(
        output_ptr + m[:, None] * FILTERS + filter[None, :],
        total.to(output_ptr.dtype.element_ty),
        mask=valid[:, None] & filter_exists[None, :],
    )
