"""The interface between the contract and the implementations of a deformable convolution.

Legend: N batch, C input channels, O filters, H x W input size, Ho x Wo output size, kh x kw kernel,
K = kh * kw taps, G offset groups.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from dcn_ops.sampling.geometry import Conv

# Of input, offset, weight, bias and modulation mask; None for each that is not asked for.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """The arguments of a call, checked."""

    input: Tensor  # [N, C, H, W]
    offset: Tensor  # [N, G*K*2, Ho, Wo], per tap (y, x)
    weight: Tensor  # [O, C / groups, kh, kw]
    bias: Tensor | None  # [O]
    mask: Tensor | None  # [N, G*K, Ho, Wo]
    conv: Conv


class Kernel(Protocol):
    """An implementation: a module that has these names."""

    @property
    def NAME(self) -> str:
        """What ``dcn_ops.explain`` calls it."""

    @property
    def IMPLEMENTATION(self) -> str:
        """What ``dcn_ops.set_implementation`` calls it, and others of its kind."""

    @property
    def DETERMINISTIC(self) -> bool:
        """Whether the gradient of the input has the same bits in every run."""

    def refuses(self, problem: Problem, grad: Tensor | None = None) -> str | None:
        """Return why it can't run this or another is better for it; None where it takes the call."""

    def forward(self, problem: Problem) -> Tensor:
        """Return [N, O, Ho, Wo] in channels_last, in the input's dtype."""

    def backward(self, grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
        """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
