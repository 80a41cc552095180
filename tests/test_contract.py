"""What torch's subsystems rely on: registration, fake kernels, autograd, autocast, compilers, torch.func."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import dcn_ops
from dcn_ops import cpu
from dcn_ops.testing import CASES, Case, Inputs, Results, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d.default
backward_op = torch.ops.dcn_ops.deform_conv2d_backward.default
ALL = CASES["all"]
SMALL = Case(batch=1, channels=2, filters=2, size=(4, 3), offset_groups=2)
NEEDS = {"needs": [True] * 5}
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "permuted"])
# Said to whoever scripts, and by torch to itself where it differentiates forward.
JIT_WARNING = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is deprecated")


@LAYOUTS
def test_registration_passes_torchs_checks(case: Case, layout: str) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = make_inputs(case, layout=layout)
    grad = torch.randn_like(op(*inputs, **case.integers))
    opcheck(op, tuple(inputs.map(torch.Tensor.requires_grad_)), case.integers, test_utils=checks)
    opcheck(backward_op, (grad, *make_inputs(case, layout=layout)), case.integers | NEEDS, test_utils=checks)


# opcheck reads .grad of non-leaf tensors, whatever the operator.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@LAYOUTS
@pytest.mark.parametrize("optional", [True, False])
def test_dynamic_tracing_passes_torchs_checks(optional: bool, layout: str) -> None:
    case = Case(mask=optional, bias=optional)
    inputs = make_inputs(case, layout=layout).map(torch.Tensor.requires_grad_)
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
    asked, original = [], cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *args, needs: asked.append(list(needs)) or original(*args, needs))
    inputs = make_inputs(ALL)
    inputs.offset.requires_grad_()
    inputs.mask.requires_grad_()
    op(*inputs, **ALL.integers).sum().backward()
    assert asked == [[False, True, False, False, True]]


def test_autograd_saves_the_inputs_alone(case: Case) -> None:
    inputs = make_inputs(case).map(torch.Tensor.requires_grad_)
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


def test_autocast_keeps_offsets_in_float32() -> None:
    # bfloat16 would round the offset to 300, and the sample from 17 to 16.
    input = (torch.arange(320.0) % 8 * 4).view(1, 1, 1, 320)
    offset = torch.tensor([0, 300.25]).view(1, 2, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = dcn_ops.deform_conv2d(input, offset, torch.ones(1, 1, 1, 1), stride=(1, 320))
    assert (out.item(), out.dtype) == (17, torch.bfloat16)


@pytest.mark.parametrize("name", ["all", "depthwise"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_operator_is_the_reference(name: str, backend: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]
    inputs = make_inputs(case)
    compiled = torch.compile(dcn_ops.deform_conv2d, fullgraph=True, backend=backend)
    actual = run(compiled, inputs, stride=case.stride, padding=case.padding, dilation=case.dilation)
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


def test_compiled_operator_takes_other_sizes_without_recompilation() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def compiled(**tensors: torch.Tensor) -> torch.Tensor:
        return op(**tensors, **Case().integers)

    # Different numbers throughout: to the compiler, sizes that happen to be equal are one size.
    for case in (Case(size=(11, 13)), Case(batch=3, size=(8, 10))):
        inputs = make_inputs(case)
        assert_within_budget(run(compiled, inputs), *oracle(inputs, case.conv, torch.float32))
    assert counter.frame_count == 1


@JIT_WARNING
def test_scripted_function_gives_the_same() -> None:
    input, offset, weight, bias, mask = make_inputs(ALL)
    arguments = (input, offset, weight, bias, ALL.stride, ALL.padding, ALL.dilation, mask)
    scripted = torch.jit.script(dcn_ops.deform_conv2d)
    assert torch.equal(scripted(*arguments), dcn_ops.deform_conv2d(*arguments))


@JIT_WARNING
def test_traced_function_takes_other_sizes() -> None:
    def function(*tensors: torch.Tensor) -> torch.Tensor:
        return dcn_ops.deform_conv2d(*tensors[:4], padding=1, mask=tensors[4])

    traced = torch.jit.trace(function, tuple(make_inputs(Case())))
    other = make_inputs(Case(batch=3, size=(5, 8)))
    assert torch.equal(traced(*other), function(*other))


def jacobian(transform: Callable, argument: str, inputs: Inputs) -> Results:
    def function(value: torch.Tensor) -> torch.Tensor:
        return op(*inputs._replace(**{argument: value}), **SMALL.integers)

    return {"output": transform(function)(getattr(inputs, argument))}


@JIT_WARNING
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("argument", Inputs._fields)
def test_jacobians_of_torch_func_are_those_of_autograd(argument: str, transform: Callable) -> None:
    inputs = make_inputs(SMALL, torch.float64)
    by_autograd = partial(jacobian, lambda f: partial(torch.autograd.functional.jacobian, f), argument)
    exact, same_precision = by_autograd(inputs), by_autograd(inputs.map(torch.Tensor.float))
    assert_within_budget(jacobian(transform, argument, inputs), exact, same_precision)


MAPPED = (("input",), ("offset",), ("weight",), ("bias",), ("mask",), ("input", "weight"), Inputs._fields)


@pytest.mark.parametrize("mapped", MAPPED, ids="-".join)
def test_vmap_is_a_loop(mapped: tuple[str, ...]) -> None:
    draws = [make_inputs(ALL, seed=seed)._asdict() for seed in range(3)]
    stacked = Inputs(**draws[0] | {name: torch.stack([draw[name] for draw in draws], 1) for name in mapped})
    in_dims = tuple(1 if name in mapped else None for name in Inputs._fields)

    def together(**tensors: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(partial(op, **ALL.integers), in_dims)(*tensors.values())

    def one_by_one(**tensors: torch.Tensor) -> torch.Tensor:
        samples = [tensors | {name: tensors[name][:, i] for name in mapped} for i in range(len(draws))]
        return torch.stack([op(**sample, **ALL.integers) for sample in samples])

    exact = run(one_by_one, stacked.map(torch.Tensor.double))
    assert_within_budget(run(together, stacked), exact, run(one_by_one, stacked))


def test_vmap_of_a_gradient_gives_that_of_each_sample() -> None:
    inputs = make_inputs(Case(batch=3, mask=False))

    def loss(weight: torch.Tensor, *sample: torch.Tensor) -> torch.Tensor:
        input, offset = (t[None] for t in sample)
        return op(input, offset, weight, None, None, **Case().integers).square().sum()

    def one_by_one(input: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor, *_: None) -> Results:
        return {"output": torch.stack([torch.func.grad(loss)(weight, *s) for s in zip(input, offset, strict=True)])}

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(inputs.weight, *inputs[:2])
    assert_within_budget({"output": together}, one_by_one(*inputs.map(torch.Tensor.double)), one_by_one(*inputs))
