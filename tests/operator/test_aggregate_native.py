"""The aggregation's native kernel against the reference, in shapes that it treats in different ways."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from aggregates import CASES, Case, Inputs, make_inputs, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.kernels import cpu
from dcn_ops.aggregate.problem import Problem
from dcn_ops.native.library import library
from dcn_ops.testing import Results, assert_within_budget

op = torch.ops.dcn_ops.deform_aggregate
backward = torch.ops.dcn_ops.deform_aggregate_backward

# Vectors and their remainders, groups of less than a vector, of several blocks of registers, and tables of a pixel
# that fill whole vectors or not.
SHAPES = {
    "sixteen": Case(channels=64, groups=4, size=(9, 12)),
    "eight": Case(channels=24, groups=3, kernel=(5, 5), padding=(2, 2)),
    "thirty-two": Case(channels=64, groups=2, remove_center=True),
    "sixty-four": Case(channels=128, groups=2),
    "one": Case(channels=5, groups=5, kernel=(2, 3)),
    "odd": Case(channels=57, groups=3, stride=(2, 3), dilation=(2, 1), size=(13, 11), offset_scale=0.5),
    "two blocks": Case(channels=300, groups=2, size=(5, 6)),
    "one group": Case(channels=150, groups=1, kernel=(7, 7), padding=(3, 3), remove_center=True),
    "far grid": Case(channels=32, groups=2, offset_scale=4.0, dilation=(3, 2)),
    "one tap": Case(channels=20, groups=2, kernel=(1, 1), padding=(0, 0)),
}


pytestmark = pytest.mark.usefixtures("native")


def oracle(inputs: Inputs, case: Case, precision: torch.dtype) -> tuple[Results, Results]:
    """Return the reference's results in float64 and in ``precision``."""
    define = partial(reference.forward, window=case.window)
    return run(define, inputs.map(Tensor.double)), run(define, inputs.map(lambda t: t.to(precision)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_are_the_references(name: str, dtype: torch.dtype) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case, dtype)
    assert_within_budget(run(op, inputs, **case.numbers), *oracle(inputs, case, dtype))


def test_half_features_take_float32_positions() -> None:
    case = SHAPES["odd"]
    exact = make_inputs(case)
    mixed = exact._replace(input=exact.input.bfloat16())
    results = run(op, mixed, **case.numbers)
    assert [results[name].dtype for name in ("output", *Inputs._fields)] == [torch.bfloat16] * 2 + [
        torch.float32
    ] * 2
    define = partial(reference.forward, window=case.window)
    assert_within_budget(results, run(define, mixed.map(Tensor.double)), run(define, mixed))


@pytest.mark.parametrize("name", SHAPES)
def test_threads_share_the_work_and_do_not_show(name: str, threads: Callable[[int], None]) -> None:
    # So much work that it is shared, of one image too.
    for batch, size in ((1, (40, 41)), (5, (21, 20))):
        case = replace(SHAPES[name], batch=batch, size=size)
        inputs = make_inputs(case)
        threads(1)
        alone = run(op, inputs, **case.numbers)
        for count in (2, 3):
            threads(count)
            assert all(map(torch.equal, run(op, inputs, **case.numbers).values(), alone.values()))


def test_without_torchs_threads_one_does_the_work(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(SHAPES["sixteen"], batch=3, size=(40, 40))
    inputs = make_inputs(case)
    threads(3)
    several = run(op, inputs, **case.numbers)
    monkeypatch.setattr(library(), "_parallel_for", 0)
    assert all(map(torch.equal, several.values(), run(op, inputs, **case.numbers).values()))


def test_an_empty_batch_takes_another_implementation() -> None:
    case = CASES["empty_batch"]
    with dcn_ops.settings(implementation="auto"):
        assert op(*make_inputs(case), **case.numbers).shape[0] == 0


# Positions in the input: far away, at the borders, beyond.
VALUES = [float("nan"), float("inf"), -float("inf"), 2.0**31, -(2.0**31), 1e30, -1.0, 0.0, 5.0, 6.0, 7.0, -2.0]


def put_positions(inputs: Inputs, case: Case, values: Tensor) -> None:
    """Change the offsets so that the samples lie at the values, of the offset's shape."""
    ho, wo = inputs.offset.shape[1:3]
    y, x = case.window.grid((0, ho), wo, torch.float32, torch.device("cpu"))
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)  # [Ho, Wo, K, 2]
    grid = grid[:, :, None].expand(-1, -1, case.groups, -1, -1).reshape(1, ho, wo, -1)
    inputs.offset.copy_((values - grid) / case.offset_scale)


@pytest.mark.parametrize("name", ["sixteen", "odd", "far grid"])
def test_extreme_positions_are_the_references(name: str) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    chosen = torch.randint(len(VALUES), inputs.offset.shape, generator=torch.Generator().manual_seed(0))
    put_positions(inputs, case, torch.tensor(VALUES)[chosen])
    actual = run(op, inputs, **case.numbers)
    assert all(result.isfinite().all() for result in actual.values())
    assert_within_budget(actual, *oracle(inputs, case, torch.float32))


@pytest.mark.parametrize("name", ["sixteen", "odd"])
@pytest.mark.parametrize("broken", ["mask", "input"])
def test_what_is_not_finite_reaches_what_the_reference_says(name: str, broken: str) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    inputs = inputs._replace(**{broken: getattr(inputs, broken).index_fill(2, torch.tensor([1]), float("nan"))})
    results = run(op, inputs, **case.numbers)
    for key, expected in run(partial(reference.forward, window=case.window), inputs).items():
        assert torch.equal(results[key].isfinite(), expected.isfinite()), key


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("name", ["sixteen", "odd"])
def test_each_gradient_can_be_had_alone(name: str, needs: tuple[int, ...]) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    grad = torch.randn_like(op(*inputs, **case.numbers))
    full = backward(grad, *inputs, **case.numbers, needs=[True] * 3)
    for needed, whole, some in zip(needs, full, backward(grad, *inputs, **case.numbers, needs=needs), strict=True):
        assert torch.equal(some, whole) if needed else some is None


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@given(st.data())
def test_any_call_is_the_references(data: st.DataObject) -> None:
    kernel, padding, dilation = data.draw(pairs(1, 5)), data.draw(pairs(0, 3)), data.draw(pairs(1, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    groups = data.draw(st.integers(1, 5))
    has_centre = kernel[0] % 2 == kernel[1] % 2 == 1 and kernel != (1, 1)
    case = Case(
        batch=data.draw(st.integers(1, 3)),
        channels=groups * data.draw(st.integers(1, 40)),
        size=data.draw(st.tuples(*(st.integers(n, n + 5) for n in least))),
        kernel=kernel,
        stride=data.draw(pairs(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        # Exact in binary: no dtype rounds a position across an integer, where the offset's gradient jumps.
        offset_scale=data.draw(st.sampled_from((1.0, 0.5, 2.0, -1.0))),
        remove_center=has_centre and data.draw(st.booleans()),
    )
    inputs = make_inputs(case, seed=data.draw(st.integers(0, 2**32 - 1)))
    # Of so few values the reference's own error may happen to be 0.
    exact = run(partial(reference.forward, window=case.window), inputs.map(Tensor.double))
    for name, actual in run(op, inputs, **case.numbers).items():
        scale = exact[name].abs().max().item()
        torch.testing.assert_close(actual.double(), exact[name], rtol=1e-5, atol=2e-6 * max(1, scale), msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.double, "takes float32, float16 and bfloat16, got input.dtype=torch.float64"),
        (lambda t: t.to("meta"), "needs the CPU, got input.device=meta"),
        (lambda t: t[:0], "needs an image, got input.shape="),
    ],
)
def test_what_it_refuses_has_a_reason(change: Callable[[Tensor], Tensor], message: str) -> None:
    case = Case()
    assert message in str(cpu.refuses(Problem(*make_inputs(case).map(change), case.window)))


def test_float64_takes_the_composition_unless_the_caller_insists() -> None:
    inputs = make_inputs(Case(), torch.float64)
    with pytest.raises(ValueError, match=r'takes float32.*call dcn_ops.set_implementation\("auto"\)'):
        op(*inputs, **Case().numbers)
    with dcn_ops.settings(implementation="auto"):
        torch.testing.assert_close(op(*inputs, **Case().numbers), reference.forward(*inputs, Case().window))


# Under the compiler


@pytest.mark.parametrize(("implementation", "whole"), [("native", True), ("auto", True), ("composition", False)])
def test_the_compiler_gets_one_node(implementation: str, whole: bool) -> None:
    graphs: list[set[object]] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append({node.target for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)

    case = SHAPES["odd"]
    inputs = make_inputs(case)
    torch._dynamo.reset()
    with dcn_ops.settings(implementation=implementation):
        compiled = torch.compile(op, fullgraph=True, backend=aot_autograd(fw_compiler=record))
        actual = run(compiled, inputs, **case.numbers)
    torch._dynamo.reset()
    assert [len(targets & {op.default, backward.default}) for targets in graphs] == [whole, whole]
    assert_within_budget(actual, *oracle(inputs, case, torch.float32))
