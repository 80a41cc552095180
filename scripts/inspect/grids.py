"""Where the pixels of a network's maps lie in the image, from the strides and paddings of the layers that ran."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .layers import input_of

Size = tuple[int, int]
_SHAPE = ("kernel_size", "stride", "dilation")
_LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # a DeformConv2d is an nn.Conv2d


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Pixel i of a map is centred on pixel ``start + stride * i`` of the image; both are (y, x)."""

    start: tuple[float, float]
    stride: tuple[float, float]

    def to_image(self, points: Tensor) -> Tensor:
        """Convert positions [..., 2] from pixels of the map to pixels of the image."""
        return points * points.new_tensor(self.stride) + points.new_tensor(self.start)

    def nearest(self, points: Tensor, size: Size) -> Tensor:
        """Return the pixels of a map of this size that lie nearest to positions [..., 2] of the image."""
        found = (points - points.new_tensor(self.start)) / points.new_tensor(self.stride)
        return (found + 0.5).floor().clamp(min=0).minimum(points.new_tensor(size) - 1)


class Grids:
    """The grids of a network's maps, by size: the first layer whose output has a size tells its grid.

    Args:
        image: Height and width of the images.
    """

    def __init__(self, image: Size) -> None:
        """Start with the image itself."""
        self.image = image
        self._known = {image: Grid(start=(0.0, 0.0), stride=(1.0, 1.0))}

    def of(self, size: Size) -> Grid:
        """Return the grid of maps of a size; if no layer told it, the one whose cells tile the image."""
        if size in self._known:
            return self._known[size]
        y, x = (image / pixels for image, pixels in zip(self.image, size, strict=True))
        return Grid(start=((y - 1) / 2, (x - 1) / 2), stride=(y, x))

    def ran(self, layer: Any, before: Size, after: Size) -> None:
        """Note a layer that turned a map of one size into one of another."""
        if after in self._known:
            return
        below = self.of(before)
        start, stride = [], []
        for axis in (0, 1):
            kernel, step, dilation = (_pair(getattr(layer, name, 1))[axis] for name in _SHAPE)
            span = dilation * (kernel - 1) + 1
            padding = _padding(layer, axis, span, step, before[axis], after[axis])
            start.append(below.start[axis] + below.stride[axis] * ((span - 1) / 2 - padding))
            stride.append(below.stride[axis] * step)
        self._known[after] = Grid(start=(start[0], start[1]), stride=(stride[0], stride[1]))


@contextmanager
def gridded(model: nn.Module, image: Size) -> Iterator[Grids]:
    """Note the grids of a network's maps while it runs on images of this size.

    Convolutions and pools tell them, padded by a number or by "same". Of a map that anything else makes (a resize,
    a merge of patches), only the size is known.
    """
    grids = Grids(image)

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        input = input_of(args, kwargs)
        if isinstance(output, Tensor) and input.dim() == output.dim() == 4:
            grids.ran(layer, (input.shape[2], input.shape[3]), (output.shape[2], output.shape[3]))

    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield grids
    finally:
        for handle in handles:
            handle.remove()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padding(layer: Any, axis: int, span: int, stride: int, before: int, after: int) -> int:
    """Return the zeros before the first pixel."""
    if not isinstance(layer.padding, str):
        padding = _pair(layer.padding)[axis]
        if getattr(layer, "ceil_mode", False) or (before + 2 * padding - span) // stride + 1 == after:
            return padding
    # "same", as TensorFlow pads: what is missing, the odd one at the end. timm's layers do so whatever they say.
    return max((after - 1) * stride + span - before, 0) // 2
