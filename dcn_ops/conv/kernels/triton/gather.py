"""The gradient of the input without atomic additions: a program reads all samples that touch its pixels.

A program owns ROWS rows of LENGTH pixels, of one offset group. A sample lies between two rows, so the program reads
the lists of ROWS + 1 rows (``lists`` orders the samples). A matrix product adds them up. Its left side,
[pixels, samples], holds the bilinear weights, and its right side the gradient of the samples. That is the gradient
of the columns or, for depthwise convolutions, the product of the gradient of the output with the filters.

Factors in half precision are sums of a rounded number and the rounded rest, so the products are those of float32 up
to 2**-16. A sample whose gradient is not finite would reach all pixels of the program, as zero times infinity.
Where the sums are not finite they are computed again, sample by sample.

The time grows with the samples of the pixels of one program, of which there may be any number.
"""

import triton
import triton.language as tl


@triton.jit
def _samples(
    grad_ptr,
    weight_ptr,
    source,
    channel,
    exists,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    TAPS: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    NEAR: tl.constexpr,
):
    """Return the gradient of samples, m * K + tap, where they exist: of the columns, or in float32 if depthwise."""
    if DEPTHWISE:
        m, tap = (source // TAPS).to(tl.int64), source % TAPS
        samples = tl.zeros(exists.shape, tl.float32)
        for i in tl.static_range(WIDTH):
            filter = channel * WIDTH + i
            of_grad, of_weight = m * (CHANNELS * WIDTH) + filter, tap * (CHANNELS * WIDTH) + filter
            if NEAR and WIDTH == 1:
                # Copies of 8 bytes: those of 16 pass the nearest cache by, where taps share gradients and filters.
                of_grad, of_weight = tl.max_contiguous(of_grad, [1, 4]), tl.max_contiguous(of_weight, [1, 4])
            grad = tl.load(grad_ptr + of_grad, mask=exists, other=0)
            weight = tl.load(weight_ptr + of_weight, mask=exists, other=0)
            samples += grad.to(tl.float32) * weight.to(tl.float32)
    else:
        samples = tl.load(grad_ptr + source.to(tl.int64) * CHANNELS + channel, mask=exists, other=0)
    return samples


@triton.jit
def _shares(y, x, scale, pixel_y, pixel_x):
    """Return the bilinear weights, times ``scale``, of samples at the pixels."""
    return tl.maximum(1 - tl.abs(y - pixel_y), 0) * tl.maximum(1 - tl.abs(x - pixel_x), 0) * scale


@triton.jit
def _add_products(total, shares, samples, DEPTHWISE: tl.constexpr, HALF: tl.constexpr):
    """Return ``total`` + shares @ samples."""
    if HALF:
        # The product of gradient and filter is new, and may pass the range of float16.
        dtype: tl.constexpr = tl.bfloat16 if DEPTHWISE else samples.dtype
        rounded, whole = shares.to(dtype), samples.to(dtype)
        total = tl.dot(rounded, whole, total)
        total = tl.dot((shares - rounded.to(tl.float32)).to(dtype), whole, total)
        if DEPTHWISE:
            total = tl.dot(rounded, (samples - whole.to(tl.float32)).to(dtype), total)
    else:
        total = tl.dot(shares, samples, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=("H", "W"))
def gather_kernel(
    grad_ptr,  # [M, K, G, PART] of the columns, or [N, Ho, Wo, O] if DEPTHWISE
    weight_ptr,  # [K, O], if DEPTHWISE
    start_ptr,  # [1 + lists], the start of each list
    row_ptr,  # [M*G*K]
    y_ptr,
    x_ptr,
    scale_ptr,
    grad_input_ptr,  # [N, H, W, C], at the first channel of the piece
    H,
    W,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    OFFSET_DEPTH: tl.constexpr,
    PART: tl.constexpr,  # channels of each offset group
    TAPS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    DEPTHWISE: tl.constexpr,
    HALF: tl.constexpr,
    LENGTH: tl.constexpr,  # pixels of a row
    NEAR: tl.constexpr,  # gradients and filters are read through the nearest cache, if DEPTHWISE
    BLOCK_M: tl.constexpr,  # pixels
    BLOCK_N: tl.constexpr,  # samples
    BLOCK_C: tl.constexpr,
):
    """Write the gradient of some pixels, for BLOCK_C channels of one offset group."""
    OFFSET_GROUPS: tl.constexpr = CHANNELS // OFFSET_DEPTH
    COLUMNS: tl.constexpr = OFFSET_GROUPS * PART
    C_BLOCKS: tl.constexpr = (PART + BLOCK_C - 1) // BLOCK_C
    ROWS: tl.constexpr = BLOCK_M // LENGTH
    c_block, program = tl.program_id(0) % C_BLOCKS, tl.program_id(0) // C_BLOCKS
    offset_group, program = program % OFFSET_GROUPS, program // OFFSET_GROUPS
    across, down = (W + LENGTH - 1) // LENGTH, (H + ROWS - 1) // ROWS
    left, program = program % across * LENGTH, program // across
    top, image = program % down * ROWS, (program // down).to(tl.int64)
    right, bottom = min(left + LENGTH, W), min(top + ROWS, H)
    row, column = top + tl.arange(0, BLOCK_M) // LENGTH, left + tl.arange(0, BLOCK_M) % LENGTH
    pixel_y, pixel_x = row.to(tl.float32), column.to(tl.float32)
    in_group = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    channel, exists = offset_group * OFFSET_DEPTH + in_group, in_group < PART
    stored_channel = channel  # of the columns
    if PART < OFFSET_DEPTH:
        stored_channel = offset_group * PART + in_group
    # The lists of a row of samples lie side by side. The first row is above the image.
    lists = start_ptr + (image * OFFSET_GROUPS + offset_group) * (H + 1) * (W + 1)

    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for line in range(top, bottom + 1):
        first, end = tl.load(lists + line * (W + 1) + left), tl.load(lists + line * (W + 1) + right + 1)
        for block in range(first, end, BLOCK_N):
            slot = block + tl.arange(0, BLOCK_N)
            valid = slot < end
            source = tl.load(row_ptr + slot, mask=valid, other=0)
            y = tl.load(y_ptr + slot, mask=valid, other=-2)
            x = tl.load(x_ptr + slot, mask=valid, other=-2)
            scale = tl.full([BLOCK_N], 1, tl.float32)
            if HAS_MASK:
                scale = tl.load(scale_ptr + slot, mask=valid, other=0)
            stored = valid[:, None] & exists[None, :]
            samples = _samples(
                grad_ptr,
                weight_ptr,
                source[:, None],
                stored_channel[None, :],
                stored,
                COLUMNS,
                WIDTH,
                TAPS,
                DEPTHWISE,
                NEAR,
            )
            shares = _shares(y[None, :], x[None, :], scale[None, :], pixel_y[:, None], pixel_x[:, None])
            total = _add_products(total, shares, samples, DEPTHWISE, HALF)

    infinite = tl.max(tl.max((total - total != 0).to(tl.int32), 1), 0)
    if infinite > 0:
        total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
        for line in range(top, bottom + 1):
            first, end = tl.load(lists + line * (W + 1) + left), tl.load(lists + line * (W + 1) + right + 1)
            for slot in range(first, end):
                source, y, x = tl.load(row_ptr + slot), tl.load(y_ptr + slot), tl.load(x_ptr + slot)
                scale = 1.0
                if HAS_MASK:
                    scale = tl.load(scale_ptr + slot)
                samples = _samples(
                    grad_ptr, weight_ptr, source, stored_channel, exists, COLUMNS, WIDTH, TAPS, DEPTHWISE, False
                ).to(tl.float32)
                touches = (tl.abs(y - pixel_y) < 1) & (tl.abs(x - pixel_x) < 1)
                shares = _shares(y, x, scale, pixel_y, pixel_x)
                total += tl.where(touches[:, None], shares[:, None] * samples[None, :], 0)
    tl.store(
        grad_input_ptr + ((image * H + row) * W + column)[:, None] * CHANNELS + channel[None, :],
        total.to(grad_input_ptr.dtype.element_ty),
        mask=((row < H) & (column < W))[:, None] & exists[None, :],
    )
