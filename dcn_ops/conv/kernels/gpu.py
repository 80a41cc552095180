"""Triton kernels for GPUs, imported at the first call that uses them, because the operator must not need Triton."""

from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.triton.support import unsupported

NAME, IMPLEMENTATION = "triton", "triton"
DETERMINISTIC = False  # the gradient of the input is added up in an order that changes


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept float32, float16 and bfloat16 on a GPU, if Triton is installed."""
    weight = problem.weight
    if weight.numel() >= 2**31:
        return f"Triton kernels take fewer than 2**31 weights, got weight.shape={list(weight.shape)}"
    return unsupported(problem.input)


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    from dcn_ops.conv.kernels.triton import launch

    return launch.forward(problem)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    from dcn_ops.conv.kernels.triton import launch

    return launch.backward(grad, problem, needs)
