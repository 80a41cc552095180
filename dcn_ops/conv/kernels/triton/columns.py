"""Dense convolutions with columns, [M, K, C], in memory, for a library's matrix products.

*unroll* writes the columns. In the backward it also multiplies their gradient with the neighbours, which gives the
gradients of offset and mask; the columns may then replace their gradient in memory. A program loops over taps, so
the pixels that taps share stay in its first cache. ``gather`` computes the gradient of the input.

A piece may have some channels of each offset group. Then the pointers to images begin at the first of them, and the
gradients of offset and mask are added up over pieces, in float32.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import (
    MAP_SIZES,
    load_mask,
    locate,
    offset_entry,
    store_map_gradients,
)
from dcn_ops.triton.primitives import bilinear, interpolate, load_neighbours, positions, sums_with


@triton.jit(do_not_specialize=MAP_SIZES)
def unroll_kernel(
    input_ptr,  # [N, H, W, C], at the first channel of the piece
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    columns_ptr,  # [M, K, G, PART]: first the gradient, if offset or mask needs it; afterwards the columns
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
    OFFSET_DEPTH: tl.constexpr,
    PART: tl.constexpr,  # channels of each offset group
    TAPS: tl.constexpr,
    TAPS_EACH: tl.constexpr,  # per program
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    NEED_COLUMNS: tl.constexpr,
    NEED_OFFSET: tl.constexpr,
    NEED_MASK: tl.constexpr,
    ADD_MAPS: tl.constexpr,  # to the gradients of offset and mask
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Write columns or gradients of some taps of one offset group at some positions."""
    WIDTH: tl.constexpr = CHANNELS // OFFSET_DEPTH * PART
    ENTRIES: tl.constexpr = CHANNELS // OFFSET_DEPTH * TAPS
    SHARES: tl.constexpr = (TAPS + TAPS_EACH - 1) // TAPS_EACH
    share, program = tl.program_id(0) % SHARES, tl.program_id(0) // SHARES
    offset_group, block = program % (CHANNELS // OFFSET_DEPTH), program // (CHANNELS // OFFSET_DEPTH)
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    for tap in range(share * TAPS_EACH, min((share + 1) * TAPS_EACH, TAPS)):
        entry = offset_group * TAPS + tap
        in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
        moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
        first, exist, dy, dx = locate(moved, at, valid, tap, (H, W), CHANNELS, WINDOW)
        scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
        weights = bilinear(dy, dx, scale)
        zeros = tl.zeros([BLOCK_M], tl.float32)
        sums = (zeros, zeros, zeros, zeros)
        for step in range(0, PART, BLOCK_C):
            in_group = step + tl.arange(0, BLOCK_C)
            channel, exists = offset_group * OFFSET_DEPTH + in_group, in_group < PART
            pixels = load_neighbours(input_ptr, first, W * CHANNELS, CHANNELS, exist, channel, exists)
            element = (m[:, None] * TAPS + tap) * WIDTH + (offset_group * PART + in_group)[None, :]
            stored = valid[:, None] & exists[None, :]
            if NEED_OFFSET or NEED_MASK:
                grad = tl.load(columns_ptr + element, mask=stored, other=0).to(tl.float32)
                sums = sums_with(sums, grad, pixels)
            if NEED_COLUMNS:
                samples = interpolate(pixels, weights)
                tl.store(columns_ptr + element, samples.to(columns_ptr.dtype.element_ty), mask=stored)
        store_map_gradients(
            grad_offset_ptr,
            grad_mask_ptr,
            m,
            valid,
            entry,
            ENTRIES,
            sums,
            dy,
            dx,
            scale,
            NEED_OFFSET,
            NEED_MASK,
            ADD_MAPS,
        )
