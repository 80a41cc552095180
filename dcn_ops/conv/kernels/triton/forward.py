"""Forward: a matrix product, [M, K * C] times [K * C, O], whose left side is sampled on the fly.

A program owns BLOCK_M output positions and BLOCK_N filters of one group. For each tap it locates its samples once.
For each block of channels it reads four neighbours, interpolates in float32 and multiplies on tensor cores. No
columns go through memory. If BLOCK_N covers all filters, each sample is computed once.

Two forms wait for their measurement. FLAT: one loop over taps and channels, which keeps the loads of the next steps
under way from tap to tap, but locates the samples in each step. NEAR: neighbours go through the nearest cache.
Asynchronous copies of 16 bytes pass it by, so these have 8. The positions of a tile are then in strips of 8 rows,
whose samples share more pixels. With both, taps are the inner loop, because they share most.

Groups of few channels are merged, so that no side of a product is tiny: MERGED groups share a tile of weights whose
off-diagonal blocks are zero. A block of channels lies within one segment. Its width is the largest that divides
both the channels of a (merged) group and those of an offset group.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import MAP_SIZES, load_mask, load_weight, locate, offset_entry
from dcn_ops.triton.primitives import bilinear, interpolate, load_neighbours, positions, positions_in_strips


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
    FLAT: tl.constexpr,  # one loop over taps and channels
    NEAR: tl.constexpr,  # pixels are read through the nearest cache
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write the output of one tile."""
    N_BLOCKS: tl.constexpr = (MERGED * WIDTH + BLOCK_N - 1) // BLOCK_N
    C_BLOCKS: tl.constexpr = (SEGMENT + BLOCK_C - 1) // BLOCK_C
    COLUMNS: tl.constexpr = FILTERS // (MERGED * WIDTH) * N_BLOCKS
    # Tiles of the same positions run one after the other, because they read the same pixels.
    column, block = tl.program_id(0) % COLUMNS, tl.program_id(0) // COLUMNS
    group = column // N_BLOCKS
    m, valid, at = positions_in_strips(block, BLOCK_M, M, Ho, Wo) if NEAR else positions(block, BLOCK_M, M, Ho, Wo)
    in_group = column % N_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    filter, filter_exists = group * MERGED * WIDTH + in_group, in_group < MERGED * WIDTH

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for segment in range(MERGED * DEPTH // SEGMENT):
        start = group * MERGED * DEPTH + segment * SEGMENT
        for outer in range(1 if FLAT else TAPS):
            if not FLAT:
                tap = outer
                entry = start // OFFSET_DEPTH * TAPS + tap
                in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
                moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
                first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
                scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
                weights = bilinear(dy, dx, scale)
            for step in range(TAPS * C_BLOCKS if FLAT else C_BLOCKS):
                if FLAT:
                    tap = step % TAPS if NEAR else step // C_BLOCKS
                    entry = start // OFFSET_DEPTH * TAPS + tap
                    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
                    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
                    first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
                    scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
                    weights = bilinear(dy, dx, scale)
                    step = step // TAPS if NEAR else step % C_BLOCKS
                in_segment = step * BLOCK_C + tl.arange(0, BLOCK_C)
                channel, channel_exists = start + in_segment, in_segment < SEGMENT
                pixels = load_neighbours(
                    input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, channel_exists, 4 if NEAR else 0
                )
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
