"""Fast composition of ATen kernels, for the CPU and for any device without kernels of its own.

1. *table*: four row indices and four weights per sample, from offset and mask;
2. *unroll*: a bag of four rows per sample gives the unrolled image (im2col with offsets);
3. *contract*: an ordinary convolution reads the unrolled image: 1x1 if dense, else with stride = kernel.

The backward keeps the inputs alone: it unrolls again for the weight, and sends the gradient of the
unrolled image through the bag's own two backwards. Work goes in chunks of output rows, so that the
unrolled image, K times the input, never stands in memory as a whole.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size, kh x kw
kernel, K = kh * kw, G offset groups, D = C / G; n and h count the images and output rows of one chunk,
R = n * H * W * G its rows and B = n * h * Wo * K * G its bags.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from dcn_ops.bags import Chunk, make_table, rows_backward, table_backward, unroll
from dcn_ops.geometry import Conv, Pair

# The unrolled chunk, in bytes, at most (one output row at least): small enough to stay near the
# last-level cache, large enough that starting threads does not show.
CHUNK_BYTES = 16 * 2**20

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, conv: Conv
) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last; the arguments are the operator's, checked."""
    size = input.shape[2:]
    ho, wo = conv.output_size(size)
    out = input.new_empty(input.shape[0], ho, wo, weight.shape[0]).permute(0, 3, 1, 2)
    dtype = _contraction_dtype(input, wo, conv)
    image, kernel = _image(input), _contraction_weight(weight, conv).to(dtype)
    bias = None if bias is None else bias.to(dtype)
    for chunk in _chunks(image, (ho, wo), conv):
        table = make_table(chunk, offset, mask, size, image.dtype, conv)
        samples = unroll(_rows(image, chunk, conv), table).to(dtype)
        unrolled = _as_image(samples, chunk, wo, conv)
        chunk.of(out).copy_(F.conv2d(unrolled, kernel, bias, _contraction_stride(conv), groups=conv.groups))
    return out


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    conv: Conv,
    needs: list[bool],
) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    need_samples = need_input or need_offset or need_mask
    image, kernel = _image(input), _contraction_weight(weight, conv)
    # The chunks of an image add up, and so do all chunks in the weight: in the wider dtype.
    grad_image = torch.zeros_like(image) if need_input else None
    grad_kernel = torch.zeros_like(kernel, dtype=image.dtype) if need_weight else None
    grad_offset = offset.new_empty(offset.shape) if need_offset else None
    grad_mask = mask.new_empty(mask.shape) if mask is not None and need_mask else None

    for chunk in _chunks(image, grad.shape[2:], conv) if need_samples or need_weight else ():
        table = make_table(chunk, offset, mask, input.shape[2:], image.dtype, conv)
        rows, grad_out = _rows(image, chunk, conv), chunk.of(grad)
        if grad_kernel is not None:
            unrolled = _as_image(unroll(rows, table).to(input.dtype), chunk, grad.shape[3], conv)
            grad_kernel += _kernel_backward(grad_out, unrolled, kernel, conv)
        if not need_samples:
            continue
        samples = _samples_backward(grad_out, kernel, conv).to(image.dtype).reshape(-1, rows.shape[1])
        if grad_image is not None:
            _rows(grad_image, chunk, conv).add_(rows_backward(samples, table, rows.shape[0]))
        if grad_offset is not None or grad_mask is not None:
            of_offset, of_mask = table_backward(samples, rows, table)
            if grad_offset is not None:
                chunk.of(grad_offset).copy_(of_offset)
            if grad_mask is not None:
                chunk.of(grad_mask).copy_(of_mask)

    return (
        None if grad_image is None else grad_image.to(input.dtype).permute(0, 3, 1, 2),
        grad_offset,
        None if grad_kernel is None else _weight_from_contraction(grad_kernel, weight).to(weight.dtype),
        grad.sum((0, 2, 3), dtype=image.dtype).to(weight.dtype) if need_bias else None,
        grad_mask,
    )


