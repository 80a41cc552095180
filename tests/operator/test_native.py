"""The native kernel against the reference, in shapes that it treats in different ways."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from graphs import compiled_for_graphs, targets

import dcn_ops
from dcn_ops.conv import reference
from dcn_ops.conv.kernels import cpu
from dcn_ops.conv.problem import Problem
from dcn_ops.native.library import library
from dcn_ops.testing import CASES, LAYOUTS, Case, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d

# What the kernels treat in ways of their own: vectors and their remainders, offset groups that no vector fits,
# groups of half a vector, tiles of pixels, filters of several blocks of registers, several taps at a time.
SHAPES = {
    "one channel": Case(channels=1, filters=1),
    "one channel, many filters": Case(channels=1, filters=33),
    "multiplied": Case(channels=5, filters=15, groups=5),
    "depthwise": Case(channels=96, filters=96, groups=96, size=(9, 12)),
    "depthwise, two blocks": Case(channels=216, filters=216, groups=216),
    "depthwise, odd": Case(channels=37, filters=37, groups=37, size=(9, 20), kernel=(5, 5), padding=(2, 2)),
    "depthwise, offset groups": Case(
        channels=33, filters=33, groups=33, offset_groups=3, kernel=(7, 7), padding=(3, 3)
    ),
    "depthwise, strided": Case(channels=24, filters=24, groups=24, stride=(2, 3), dilation=(2, 1)),
    "dense": Case(channels=64, filters=64, size=(21, 20)),
    "dense, odd": Case(channels=50, filters=37, size=(13, 11), offset_groups=2),
    "dense, panels cut by offset groups": Case(channels=72, filters=40, size=(14, 14), offset_groups=3),
    "dense, large filters": Case(batch=2, channels=512, filters=320, size=(4, 5)),
    "dense, several tiles": Case(batch=3, channels=16, filters=8, size=(40, 41)),
    "groups of eight": Case(channels=64, filters=64, groups=8, size=(9, 9)),
    "groups of a half vector": Case(channels=24, filters=15, groups=3, size=(9, 9), offset_groups=4),
    "two groups": Case(channels=128, filters=96, groups=2, offset_groups=4),
    "pointwise": Case(channels=20, filters=21, kernel=(1, 1), padding=(0, 0)),
    "no mask": Case(channels=20, filters=21, kernel=(2, 3), mask=False, bias=False, stride=(1, 2)),
}


pytestmark = pytest.mark.usefixtures("native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_are_the_references(name: str, dtype: torch.dtype) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case, dtype)
    with dcn_ops.settings(implementation="auto"):  # some CPUs multiply half precision faster
        assert_within_budget(run(op, inputs, **case.integers), *oracle(inputs, case.conv, dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["depthwise, odd", "dense, odd", "groups of a half vector"])
def test_layouts_do_not_show(name: str, layout: str) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    laid_out = make_inputs(case, layout=layout)
    assert all(map(torch.equal, *(run(op, i, **case.integers).values() for i in (inputs, laid_out))))


@pytest.mark.parametrize("name", SHAPES)
def test_threads_share_the_work(name: str, threads: Callable[[int], None]) -> None:
    case = SHAPES[name]
    # So much work that it is shared, of one image too.
    for batch, size in ((1, (40, 41)), (5, (21, 20))):
        shared = replace(case, batch=batch, size=size)
        inputs = make_inputs(shared)
        threads(1)
        alone = run(op, inputs, **shared.integers)
        for count in (2, 3):
            threads(count)
            several, again = (run(op, inputs, **shared.integers) for _ in range(2))
            assert all(map(torch.equal, several.values(), again.values()))
            assert torch.equal(several["output"], alone["output"])
            for key, value in several.items():
                torch.testing.assert_close(value, alone[key], rtol=1e-5, atol=1e-5 * alone[key].abs().max().item())


def test_an_empty_batch_takes_another_implementation() -> None:
    case = CASES["empty_batch"]
    with dcn_ops.settings(implementation="auto"):
        assert op(*make_inputs(case), **case.integers).shape[0] == 0


# Positions in the input: far away, at the borders, beyond.
VALUES = [float("nan"), float("inf"), -float("inf"), 2.0**31, -(2.0**31), 1e30, -1.0, 0.0, 5.0, 6.0, 7.0, -2.0]


@pytest.mark.parametrize("name", ["depthwise, odd", "dense, odd", "groups of a half vector"])
def test_extreme_positions_are_the_references(name: str) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    ho, wo = inputs.offset.shape[2:]
    grid = torch.broadcast_tensors(*case.conv.grid((0, ho), wo, torch.float32, torch.device("cpu")))
    positions = torch.stack(grid, 2).reshape(1, -1, ho, wo).repeat(1, case.offset_groups, 1, 1)
    chosen = torch.randint(len(VALUES), inputs.offset.shape, generator=torch.Generator().manual_seed(0))
    inputs.offset.copy_(torch.tensor(VALUES)[chosen] - positions)
    actual = run(op, inputs, **case.integers)
    assert all(result.isfinite().all() for result in actual.values())
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


@pytest.mark.parametrize("name", ["depthwise, odd", "dense, odd", "groups of a half vector"])
@pytest.mark.parametrize("broken", ["mask", "input", "gradient"])
def test_what_is_not_finite_reaches_what_the_reference_says(name: str, broken: str) -> None:
    case = SHAPES[name]
    inputs, column = make_inputs(case), torch.tensor([1])
    if broken != "gradient":
        changed = getattr(inputs, broken if broken == "input" else "mask").index_fill(3, column, float("nan"))
        inputs = inputs._replace(**{broken: changed})
    leaves = inputs.map(lambda t: t.detach().requires_grad_())
    grad = torch.ones_like(op(*inputs, **case.integers))
    if broken == "gradient":
        grad = grad.index_fill(3, column, float("inf"))
    actual = torch.autograd.grad(op(*leaves, **case.integers), list(leaves), grad)
    expected = torch.autograd.grad(reference.forward(*leaves, conv=case.conv), list(leaves), grad)
    for field, mine, theirs in zip(inputs._fields, actual, expected, strict=True):
        if (field, broken) == ("mask", "gradient"):  # the reference multiplies zeros beyond the border by infinity
            assert (theirs.isfinite() <= mine.isfinite()).all()
        else:
            assert torch.equal(mine.isfinite(), theirs.isfinite()), field


@pytest.mark.parametrize(
    "needs", [(1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1)]
)
@pytest.mark.parametrize("name", ["depthwise, odd", "dense, odd", "groups of a half vector"])
def test_each_gradient_can_be_had_alone(name: str, needs: tuple[int, ...]) -> None:
    case = SHAPES[name]
    inputs = make_inputs(case)
    grad = torch.randn_like(op(*inputs, **case.integers))
    backward = torch.ops.dcn_ops.deform_conv2d_backward
    full = backward(grad, *inputs, **case.integers, needs=[True] * 5)
    for needed, whole, some in zip(needs, full, backward(grad, *inputs, **case.integers, needs=needs), strict=True):
        assert torch.equal(some, whole) if needed else some is None


@pytest.mark.parametrize("channels", [64, 384, 1500])
def test_long_sums_round_no_more_than_those_of_the_plain_convolution(channels: int) -> None:
    torch.manual_seed(0)
    image, weight = torch.rand(1, channels, 12, 12), torch.randn(32, channels, 3, 3)
    exact = F.conv2d(image.double(), weight.double(), padding=1)
    still = torch.zeros(1, 18, 12, 12)
    errors = [
        (output.double() - exact).square().mean()
        for output in (
            dcn_ops.deform_conv2d(image, still, weight, padding=(1, 1)),
            F.conv2d(image, weight, padding=1),
        )
    ]
    assert errors[0] <= 2 * errors[1]  # in one sum of all terms 3 to 8 times


def test_what_it_refuses_has_a_reason() -> None:
    inputs = make_inputs(Case(), torch.float64)
    with pytest.raises(ValueError, match=r"takes float32, float16 and bfloat16, got input\.dtype=torch\.float64"):
        op(*inputs, **Case().integers)
    elsewhere = Problem(*inputs.map(lambda t: t.to("meta", torch.float32)), Case().conv)
    assert cpu.refuses(elsewhere) == "the native kernel needs the CPU, got input.device=meta"


def test_half_precision_is_left_to_cpus_that_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    case = SHAPES["two groups"]
    large, small = (make_inputs(c, torch.bfloat16) for c in (replace(case, groups=1), case))
    for fast in (False, True):
        monkeypatch.setattr(cpu, "has_fast_half", lambda _, fast=fast: fast)
        assert bool(cpu.refuses(Problem(*large, replace(case, groups=1).conv))) == fast
        assert not cpu.refuses(Problem(*small, case.conv))
    assert not cpu.refuses(Problem(*make_inputs(replace(case, groups=1)), replace(case, groups=1).conv))


@pytest.mark.parametrize("name", ["depthwise, odd", "dense, odd"])
def test_without_torchs_threads_one_does_the_work(
    name: str, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(SHAPES[name], batch=3, size=(40, 40))
    inputs = make_inputs(case)
    threads(3)
    several = run(op, inputs, **case.integers)
    monkeypatch.setattr(library(), "_parallel_for", 0)
    assert all(map(torch.equal, several.values(), run(op, inputs, **case.integers).values()))


# Under the compiler


# An eager call for few pixels and large filters takes the composition.
@pytest.mark.parametrize("case", [SHAPES["depthwise, odd"], Case(channels=512, filters=512, size=(2, 3))])
@pytest.mark.parametrize(("implementation", "whole"), [("native", True), ("auto", True), ("composition", False)])
def test_the_compiler_gets_one_node(implementation: str, whole: bool, case: Case) -> None:
    inputs = make_inputs(case)
    compiled, graphs = compiled_for_graphs(op)
    with dcn_ops.settings(implementation=implementation):
        actual = run(compiled, inputs, **case.integers)
    ours = {op.default, torch.ops.dcn_ops.deform_conv2d_backward.default}
    assert [len(targets(graph) & ours) for graph in graphs] == [whole, whole]
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


def test_the_compiler_says_why_what_must_be_native_is_not() -> None:
    inputs = make_inputs(Case(), torch.float64)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16"):
        torch.compile(op, fullgraph=True, backend="aot_eager")(*inputs, **Case().integers)
