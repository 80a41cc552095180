"""Shape algebra of a deformable convolution, shared by every implementation.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size,
kh x kw kernel, K = kh * kw taps (row-major), G offset groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pair = Sequence[int]  # (vertical, horizontal)


def empty_channels_last(like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return an empty tensor [N, C, H, W] in channels_last memory format, of the dtype and device of ``like``.

    That is the layout of outputs and of gradients of images and maps, whatever the layout of the arguments.
    """
    n, c, h, w = like.shape if shape is None else shape
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


class Conv(NamedTuple):
    """The integers of one convolution."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_groups: int

    @property
    def taps(self) -> int:
        """K, the number of taps of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def output_size(self, size: Pair) -> tuple[int, int]:
        """Return (Ho, Wo) as ``torch.nn.Conv2d`` defines it; not positive where the kernel does not fit."""
        return self._output(size, 0), self._output(size, 1)

    def _output(self, size: Pair, i: int) -> int:
        reach = self.dilation[i] * (self.kernel[i] - 1) + 1
        return (size[i] + 2 * self.padding[i] - reach) // self.stride[i] + 1

    def grid(
        self, rows: tuple[int, int], cols: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return where the plain convolution samples: ``o * stride - padding + k * dilation``.

        Args:
            rows: First output row and the one past the last.
            cols: Number of output columns, Wo.
            dtype: Floating dtype of the coordinates.
            device: Device of the result.

        Returns:
            y of shape [kh, 1, rows, 1] and x of shape [1, kw, 1, Wo], in pixels of the input.
        """
        y = self._grid(*rows, 0, dtype, device)
        x = self._grid(0, cols, 1, dtype, device)
        return y[:, None, :, None], x[None, :, None, :]

    def _grid(self, start: int, stop: int, i: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.arange(start, stop, dtype=dtype, device=device) * self.stride[i] - self.padding[i]
        tap = torch.arange(self.kernel[i], dtype=dtype, device=device) * self.dilation[i]
        return tap[:, None] + out  # [k, o]
