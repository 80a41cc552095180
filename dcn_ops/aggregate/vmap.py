"""vmap: the mapped dimension becomes part of the batch."""

from typing import Any

import torch
from torch import Tensor


def forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """Run one call for the whole mapped dimension, as ``torch.library.register_vmap`` requires."""
    size = info.batch_size
    tensors = [_fold(tensor, dim, size) for tensor, dim in zip(args[:3], in_dims[:3], strict=True)]
    out = torch.ops.dcn_ops.deform_aggregate(*tensors, *args[3:])
    return out.unflatten(0, (size, out.shape[0] // size)), 0


def _fold(tensor: Tensor, mapped: int | None, size: int) -> Tensor:
    """Merge the mapped dimension into the batch; without one, make ``size`` copies."""
    stacked = tensor.expand(size, *tensor.shape) if mapped is None else tensor.movedim(mapped, 0)
    return stacked.flatten(0, 1)
