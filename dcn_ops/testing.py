"""Helpers for the tests of every implementation: cases, their tensors in any layout, the error budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dcn_ops.conv import reference
from dcn_ops.sampling.geometry import Conv

Results = dict[str, Tensor]
LAYOUTS = ("contiguous", "channels_last", "permuted", "strided", "unit_strides")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution."""

    batch: int = 2
    channels: int = 6
    filters: int = 4
    size: tuple[int, int] = (9, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = True
    bias: bool = True

    @property
    def conv(self) -> Conv:
        """The integers in the form for implementations."""
        return Conv(self.kernel, self.stride, self.padding, self.dilation, self.groups, self.offset_groups)

    @property
    def integers(self) -> dict[str, Any]:
        """The integers in the form for the operator."""
        return {name: value for name, value in self.conv._asdict().items() if name != "kernel_size"}


CASES = {
    "plain": Case(),
    "no_mask": Case(mask=False, padding=(0, 0)),
    "no_bias": Case(bias=False, channels=1, filters=1),
    "empty_batch": Case(batch=0),
    "one_image": Case(batch=1, size=(5, 11)),
    "one_pixel": Case(batch=16, size=(1, 1)),
    "pointwise": Case(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "row_kernel": Case(kernel=(1, 3), padding=(2, 1), stride=(2, 1)),
    "large_kernel": Case(kernel=(5, 5), padding=(2, 2), size=(6, 9)),
    "dilated": Case(dilation=(2, 3), padding=(2, 3), size=(8, 10)),
    "offset_groups": Case(offset_groups=2, stride=(2, 1)),
    "grouped": Case(groups=2, stride=(2, 2), batch=3),
    "grouped_tall": Case(groups=2, kernel=(3, 2), padding=(0, 2), bias=False),
    "grouped_coarse": Case(groups=6, channels=12, filters=6, offset_groups=2, dilation=(1, 2)),
    "depthwise": Case(groups=6, filters=6, mask=False),
    "depthwise_multiplied": Case(groups=3, channels=3, filters=6, offset_groups=3, kernel=(5, 5), padding=(2, 2)),
    "depthwise_large": Case(groups=4, channels=4, offset_groups=2, kernel=(5, 4), padding=(2, 1), stride=(2, 1)),
    # Like a test of torchvision: nothing is square, symmetric or shared.
    "all": Case(kernel=(3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2, offset_groups=3),
}


class Inputs(NamedTuple):
    """The tensors of a call of the operator; bias and mask may be None."""

    input: Tensor | None
    offset: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mask: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """Apply the function to each tensor."""
        return Inputs(*(None if t is None else function(t) for t in self))


def make_inputs(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, layout: str = "contiguous", device: str = "cpu"
) -> Inputs:
    """Draw the tensors of a case: the same values in every layout and, up to rounding, in every dtype."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight = normal(case.filters, case.channels // case.groups, *case.kernel)
    bias = normal(case.filters) if case.bias else None
    input, offset = normal(case.batch, case.channels, *case.size), _draw_offset(case, generator)
    mask = normal(*offset[:, ::2].shape).sigmoid() if case.mask else None
    return Inputs(input, offset, weight, bias, mask).map(lambda t: _lay_out(t.to(device, dtype), layout))


def _draw_offset(case: Case, generator: torch.Generator) -> Tensor:  # [N, G*K*2, Ho, Wo]
    """Draw offsets of a few pixels: an eighth are integers, an eighth lead to the borders, a few far outside.

    Offsets are multiples of 1/32, which are exact in bfloat16, and their positions are exact in float32. So no
    dtype rounds a sample across an integer, where the gradient of the offset jumps.
    """
    ho, wo = case.conv.output_size(case.size)
    shape = (case.batch, case.offset_groups, *case.kernel, ho, wo)
    axes = []
    for grid, size in zip(case.conv.grid((0, ho), wo, torch.float64, torch.device("cpu")), case.size, strict=True):
        offset = torch.randint(-127, 128, shape, generator=generator) / 32
        kind = torch.randint(16, shape, generator=generator)
        border = torch.tensor([-1.0, 0.0, size - 1.0, size])[torch.randint(4, shape, generator=generator)]
        offset = torch.where(kind < 2, offset.round(), offset)
        offset = torch.where((kind == 2) | (kind == 3), border - grid, offset)
        axes.append(torch.where(kind == 4, 64 * offset.round(), offset))
    return torch.stack(axes, 4).flatten(1, 4)


def _lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Return the same values with the strides of one of ``LAYOUTS``."""
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":
        backwards = tuple(range(tensor.dim()))[::-1]
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "unit_strides" and tensor.dim() == 4:
        # A dimension of size 1 may have any stride. The stride says nothing, and misleads code that reads it.
        tensor = tensor.contiguous(memory_format=torch.channels_last)
        strides = [
            math.prod(tensor.shape[1:]) if size == 1 else s
            for size, s in zip(tensor.shape, tensor.stride(), strict=True)
        ]
        return tensor.as_strided(tensor.shape, strides)
    if layout == "strided":
        # Code that reads past the slice gets NaN.
        larger = tensor.new_full([2 * size + 1 for size in tensor.shape], torch.nan)
        return larger[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)
    return tensor


def run(function: Callable[..., Tensor], inputs: Inputs, **integers: Any) -> Results:
    """Return the output and, by name, the gradients of the inputs; every dtype holds the cotangent exactly."""
    leaves = inputs.map(lambda t: t.detach().requires_grad_())._asdict()
    out = function(**leaves, **integers)
    cotangent = (torch.arange(out.numel(), device=out.device) * 7 % 17 - 8) / 4
    present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    gradients = torch.autograd.grad(out, list(present.values()), cotangent.to(out.dtype).view(out.shape))
    return {"output": out.detach(), **dict(zip(present, gradients, strict=True))}


def oracle(inputs: Inputs, conv: Conv, precision: torch.dtype) -> tuple[Results, Results]:
    """Return the results of ``run`` for the reference in float64, and in ``precision``."""
    exact, rounded = inputs.map(methodcaller("to", torch.float64)), inputs.map(methodcaller("to", precision))
    return run(reference.forward, exact, conv=conv), run(reference.forward, rounded, conv=conv)


def assert_within_budget(actual: Results, exact: Results, same_precision: Results) -> None:
    """Assert for each result: largest error <= 2 * largest error of the reference + one rounding step.

    The reference in the same precision has sums of as many terms of the same size. The budget is twice its error,
    because sums may run in another order, and one step of the largest value, because its error may be zero. In half
    precision the reference sums in float32 and rounds once, by half a step. A budget of two steps allows samples
    rounded to half, but no sums in half. In float32 the factor is 3: the reference rounds at every term, and the
    CPU's vectors decide the order. For float64 pass the reference in float32: errors count in steps of the output's
    dtype. Then the error of ``exact`` counts too.
    """
    assert actual.keys() == exact.keys()
    step, reference_step = (torch.finfo(results["output"].dtype).eps for results in (actual, same_precision))
    times = 2 if reference_step > torch.finfo(torch.float32).eps else 3
    for name, expected in exact.items():
        assert actual[name].shape == expected.shape, f"{name}: {actual[name].shape} instead of {expected.shape}"
        reference_error = _largest(same_precision[name] - expected) / reference_step * step
        error, budget = _largest(actual[name] - expected), times * reference_error + _largest(expected) * step
        # With this comparison NaN fails.
        assert error <= budget, f"{name}: {error=:.2e} exceeds {budget=:.2e}, with {reference_error=:.2e}"


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0
