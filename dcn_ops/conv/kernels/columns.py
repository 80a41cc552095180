"""The composition of ATen kernels for eager calls, on the CPU and on devices without a kernel of ours.

``unroll`` describes the steps. This module writes results in place.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_ops.conv.kernels import unroll
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.bags import eager_weight_backward, padded_rows, scatter, scatter_onto
from dcn_ops.sampling.geometry import empty_channels_last
from dcn_ops.sampling.pieces import Chunk

NAME, IMPLEMENTATION, DETERMINISTIC = "columns", "composition", True


def _keep_freed_memory() -> None:
    # glibc returns freed memory to the system if it is more than twice the largest block that was freed so far.
    # Then every piece pays for page faults. One large block, which is allocated, never touched and freed, prevents
    # that. docs/performance-composition.md has the gain. It acts on the whole process, so it can be switched off.
    if os.environ.get("DCN_OPS_KEEP_MEMORY") != "0":
        torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


_keep_freed_memory()


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Accept every call."""


class _InPlace:
    """A tensor that chunks are copied into."""

    def __init__(self, like: Tensor, shape: Sequence[int]) -> None:
        self.total = empty_channels_last(like, shape)

    def add(self, part: Tensor, chunk: Chunk) -> None:
        chunk.of(self.total).copy_(part)

    def whole(self) -> Tensor:
        return self.total


def _scattered(
    total: Tensor | None, samples: Tensor, row: Tensor, weight: Tensor, rows: int, is_whole: bool
) -> Tensor:
    if is_whole or row.device.type != "cpu":
        added = scatter(samples, row, weight, rows)
        return added if total is None else total.add_(added)
    if total is None:
        total = samples.new_zeros(rows, samples.shape[1])
    scatter_onto(total, samples, row, weight)
    return total


_WAY = unroll.Way(_InPlace, padded_rows, _scattered, eager_weight_backward)


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    return unroll.forward(problem, _WAY)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    return unroll.backward(grad, problem, needs, _WAY)
