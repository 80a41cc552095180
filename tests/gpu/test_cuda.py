"""The operator on a GPU: Triton kernels and the composition against the reference, and what GPUs ask for."""

from collections.abc import Iterator

import pytest
import torch
from cuda_graphs import assert_replays
from torch import Tensor

import dcn_ops
from dcn_ops import DeformConv2d
from dcn_ops.testing import CASES, LAYOUTS, Case, Inputs, assert_within_budget, make_inputs, oracle, run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
op = torch.ops.dcn_ops.deform_conv2d
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Several tiles to every side, and no side a multiple of one.
LARGE = {
    "dense": Case(batch=3, channels=136, filters=264, size=(23, 31)),
    "grouped": Case(batch=2, channels=96, filters=192, size=(19, 17), groups=12, offset_groups=4, stride=(2, 1)),
    "depthwise": Case(channels=200, filters=200, size=(21, 18), groups=200, kernel=(7, 7), padding=(3, 3)),
}


@pytest.fixture(autouse=True)
def _auto_again() -> Iterator[None]:
    # cuDNN's convolution, by which the composition contracts, has a setting of its own, and TF32 is its default.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    dcn_ops.set_implementation("auto")


def on_gpu(inputs: Inputs) -> Inputs:
    return inputs.map(lambda t: t.cuda() if t.is_contiguous() else torch.empty_like(t, device="cuda").copy_(t))


def check(case: Case, inputs: Inputs, dtype: torch.dtype) -> None:
    actual = run(op, on_gpu(inputs), **case.integers)
    on_cpu = {name: tensor.cpu() for name, tensor in actual.items()}
    assert_within_budget(on_cpu, *oracle(inputs, case.conv, torch.float32 if dtype == torch.float64 else dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["triton", "composition"])
def test_output_and_gradients_are_the_references(case: Case, name: str, dtype: torch.dtype) -> None:
    if case.batch:
        dcn_ops.set_implementation(name)
    check(case, make_inputs(case, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_cases(name: str, dtype: torch.dtype) -> None:
    dcn_ops.set_implementation("triton")
    check(LARGE[name], make_inputs(LARGE[name], dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_the_gathered_gradient_of_the_input(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the case were large.
    monkeypatch.setattr("dcn_ops.conv.kernels.triton.launch._COLUMNS", 1)
    dcn_ops.set_implementation("triton")
    check(LARGE[name], make_inputs(LARGE[name], dtype), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    dcn_ops.set_implementation("triton")
    check(CASES["all"], make_inputs(CASES["all"], layout=layout), torch.float32)


def test_float64_takes_the_composition_and_triton_asked_for_raises() -> None:
    check(CASES["all"], make_inputs(CASES["all"], torch.float64), torch.float64)
    dcn_ops.set_implementation("triton")
    with pytest.raises(ValueError, match=r"take float32, float16 and bfloat16, got input\.dtype=torch\.float64"):
        op(*on_gpu(make_inputs(CASES["all"], torch.float64)), **CASES["all"].integers)


def test_tf32_follows_the_setting_of_matmul() -> None:
    inputs, case = on_gpu(make_inputs(LARGE["dense"])), LARGE["dense"]
    exact = op(*inputs.map(Tensor.double), **case.integers)
    errors = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        errors.append((op(*inputs, **case.integers) - exact).abs().max().item())
    torch.set_float32_matmul_precision("highest")
    assert 10 * errors[0] < errors[1] < 1e-2 * exact.abs().max().item()


def test_autotuning_gives_the_same() -> None:
    dcn_ops.set_implementation("triton", autotune=True)
    check(LARGE["dense"], make_inputs(LARGE["dense"], torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("name", LARGE)
def test_deterministic_algorithms_repeat_every_bit(name: str) -> None:
    case, inputs = LARGE[name], on_gpu(make_inputs(LARGE[name]))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(op, inputs, **case.integers) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, first.values(), second.values()))


def test_a_side_stream_waits_for_nobody() -> None:
    case, inputs = LARGE["dense"], on_gpu(make_inputs(LARGE["dense"]))
    expected = op(*inputs, **case.integers)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late = inputs._replace(input=inputs.input * 1)
        out = op(*late, **case.integers)
    side.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")  # a capture has its own
def test_a_cuda_graph_replays_forward_and_backward() -> None:
    case, inputs = LARGE["dense"], on_gpu(make_inputs(LARGE["dense"])).map(Tensor.requires_grad_)

    def step() -> list[Tensor]:
        out = op(*inputs, **case.integers)
        return [out, *torch.autograd.grad(out.sum(), list(inputs))]

    assert_replays(step, inputs.input)


# Of torch's compiler: a hint, and one that it takes for itself but can't where warnings are errors.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", ["dense", "depthwise"])
def test_compiled(name: str, mode: str) -> None:
    case, inputs = LARGE[name], make_inputs(LARGE[name])
    compiled = torch.compile(lambda **tensors: op(**tensors, **case.integers) * 1, fullgraph=True, mode=mode)
    for _ in range(3):
        actual = run(compiled, on_gpu(inputs))
        on_cpu = {key: tensor.cpu() for key, tensor in actual.items()}
        assert_within_budget(on_cpu, *oracle(inputs, case.conv, torch.float32))


def test_the_second_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case, inputs = LARGE["dense"], make_inputs(LARGE["dense"]).map(lambda t: t.to("cuda:1"))
    out = op(*inputs, **case.integers)
    assert out.device == torch.device("cuda:1")
    torch.testing.assert_close(out.to("cuda:0"), op(*inputs.map(lambda t: t.to("cuda:0")), **case.integers))


def test_no_columns_in_memory() -> None:
    case = Case(batch=8, channels=256, filters=256, size=(56, 56))
    inputs = on_gpu(make_inputs(case, torch.bfloat16, layout="channels_last"))
    op(*inputs, **case.integers)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = op(*inputs, **case.integers)
    extra = torch.cuda.max_memory_allocated() - before - out.numel() * out.element_size()
    assert extra < 2**20 + 2 * inputs.weight.numel()


def test_a_layer_trains_under_autocast() -> None:
    layer = DeformConv2d(8, 8, 3, padding=1).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        out = layer(torch.randn(2, 8, 9, 9, device="cuda"))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.offset_weight.grad.norm() > 0


def test_a_tensor_on_another_device_is_named() -> None:
    layer = DeformConv2d(8, 8, 3, padding=1).cuda()
    with pytest.raises(ValueError, match=r"expected offset on the input's device cuda:0, got offset\.device=cpu"):
        layer(torch.randn(1, 8, 5, 5, device="cuda"), torch.zeros(1, 18, 5, 5))
