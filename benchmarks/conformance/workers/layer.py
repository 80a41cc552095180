"""A layer around any operator with torchvision's signature, and a block of a network with it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Exported(nn.Module):
    """A module for ``torch.export``."""

    def exported(self, example: tuple[Tensor, ...], axes: tuple[int, ...]) -> torch.export.ExportedProgram:
        """Return the program of ``torch.export`` with these dynamic axes."""
        dims = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        return torch.export.export(self, example, dynamic_shapes=tuple(dims for _ in example))


class Layer(Exported):
    """The operator with constant weights, in a dtype of its own; it takes and returns float32, or float64."""

    def __init__(self, operator: Callable[..., Tensor], tensors: dict[str, Any], about: Any, dtype: str) -> None:
        super().__init__()
        self.operator, self.dtype = operator, getattr(torch, dtype)
        self.integers = [tuple(about[name]) for name in ("stride", "padding", "dilation")]
        for name in ("weight", "bias"):
            value = tensors.get(name)
            tensor = None if value is None else torch.as_tensor(value).to(self.dtype)
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [N, O, Ho, Wo] for x [N, C, H, W], offset [N, G*K*2, Ho, Wo] and mask [N, G*K, Ho, Wo]."""
        stride, padding, dilation = self.integers
        cast = [None if t is None else t.to(self.dtype) for t in (x, offset, mask)]
        out = self.operator(cast[0], cast[1], self.weight, self.bias, stride, padding, dilation, cast[2])
        return out.to(x.dtype)


class Block(Exported):
    """A bottleneck of ResNet: 1x1, 3x3, 1x1; its 3x3 convolution is deformable, or plain without an operator."""

    def __init__(self, operator: Callable[..., Tensor] | None, tensors: dict[str, Any]) -> None:
        super().__init__()
        self.operator = operator
        for name in ("first", "predictor", "weight", "last"):
            self.register_buffer(name, torch.as_tensor(tensors[name]))

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, H, W]
        """Return what the block makes of an image."""
        inner = F.conv2d(x, self.first).relu()
        if self.operator is None:
            inner = F.conv2d(inner, self.weight, padding=1)
        else:
            predicted = F.conv2d(inner, self.predictor, padding=1)  # [N, 27, H, W]: 18 offsets, 9 masks
            offset, mask = predicted[:, :18], 2 * predicted[:, 18:].sigmoid()
            inner = self.operator(inner, offset, self.weight, None, (1, 1), (1, 1), (1, 1), mask)
        return (x + F.conv2d(inner.relu(), self.last)).relu()
