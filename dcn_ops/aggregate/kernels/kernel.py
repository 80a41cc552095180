"""The interface between the contract and the implementations of a deformable aggregation.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, K taps.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from dcn_ops.aggregate.window import Window

# Of input, offset and mask; None for each that is not asked for.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Problem(NamedTuple):
    """The arguments of a call, checked."""

    input: Tensor  # [N, H, W, C]
    offset: Tensor  # [N, Ho, Wo, G*K*2], per tap (x, y)
    mask: Tensor  # [N, Ho, Wo, G*K]
    window: Window


class Kernel(Protocol):
    """An implementation: a module that has these names."""

    @property
    def NAME(self) -> str:
        """What messages call it."""

    @property
    def IMPLEMENTATION(self) -> str:
        """What ``dcn_ops.set_implementation`` calls it, and others of its kind."""

    @property
    def DETERMINISTIC(self) -> bool:
        """Whether the gradient of the input has the same bits in every run."""

    def refuses(self, problem: Problem, grad: Tensor | None = None) -> str | None:
        """Return why it can't run this or another is better for it; None where it takes the call."""

    def forward(self, problem: Problem) -> Tensor:
        """Return [N, Ho, Wo, C], contiguous, in the input's dtype."""

    def backward(self, grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
        """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out."""
