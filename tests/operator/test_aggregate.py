"""The aggregation of DCNv3 and DCNv4 against a formula of loops, deform_conv2d and finite differences."""

from collections.abc import Callable
from functools import partial
from random import Random

import pytest
import torch
from aggregates import CASES, Case, Inputs, formula, make_inputs, run
from torch import Tensor

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.kernels import bag, inductor
from dcn_ops.aggregate.problem import Problem
from dcn_ops.sampling import pieces
from dcn_ops.testing import Results, assert_within_budget

op = torch.ops.dcn_ops.deform_aggregate
ALL = CASES["all"]
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def oracle(inputs: Inputs, case: Case, precision: torch.dtype) -> tuple[Results, Results]:
    """Return the reference's results in float64 and in ``precision``."""
    define = partial(reference.forward, window=case.window)
    return run(define, inputs.map(Tensor.double)), run(define, inputs.map(lambda t: t.to(precision)))


@every_case
@pytest.mark.parametrize("function", ["op", "reference"])
def test_the_formula_agrees(case: Case, function: str) -> None:
    inputs = make_inputs(case, torch.float64)
    actual = op(*inputs, **case.numbers) if function == "op" else reference.forward(*inputs, case.window)
    torch.testing.assert_close(actual, formula(inputs, case), rtol=0, atol=1e-12)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("implementation", ["auto", "composition"])
def test_output_and_gradients_are_the_references(case: Case, dtype: torch.dtype, implementation: str) -> None:
    inputs = make_inputs(case, dtype)
    with dcn_ops.settings(implementation=implementation):
        actual = run(op, inputs, **case.numbers)
    assert {t.dtype for t in actual.values()} == {dtype}
    assert all(t.is_contiguous() for t in actual.values())
    assert_within_budget(actual, *oracle(inputs, case, torch.float32 if dtype == torch.float64 else dtype))


@every_case
def test_what_the_compiler_traces_is_the_reference(case: Case) -> None:
    inputs = make_inputs(case)
    actual = {"output": inductor.forward(Problem(*inputs, case.window))}
    cotangent = ((torch.arange(actual["output"].numel()) * 7 % 17 - 8) / 4).view(actual["output"].shape)
    gradients = inductor.backward(cotangent, Problem(*inputs, case.window), [True] * 3)
    actual |= dict(zip(Inputs._fields, gradients, strict=True))
    assert_within_budget(actual, *oracle(inputs, case, torch.float32))


