"""The aggregation's Triton kernels in the interpreter; ``test_triton.py`` runs this in a process of its own."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from random import Random

import pytest
import torch
import triton
import triton.language as tl
from aggregates import CASES, Case, Inputs, make_inputs, run
from torch import Tensor
from tuning import assert_tuning_changes_nothing

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.kernels.triton import launch, plan, sums
from dcn_ops.sampling import pieces
from dcn_ops.testing import Results, assert_within_budget
from dcn_ops.triton import tiles
from dcn_ops.triton.tiles import Tile

op = torch.ops.dcn_ops.deform_aggregate
backward = torch.ops.dcn_ops.deform_aggregate_backward
ALL = CASES["all"]
HOSTILE = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 2.0**31, -(2.0**31))
# What counts here is the number of programs; most cases fit one.
LARGE = (Tile(128, 1, 16, 4, 1),)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    plan.plan.cache_clear()  # what was planned with other tiles
    monkeypatch.setattr("dcn_ops.aggregate.kernels.gpu.refuses", lambda problem, grad=None: None)
    monkeypatch.setattr(tiles, "device_of", lambda device: tiles.Device("sm_90", 8))
    monkeypatch.setitem(plan.TABLES, "sm_90", dict.fromkeys(plan.KERNELS, LARGE))
    with dcn_ops.settings(implementation="triton"):
        yield


def check(case: Case, inputs: Inputs, dtype: torch.dtype = torch.float32) -> Results:
    actual, define = run(op, inputs, **case.numbers), partial(reference.forward, window=case.window)
    exact, rounded = inputs.map(Tensor.double), inputs.map(lambda t: t.to(dtype))
    assert_within_budget(actual, run(define, exact), run(define, rounded))
    return actual


@pytest.mark.parametrize("name", [name for name in CASES if name != "empty_batch"])
def test_output_and_gradients_are_the_references(name: str) -> None:
    check(CASES[name], make_inputs(CASES[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["all", "no_centre"])
def test_half_precision_accumulates_in_float32(name: str, dtype: torch.dtype) -> None:
    actual = check(CASES[name], make_inputs(CASES[name], dtype), dtype)
    assert {t.dtype for t in actual.values()} == {dtype}
    assert all(t.is_contiguous() for t in actual.values())


def test_half_features_with_float32_offsets_and_masks() -> None:
    wide = make_inputs(ALL)
    actual = check(ALL, wide._replace(input=wide.input.bfloat16()), torch.bfloat16)
    assert [actual[name].dtype for name in Inputs._fields] == [torch.bfloat16, torch.float32, torch.float32]


CHOICES = {
    "batch": (1, 2, 3),
    "kernel": ((3, 3), (5, 3), (2, 4), (1, 1), (4, 1), (7, 7)),
    "stride": ((1, 1), (2, 1), (1, 3)),
    "padding": ((1, 1), (0, 3), (2, 0)),
    "dilation": ((1, 1), (2, 1), (1, 2)),
    "groups": (1, 2, 3, 4, 8, 12),
    "offset_scale": (1.0, 0.5, 2.0, 0.25, -1.0, 0.0),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # numpy's, of a scale of 0 and infinity
@pytest.mark.parametrize("seed", range(16))
def test_drawn_calls_with_hostile_offsets_are_the_references(seed: int) -> None:
    random = Random(seed)
    numbers = {name: random.choice(values) for name, values in CHOICES.items()}
    numbers["channels"] = numbers["groups"] * random.choice((1, 2, 5, 16, 20))
    numbers["remove_center"] = numbers["kernel"] in ((3, 3), (5, 3), (7, 7)) and random.random() < 0.5
    # At least the smallest image that the kernel fits.
    axes = zip(numbers["dilation"], numbers["kernel"], numbers["padding"], strict=True)
    numbers["size"] = tuple(max(random.choice((1, 4)), d * (k - 1) + 1 - 2 * p) for d, k, p in axes)
    case = Case(**numbers)
    inputs = make_inputs(case, seed=seed)
    kind = torch.randint(12 * len(HOSTILE), inputs.offset.shape)
    for i, value in enumerate(HOSTILE):
        inputs.offset[kind == i] = value
    assert all(t.isfinite().all() for t in check(case, inputs).values())


@pytest.mark.parametrize("rows", [4, 16])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_many_tiles(rows: int, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = (Tile(rows, 1, 16, 4, 1),)
    monkeypatch.setitem(plan.TABLES, "sm_90", dict.fromkeys(plan.KERNELS, narrow))
    case = Case(batch=3, channels=16 * groups, groups=groups, size=(3, 2), kernel=(1, 2), padding=(0, 1))
    check(case, make_inputs(case, torch.bfloat16), torch.bfloat16)


def test_a_group_of_several_blocks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_CHANNELS", 16)
    case = Case(channels=80, groups=2, size=(4, 5))
    check(case, make_inputs(case))


def test_nothing_outside_the_image_is_read() -> None:
    inputs = make_inputs(ALL)
    expected = run(op, inputs, **ALL.numbers)
    # The image lies in memory that is NaN before and after it.
    memory = torch.full((3 * inputs.input.numel(),), torch.nan)
    within = memory[inputs.input.numel() :][: inputs.input.numel()].view(inputs.input.shape)
    within.copy_(inputs.input)
    actual = op(within, inputs.offset, inputs.mask, **ALL.numbers)
    assert torch.equal(actual, expected["output"])
    for entry, value in enumerate(HOSTILE):
        inputs.offset[:, :, 1, 2 * entry + entry % 2] = value
    grad = torch.ones_like(actual)
    results = backward(grad, within, inputs.offset, inputs.mask, **ALL.numbers, needs=[True] * 3)
    assert all(t.isfinite().all() for t in results)


@pytest.mark.parametrize("coordinate", [0, 1])
@pytest.mark.parametrize("value", HOSTILE)
def test_a_sample_out_of_reach_counts_zero(coordinate: int, value: float) -> None:
    inputs = make_inputs(ALL)
    inputs.mask[..., 4] = 0
    expected = op(*inputs, **ALL.numbers)
    inputs.mask[..., 4] = 1
    inputs.offset[..., 8 + coordinate] = value
    results = run(op, inputs, **ALL.numbers)
    assert torch.equal(results["output"], expected)
    assert results["offset"][..., 8:10].eq(0).all()
    assert results["mask"][..., 4].eq(0).all()


def test_a_pixel_that_is_not_finite_reaches_its_own_samples_alone() -> None:
    case = Case(kernel=(1, 1), padding=(0, 0), size=(4, 4), groups=1)
    inputs = make_inputs(case)
    inputs.offset.fill_(0.5)
    inputs.input[:, 0, 0] = torch.nan
    touched = op(*inputs, **case.numbers).isnan().any(3)
    expected = torch.zeros_like(touched)
    expected[:, 0, 0] = True
    assert torch.equal(touched, expected)


LAY_OUT = {
    "permuted": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.cat([t, torch.full_like(t, torch.nan)], -1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1, :1, :, :].expand_as(t),
}


@pytest.mark.parametrize("layout", LAY_OUT)
def test_any_strides(layout: str) -> None:
    case = Case(size=(4, 5))
    inputs = make_inputs(case).map(LAY_OUT[layout])
    plain = inputs.map(Tensor.contiguous)
    assert all(map(torch.equal, run(op, inputs, **case.numbers).values(), run(op, plain, **case.numbers).values()))
    grad = LAY_OUT[layout](torch.randn_like(op(*plain, **case.numbers)))
    results = [backward(g, *plain, **case.numbers, needs=[True] * 3) for g in (grad, grad.contiguous())]
    assert all(map(torch.equal, *results))


def gradients(inputs: Inputs, case: Case, needs: tuple[bool, ...] = (True,) * 3) -> tuple[Tensor | None, ...]:
    grad = torch.randn(op(*inputs, **case.numbers).shape, generator=torch.Generator().manual_seed(1))
    return backward(grad.to(inputs.input.dtype), *inputs, **case.numbers, needs=needs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_needed_gradients_alone(dtype: torch.dtype) -> None:
    case = Case(size=(4, 5), kernel=(1, 2))
    inputs = make_inputs(case, dtype)
    full = gradients(inputs, case)
    for needs in product([True, False], repeat=3):
        for part, whole, needed in zip(gradients(inputs, case, needs), full, needs, strict=True):
            # The interpreter runs one program after the other: even the atomic additions repeat.
            assert torch.equal(part, whole) if needed else part is None


@pytest.mark.parametrize("images", [1, 2])
def test_parts_of_the_batch_do_not_show(
    images: int, monkeypatch: pytest.MonkeyPatch, limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(4, 5), kernel=(1, 2))
    inputs, launched = make_inputs(case, torch.bfloat16), []
    whole = gradients(inputs, case)
    original = launch._launch
    monkeypatch.setattr(launch, "_launch", lambda kernel, *args: launched.append(kernel) or original(kernel, *args))
    limit_workspace(pieces.CHUNKS * images * 4 * inputs.input[0].numel())
    assert all(map(torch.equal, gradients(inputs, case), whole))
    assert launched == ["forward"] + ["backward"] * -(-3 // images)


def test_deterministic_algorithms_take_the_sorted_gradient_of_the_input() -> None:
    case = Case(kernel=(2, 2))
    inputs = make_inputs(case)
    by_kernel = gradients(inputs, case)
    with dcn_ops.settings(implementation="composition"):
        composed = gradients(inputs, case)
    torch.use_deterministic_algorithms(True)
    try:
        mixed = gradients(inputs, case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(mixed[0], composed[0])
    assert not torch.equal(by_kernel[0], composed[0])
    assert all(map(torch.equal, mixed[1:], by_kernel[1:]))


@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False)], ids=str)
def test_autotuning_leaves_the_image_and_adds_once(
    needs: tuple[bool, ...], tuned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(size=(4, 5), kernel=(1, 2))
    inputs = make_inputs(case)
    pair = (*LARGE, LARGE[0]._replace(stages=2))  # of the same order of additions
    monkeypatch.setitem(plan.TABLES, "sm_90", dict.fromkeys(plan.KERNELS, pair))
    assert_tuning_changes_nothing(lambda: gradients(inputs, case, needs), inputs, needs)
    assert tuned == ["forward_kernel"] * 2 + ["backward_kernel"] * 2


@triton.jit
def _far_positions(m_ptr, at_ptr, first, M, Ho, Wo, BLOCK: tl.constexpr):
    """Store the output positions from a far one on, and where they are."""
    step = tl.arange(0, BLOCK)
    m, _, at = sums.positions_from(first, step, M, Ho, Wo)
    tl.store(m_ptr + step, m)
    for i in tl.static_range(3):
        tl.store(at_ptr + i * BLOCK + step, at[i].to(tl.int64))


@pytest.mark.parametrize("size", [(1000, 1000), (3, 2), (1, 1), (5, 40)])
def test_positions_beyond_32_bits(size: tuple[int, int]) -> None:
    m, at, first = torch.zeros(16, dtype=torch.int64), torch.zeros(3, 16, dtype=torch.int64), 2**33 + 11
    _far_positions[(1,)](m, at, first, 2**34, *size, BLOCK=16)
    expected = torch.arange(first, first + 16)
    assert torch.equal(m, expected)
    line, column = expected // size[1], expected % size[1]
    assert torch.equal(at, torch.stack([line // size[0], line % size[0], column]))


@triton.jit
def _late_pixel(first_ptr, image, BLOCK: tl.constexpr):
    """Store where the pixel of a late image lies."""
    late = tl.full([BLOCK], image, tl.int64)
    zero = tl.zeros([BLOCK], tl.int32)
    at = late, zero + 3, zero + 5
    window: tl.constexpr = (1, 1, 1, 1, 0, 0, 1, 1, 1)
    first, _, _, _ = sums.locate((zero, zero), at, zero == 0, 0, (1024, 1024), 256, window, 1.0)
    tl.store(first_ptr + tl.arange(0, BLOCK), first)


def test_pixels_beyond_32_bits() -> None:
    first = torch.zeros(16, dtype=torch.int64)
    _late_pixel[(1,)](first, 2**13, BLOCK=16)
    assert set(first.tolist()) == {((2**13 * 1024 + 3) * 1024 + 5) * 256}
