"""Shape algebra of a deformable convolution, shared by every implementation.

Legend: N batch, C input channels, O output channels, H x W input size, Ho x Wo output size,
kh x kw kernel, K = kh * kw taps (row-major), G offset groups, n images of the current call.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

Pair = Sequence[int]  # (vertical, horizontal)
BORDER = 2  # pixels of zeros before an image: both neighbours of position -2 are zeros
_INT32_LIMIT = 2**31


def empty_channels_last(like: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return an empty tensor [N, C, H, W] in channels_last memory format, of the dtype and device of ``like``.

    Outputs and gradients of images and maps have this layout, for every layout of the arguments.
    """
    n, c, h, w = like.shape if shape is None else shape
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def wide_dtype(input: Tensor) -> torch.dtype:
    """Return the dtype of interpolation and of sums over pieces, which is never a half-precision dtype."""
    return torch.promote_types(input.dtype, torch.float32)


class Padded(NamedTuple):
    """Layout of images as rows of memory, each with a border of zeros that it shares with the next.

    A pixel is G rows, one for each offset group. Group g of pixel (y, x) of image i is row
    ``((i * (H + 2) + y + 2) * (W + 2) + x + 2) * G + g``, or ``origin + i * image + y * line + x * pixel + g``.
    """

    images: int
    height: int  # H + 2
    width: int  # W + 2
    pixel: int  # G

    @classmethod
    def of(cls, images: int, size: Pair, groups: int = 1) -> Self:
        """Return the layout of ``images`` images of ``size`` (H, W)."""
        return cls(images, size[0] + BORDER, size[1] + BORDER, groups)

    @property
    def line(self) -> int:
        """Number of rows from a pixel to the one below."""
        return self.width * self.pixel

    @property
    def image(self) -> int:
        """Number of rows from an image to the next."""
        return self.height * self.line

    @property
    def origin(self) -> int:
        """The row of the first pixel."""
        return BORDER * (self.line + self.pixel)

    @property
    def rows(self) -> int:
        """R. After the last image follow its lower border and the right neighbour of the border's last pixel."""
        return (self.images * self.height + BORDER) * self.line + BORDER * self.pixel

    @property
    def neighbours(self) -> tuple[int, int, int, int]:
        """Steps in rows from a sample's upper left neighbour to all four: top left, top right, bottom left, ..."""
        return 0, self.pixel, self.line, self.line + self.pixel

    def index_dtype(self, *counts: int) -> torch.dtype:
        """Return the narrowest integer dtype that holds every row and ``counts``."""
        largest = max((self.images + 1) * self.image, *counts)
        return torch.int32 if largest < _INT32_LIMIT else torch.int64


class Conv(NamedTuple):
    """The integers of one convolution."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_groups: int

    @property
    def taps(self) -> int:
        """K, the number of taps of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, size: Pair) -> tuple[int, int]:
        """Return (Ho, Wo) as ``torch.nn.Conv2d`` defines it; not positive where the kernel does not fit."""
        return self._output(size, 0), self._output(size, 1)

    def _output(self, size: Pair, i: int) -> int:
        reach = self.dilation[i] * (self.kernel_size[i] - 1) + 1
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
        tap = torch.arange(self.kernel_size[i], dtype=dtype, device=device) * self.dilation[i]
        return tap[:, None] + out  # [k, o]
