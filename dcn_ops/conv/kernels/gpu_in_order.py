"""Triton kernels that add up the gradient of the input in a fixed order: for deterministic algorithms."""

from torch import Tensor

from dcn_ops.conv.kernels import gpu
from dcn_ops.conv.problem import Gradients, Problem

NAME, IMPLEMENTATION, DETERMINISTIC = "triton in order", "triton", True
forward = gpu.forward


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept what the Triton kernels accept, except grouped convolutions that are not depthwise."""
    reason = gpu.refuses(problem, grad)
    if reason is not None:
        return reason
    from dcn_ops.conv.kernels.triton import launch

    if launch.repeats(problem):
        return None
    groups, shape = problem.conv.groups, list(problem.weight.shape)
    return f"the gradient of grouped convolutions is added up atomically, got {groups=}, weight.shape={shape}"


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    from dcn_ops.conv.kernels.triton import launch

    return launch.backward(grad, problem, needs, in_order=True)