def _chunks(image: Tensor, output: Pair, conv: Conv) -> Iterator[Chunk]:
    """Cut the output into pieces whose unrolled image fits in ``CHUNK_BYTES``, evenly."""
    batch, _, _, channels = image.shape
    ho, wo = output
    if not all(isinstance(size, int) for size in (batch, ho, wo)):
        # Symbolic sizes: a number of chunks would be a guess, and every other one a recompilation.
        yield Chunk(0, batch, 0, ho)
        return
    bytes_per_row = wo * conv.taps * channels * image.element_size()
    images = _even(batch, max(1, min(batch, CHUNK_BYTES // (bytes_per_row * ho))))
    rows = _even(ho, max(1, min(ho, CHUNK_BYTES // (bytes_per_row * images))))
    for n0 in range(0, batch, images):
        for h0 in range(0, ho, rows):
            yield Chunk(n0, min(n0 + images, batch), h0, min(h0 + rows, ho))


def _even(total: int, limit: int) -> int:
    """Return a step of at most ``limit`` that cuts ``total`` into pieces of nearly one size."""
    pieces = -(-total // limit)
    return -(-total // pieces) if pieces else 1


def _image(input: Tensor) -> Tensor:
    """Return the input as [N, H, W, C], in float32 at least, so that interpolation never rounds to half."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    return input.permute(0, 2, 3, 1).to(dtype).contiguous()


def _rows(image: Tensor, chunk: Chunk, conv: Conv) -> Tensor:  # [N, H, W, C] -> [R, D]
    return image[chunk.n0 : chunk.n1].view(-1, image.shape[3] // conv.offset_groups)


# A dense convolution reads the unrolled image as [n, kh*kw*C, h, Wo], 1x1: a matrix product. With groups
# it reads [n, C, h*kh, Wo*kw], stride = kernel, for which the library has grouped and depthwise kernels.


def _as_image(samples: Tensor, chunk: Chunk, wo: int, conv: Conv) -> Tensor:  # [B, D] -> NCHW, channels_last
    (kh, kw), n, h = conv.kernel, chunk.n1 - chunk.n0, chunk.h1 - chunk.h0
    height, width = (h, wo) if conv.groups == 1 else (h * kh, wo * kw)
    return samples.view(n, height, width, -1).permute(0, 3, 1, 2)


def _contraction_weight(weight: Tensor, conv: Conv) -> Tensor:
    if conv.groups == 1:
        return weight.permute(0, 2, 3, 1).flatten(1)[:, :, None, None]  # [O, kh*kw*C, 1, 1]
    return weight.contiguous(memory_format=torch.channels_last)


def _contraction_dtype(input: Tensor, wo: int, conv: Conv) -> torch.dtype:
    # Torch 2.11 to 2.15: this bfloat16 convolution, depthwise, reads memory that nobody wrote.
    wrong = input.dtype == torch.bfloat16 and conv.groups > 1 and conv.kernel[0] == 1 and wo == 1
    return torch.float32 if wrong else input.dtype


def _weight_from_contraction(kernel: Tensor, weight: Tensor) -> Tensor:
    """Undo ``_contraction_weight``; the result is contiguous."""
    if kernel.shape != weight.shape:
        out, depth, kh, kw = weight.shape
        kernel = kernel.view(out, kh, kw, depth).permute(0, 3, 1, 2)
    return kernel.contiguous()


def _contraction_stride(conv: Conv) -> Pair:
    return (1, 1) if conv.groups == 1 else conv.kernel


def _kernel_backward(grad: Tensor, unrolled: Tensor, kernel: Tensor, conv: Conv) -> Tensor:
    stride = _contraction_stride(conv)
    return conv2d_weight(unrolled, kernel.shape, grad, stride, groups=conv.groups)


def _samples_backward(grad: Tensor, kernel: Tensor, conv: Conv) -> Tensor:  # -> [n, height, width, channels]
    # Windows don't overlap: the transposed convolution is the gradient, in the layout of the unrolled image.
    stride = _contraction_stride(conv)
    return F.conv_transpose2d(grad, kernel, stride=stride, groups=conv.groups).permute(0, 2, 3, 1)
