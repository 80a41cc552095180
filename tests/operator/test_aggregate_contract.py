"""What torch's subsystems rely on, for the aggregation: registration, autograd, autocast, compilers, torch.func."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from aggregates import CASES, Case, Inputs, make_inputs, run
from graphs import compiled_for_graphs, targets
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import dcn_ops
import dcn_ops.interop.flops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.kernels import bag
from dcn_ops.testing import Results, assert_within_budget

op = torch.ops.dcn_ops.deform_aggregate.default
backward_op = torch.ops.dcn_ops.deform_aggregate_backward.default
ALL = CASES["all"]
SMALL = Case(batch=1, channels=2, size=(3, 3), groups=1, kernel=(2, 2))
NEEDS = {"needs": [True] * 3}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def exact(inputs: Inputs, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Results, Results]:
    define = partial(reference.forward, window=case.window)
    return run(define, inputs.map(Tensor.double)), run(define, inputs.map(lambda t: t.to(dtype)))


@every_case
def test_registration_passes_torchs_checks(case: Case) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs = make_inputs(case)
    opcheck(backward_op, (op(*inputs, **case.numbers), *inputs), case.numbers | NEEDS, test_utils=checks)
    opcheck(op, tuple(inputs.map(Tensor.requires_grad_)), case.numbers, test_utils=checks)


# opcheck reads .grad of non-leaf tensors, whatever the operator.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_dynamic_tracing_passes_torchs_checks() -> None:
    inputs = make_inputs(ALL).map(Tensor.requires_grad_)
    opcheck(op, tuple(inputs), ALL.numbers, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_case
def test_fake_kernels_return_the_real_shapes_and_dtypes(case: Case, dtype: torch.dtype) -> None:
    def described(inputs: Inputs) -> list[tuple]:
        out = op(*inputs, **case.numbers)
        results = (out, *backward_op(out, *inputs, **case.numbers, **NEEDS))
        return [(t.shape, t.dtype, t.is_contiguous()) for t in results]

    inputs = make_inputs(case, dtype)
    with FakeTensorMode() as mode:
        fake = described(inputs.map(mode.from_tensor))
    assert fake == described(inputs)
    assert {contiguous for *_, contiguous in fake} == {True}


def test_it_runs_on_the_meta_device() -> None:
    inputs = make_inputs(ALL).map(lambda t: t.to("meta"))
    assert op(*inputs, **ALL.numbers).shape == op(*make_inputs(ALL), **ALL.numbers).shape


def test_autograd_saves_the_inputs_and_asks_for_the_needed_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, saved, original = [], [], bag.backward
    monkeypatch.setattr(bag, "backward", lambda *args: asked.append(args[-1]) or original(*args))
    input, offset, mask = make_inputs(ALL)
    with dcn_ops.settings(implementation="composition"):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            out = op(input, offset.requires_grad_(), mask, **ALL.numbers)
        out.sum().backward()
    assert asked == [[False, True, False]]
    assert sorted(map(id, saved)) == sorted(map(id, (input, offset, mask)))


@every_case
def test_autocast_computes_in_bfloat16_and_returns_gradients_in_float32(case: Case) -> None:
    inputs = make_inputs(case)
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(op, inputs, **case.numbers)
    assert [t.dtype for t in actual.values()] == [torch.bfloat16] + [torch.float32] * 3
    assert_within_budget(actual, *exact(inputs, case, torch.bfloat16))


def test_autocast_keeps_offsets_in_float32() -> None:
    # bfloat16 would round the offset to 300, and the sample from 17 to 16.
    input = (torch.arange(320.0) % 8 * 4).view(1, 1, 320, 1)
    offset = torch.tensor([300.25, 0]).view(1, 1, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = dcn_ops.dcnv3(input, offset, torch.ones(1, 1, 1, 1), 1, 1, 1, 320, 0, 0, 1, 1, 1, 1)
    assert (out.item(), out.dtype) == (17, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_take_float32_offsets_and_masks(dtype: torch.dtype) -> None:
    wide = make_inputs(ALL)
    inputs = wide._replace(input=wide.input.to(dtype))
    actual = run(op, inputs, **ALL.numbers)
    assert (actual["output"].dtype, actual["offset"].dtype) == (dtype, torch.float32)
    assert_within_budget(actual, *exact(inputs, ALL, dtype))


def test_a_kernel_that_somebody_registers_for_the_cpu_is_called() -> None:
    inputs = make_inputs(ALL)
    expected = op(*inputs, **ALL.numbers)
    with torch.library._scoped_library("dcn_ops", "IMPL") as library:
        library.impl("deform_aggregate", lambda *args: expected.clone().fill_(7), "CPU")
        out = op(inputs.input.clone().requires_grad_(), *inputs[1:], **ALL.numbers)
        assert torch.equal(out, torch.full_like(out, 7))
        out.sum().backward()  # which stays the operator's own
    assert torch.equal(op(*inputs, **ALL.numbers), expected)


@pytest.mark.parametrize("implementation", ["auto", "composition"])
def test_deterministic_mode_gives_the_same_bits(implementation: str) -> None:
    inputs = make_inputs(ALL)
    torch.use_deterministic_algorithms(True)
    try:
        with dcn_ops.settings(implementation=implementation):
            plain, strict = (run(op, inputs, **ALL.numbers) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(torch.equal, plain.values(), strict.values()))


def test_triton_asked_for_on_the_cpu_raises() -> None:
    message = r"Triton kernels need a GPU, got input\.device=cpu.*set_implementation"
    with dcn_ops.settings(implementation="triton"), pytest.raises(ValueError, match=message):
        op(*make_inputs(ALL), **ALL.numbers)


def loss(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    return op(input * 2, offset, mask.sigmoid(), **ALL.numbers) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all", "no_centre", "one_group"])
def test_compiled_operator_is_the_reference(name: str) -> None:
    inputs, case = make_inputs(CASES[name]), CASES[name]
    torch._dynamo.reset()
    with dcn_ops.settings(implementation="composition"):
        actual = run(torch.compile(op, fullgraph=True), inputs, **case.numbers)
    assert_within_budget(actual, *exact(inputs, case))


@pytest.mark.parametrize("whole", [False, True])
def test_compiler_sees_through_the_operator_unless_it_is_asked_not_to(whole: bool) -> None:
    compiled, graphs = compiled_for_graphs(op)
    inputs = make_inputs(ALL)
    with dcn_ops.settings(whole_operators=whole, implementation="composition"):
        assert_within_budget(run(compiled, inputs, **ALL.numbers), *exact(inputs, ALL))
    torch._dynamo.reset()
    assert len(graphs) == 2
    assert bool({op, backward_op} & set.union(*map(targets, graphs))) == whole


def padded(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    return dcn_ops.dcnv3(input, offset, mask, 3, 3, 1, 1, 1, 1, 1, 1, 2, 3)


def packed(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    return dcn_ops.dcnv4(input, torch.cat((offset, mask), -1), 3, 3, 1, 1, 1, 1, 1, 1, 2, 3, 0.5)


def test_compiled_function_takes_other_sizes_without_recompilation() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(padded, fullgraph=True, dynamic=True, backend=counter)
    # Different numbers throughout: to the compiler, sizes that happen to be equal are one size.
    counts = []
    for case in (Case(batch=5, size=(11, 13)), Case(batch=4, size=(8, 10))):
        inputs = make_inputs(case)
        assert_within_budget(run(compiled, inputs), *exact(inputs, case))
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("function", [padded, packed])
@pytest.mark.parametrize(
    "convert", [torch.jit.script, partial(torch.jit.trace, example_inputs=tuple(make_inputs(Case())))]
)
def test_torchscript_takes_other_sizes(convert: Callable, function: Callable) -> None:
    other = make_inputs(Case(batch=3, size=(8, 6)))
    assert torch.equal(convert(function)(*other), function(*other))


def test_fx_traces_the_functions() -> None:
    for function in (padded, packed):
        traced = torch.fx.symbolic_trace(function)
        inputs = make_inputs(Case())
        assert torch.equal(traced(*inputs), function(*inputs))


def test_export_keeps_the_operator_whole() -> None:
    class Network(torch.nn.Module):
        def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
            return padded(input, offset, mask)

    inputs = make_inputs(Case())
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("n", "h", "w"))
    dims = {0: batch, 1: height, 2: width}
    program = torch.export.export(Network(), tuple(inputs), dynamic_shapes=(dims, dims, dims))
    assert op in {node.target for node in program.graph.nodes}
    other = make_inputs(Case(batch=3, size=(8, 5)))
    assert torch.equal(program.module()(*other), padded(*other))


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
@pytest.mark.parametrize("argument", Inputs._fields)
def test_jacobians_of_torch_func_are_those_of_autograd(argument: str, transform: Callable) -> None:
    inputs = make_inputs(SMALL, torch.float64)

    def function(value: Tensor) -> Tensor:
        return op(*inputs._replace(**{argument: value}), **SMALL.numbers)

    value = getattr(inputs, argument)
    expected = torch.autograd.functional.jacobian(function, value)
    torch.testing.assert_close(transform(function)(value), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mapped", [("input",), ("offset",), ("mask",), Inputs._fields], ids="-".join)
def test_vmap_is_a_loop(mapped: tuple[str, ...]) -> None:
    draws = [make_inputs(ALL, seed=seed)._asdict() for seed in range(3)]
    stacked = Inputs(**draws[0] | {name: torch.stack([draw[name] for draw in draws], 1) for name in mapped})
    in_dims = tuple(1 if name in mapped else None for name in Inputs._fields)
    together = torch.func.vmap(partial(op, **ALL.numbers), in_dims)(*stacked)
    alone = [op(**draws[0] | {name: draw[name] for name in mapped}, **ALL.numbers) for draw in draws]
    torch.testing.assert_close(together, torch.stack(alone))


def test_flops_are_four_corners_for_every_sample() -> None:
    inputs = make_inputs(ALL).map(Tensor.requires_grad_)
    with FlopCounterMode(display=False) as counter:
        out = op(*inputs, **ALL.numbers)
    samples = out.numel() * ALL.window.taps
    assert counter.get_total_flops() == 2 * 4 * samples
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 4 * samples


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input": torch.zeros(4, 4, 6)}, ValueError, r"expected input of shape \[N, H, W, C\].*unsqueeze"),
        ({"mask": torch.zeros(2, 7, 6, 17)}, ValueError, r"expected mask of shape \[2, 7, 6, 18\].*9 taps"),
        ({"offset": torch.zeros(2, 7, 6, 18)}, ValueError, r"expected offset of shape \[2, 7, 6, 36\]"),
        ({"mask": torch.zeros(2, 7, 6, 18, dtype=torch.float64)}, TypeError, r"mask.to\(input.dtype\)"),
        ({"input": torch.zeros(2, 7, 6, 6, dtype=torch.int64)}, TypeError, "got torch.int64"),
        ({"groups": 4}, ValueError, "groups=4 to divide the channels"),
        ({"groups": 0}, ValueError, "groups=0 to divide"),
        ({"stride": (0, 1)}, ValueError, r"expected stride of two integers >= 1, got stride=\(0, 1\)"),
        ({"kernel": (2, 3), "remove_center": True}, ValueError, "it has no centre; pass remove_center=False"),
        ({"kernel": (1, 1), "remove_center": True}, ValueError, "a tap beside the centre"),
        ({"kernel": (9, 9)}, ValueError, "pad more or use a larger input"),
        ({"offset_scale": float("nan")}, ValueError, "expected a finite offset_scale, got offset_scale=nan"),
    ],
)
def test_errors_name_the_value_and_the_mend(changes: dict, error: type, message: str) -> None:
    case = Case()
    with pytest.raises(error, match=message):
        op(**make_inputs(case)._asdict() | case.numbers | changes)


def test_errors_of_the_functions_name_their_own_arguments() -> None:
    inputs, numbers = make_inputs(Case()), (3, 3, 1, 1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"group \* group_channels = 2 \* 4 channels"):
        dcn_ops.dcnv3(*inputs, *numbers, 2, 4)
    with pytest.raises(TypeError, match=r"im2col_step=True; pass remove_center by its name"):
        dcn_ops.dcnv3(*inputs, *numbers, 2, 3, 1.0, True)
    with pytest.raises(ValueError, match=r"at least 3 \* group \* taps = 3 \* 2 \* 9 channels"):
        dcn_ops.dcnv4(inputs.input, inputs.mask, *numbers, 2, 3)
    with pytest.raises(TypeError, match=r"offset_mask to be a torch\.Tensor"):
        dcn_ops.dcnv4(inputs.input, None, *numbers, 2, 3)
