"""The contraction of columns with filters: a 1x1 or a strided convolution, or a matrix product.

A dense convolution reads the columns as [n, G*K*D, h, Wo]. With groups, an ordinary convolution whose stride is its
kernel size reads them as [n, C, h*kh, Wo*kw], because torch has fast grouped kernels for that.

Legend: C input channels, O filters, kh x kw kernel, K = kh * kw, G offset groups, D = C / G, Wo output columns, n
images and h output rows of the current chunk, S samples and M output positions there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from dcn_ops.sampling.geometry import Conv
from dcn_ops.sampling.pieces import Chunk
from dcn_ops.sampling.table import AS_IMAGE, BY_POSITION
from dcn_ops.torch_internals.cpu import has_fast_half

_LARGE = 2**18  # with more filter elements, the 1x1 convolution reorders them for longer than it saves


class Contraction:
    """The contraction of one convolution, and its gradients.

    Attributes:
        dtype: Dtype of the computation.
        order: Memory order of the samples that it needs as columns.
    """

    def __init__(self, weight: Tensor, conv: Conv) -> None:
        self.conv, self._weight = conv, weight
        self.order = BY_POSITION if conv.groups == 1 else AS_IMAGE
        self.dtype = _dtype(weight, conv)
        self._filters = _as_filters(weight.to(self.dtype), conv)

    def columns(self, samples: Tensor, chunk: Chunk, wo: int) -> Tensor:  # [S, D] -> NCHW, channels_last
        """Return the columns of a chunk."""
        (kh, kw), n, h = self.conv.kernel_size, chunk.n1 - chunk.n0, chunk.h1 - chunk.h0
        height, width = (h, wo) if self.conv.groups == 1 else (h * kh, wo * kw)
        return samples.to(self.dtype).view(n, height, width, -1).permute(0, 3, 1, 2)

    def forward(self, columns: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output, [n, O, h, Wo]."""
        conv, filters = self.conv, self._filters
        if conv.groups > 1:
            return F.conv2d(columns, filters, bias, conv.kernel_size, groups=conv.groups)
        if filters.numel() < _LARGE:
            return F.conv2d(columns, filters, bias)
        return F.linear(columns.permute(0, 2, 3, 1), filters.flatten(1), bias).permute(0, 3, 1, 2)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient of the output, [n, O, h, Wo], as the next methods take it."""
        grad = grad.to(self.dtype)
        return _well_strided(grad) if self.conv.groups > 1 else grad

    def samples_backward(self, grad: Tensor) -> Tensor:  # -> [n, height, width, channels]
        """Return the gradient of the samples."""
        conv, filters = self.conv, self._filters
        if conv.groups == 1:
            return grad.permute(0, 2, 3, 1) @ filters.flatten(1)
        # Windows don't overlap, so the transposed convolution is the gradient, in the layout of the columns.
        samples = F.conv_transpose2d(grad, filters, stride=conv.kernel_size, groups=conv.groups)
        return samples.permute(0, 2, 3, 1)

    def no_gradient(self, dtype: torch.dtype) -> Tensor:
        """Return zeros for ``add_gradient``."""
        shape = self._filters.shape[:2] if self.conv.groups == 1 else self._filters.shape
        return self._filters.new_zeros(shape, dtype=dtype)

    def add_gradient(self, total: Tensor, grad: Tensor, columns: Tensor) -> None:
        """Add a chunk's gradient of the filters."""
        conv = self.conv
        if conv.groups > 1:
            total += conv2d_weight(columns, total.shape, grad, conv.kernel_size, groups=conv.groups)
            return
        columns, grad = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (columns, grad))  # [M, G*K*D], [M, O]
        if total.dtype == columns.dtype:
            total.addmm_(grad.T, columns)
        else:
            total += grad.T @ columns

    def weight_gradient(self, total: Tensor) -> Tensor:
        """Return the gradient of the weight, contiguous, from the sum of ``add_gradient``."""
        weight, conv = self._weight, self.conv
        if conv.groups == 1:
            by_tap = total.view(weight.shape[0], conv.offset_groups, *conv.kernel_size, -1)  # [O, G, kh, kw, D]
            total = by_tap.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return total.to(weight.dtype).contiguous()


def _dtype(weight: Tensor, conv: Conv) -> torch.dtype:
    if weight.device.type != "cpu" or weight.dtype not in (torch.bfloat16, torch.float16):
        return weight.dtype
    # Matrix units don't help grouped convolutions: with AMX, depthwise bfloat16 takes up to five times as long as
    # float32. And in torch 2.11 to 2.15 one of those convolutions, 1xk with one output column, reads
    # unwritten memory.
    return weight.dtype if conv.groups == 1 and has_fast_half(weight.dtype) else torch.float32


def _as_filters(weight: Tensor, conv: Conv) -> Tensor:
    if conv.groups > 1:
        return _well_strided(weight)
    by_group = weight.unflatten(1, (conv.offset_groups, -1))  # [O, G, D, kh, kw]
    return by_group.permute(0, 1, 3, 4, 2).flatten(1)[:, :, None, None]  # [O, G*K*D, 1, 1]


def _well_strided(tensor: Tensor) -> Tensor:
    """Return [N, C, H, W] in channels_last, with the usual strides also for dimensions of size 1.

    ``contiguous()`` keeps an unusual stride of such a dimension, because no element depends on it. But torch's
    convolutions derive the memory format from these strides, and then give wrong results.
    """
    rows = tensor.permute(0, 2, 3, 1)
    return rows.flatten().view(rows.shape).permute(0, 3, 1, 2)
