"""The window of a deformable aggregation: its integers, and the positions of its taps.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, kh x kw kernel, K taps (column by column),
G groups, D = C / G channels per group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.sampling.geometry import Conv, Pair


class Window(NamedTuple):
    """The numbers of one aggregation."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_scale: float
    remove_center: bool

    @property
    def taps(self) -> int:
        """K, the number of taps, without a removed centre."""
        return self.kernel_size[0] * self.kernel_size[1] - self.remove_center

    def output_size(self, size: Pair) -> tuple[int, int]:
        """Return (Ho, Wo) as ``torch.nn.Conv2d`` defines it; not positive where the kernel does not fit."""
        return Conv(self.kernel_size, self.stride, self.padding, self.dilation, 1, 1).output_size(size)

    def grid(
        self, rows: tuple[int, int], cols: int, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return tap positions without offsets: ``o * stride - padding + half + scale * (k * dilation - half)``.

        Args:
            rows: First output row and the one past the last.
            cols: Number of output columns, Wo.
            dtype: Floating dtype of the coordinates.
            device: Device of the result.

        Returns:
            y of shape [rows, K] and x of shape [Wo, K], in pixels of the input.
        """
        if self.remove_center:
            around = (0, self.taps // 2), (self.taps // 2 + 1, self.taps + 1)
            tap = torch.cat([torch.arange(*ends, dtype=dtype, device=device) for ends in around])
        else:
            tap = torch.arange(self.taps, dtype=dtype, device=device)
        # Taps go down the columns of the kernel: the transpose of deform_conv2d's order.
        column = torch.div(tap, self.kernel_size[0], rounding_mode="floor")
        row = tap - column * self.kernel_size[0]
        return self._axis(*rows, row, 0), self._axis(0, cols, column, 1)

    def _axis(self, start: int, stop: int, tap: Tensor, i: int) -> Tensor:
        half = self.dilation[i] * (self.kernel_size[i] - 1) // 2  # also for an even kernel
        out = torch.arange(start, stop, dtype=tap.dtype, device=tap.device) * self.stride[i]
        return (out + (half - self.padding[i]))[:, None] + self.offset_scale * (tap * self.dilation[i] - half)
