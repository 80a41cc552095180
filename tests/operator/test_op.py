"""The CPU implementations against the reference, torch's own convolution and torchvision's operator."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from random import Random

import pytest
import torch
import torch.nn.functional as F
import torchvision

import dcn_ops
from dcn_ops.conv import reference
from dcn_ops.conv.kernels import contraction, depthwise, unroll
from dcn_ops.sampling import bags, pieces
from dcn_ops.testing import CASES, LAYOUTS, Case, Inputs, Results, assert_within_budget, make_inputs, oracle, run

op = torch.ops.dcn_ops.deform_conv2d
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALL = CASES["all"]


pytestmark = pytest.mark.usefixtures("implementation")
# Of one of them alone.
of_cpu = pytest.mark.parametrize("implementation", ["cpu"], indirect=True)


def window(case: Case) -> dict[str, tuple[int, int]]:
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}


def backward(grad: torch.Tensor, inputs: Inputs, case: Case, needs: tuple[bool, ...] = (True,) * 5) -> Results:
    gradients = torch.ops.dcn_ops.deform_conv2d_backward(grad, *inputs, **case.integers, needs=needs)
    return {"output": grad, **dict(zip(inputs._fields, gradients, strict=True))}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_are_the_references(case: Case, dtype: torch.dtype, layout: str) -> None:
    inputs = make_inputs(case, dtype, layout=layout)
    actual = run(op, inputs, **case.integers)
    assert actual["output"].dtype == dtype
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32 if dtype == torch.float64 else dtype))


@of_cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_filters_are_contracted_by_a_matrix_product(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    products, original = [], F.linear
    monkeypatch.setattr(contraction, "_LARGE", 0)
    monkeypatch.setattr(F, "linear", lambda *args: products.append(args) or original(*args))
    inputs = make_inputs(case, dtype)
    actual = run(op, inputs, **case.integers)
    assert bool(products) == (case.groups == 1 and actual["output"].numel() > 0)
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32 if dtype == torch.float64 else dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_features_take_float32_offsets_and_masks(case: Case, dtype: torch.dtype) -> None:
    wide = make_inputs(case)
    inputs = wide.map(lambda t: t.to(dtype))._replace(offset=wide.offset, mask=wide.mask)
    actual = run(op, inputs, **case.integers)
    assert (actual["output"].dtype, actual["offset"].dtype) == (dtype, torch.float32)
    assert_within_budget(actual, *oracle(inputs, case.conv, dtype))


def test_the_function_reads_the_groups_from_the_shapes(case: Case) -> None:
    inputs = make_inputs(case)
    actual, expected = run(dcn_ops.deform_conv2d, inputs, **window(case)), run(op, inputs, **case.integers)
    assert all(map(torch.equal, actual.values(), expected.values()))


def test_the_function_takes_one_integer_for_a_pair() -> None:
    case = Case(stride=(2, 2), dilation=(2, 2), padding=(3, 3))
    inputs = make_inputs(case)
    actual = dcn_ops.deform_conv2d(*inputs[:4], stride=2, padding=3, dilation=2, mask=inputs.mask)
    assert torch.equal(actual, op(*inputs, **case.integers))


@pytest.mark.parametrize("needs", list(product([True, False], repeat=5)), ids=str)
def test_backward_computes_the_needed_gradients_alone(needs: tuple[bool, ...]) -> None:
    inputs = make_inputs(ALL)
    grad = torch.randn_like(op(*inputs, **ALL.integers))
    full = backward(grad, inputs, ALL)
    partly = backward(grad, inputs, ALL, needs)
    for name, needed in zip(inputs._fields, needs, strict=True):
        assert torch.equal(partly[name], full[name]) if needed else partly[name] is None


LAY_OUT = {
    "expanded": lambda t: t[:1, :, :1, :1].expand_as(t),
    "permuted": lambda t: t.mT.contiguous().mT,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAY_OUT)
def test_backward_takes_a_gradient_of_any_strides(case: Case, layout: str) -> None:
    inputs = make_inputs(replace(case, mask=True, bias=True))
    grad = LAY_OUT[layout](torch.randint_like(op(*inputs, **case.integers), -8, 9))
    exact = backward(grad.double().contiguous(), inputs.map(torch.Tensor.double), case)
    assert_within_budget(backward(grad, inputs, case), exact, backward(grad.contiguous(), inputs, case))


@of_cpu
@pytest.mark.parametrize(("rows", "count"), [(0, 60), (7, 9), (40, 2), (60, 1)])
@pytest.mark.parametrize("table_bytes", [1, 16, 64])  # of a sample: one table for all pieces, or several
@pytest.mark.parametrize("groups", [1, 2])
def test_pieces_do_not_show(
    rows: int,
    count: int,
    table_bytes: int,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
    limit_workspace: Callable[[int], None],
) -> None:
    monkeypatch.setattr(pieces, "TABLE_BYTES", table_bytes)
    monkeypatch.setattr(unroll, "SORT_BYTES", 0)
    case = Case(batch=3, size=(20, 4), groups=groups)
    inputs, unrolled, original = make_inputs(case), [], unroll.gather
    monkeypatch.setattr(unroll, "gather", lambda *args: unrolled.append(args) or original(*args))
    bytes_of_a_row = case.size[1] * case.conv.taps * case.channels * 4
    limit_workspace(pieces.CHUNKS * rows * bytes_of_a_row)
    actual = run(op, inputs, **case.integers)
    assert len(unrolled) == 2 * count if table_bytes == 1 else len(unrolled) >= 2 * count
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


@of_cpu
@pytest.mark.parametrize(
    ("copies", "tables"),  # images, times rows of taps at a time, times rows of the output
    [(0, 3 * 5 * 20), (1, 3 * 5 * 10), (2.5, 3 * 3 * 7), (1000, 1)],
)
def test_pieces_of_a_depthwise_convolution_do_not_show(
    copies: float, tables: int, monkeypatch: pytest.MonkeyPatch, limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(20, 4), groups=6, filters=6, kernel=(5, 3), padding=(2, 1), offset_groups=2)
    inputs, made, original = make_inputs(case), [], depthwise._table
    monkeypatch.setattr(depthwise, "_table", lambda *args: made.append(args) or original(*args))
    bytes_of_a_row_of_taps = (20 + 2) * (4 + 2) * 6 * 3 * 4
    limit_workspace(int(pieces.CHUNKS * copies * bytes_of_a_row_of_taps))
    actual = run(op, inputs, **case.integers)
    assert len(made) == 2 * tables
    assert_within_budget(actual, *oracle(inputs, case.conv, torch.float32))


def test_gradients_of_chunks_add_up_in_float32(limit_workspace: Callable[[int], None]) -> None:
    limit_workspace(0)
    input, weight = (torch.ones(1, 1, n, 1, dtype=torch.bfloat16, requires_grad=True) for n in (300, 1))
    # Every row samples the first: 300 ones, which stop at 256 in bfloat16.
    offset = torch.stack((-torch.arange(300.0), torch.zeros(300))).view(1, 2, 300, 1)
    dcn_ops.deform_conv2d(input, offset, weight).sum().backward()
    assert (input.grad[0, 0, 0].item(), weight.grad.item()) == (300, 300)


def test_one_column_of_a_bfloat16_depthwise_convolution() -> None:
    # Torch's own convolution reads memory that nobody wrote there: have some garbage lie about.
    for _ in range(8):
        garbage = [torch.full((4**i,), 3e38) for i in range(3, 9)]
    del garbage
    input, offset, weight = torch.ones(1, 2, 12, 4), torch.zeros(1, 8, 12, 1), torch.ones(6, 1, 1, 4)
    out = dcn_ops.deform_conv2d(*(t.bfloat16() for t in (input, offset, weight)))
    assert torch.equal(out, torch.full_like(out, 4))


@pytest.mark.parametrize("name", ["all", "depthwise", "depthwise_large"])
def test_grouped_convolutions_leave_matrix_units_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, inputs = CASES[name], make_inputs(CASES[name], torch.bfloat16)
    results = []
    for fast in (False, True):
        monkeypatch.setattr(contraction, "has_fast_half", lambda dtype, fast=fast: fast)
        results.append(run(op, inputs, **case.integers))
    assert all(map(torch.equal, *(result.values() for result in results)))


def plain(inputs: Inputs, case: Case) -> Results:
    return {"output": F.conv2d(inputs.input, inputs.weight, inputs.bias, **window(case), groups=case.groups)}


def test_zero_offsets_are_the_plain_convolution(case: Case) -> None:
    inputs = make_inputs(case)._replace(mask=None)
    inputs.offset.zero_()
    actual = {"output": op(*inputs, **case.integers)}
    assert_within_budget(actual, plain(inputs.map(torch.Tensor.double), case), plain(inputs, case))


@pytest.mark.parametrize("shift", [(1, -2), (-3, 0), (0, 4)])
def test_integer_offsets_shift_the_image(shift: tuple[int, int]) -> None:
    case = Case(mask=False, groups=2, stride=(2, 1))
    inputs = make_inputs(case)
    (dy, dx), (top, left) = shift, case.padding
    inputs.offset.unflatten(1, (-1, 2)).copy_(torch.tensor([dy, dx])[:, None, None])
    moved = inputs._replace(input=F.pad(inputs.input, (left - dx, left + dx, top - dy, top + dy)))
    expected = (plain(t, replace(case, padding=(0, 0))) for t in (moved.map(torch.Tensor.double), moved))
    assert_within_budget({"output": op(*inputs, **case.integers)}, *expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "function", [partial(op, **ALL.integers), partial(reference.forward, conv=ALL.conv)], ids=["op", "reference"]
)
def test_a_sample_out_of_reach_counts_zero(function: Callable[..., torch.Tensor], axis: int, value: float) -> None:
    inputs, tap, row = make_inputs(ALL), 3, 1
    inputs.mask[:, tap, row] = 0
    exact, same_precision = oracle(inputs, ALL.conv, torch.float32)
    # Through the mask a sample of 0 gets no gradient, a masked one does.
    exact["mask"][:, tap, row] = same_precision["mask"][:, tap, row] = 0
    inputs.mask[:, tap, row] = 1
    inputs.offset[:, 2 * tap + axis, row] = value
    assert_within_budget(run(function, inputs), exact, same_precision)


CHOICES = {
    "batch": (1, 3),
    "channels": (6, 12),
    "filters": (6, 12),
    "size": ((8, 9), (12, 8)),
    "kernel": ((1, 1), (3, 3), (2, 4), (4, 1)),
    "stride": ((1, 1), (2, 1), (1, 3)),
    "padding": ((0, 0), (2, 1), (0, 3)),
    "dilation": ((1, 1), (2, 1), (1, 2)),
    "groups": (1, 2, 3),
    "offset_groups": (1, 2, 3),
    "mask": (True, False),
    "bias": (True, False),
}


@pytest.mark.parametrize("seed", range(40))
def test_torchvision_agrees(seed: int) -> None:
    random = Random(seed)
    case = Case(**{name: random.choice(values) for name, values in CHOICES.items()})
    inputs = make_inputs(case, torch.float64, seed)
    ours, theirs = (run(f, inputs, **window(case)) for f in (dcn_ops.deform_conv2d, torchvision.ops.deform_conv2d))
    # In float64, where any difference of meaning is larger by far than that of rounding.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def off_the_kinks(case: Case) -> Inputs:
    """Return float64 leaves; halfway between multiples of 1/32 the operator is smooth."""
    inputs = make_inputs(case, torch.float64)
    return inputs._replace(offset=inputs.offset + 1 / 64).map(torch.Tensor.requires_grad_)


def test_gradients_are_those_of_finite_differences(case: Case) -> None:
    assert torch.autograd.gradcheck(partial(op, **case.integers), tuple(off_the_kinks(case)), fast_mode=True)


def test_second_gradients_are_those_of_finite_differences(case: Case) -> None:
    assert torch.autograd.gradgradcheck(partial(op, **case.integers), tuple(off_the_kinks(case)), fast_mode=True)


def test_second_gradients_pass_through_predicted_offsets() -> None:
    shapes = (1, 2, 4, 3), (18, 2, 3, 3), (2, 2, 3, 3)
    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def function(input: torch.Tensor, predictor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        offset = F.conv2d(input, predictor, padding=1)
        return dcn_ops.deform_conv2d(input, offset, weight, padding=1)

    out = function(*tensors).square().sum()
    with_graph, alone = (torch.autograd.grad(out, tensors, create_graph=create) for create in (True, False))
    torch.testing.assert_close(with_graph, alone)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("entries", [bags._RADIX // 4 - 1, bags._RADIX // 4, bags._RADIX - 1, bags._RADIX])
def test_rows_are_sorted_whatever_their_number(entries: int) -> None:
    row = torch.randint(0, 99, (entries,), dtype=torch.int32)
    by_row, entry = bags.sort_rows(row, 99)
    assert torch.equal(row[entry], by_row)
    assert torch.equal(entry, row.sort(stable=True).indices)
