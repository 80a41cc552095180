"""The composition of ATen kernels for the compiler.

``unroll`` describes the steps. This module concatenates results and never writes in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcn_ops.conv.kernels import unroll
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.bags import scatter, weight_backward
from dcn_ops.sampling.geometry import empty_channels_last
from dcn_ops.sampling.loops import padded_rows
from dcn_ops.sampling.pieces import Chunk

NAME, IMPLEMENTATION, DETERMINISTIC = (
    "columns",
    "composition",
    True,
)  # for callers it is the same implementation as ``columns``


def refuses(problem: Problem, grad: Tensor | None = None) -> None:
    """Accept every call."""


class _Concatenated:
    """A tensor from concatenated chunks: Inductor lowers slice copies to a select over all slices, per element."""

    def __init__(self, like: Tensor, shape: Sequence[int]) -> None:
        self.like, self.shape = like, shape
        self.parts: list[Tensor] = []  # [n * h * W, *]

    def add(self, part: Tensor, chunk: Chunk) -> None:
        self.parts.append(part.to(self.like.dtype).permute(0, 2, 3, 1).flatten(0, 2))

    def whole(self) -> Tensor:
        if not self.parts:
            return empty_channels_last(self.like, self.shape)
        batch, channels, height, width = self.shape
        return torch.cat(self.parts).view(batch, height, width, channels).permute(0, 3, 1, 2)


def _scattered(
    total: Tensor | None, samples: Tensor, row: Tensor, weight: Tensor, rows: int, is_whole: bool
) -> Tensor:
    added = scatter(samples, row, weight, rows)
    return added if total is None else total + added


_WAY = unroll.Way(_Concatenated, padded_rows, _scattered, weight_backward)


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    return unroll.forward(problem, _WAY)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    return unroll.backward(grad, problem, needs, _WAY)
