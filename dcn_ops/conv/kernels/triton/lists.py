"""Samples ordered by their upper left neighbour, for ``gather``: one list per neighbour.

*count* counts the samples of each list, and *order* appends each sample to its list. Atomic additions of integers
give the places, so the order within a list changes from run to run. For a fixed order *key* writes the list of each
sample; a stable sort of these gives the places, which *order* then reads.
"""

import triton
import triton.language as tl

from dcn_ops.conv.kernels.triton.primitives import MAP_SIZES, load_mask, offset_entry, place
from dcn_ops.triton.primitives import positions


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


@triton.jit(do_not_specialize=(*MAP_SIZES, "lists"))
def key_kernel(
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    key_ptr,  # [M*G*K]
    H,
    W,
    Ho,
    Wo,
    M,
    offset_n,
    offset_c,
    offset_h,
    offset_w,
    lists,
    OFFSET_GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write the list of each sample; ``lists`` for one that is in none."""
    ENTRIES: tl.constexpr = OFFSET_GROUPS * TAPS
    entry, block = tl.program_id(0) % ENTRIES, tl.program_id(0) // ENTRIES
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
    usable, top, left, _, _ = place(moved, at, valid, entry % TAPS, (H, W), WINDOW)
    own = tl.where(usable, _list_of(at, top, left, entry // TAPS, (H, W), OFFSET_GROUPS), lists)
    tl.store(key_ptr + m * ENTRIES + entry, own.to(tl.int32), mask=valid)


@triton.jit(do_not_specialize=MAP_SIZES)
def order_kernel(
    offset_ptr,  # [N, G*K*2, Ho, Wo]
    mask_ptr,  # [N, G*K, Ho, Wo]
    next_ptr,  # [1 + lists], at first the start of each list; if SORTED [M*G*K], the place of each sample
    row_ptr,  # [M*G*K], m * K + tap of each sample
    y_ptr,  # [M*G*K], its vertical position
    x_ptr,  # its horizontal position
    scale_ptr,  # its mask
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
    SORTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write each sample into its list."""
    ENTRIES: tl.constexpr = OFFSET_GROUPS * TAPS
    entry, block = tl.program_id(0) % ENTRIES, tl.program_id(0) // ENTRIES
    tap = entry % TAPS
    m, valid, at = positions(block, BLOCK_M, M, Ho, Wo)
    in_y, in_x = offset_entry(offset_ptr, (offset_n, offset_c, offset_h, offset_w), at, entry)
    moved = tl.load(in_y, mask=valid, other=0), tl.load(in_x, mask=valid, other=0)
    usable, top, left, dy, dx = place(moved, at, valid, tap, (H, W), WINDOW)
    if SORTED:
        slot = tl.load(next_ptr + m * ENTRIES + entry, mask=usable, other=0)
    else:
        own = _list_of(at, top, left, entry // TAPS, (H, W), OFFSET_GROUPS)
        slot = tl.atomic_add(next_ptr + own, 1, mask=usable, sem="relaxed")
    tl.store(row_ptr + slot, (m * TAPS + tap).to(tl.int32), mask=usable)
    tl.store(y_ptr + slot, top.to(tl.float32) + dy, mask=usable)
    tl.store(x_ptr + slot, left.to(tl.float32) + dx, mask=usable)
    if HAS_MASK:
        scale = load_mask(mask_ptr, (mask_n, mask_c, mask_h, mask_w), at, valid, entry, HAS_MASK)
        tl.store(scale_ptr + slot, scale, mask=usable)