def by_deform_conv2d(input: Tensor, offset: Tensor, mask: Tensor, case: Case) -> Tensor:
    """Compute the output by a depthwise deform_conv2d of ones, whose taps and axes come in another order."""
    (kh, kw), groups = case.kernel, case.groups
    n, ho, wo, _ = offset.shape
    taps = [(i, j) for i in range(kw) for j in range(kh)]
    removed = (kw // 2, kh // 2) if case.remove_center else None
    kept = [tap for tap in taps if tap != removed]
    half_h, half_w = (case.dilation[0] * (kh - 1)) // 2, (case.dilation[1] * (kw - 1)) // 2
    by_tap = offset.reshape(n, ho, wo, groups, len(kept), 2)
    masks = mask.reshape(n, ho, wo, groups, len(kept))
    offsets, weights = [], []
    for j in range(kh):
        for i in range(kw):
            grid = offset.new_tensor([j * case.dilation[0] - half_h, i * case.dilation[1] - half_w])
            if (i, j) == removed:
                offsets.append(torch.zeros_like(by_tap[:, :, :, :, 0]))
                weights.append(torch.zeros_like(masks[..., 0]))
                continue
            t = kept.index((i, j))
            offsets.append(case.offset_scale * by_tap[:, :, :, :, t].flip(-1) + (case.offset_scale - 1) * grid)
            weights.append(masks[..., t])
    offset = torch.stack(offsets, 4).permute(0, 3, 4, 5, 1, 2).flatten(1, 3)
    mask = torch.stack(weights, 4).permute(0, 3, 4, 1, 2).flatten(1, 2)
    weight = input.new_ones(case.channels, 1, kh, kw)
    out = dcn_ops.deform_conv2d(
        input.permute(0, 3, 1, 2), offset, weight, None, case.stride, case.padding, case.dilation, mask
    )
    return out.permute(0, 2, 3, 1)


CHOICES = {
    "batch": (1, 3),
    "channels": (6, 12),
    "size": ((10, 9), (12, 8)),
    "kernel": ((3, 3), (2, 4), (4, 1), (5, 3)),
    "stride": ((1, 1), (2, 1), (1, 3)),
    "padding": ((0, 0), (2, 1), (0, 3)),
    "dilation": ((1, 1), (2, 1), (1, 2)),
    "groups": (1, 2, 3),
    "offset_scale": (1.0, 0.5, 2.0),
}


@pytest.mark.parametrize("seed", range(30))
def test_deform_conv2d_of_ones_agrees(seed: int) -> None:
    random = Random(seed)
    case = Case(**{name: random.choice(values) for name, values in CHOICES.items()})
    if all(k % 2 for k in case.kernel):
        case = Case(**case.__dict__ | {"remove_center": random.choice((True, False))})
    inputs = make_inputs(case, torch.float64, seed)
    ours, theirs = run(op, inputs, **case.numbers), run(partial(by_deform_conv2d, case=case), inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@every_case
def test_the_functions_are_the_operator(case: Case) -> None:
    inputs = make_inputs(case)
    expected = run(op, inputs, **case.numbers)
    actual = run(dcn_ops.dcnv3, inputs, *case.official)
    assert all(map(torch.equal, actual.values(), expected.values()))

    def packed(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        by_group = (t.unflatten(-1, (case.groups, -1)) for t in (offset, mask))
        joined = torch.cat(list(by_group), -1).flatten(-2)
        # What fills up to a multiple of 8 is not read.
        joined = torch.nn.functional.pad(joined, (0, -joined.shape[-1] % 8), value=torch.nan)
        return dcn_ops.dcnv4(input, joined, *case.official)

    assert all(map(torch.equal, run(packed, inputs).values(), expected.values()))


def test_fill_channels_of_dcnv4_get_no_gradient() -> None:
    offset_mask = torch.randn(1, 4, 4, 32, requires_grad=True)  # 27 are read
    dcn_ops.dcnv4(torch.randn(1, 4, 4, 8), offset_mask, 3, 3, 1, 1, 1, 1, 1, 1, 1, 8).sum().backward()
    assert offset_mask.grad[..., 27:].eq(0).all()
    assert offset_mask.grad[..., :27].ne(0).any()


def test_without_offsets_the_mask_alone_makes_a_depthwise_convolution() -> None:
    case = Case(groups=6, padding=(1, 1), size=(6, 6))
    inputs = make_inputs(case, torch.float64)
    weight = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    mask = weight.flatten(1).unflatten(1, (3, 3)).mT.flatten(1).flatten()  # columns outside
    actual = op(inputs.input, torch.zeros_like(inputs.offset), mask.expand(2, 6, 6, -1), **case.numbers)
    expected = torch.nn.functional.conv2d(inputs.input.permute(0, 3, 1, 2), weight, padding=1, groups=6)
    torch.testing.assert_close(actual, expected.permute(0, 2, 3, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("coordinate", [0, 1])
def test_a_sample_out_of_reach_counts_zero(coordinate: int, value: float) -> None:
    inputs = make_inputs(ALL)
    inputs.mask[..., 4] = 0
    expected = op(*inputs, **ALL.numbers)
    inputs.mask[..., 4] = 1
    inputs.offset[..., 8 + coordinate] = value
    for function in (partial(op, **ALL.numbers), partial(reference.forward, window=ALL.window)):
        results = run(function, inputs)
        torch.testing.assert_close(results["output"], expected)
        assert results["offset"][..., 8:10].eq(0).all()
        assert all(t.isfinite().all() for t in results.values())


LAY_OUT = {
    "permuted": lambda t: t.mT.contiguous().mT,
    "channels_first": lambda t: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "sliced": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], -1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1, :1, :, :].expand_as(t),
}


@pytest.mark.parametrize("layout", LAY_OUT)
def test_arguments_and_gradients_of_any_strides(layout: str) -> None:
    inputs = make_inputs(ALL).map(LAY_OUT[layout])
    plain = inputs.map(Tensor.contiguous)
    assert all(map(torch.equal, run(op, inputs, **ALL.numbers).values(), run(op, plain, **ALL.numbers).values()))
    grad = LAY_OUT[layout](torch.randn_like(op(*plain, **ALL.numbers)))
    backward = torch.ops.dcn_ops.deform_aggregate_backward
    pairs = zip(
        backward(grad, *plain, **ALL.numbers, needs=[True] * 3),
        backward(grad.contiguous(), *plain, **ALL.numbers, needs=[True] * 3),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("needs", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
def test_backward_computes_the_needed_gradients_alone(needs: tuple[int, ...]) -> None:
    inputs = make_inputs(ALL)
    grad = torch.randn_like(op(*inputs, **ALL.numbers))
    backward = partial(torch.ops.dcn_ops.deform_aggregate_backward, grad, *inputs, **ALL.numbers)
    some, full = backward(needs=[bool(n) for n in needs]), backward(needs=[True] * 3)
    for one, other, needed in zip(some, full, needs, strict=True):
        assert torch.equal(one, other) if needed else one is None


@pytest.mark.parametrize(("rows", "count"), [(0, 60), (7, 9), (40, 2), (60, 1)])
def test_pieces_do_not_show(
    rows: int, count: int, monkeypatch: pytest.MonkeyPatch, limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(20, 4))
    inputs, made, original = make_inputs(case), [], bag._table
    for name in ("_TABLE_BYTES", "_SORT_BYTES"):
        monkeypatch.setattr(bag, name, 1000)
    monkeypatch.setattr(bag, "_image_bytes", lambda *args: 0)
    monkeypatch.setattr(bag, "_table", lambda *args: made.append(args) or original(*args))
    limit_workspace(pieces.CHUNKS * rows * 4 * 2 * 9 * 1000)
    with dcn_ops.settings(implementation="composition"):
        actual = run(op, inputs, **case.numbers)
    assert len(made) == 2 * count
    assert_within_budget(actual, *oracle(inputs, case, torch.float32))


def off_the_kinks(case: Case) -> Inputs:
    inputs = make_inputs(case, torch.float64)
    return inputs._replace(offset=inputs.offset + 1 / 97).map(Tensor.requires_grad_)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@every_case
def test_gradients_are_those_of_finite_differences(case: Case, check: Callable) -> None:
    assert check(partial(op, **case.numbers), tuple(off_the_kinks(case)), fast_mode=True)


def test_second_gradients_pass_through_predicted_offsets() -> None:
    case = Case(batch=1, channels=2, size=(3, 4), groups=1)
    input = torch.randn(1, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    predictor = torch.randn(27, 2, dtype=torch.float64, requires_grad=True)

    def function(input: Tensor, predictor: Tensor) -> Tensor:
        predicted = torch.nn.functional.linear(input, predictor)
        return op(input, predicted[..., :18], predicted[..., 18:].softmax(-1), **case.numbers)

    assert torch.autograd.gradgradcheck(function, (input, predictor))
