"""Triton kernels for GPUs, imported at the first call that uses them, because the operator must not need Triton."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem

NAME, IMPLEMENTATION = "triton", "triton"
DETERMINISTIC = False  # the gradient of the input is added up atomically


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept float32, float16 and bfloat16 on a GPU, if Triton is installed."""
    input, weight = problem.input, problem.weight
    if not _is_installed():
        return "Triton is not installed; pip install triton"
    if not input.is_cuda:
        return _elsewhere(input.device)
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels take float32, float16 and bfloat16, got input.dtype={input.dtype}"
    if weight.numel() >= 2**31:
        return f"Triton kernels take fewer than 2**31 weights, got weight.shape={list(weight.shape)}"
    if input.numel() == 0:
        return f"Triton kernels need an image, got input.shape={list(input.shape)}"
    return None


@cache  # without the cache a small call on the CPU would take 2 % longer
def _elsewhere(device: torch.device) -> str:
    return f"Triton kernels need a GPU, got input.device={device}; move the tensors with .cuda()"


@cache
def _is_installed() -> bool:  # torch itself requires it only on Linux
    return importlib.util.find_spec("triton") is not None


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    from dcn_ops.conv.kernels.triton import launch

    return launch.forward(problem)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    from dcn_ops.conv.kernels.triton import launch

    return launch.backward(grad, problem, needs)
