"""What is not finite: an output depends on the pixels that its samples touch, and on no others.

A sample touches the four pixels around its position, those of weight 0 among them. (The composition for other
runtimes, which rounds positions, may touch the pixel beside an integer position on the other side.)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

import dcn_ops
from dcn_ops.conv import contract, reference
from dcn_ops.conv.kernels import columns, depthwise, inductor, traced
from dcn_ops.conv.problem import Problem
from dcn_ops.testing import CASES, Case, Inputs, make_inputs

NAMES = ("plain", "offset_groups", "grouped", "depthwise", "depthwise_large", "row_kernel")
IMPLEMENTATIONS = {
    "operator": lambda problem: contract._forward(*problem[:5], *problem.conv[1:]),
    "reference": lambda problem: reference.forward(*problem),
    "columns": columns.forward,
    "traced": traced.forward,
    "depthwise": depthwise.forward,
    "inductor": inductor.forward,
}
OF_DEPTHWISE = ("depthwise", "inductor")


def touched(bad: Tensor, inputs: Inputs, case: Case) -> Tensor:
    """Return which outputs, [N, O, Ho, Wo], have a sample that touches a ``bad`` pixel, [N, C, H, W]."""
    conv, (n, c, h, w) = case.conv, bad.shape
    ho, wo = conv.output_size((h, w))
    offset = inputs.offset.double().view(n, conv.offset_groups, *conv.kernel_size, 2, ho, wo)
    result = torch.zeros(n, case.filters, ho, wo, dtype=torch.bool)
    for i, o, y, x in torch.cartesian_prod(*map(torch.arange, result.shape)).tolist():
        depth = c // conv.groups
        first = o // (case.filters // conv.groups) * depth
        for channel in range(first, first + depth):
            group = channel // (c // conv.offset_groups)
            for ky in range(conv.kernel_size[0]):
                for kx in range(conv.kernel_size[1]):
                    moved = offset[i, group, ky, kx, :, y, x]
                    py = y * conv.stride[0] - conv.padding[0] + ky * conv.dilation[0] + moved[0]
                    px = x * conv.stride[1] - conv.padding[1] + kx * conv.dilation[1] + moved[1]
                    if not (py.isfinite() and px.isfinite()):
                        continue
                    top, left = int(py.floor()), int(px.floor())
                    if not (-1 <= top < h and -1 <= left < w):
                        continue
                    corners = bad[i, channel, max(top, 0) : top + 2, max(left, 0) : left + 2]
                    result[i, o, y, x] |= bool(corners.any())
    return result


@cache
def drawn(case: Case) -> tuple[Inputs, Tensor, Tensor]:
    """Return inputs with offsets that are not finite, which pixels shall be bad, and which outputs touch those."""
    inputs = make_inputs(case)
    inputs.offset[:, :, 0, 0] = float("nan")
    inputs.offset[:, 0, -1, -1] = float("inf")
    bad = torch.rand(inputs.input.shape, generator=torch.Generator().manual_seed(1)) < 0.04
    bad[0, 0, 0, 0] = True
    expected = touched(bad, inputs, case)
    assert expected.any()
    assert not expected.all()
    return inputs, bad, expected


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_output_depends_on_the_pixels_that_its_samples_touch(
    implementation: str, name: str, value: float
) -> None:
    case = CASES[name]
    if implementation in OF_DEPTHWISE and not case.groups == case.channels == case.filters:
        case = Case(groups=6, filters=6, offset_groups=2, kernel=(4, 3), stride=(2, 1))
    forward = IMPLEMENTATIONS[implementation]
    inputs, bad, expected = drawn(case)
    clean, out = (
        forward(Problem(*inputs._replace(input=inputs.input.masked_fill(bad, filling)), case.conv))
        for filling in (0, value)
    )
    assert torch.equal(~out.isfinite(), expected)
    torch.testing.assert_close(out[~expected], clean[~expected], rtol=1e-5, atol=1e-5)


def gradients(backward: Callable, grad: Tensor, inputs: Inputs, case: Case) -> tuple[Tensor, ...]:
    return backward(grad, Problem(*inputs, case.conv), [True] * 5)


@pytest.mark.parametrize("name", ["plain", "grouped", "depthwise", "depthwise_large"])
def test_a_gradient_depends_on_what_its_samples_touch(name: str) -> None:
    """Of images of a few pixels as of larger ones, whose implementation is the one to compare with."""
    case = replace(CASES[name], mask=True)
    inputs = make_inputs(case)
    own = columns if depthwise.refuses(Problem(*inputs, case.conv)) else depthwise
    grad = torch.ones_like(contract._forward(*inputs, *case.integers.values()))
    for changed, broken in (
        (
            inputs._replace(mask=inputs.mask.index_fill(3, torch.tensor([0]), float("nan"))),
            grad,
        ),
        (inputs._replace(input=inputs.input.index_fill(3, torch.tensor([1]), float("inf"))), grad),
        (inputs, grad.index_fill(3, torch.tensor([1]), float("inf"))),
    ):
        expected = gradients(own.backward, broken, changed, case)
        with dcn_ops.settings(implementation="composition"):
            actual = gradients(_backward_of_operator, broken, changed, case)
        for of_operator, of_own in zip(actual, expected, strict=True):
            if of_own is not None:
                assert torch.equal(of_operator.isfinite(), of_own.isfinite())
        assert actual[1].isfinite().any()
        assert not actual[1].isfinite().all()


def _backward_of_operator(grad: Tensor, problem: Problem, needs: list[bool]) -> tuple[Tensor, ...]:
    return contract._backward(grad, *problem[:5], *problem.conv[1:], needs)
