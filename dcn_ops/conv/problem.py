"""A call of the operator: its tensors and its integers, checked, and what its backward returns.

Legend: N batch, C input channels, O filters, H x W input size, Ho x Wo output size, kh x kw kernel,
K = kh * kw taps, G offset groups.
"""

from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from dcn_ops.conv.check import check_arguments
from dcn_ops.sampling.geometry import Conv, Pair

# For input, offset, weight, bias and modulation mask; None for each that is not needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """The arguments of a call, checked."""

    input: Tensor  # [N, C, H, W]
    offset: Tensor  # [N, G*K*2, Ho, Wo], per tap (y, x)
    weight: Tensor  # [O, C / groups, kh, kw]
    bias: Tensor | None  # [O]
    mask: Tensor | None  # [N, G*K, Ho, Wo]
    conv: Conv

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """N, O, Ho, Wo."""
        return self.input.shape[0], self.weight.shape[0], *self.conv.output_size(self.input.shape[2:])


def make_problem(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
) -> Problem:
    """Return the checked arguments of the operator, in its order.

    Raises:
        ValueError: For a rank, shape, channel count, integer or device that doesn't fit the others.
        TypeError: For a layout that is not dense, or a dtype that is not floating or doesn't fit the input's.
    """
    kinds = tuple(
        [
            None if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.layout)
            for tensor in (input, offset, weight, bias, mask)
        ]
    )
    pairs = tuple(stride), tuple(padding), tuple(dilation)
    try:
        conv = _check_once(kinds, pairs, groups, offset_groups)
    except TypeError:  # symbols can't be hashed; an error of the check is raised again below
        conv = None
    if conv is None:
        conv = check_arguments(kinds, pairs, groups, offset_groups)
    return Problem(input, offset, weight, bias, mask, conv)


# It remembers arguments that passed. Most calls repeat earlier arguments, and a small call takes only ten times as
# long as a check.
_check_once = lru_cache(1024)(check_arguments)
