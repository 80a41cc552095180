"""A call of the operator: its tensors and its numbers, checked, and what its backward returns.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, K taps.
"""

from typing import Any, NamedTuple

from torch import Tensor

from dcn_ops.aggregate.check import check_arguments
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.geometry import Pair

# For input, offset and mask; None for each that is not needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """The arguments of a call, checked."""

    input: Tensor  # [N, H, W, C]
    offset: Tensor  # [N, Ho, Wo, G*K*2], per tap (x, y)
    mask: Tensor  # [N, Ho, Wo, G*K]
    window: Window

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """N, Ho, Wo, C."""
        n, height, width, channels = self.input.shape
        return n, *self.window.output_size((height, width)), channels


def make_problem(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    *numbers: Any,
) -> Problem:
    """Return the checked arguments of the operator, in its order.

    Raises:
        ValueError: For a rank, shape, channel count, number or device that doesn't fit the others.
        TypeError: For a layout that is not dense, or a dtype that is not floating or doesn't fit the input's.
    """
    kinds = [(tensor.shape, tensor.dtype, tensor.device, tensor.layout) for tensor in (input, offset, mask)]
    pairs = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    key = (*kinds, *pairs, *numbers)
    try:
        window = _passed.get(key)
    except TypeError:  # symbols can't be hashed
        return Problem(input, offset, mask, check_arguments(input, offset, mask, *pairs, *numbers))
    if window is None:
        window = check_arguments(input, offset, mask, *pairs, *numbers)
        if len(_passed) >= _MOST:
            _passed.clear()
        _passed[key] = window
    return Problem(input, offset, mask, window)


# Arguments that passed. Most calls repeat earlier ones, and the check takes a third of the time of a small call.
_passed: dict[Any, Window] = {}
_MOST = 1024
