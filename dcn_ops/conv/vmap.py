"""vmap: the mapped dimension becomes part of the batch or, if filters are mapped, of the groups."""

from typing import Any

import torch
from torch import Tensor

# The dimension that the mapped one joins, (in the batch, in the groups), for input, offset, weight, bias, mask.
_BATCH = (0, 0, None, None, 0)
_GROUPS = (1, 1, 0, 0, 1)


def forward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """Compute the whole mapped dimension in one call, for ``torch.library.register_vmap``."""
    tensors, (stride, padding, dilation, groups, offset_groups) = args[:5], args[5:]
    size, mapped = info.batch_size, in_dims[:5]
    into_groups = mapped[2] is not None or mapped[3] is not None
    joined = _GROUPS if into_groups else _BATCH
    folded = [
        tensor if tensor is None or into is None else _fold(tensor, dim, into, size)
        for tensor, dim, into in zip(tensors, mapped, joined, strict=True)
    ]
    if into_groups:
        groups, offset_groups = groups * size, offset_groups * size
    out = torch.ops.dcn_ops.deform_conv2d(*folded, stride, padding, dilation, groups, offset_groups)
    dim = 1 if into_groups else 0
    return out.unflatten(dim, (size, out.shape[dim] // size)), dim


def _fold(tensor: Tensor, mapped: int | None, into: int, size: int) -> Tensor:
    """Merge the mapped dimension, or copies of the same number, into dimension ``into`` of the others."""
    if mapped is None:
        tensor = tensor.unsqueeze(into).expand(*tensor.shape[:into], size, *tensor.shape[into:])
    else:
        tensor = tensor.movedim(mapped, into)
    return tensor.flatten(into, into + 1)
