"""What torch's subsystems rely on: registration, fake kernels, autograd, autocast, compilers, torch.func."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from graphs import compiled_for_graphs, targets
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import dcn_ops
from dcn_ops.conv.kernels import tiny
from dcn_ops.testing import CASES, Case, Inputs, Results, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d.default
backward_op = torch.ops.dcn_ops.deform_conv2d_backward.default
ALL = CASES["all"]
SMALL = Case(batch=1, channels=2, filters=2, size=(4, 3), offset_groups=2)
NEEDS = {"needs": [True] * 5}
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "permuted"])


@LAYOUTS
@pytest.mark.usefixtures("implementation")
def test_registration_passes_torchs_checks(case: Case, layout: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = make_inputs(case, layout=layout)
    opcheck(backward_op, (op(*inputs, **case.integers), *inputs), case.integers | NEEDS, test_utils=checks)
    opcheck(op, tuple(inputs.map(Tensor.requires_grad_)), case.integers, test_utils=checks)


# opcheck reads .grad of non-leaf tensors, whatever the operator.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@LAYOUTS
@pytest.mark.parametrize("optional", [True, False])
def test_dynamic_tracing_passes_torchs_checks(optional: bool, layout: str) -> None:
    case = Case(mask=optional, bias=optional)
    inputs = make_inputs(case, layout=layout).map(Tensor.requires_grad_)
    opcheck(op, tuple(inputs), case.integers, test_utils="test_aot_dispatch_dynamic")


def descriptions(inputs: Inputs, case: Case) -> list[tuple | None]:
    out = op(*inputs, **case.integers)
    results = (out, *backward_op(out, *inputs, **case.integers, **NEEDS))
    # A stride counts where there is a step to take.
    return [
        None
        if t is None
        else (t.shape, t.dtype, t.numel() and [t.stride(i) for i in range(t.dim()) if t.shape[i] > 1])
        for t in results
    ]


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_kernels_return_the_real_shapes_strides_and_dtypes(
    case: Case, dtype: torch.dtype, layout: str
) -> None:
    inputs = make_inputs(case, dtype, layout=layout)
    with FakeTensorMode() as mode:
        fake = descriptions(inputs.map(mode.from_tensor), case)
    assert fake == descriptions(inputs, case)


def test_output_is_channels_last(case: Case) -> None:
    assert op(*make_inputs(case), **case.integers).is_contiguous(memory_format=torch.channels_last)


def test_autograd_asks_for_the_needed_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, original = [], tiny.backward
    monkeypatch.setattr(tiny, "backward", lambda *args: asked.append(args[-1]) or original(*args))
    input, offset, weight, bias, mask = make_inputs(ALL)
    with dcn_ops.settings(implementation="composition"):
        op(input, offset.requires_grad_(), weight, bias, mask.requires_grad_(), **ALL.integers).sum().backward()
    assert asked == [[False, True, False, False, True]]


def test_autograd_saves_the_inputs_alone(case: Case) -> None:
    inputs = make_inputs(case).map(Tensor.requires_grad_)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        op(*inputs, **case.integers)
    assert sorted(map(id, saved)) == sorted(id(t) for t in inputs if t is not None)


def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32(case: Case) -> None:
    inputs = make_inputs(case)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(op, inputs, **case.integers)
    assert [t.dtype for t in actual.values()] == [torch.bfloat16] + [torch.float32] * (len(actual) - 1)
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.bfloat16))


def test_autocast_has_a_rule_on_every_device_where_a_convolution_has_one() -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    keys = [key for key in dir(torch._C.DispatchKey) if key.startswith("Autocast") and has("aten::conv2d", key)]
    assert {"AutocastCPU", "AutocastCUDA", "AutocastMPS", "AutocastXPU"} <= set(keys)
    assert [key for key in keys if not has("dcn_ops::deform_conv2d", key)] == []


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_kernel_that_somebody_registers_for_the_cpu_is_called(mode: Callable) -> None:
    inputs, called = make_inputs(ALL), []
    expected = op(*inputs, **ALL.integers)

    def kernel(*args: object) -> Tensor:
        called.append(len(args))
        return expected.clone()

    with torch.library._scoped_library("dcn_ops", "IMPL") as library:
        library.impl("deform_conv2d", kernel, "CPU")
        with mode():
            assert torch.equal(op(*inputs, **ALL.integers), expected)
        assert called == [10]
        out = op(inputs.input, inputs.offset.requires_grad_(), *inputs[2:], **ALL.integers)
        assert len(called) == 2
        out.sum().backward()  # which stays the operator's own
        assert inputs.offset.grad.isfinite().all()
    with mode():
        op(*inputs, **ALL.integers)
    assert len(called) == 2


def test_a_kernel_that_takes_the_place_of_another_registration_is_called() -> None:
    inputs, called = make_inputs(ALL), []

    def kernel(*args: object) -> Tensor:
        called.append(len(args))
        return torch.zeros(())

    with torch.library._scoped_library("dcn_ops", "IMPL") as other:
        other.impl("deform_conv2d", kernel, "XPU")
        op(*inputs, **ALL.integers)
    with torch.library._scoped_library("dcn_ops", "IMPL") as library:  # as many registrations as before
        library.impl("deform_conv2d", kernel, "CPU")
        op(*inputs, **ALL.integers)
    assert called == [10]


def test_the_compiler_calls_a_kernel_that_somebody_registers_for_the_cpu() -> None:
    inputs = make_inputs(ALL)
    expected = op(*inputs, **ALL.integers)
    with torch.library._scoped_library("dcn_ops", "IMPL") as library:
        library.impl("deform_conv2d", lambda *args: expected.clone().fill_(7), "CPU")
        torch._dynamo.reset()
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*inputs, **ALL.integers), torch.full_like(expected, 7))
    torch._dynamo.reset()


def test_autocast_keeps_offsets_in_float32() -> None:
    # bfloat16 would round the offset to 300, and the sample from 17 to 16.
    input = (torch.arange(320.0) % 8 * 4).view(1, 1, 1, 320)
    offset = torch.tensor([0, 300.25]).view(1, 2, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = dcn_ops.deform_conv2d(input, offset, torch.ones(1, 1, 1, 1), stride=(1, 320))
    assert (out.item(), out.dtype) == (17, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "depthwise"])
def test_compiled_operator_is_the_reference(name: str) -> None:
    inputs, case = make_inputs(CASES[name]), CASES[name]
    torch._dynamo.reset()
    actual = run(torch.compile(op, fullgraph=True), inputs, **case.integers)
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


def test_compiler_sees_through_the_operator() -> None:
    compiled, graphs = compiled_for_graphs(op)
    with dcn_ops.settings(implementation="composition"):
        run(compiled, make_inputs(ALL), **ALL.integers)
    assert len(graphs) == 2
    assert not {op, backward_op} & set.union(*map(targets, graphs))


def padded(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return dcn_ops.deform_conv2d(input, offset, weight, bias, (1, 1), (1, 1), (1, 1), mask)


def test_compiled_function_takes_other_sizes_without_recompilation() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(padded, fullgraph=True, dynamic=True, backend=counter)
    # Different numbers throughout: to the compiler, sizes that happen to be equal are one size.
    for case in (Case(size=(11, 13)), Case(batch=3, size=(8, 10))):
        inputs = make_inputs(case)
        assert_within_budget(run(compiled, inputs), *oracle(inputs, case.conv, torch.float32))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "convert", [torch.jit.script, partial(torch.jit.trace, example_inputs=make_inputs(Case()))]
)
def test_torchscript_takes_other_sizes(convert: Callable) -> None:
    other = make_inputs(Case(batch=3, size=(8, 6)))
    assert torch.equal(convert(padded)(*other), padded(*other))


def jacobian(transform: Callable, argument: str, inputs: Inputs) -> Results:
    def function(value: Tensor) -> Tensor:
        return op(*inputs._replace(**{argument: value}), **SMALL.integers)

    return {"output": transform(function)(getattr(inputs, argument))}


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("argument", Inputs._fields)
def test_jacobians_of_torch_func_are_those_of_autograd(argument: str, transform: Callable) -> None:
    inputs = make_inputs(SMALL, torch.float64)
    by_autograd = partial(jacobian, lambda f: partial(torch.autograd.functional.jacobian, f), argument)
    exact, same_precision = by_autograd(inputs), by_autograd(inputs.map(Tensor.float))
    assert_within_budget(jacobian(transform, argument, inputs), exact, same_precision)


MAPPED = (("input",), ("offset",), ("weight",), ("bias",), ("mask",), ("input", "weight"), Inputs._fields)


@pytest.mark.parametrize("mapped", MAPPED, ids="-".join)
def test_vmap_is_a_loop(mapped: tuple[str, ...]) -> None:
    draws = [make_inputs(ALL, seed=seed)._asdict() for seed in range(3)]
    stacked = Inputs(**draws[0] | {name: torch.stack([draw[name] for draw in draws], 1) for name in mapped})
    in_dims = tuple(1 if name in mapped else None for name in Inputs._fields)

    def together(**tensors: Tensor) -> Tensor:
        return torch.func.vmap(partial(op, **ALL.integers), in_dims)(*tensors.values())

    def one_by_one(**tensors: Tensor) -> Tensor:
        samples = [tensors | {name: tensors[name][:, i] for name in mapped} for i in range(len(draws))]
        return torch.stack([op(**sample, **ALL.integers) for sample in samples])

    exact = run(one_by_one, stacked.map(Tensor.double))
    assert_within_budget(run(together, stacked), exact, run(one_by_one, stacked))


def test_vmap_of_a_gradient_gives_that_of_each_sample() -> None:
    inputs = make_inputs(Case(batch=3, mask=False))

    def loss(weight: Tensor, input: Tensor, offset: Tensor) -> Tensor:
        return op(input[None], offset[None], weight, None, None, **Case().integers).square().sum()

    def one_by_one(input: Tensor, offset: Tensor, weight: Tensor, *_: None) -> Results:
        return {"output": torch.stack([torch.func.grad(loss)(weight, *s) for s in zip(input, offset, strict=True)])}

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(inputs.weight, *inputs[:2])
    assert_within_budget({"output": together}, one_by_one(*inputs.map(Tensor.double)), one_by_one(*inputs))
