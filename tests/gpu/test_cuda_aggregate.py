"""The aggregation on a GPU: Triton kernels and the composition against the reference, and what GPUs ask for."""

from functools import partial

import pytest
import torch
from aggregates import CASES, Case, Inputs, make_inputs, run
from cuda_graphs import assert_replays
from torch import Tensor

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.testing import assert_within_budget

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
op = torch.ops.dcn_ops.deform_aggregate
# Many tiles, groups that share lines and groups that don't, channels that fill no tile, and more than one tile has.
LARGE = {
    "lines": Case(batch=3, channels=128, groups=8, size=(23, 31)),
    "odd": Case(batch=2, channels=35, groups=7, size=(19, 17), stride=(2, 1), kernel=(3, 5), remove_center=True),
    "wide": Case(batch=2, channels=600, groups=3, size=(9, 11), offset_scale=0.5, kernel=(7, 7), padding=(3, 3)),
    "thin": Case(batch=2, channels=64, groups=64, size=(21, 18), dilation=(2, 1)),
}


def on_gpu(inputs: Inputs) -> Inputs:
    return inputs.map(lambda t: t.cuda())


def check(case: Case, dtype: torch.dtype, name: str = "triton") -> None:
    inputs, define = make_inputs(case, dtype), partial(reference.forward, window=case.window)
    with dcn_ops.settings(implementation=name):
        actual = run(op, on_gpu(inputs), **case.numbers)
    exact, rounded = inputs.map(Tensor.double), inputs.map(lambda t: t.to(dtype))
    assert_within_budget({k: t.cpu() for k, t in actual.items()}, run(define, exact), run(define, rounded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["triton", "composition"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "empty_batch"])
def test_output_and_gradients_are_the_references(case: str, name: str, dtype: torch.dtype) -> None:
    check(CASES[case], dtype, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", LARGE)
def test_large_cases(case: str, dtype: torch.dtype) -> None:
    check(LARGE[case], dtype)


@pytest.mark.parametrize("case", LARGE)
def test_autotuning_gives_the_same_and_keeps_the_image(case: str) -> None:
    inputs = on_gpu(make_inputs(LARGE[case], torch.bfloat16))
    kept, numbers = inputs.map(Tensor.clone), LARGE[case].numbers
    with dcn_ops.settings(implementation="triton"):
        expected = run(op, inputs, **numbers)
    with dcn_ops.settings(implementation="triton", autotune=True):
        actual = run(op, inputs, **numbers)
        grad = torch.ones_like(actual["output"])
        torch.ops.dcn_ops.deform_aggregate_backward(grad, *inputs, **numbers, needs=[False, True, True])
    assert all(map(torch.equal, inputs, kept))
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name])


def test_triton_is_taken_and_float64_and_empty_batches_are_not() -> None:
    with dcn_ops.settings(implementation="triton"):
        for case, dtype in ((CASES["all"], torch.float64), (CASES["empty_batch"], torch.float32)):
            with pytest.raises(ValueError, match="Triton kernels"):
                op(*on_gpu(make_inputs(case, dtype)), **case.numbers)
    case, inputs = LARGE["lines"], on_gpu(make_inputs(LARGE["lines"]))
    with torch.profiler.profile() as profile:
        op(*inputs, **case.numbers)
        torch.cuda.synchronize()
    assert any("forward_kernel" in event.name for event in profile.events())


def test_hostile_offsets() -> None:
    case, inputs = LARGE["lines"], make_inputs(LARGE["lines"])
    for entry, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 2.0**31)):
        inputs.offset[:, :, 1, entry::16] = value
    results = run(op, on_gpu(inputs), **case.numbers)
    assert all(t.isfinite().all() for t in results.values())


@pytest.mark.parametrize("case", LARGE)
def test_deterministic_algorithms_repeat_every_bit(case: str) -> None:
    inputs = on_gpu(make_inputs(LARGE[case]))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(op, inputs, **LARGE[case].numbers) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first.values(), second.values()))


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")  # a capture has its own
def test_a_cuda_graph_replays_forward_and_backward() -> None:
    case, inputs = LARGE["lines"], on_gpu(make_inputs(LARGE["lines"])).map(Tensor.requires_grad_)

    def step() -> list[Tensor]:
        out = op(*inputs, **case.numbers)
        return [out, *torch.autograd.grad(out.sum(), list(inputs))]

    assert_replays(step, inputs.input)


# Of torch's compiler: a hint, and one that it takes for itself but can't where warnings are errors.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled(dtype: torch.dtype, mode: str) -> None:
    case, inputs = LARGE["odd"], make_inputs(LARGE["odd"], dtype)
    define = partial(reference.forward, window=case.window)
    compiled = torch.compile(lambda *tensors: op(*tensors, **case.numbers) * 1, fullgraph=True, mode=mode)
    exact, rounded = run(define, inputs.map(Tensor.double)), run(define, inputs)
    for _ in range(3):
        actual = run(compiled, on_gpu(inputs))
        assert_within_budget({key: tensor.cpu() for key, tensor in actual.items()}, exact, rounded)


def test_a_layer_trains_under_autocast() -> None:
    layer = dcn_ops.DCNv4(32, group=2).cuda()
    torch.nn.init.normal_(layer.offset_mask.weight, std=0.1)
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(torch.randn(2, 9, 9, 32, device="cuda"))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.offset_mask.weight.grad.norm() > 0
