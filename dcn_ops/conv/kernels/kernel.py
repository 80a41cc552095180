"""The interface between the contract and the implementations of a deformable convolution.

Legend: N batch, O filters, Ho x Wo output size.
"""

from typing import Protocol

from torch import Tensor

from dcn_ops.conv.problem import Problem

# Of input, offset, weight, bias and modulation mask; None for each that is not asked for.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


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
