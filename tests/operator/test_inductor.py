"""What the compiler sees of a depthwise convolution, run without it: the reference's output and gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import dcn_ops
from dcn_ops.conv import contract
from dcn_ops.conv.kernels import inductor
from dcn_ops.conv.kernels.registry import REGISTRY
from dcn_ops.conv.problem import Problem
from dcn_ops.testing import LAYOUTS, Case, Inputs, Results, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d
DEPTHWISE = {
    "plain": Case(groups=6, filters=6),
    "bare": Case(groups=6, filters=6, mask=False, bias=False),
    "offset_groups": Case(groups=6, filters=6, offset_groups=3, stride=(2, 1)),
    "large": Case(groups=4, channels=4, filters=4, offset_groups=2, kernel=(5, 4), padding=(2, 1), stride=(2, 1)),
    "dilated": Case(groups=6, filters=6, dilation=(2, 3), padding=(2, 3), size=(8, 10)),
    "empty_batch": Case(groups=6, filters=6, batch=0),
}


@pytest.fixture(params=DEPTHWISE)
def case(request: pytest.FixtureRequest) -> Case:
    return DEPTHWISE[request.param]


def traced(case: Case, inputs: Inputs) -> Results:
    """Return what ``run`` gives for the operator, of what the compiler would trace."""
    assert REGISTRY.choose(Problem(*inputs, case.conv), traced=True) is inductor
    integers = case.integers.values()
    output = contract._forward(*inputs, *integers, traced=True)
    cotangent = (torch.arange(output.numel()) * 7 % 17 - 8) / 4
    needs = [t is not None for t in inputs]
    grad = cotangent.to(output.dtype).view(output.shape)
    gradients = contract._backward(grad, *inputs, *integers, needs, traced=True)
    found = zip(inputs._fields, gradients, strict=True)
    return {"output": output, **{name: value for name, value in found if value is not None}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_are_the_references(case: Case, dtype: torch.dtype, layout: str) -> None:
    inputs = make_inputs(case, dtype, layout=layout)
    actual = traced(case, inputs)
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32 if dtype == torch.float64 else dtype))
    for name, value in run(op, inputs, **case.integers).items():
        assert (actual[name].dtype, actual[name].stride()) == (value.dtype, value.stride()), name


def test_every_subset_of_gradients_is_that_of_all(case: Case) -> None:
    inputs = make_inputs(replace(case, mask=True, bias=True))
    grad = torch.ones_like(op(*inputs, **case.integers))
    full = contract._backward(grad, *inputs, *case.integers.values(), [True] * 5, traced=True)
    for i in range(5):
        needs = [i == j for j in range(5)]
        alone = contract._backward(grad, *inputs, *case.integers.values(), needs, traced=True)
        assert [value is not None for value in alone] == needs
        assert torch.equal(alone[i], full[i])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_offsets_that_lead_nowhere_read_nothing(value: float) -> None:
    case = Case(groups=6, filters=6, bias=False)
    inputs = make_inputs(case)
    output = traced(case, inputs._replace(offset=torch.full_like(inputs.offset, value)))["output"]
    assert torch.equal(output, torch.zeros_like(output))


def depthwise(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return dcn_ops.deform_conv2d(input, offset, weight, bias, (1, 1), (1, 1), (1, 1), mask)


def test_other_sizes_need_no_other_graph() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(depthwise, fullgraph=True, dynamic=True, backend=counter)
    for size, batch in (((11, 13), 2), ((8, 10), 3)):
        case = Case(groups=6, filters=6, size=size, batch=batch)
        inputs = make_inputs(case)
        assert_within_budget(run(compiled, inputs), *oracle(inputs, case.conv, torch.float32))
    assert counter.frame_count == 1
