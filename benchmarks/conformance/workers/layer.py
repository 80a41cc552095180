"""A layer around any operator with torchvision's signature; it takes and returns float32, or float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """The operator with constant weights, in a dtype of its own."""

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

    def exported(self, example: tuple[Tensor, ...], axes: tuple[int, ...]) -> torch.export.ExportedProgram:
        """Return the program of ``torch.export`` with these dynamic axes."""
        dims = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        return torch.export.export(self, example, dynamic_shapes=tuple(dims for _ in example))
