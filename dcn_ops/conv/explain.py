"""The implementation that a call uses, and why it doesn't use the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dcn_ops.arguments import as_pair
from dcn_ops.conv.check import check_tensors, count_groups
from dcn_ops.conv.contract import NAME
from dcn_ops.conv.kernels.registry import REGISTRY
from dcn_ops.conv.problem import make_problem
from dcn_ops.registration import has_foreign_kernel
from dcn_ops.settings import current


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What ``explain`` found; as a string, a line for each implementation.

    Attributes:
        taken: The implementation that runs; None if the call would raise.
        refused: The reasons against the others, by name, in the order in which they are asked.
    """

    taken: str | None
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name}: no, {reason}" for name, reason in self.refused.items()]
        return "\n".join([f"{self.taken}: yes" if self.taken else "the call raises an error", *lines])


def explain(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    compiled: bool = False,
) -> Explanation:
    """Return which implementation ``deform_conv2d`` uses for these arguments with the current settings.

    Args:
        input: As of ``deform_conv2d``, and so are the seven after it.
        offset: [N, G * K * 2, Ho, Wo].
        weight: [O, C / groups, kh, kw].
        bias: [O].
        stride: Vertical and horizontal stride, or one integer for both; likewise below.
        padding: Zero padding on each side.
        dilation: Distance between taps.
        mask: [N, G * K, Ho, Wo].
        compiled: Whether ``torch.compile`` compiles the call, with sizes that are no symbols.

    Raises:
        ValueError: As ``deform_conv2d``.
        TypeError: As ``deform_conv2d``.
    """
    check_tensors(input, offset, weight, bias, mask)
    pairs = as_pair("stride", stride), as_pair("padding", padding), as_pair("dilation", dilation)
    problem = make_problem(input, offset, weight, bias, mask, *pairs, *count_groups(input, offset, weight))
    if has_foreign_kernel(NAME, input.device):
        return Explanation(taken="a kernel that another library registered")
    implementation = current().implementation
    traced = compiled and not (current().whole_operators or REGISTRY.takes_native(problem))
    taken, refused = None, {}
    for kernel in REGISTRY.in_order(traced):
        reason: str | None = f"the implementation is set to {implementation!r}"
        if kernel in REGISTRY.allowed(implementation, traced):
            reason = kernel.refuses(problem)
        if reason is None and taken is None:
            taken = kernel.NAME
        else:
            refused[kernel.NAME] = reason or f"{taken} comes first"
    return Explanation(taken=taken, refused=refused)
