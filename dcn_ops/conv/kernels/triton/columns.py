"""Dense convolutions with columns, [M, K, C], in memory, for a library's matrix products.

*unroll* writes the columns. In the backward it also multiplies their gradient with the neighbours, which gives the
gradients of offset and mask; the columns may then replace their gradient in memory. A program loops over taps, so
the pixels that taps share stay in its first cache.

A piece may have some channels of each offset group. Then the pointers to images begin at the first of them, and the
gradients of offset and mask are added up over pieces, in float32.

*gather* computes the gradient of the input from that of the columns, without atomic additions. *count* and *order*
sort the samples by their upper left neighbour. A program owns some pixels of one row and reads the samples that
have a neighbour among them. It reads two lists, because a sample lies between two rows. A matrix product adds them
up; its left side, [pixels, samples], holds the bilinear weights.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import (
    MAP_SIZES,
    load_mask,
    locate,
    offset_entry,
    place,
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


@triton.jit
def _list_of(at, top, left, offset_group, size, OFFSET_GROUPS: tl.constexpr):
    # One list per upper left neighbour: a pixel, or a place one row above or one column before the image.
    return ((at[0] * OFFSET_GROUPS + offset_group) * (size[0] + 1) + top + 1) * (size[1] + 1) + left + 1


@triton.jit(do_not_specialize=MAP_SIZES)
def count_kernel(
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    count_ptr,  # [1 + lists], zeros at first
    H,
    W,
    Ho,
    Wo,
    M,
    offset_n,
    offset_c,
    offset_h,
    offset_w,
    OFFSET_GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Count the samples of each list, in the element after the list's own."""
    entry, block = tl.program_id(0) % (OFFSET_GROUPS * TAPS), tl.program_id(0) // (OFFSET_GROUPS * TAPS)
    _, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
    usable, top, left, _, _ = place(moved, at, valid, entry % TAPS, (H, W), WINDOW)
    own = _list_of(at, top, left, entry // TAPS, (H, W), OFFSET_GROUPS)
    tl.atomic_add(count_ptr + 1 + own, 1, mask=usable, sem="relaxed")


@triton.jit(do_not_specialize=MAP_SIZES)
def order_kernel(
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    next_ptr,  # [1 + lists], at first the start of each list
    row_ptr,  # [M*G*K], m * K + tap of each sample
    x_ptr,  # [M*G*K], its horizontal position
    above_ptr,  # [M*G*K], the weight of its upper row times its mask
    below_ptr,
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
    OFFSET_GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Append each sample to its list, in any order."""
    entry, block = tl.program_id(0) % (OFFSET_GROUPS * TAPS), tl.program_id(0) // (OFFSET_GROUPS * TAPS)
    tap = entry % TAPS
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
    usable, top, left, dy, dx = place(moved, at, valid, tap, (H, W), WINDOW)
    scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
    own = _list_of(at, top, left, entry // TAPS, (H, W), OFFSET_GROUPS)
    slot = tl.atomic_add(next_ptr + own, 1, mask=usable, sem="relaxed")
    tl.store(row_ptr + slot, (m * TAPS + tap).to(tl.int32), mask=usable)
    tl.store(x_ptr + slot, left.to(tl.float32) + dx, mask=usable)
    tl.store(above_ptr + slot, (1 - dy) * scale, mask=usable)
    tl.store(below_ptr + slot, dy * scale, mask=usable)


@triton.jit(do_not_specialize=("H", "W"))
def gather_kernel(
    grad_columns_ptr,  # [M, K, G, PART]
    start_ptr,  # [1 + lists], the start of each list
    row_ptr,  # [M*G*K]
    x_ptr,
    above_ptr,
    below_ptr,
    grad_input_ptr,  # [N, H, W, C], at the first channel of the piece
    H,
    W,
    CHANNELS: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    PART: tl.constexpr,  # channels of each offset group
    BLOCK_M: tl.constexpr,  # pixels of a row
    BLOCK_N: tl.constexpr,  # samples
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of some pixels of one row, for BLOCK_C channels of one offset group."""
    OFFSET_GROUPS: tl.constexpr = CHANNELS // OFFSET_DEPTH
    C_BLOCKS: tl.constexpr = (PART + BLOCK_C - 1) // BLOCK_C
    c_block, program = tl.program_id(0) % C_BLOCKS, tl.program_id(0) // C_BLOCKS
    offset_group, program = program % OFFSET_GROUPS, program // OFFSET_GROUPS
    blocks = (W + BLOCK_M - 1) // BLOCK_M
    start, program = program % blocks * BLOCK_M, program // blocks
    row, image = program % H, (program // H).to(tl.int64)
    pixel, end = start + tl.arange(0, BLOCK_M), min(start + BLOCK_M, W)
    in_group = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    channel, exists = offset_group * OFFSET_DEPTH + in_group, in_group < PART

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for upper in tl.static_range(2):  # the samples below this row, then those below the row above
        line = ((image * OFFSET_GROUPS + offset_group) * (H + 1) + row + 1 - upper) * (W + 1)
        low, high = tl.load(start_ptr + line + start), tl.load(start_ptr + line + end + 1)
        for block in range(low, high, BLOCK_N):
            slot = block + tl.arange(0, BLOCK_N)
            valid = slot < high
            source = tl.load(row_ptr + slot, mask=valid, other=0).to(tl.int64)
            x = tl.load(x_ptr + slot, mask=valid, other=-2)
            vertical = tl.load((below_ptr if upper else above_ptr) + slot, mask=valid, other=0)
            grad = tl.load(
                grad_columns_ptr
                + source[:, None] * (OFFSET_GROUPS * PART)
                + (offset_group * PART + in_group)[None, :],
                mask=valid[:, None] & exists[None, :],
                other=0,
            )
            weights = tl.maximum(1 - tl.abs(x[None, :] - pixel[:, None]), 0) * vertical[None, :]
            rounded = weights.to(grad.dtype)
            total = tl.dot(rounded, grad, total, input_precision="ieee")
            if grad.dtype != tl.float32:  # the rounding errors of the weights
                total = tl.dot((weights - rounded.to(tl.float32)).to(grad.dtype), grad, total)
    tl.store(
        grad_input_ptr + ((image * H + row) * W + pixel)[:, None] * CHANNELS + channel[None, :],
        total.to(grad_input_ptr.dtype.element_ty),
        mask=(pixel < W)[:, None] & exists[None, :],
    )
