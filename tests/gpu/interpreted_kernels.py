"""The Triton kernels in Triton's interpreter, on the CPU; ``test_triton.py`` runs this in a process of its own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter
from tuning import assert_tuning_changes_nothing

import dcn_ops
from dcn_ops.conv import reference
from dcn_ops.conv.kernels.triton import configs, gathered, launch, plan, primitives, unrolled
from dcn_ops.sampling import pieces
from dcn_ops.testing import CASES, Case, Inputs, Results, assert_within_budget, make_inputs, oracle, run
from dcn_ops.triton import tiles
from dcn_ops.triton.primitives import positions

op = torch.ops.dcn_ops.deform_conv2d
NAMES = [name for name in CASES if name != "empty_batch"]
# What counts here is the number of programs; the positions of most cases fit one tile.
TILES = {name: (configs.Tile(128, 16, 16, 4, 1),) for name in configs.TABLES["sm_90"]}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What was planned with other tiles.
    plan._make_workload.cache_clear()
    plan._plan.cache_clear()
    monkeypatch.setattr("dcn_ops.conv.kernels.gpu.refuses", lambda problem, grad=None: None)
    monkeypatch.setattr(tiles, "device_of", lambda device: tiles.Device("sm_90", 8))
    monkeypatch.setitem(configs.TABLES, "sm_90", TILES)
    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", dot)
    dcn_ops.set_implementation("triton")
    yield
    dcn_ops.set_implementation("auto")


def dot(a: object, b: object, total: object, *_: object) -> object:
    """Multiply as the hardware does, in float32: the interpreter would multiply the bits of bfloat16."""
    a, b = (interpreter.interpreter_builder.create_fp_ext(t, tl.float32) for t in (a, b))
    return interpreter.TensorHandle(a.data @ b.data + total.data, tl.float32)


def check(case: Case, inputs: Inputs, dtype: torch.dtype) -> Results:
    actual = run(op, inputs, **case.integers)
    assert_within_budget(actual, *oracle(inputs, case.conv, dtype))
    return actual


@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_are_the_references(name: str) -> None:
    check(CASES[name], make_inputs(CASES[name]), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["all", "depthwise", "plain", "offset_groups"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_half_precision_accumulates_in_float32(
    name: str, dtype: torch.dtype, by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_COLUMNS", 1 if by_columns else 2**62)
    actual = check(CASES[name], make_inputs(CASES[name], dtype), dtype)
    assert actual["output"].dtype == dtype
    assert actual["output"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "offset_groups"), [(3, 2), (5, 1), (7, 1)])
def test_depthwise_kernels(kernel: int, offset_groups: int) -> None:
    case = Case(batch=1, channels=18, filters=18, groups=18, kernel=(kernel, kernel), offset_groups=offset_groups)
    case = replace(case, size=(5, 4), padding=(kernel // 2, kernel // 2))
    check(case, make_inputs(case), torch.float32)


def test_groups_that_fill_no_tile_and_offset_groups_that_cross_them() -> None:
    case = Case(batch=1, channels=48, filters=40, groups=4, offset_groups=3, size=(4, 5), kernel=(1, 2))
    check(case, make_inputs(case), torch.float32)


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "strided"])
def test_any_strides(layout: str) -> None:
    check(CASES["all"], make_inputs(CASES["all"], layout=layout), torch.float32)


def test_half_features_with_float32_offsets_and_masks() -> None:
    case, wide = CASES["all"], make_inputs(CASES["all"])
    inputs = wide.map(lambda t: t.bfloat16())._replace(offset=wide.offset, mask=wide.mask)
    assert check(case, inputs, torch.bfloat16)["offset"].dtype == torch.float32


@pytest.mark.parametrize("name", ["all", "depthwise_large"])
def test_a_sample_out_of_reach_reads_nothing(name: str) -> None:
    case, inputs = CASES[name], make_inputs(CASES[name])
    for entry, value in enumerate([torch.nan, torch.inf, -torch.inf, 1e30, -1e30]):
        inputs.offset[:, 2 * entry + entry % 2, 1] = value
    assert all(t.isfinite().all() for t in check(case, inputs, torch.float32).values())


def test_a_pixel_that_is_not_finite_reaches_its_own_samples_alone() -> None:
    case = Case(kernel=(1, 1), padding=(0, 0), size=(4, 4))
    inputs = make_inputs(case)
    inputs.offset.fill_(0.5)
    inputs.input[:, :, 0, 0] = torch.nan
    touched = op(*inputs, **case.integers).isnan().any(1)
    expected = torch.zeros_like(touched)
    expected[:, 0, 0] = True
    assert torch.equal(touched, expected)


def gradients(inputs: Inputs, case: Case, needs: tuple[bool, ...] = (True,) * 5) -> tuple[Tensor | None, ...]:
    grad = torch.randn(op(*inputs, **case.integers).shape, generator=torch.Generator().manual_seed(1))
    return torch.ops.dcn_ops.deform_conv2d_backward(
        grad.to(inputs.input.dtype), *inputs, **case.integers, needs=needs
    )


@pytest.mark.parametrize("name", ["plain", "depthwise_large", "grouped"])
def test_the_needed_gradients_alone(name: str) -> None:
    case = replace(CASES[name], batch=1, mask=True, size=(5, 4), kernel=(1, 2), padding=(1, 1))
    inputs = make_inputs(case)
    full = gradients(inputs, case)
    for needs in product([True, False], repeat=5):
        if sum(needs) not in (1, 4):
            continue
        for part, whole, needed in zip(gradients(inputs, case, needs), full, needs, strict=True):
            # The interpreter runs one program after the other: even the atomic additions repeat.
            assert torch.equal(part, whole) if needed else part is None


Launch = tuple[str, dict[str, Tensor], dict[str, object]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The kernels that are launched from now on, with their tensors and numbers."""
    launches = []

    def record(kernel: str, work: plan.Workload, tensors: dict[str, Tensor], **numbers: object) -> None:
        launches.append((kernel, tensors, numbers))
        plan.launch(kernel, work, tensors, **numbers)

    for module in (launch, gathered, unrolled):
        monkeypatch.setattr(module, "launch", record)
    return launches


def names_of(launches: list[Launch]) -> list[str]:
    return [kernel for kernel, _, _ in launches]


@pytest.mark.parametrize("images", [1, 2])
def test_parts_of_the_batch_do_not_show(
    images: int, launched: list[Launch], limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(4, 5), kernel=(1, 2))
    inputs = make_inputs(case, torch.bfloat16)
    whole = gradients(inputs, case)
    launched.clear()
    limit_workspace(pieces.CHUNKS * images * 4 * inputs.input[0].numel())
    assert all(map(torch.equal, gradients(inputs, case), whole))
    assert names_of(launched).count("samples") == -(-3 // images)


@pytest.mark.parametrize("images", [1, 2])
def test_parts_of_the_columns_of_a_forward_do_not_show(
    images: int, launched: list[Launch], limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(4, 5), kernel=(1, 2), offset_groups=2)
    inputs = make_inputs(case)
    out = op(*inputs, **case.integers)
    launched.clear()
    limit_workspace(images * 4 * out[0, 0].numel() * inputs.weight[0].numel())
    torch.testing.assert_close(op(*inputs, **case.integers), out)
    assert names_of(launched) == ["unroll"] * -(-3 // images)


def in_order(inputs: Inputs, case: Case) -> tuple[Tensor | None, ...]:
    torch.use_deterministic_algorithms(True)
    try:
        return gradients(inputs, case)
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_algorithms_take_the_composition_s_gradient_of_the_input_of_groups() -> None:
    case = replace(CASES["grouped"], kernel=(2, 2))
    inputs = make_inputs(case)
    by_kernel, mixed = gradients(inputs, case), in_order(inputs, case)
    dcn_ops.set_implementation("composition")
    composed = gradients(inputs, case)
    assert torch.equal(mixed[0], composed[0])
    assert not torch.equal(by_kernel[0], composed[0])
    assert all(map(torch.equal, mixed[1:], by_kernel[1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "offset_groups", "depthwise", "depthwise_multiplied", "depthwise_large"])
def test_deterministic_algorithms_gather_in_the_order_of_the_output(
    name: str, dtype: torch.dtype, launched: list[Launch]
) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        check(CASES[name], make_inputs(CASES[name], dtype), dtype)
    finally:
        torch.use_deterministic_algorithms(False)
    names = names_of(launched)
    assert "gather" in names
    assert "count" not in names
    assert not any(numbers.get("NEED_INPUT") for _, _, numbers in launched)
    for kernel, tensors, _ in launched:
        if kernel == "gather":
            start, row = tensors["start_ptr"].tolist(), tensors["row_ptr"].tolist()
            assert start[-1] > len(start)  # more samples than lists
            lists = [row[first:end] for first, end in pairwise(start)]
            assert all(samples == sorted(samples) for samples in lists)


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every convolution in half precision were large."""
    monkeypatch.setattr(launch, "_COLUMNS", 1)


@pytest.mark.usefixtures("gathering")
@pytest.mark.parametrize("pixels", [16, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("offset_groups", [1, 2])
def test_depthwise_gradients_of_several_tiles_are_gathered(
    offset_groups: int,
    dtype: torch.dtype,
    pixels: int,
    launched: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(TILES, "depthwise gather half", (configs.Tile(pixels, 16, 16, 4, 1, near=pixels == 16),))
    case = Case(batch=1, channels=18, filters=18, groups=18, offset_groups=offset_groups, size=(6, 19))
    case = replace(case, kernel=(3, 2), padding=(2, 1), dilation=(2, 1), stride=(1, 2))
    check(case, make_inputs(case, dtype), dtype)
    assert [name for name in names_of(launched) if name in ("gather", "samples")] == ["gather", "samples"]
    assert not any(numbers.get("NEED_INPUT") for _, _, numbers in launched)


@pytest.mark.usefixtures("gathering")
@pytest.mark.parametrize("images", [1, 2])
def test_parts_of_lists_do_not_show(
    images: int, launched: list[Launch], limit_workspace: Callable[[int], None]
) -> None:
    case = Case(batch=3, size=(4, 5), kernel=(1, 2), groups=6, filters=6)
    inputs = make_inputs(case, torch.bfloat16)
    whole = gradients(inputs, case)
    launched.clear()
    limit_workspace(pieces.CHUNKS * images * 16 * inputs.offset[0].numel() // 2)
    assert all(map(torch.equal, gradients(inputs, case), whole))
    assert names_of(launched).count("gather") == -(-3 // images)


@pytest.mark.usefixtures("gathering")
@pytest.mark.parametrize("name", ["plain", "depthwise"])
def test_any_number_of_samples_may_touch_a_pixel(name: str) -> None:
    case = CASES[name]
    inputs, half = make_inputs(case, torch.bfloat16), torch.tensor(0.5)
    ho, wo = case.conv.output_size(case.size)
    grids = case.conv.grid((0, ho), wo, torch.float32, torch.device("cpu"))
    for axis, grid in enumerate(grids):  # all between rows 4 and 5, columns 3 and 4
        moved = (4 - axis + half - grid).expand(case.batch, 1, *case.kernel, ho, wo)
        inputs.offset[:, axis::2] = moved.flatten(1, 3).bfloat16()
    check(case, inputs, torch.bfloat16)


@pytest.mark.usefixtures("gathering")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of numpy, for inf - inf
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["plain", "depthwise_multiplied"])
def test_a_gradient_that_is_not_finite_reaches_the_pixels_of_its_own_samples_alone(
    name: str, value: float, deterministic: bool
) -> None:
    case = replace(CASES[name], batch=1, size=(7, 20), kernel=(1, 3), padding=(0, 1))
    inputs = make_inputs(case, torch.bfloat16)
    image = inputs.input.double().requires_grad_()
    out = reference.forward(image, *(t.double() for t in inputs[1:]), conv=case.conv)
    grad = torch.arange(out.numel()).view(out.shape) % 17 / 8 - 1
    grad[0, 1, 3, 9] = value
    expected = torch.autograd.grad(out, image, grad.double())[0]
    torch.use_deterministic_algorithms(deterministic)
    try:
        actual = torch.ops.dcn_ops.deform_conv2d_backward(
            grad.bfloat16(), *inputs, **case.integers, needs=[True, *[False] * 4]
        )[0]
    finally:
        torch.use_deterministic_algorithms(False)
    reached, allowed = ~actual.isfinite(), ~expected.isfinite()
    assert reached.any()
    assert not (reached & ~allowed).any()
    close = torch.isclose(actual.double(), expected, atol=2**-6 * expected[~allowed].abs().max().item(), rtol=0)
    assert close[~allowed].all()


@pytest.mark.parametrize("needs", [(True,) * 5, (False, True, True, True, True)], ids=str)
@pytest.mark.parametrize("name", ["grouped", "depthwise_large"])
def test_autotuning_leaves_the_image_and_adds_once(
    name: str, needs: tuple[bool, ...], tuned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASES[name], batch=1, size=(5, 4), kernel=(1, 2), padding=(1, 1))
    inputs = make_inputs(case)
    for key in ("forward ieee", "samples ieee", "depthwise forward", "depthwise samples"):
        monkeypatch.setitem(TILES, key, (TILES[key][0], TILES[key][0]._replace(warps=8)))
    assert_tuning_changes_nothing(lambda: gradients(inputs, case, needs), inputs, needs)
    assert tuned == ["forward_kernel"] * 2 + ["samples_kernel"] * 2


@triton.jit
def _addresses(map_ptr, first_ptr, entry_ptr, row_ptr, M, Ho, Wo, H, W, image, BLOCK: tl.constexpr):
    """Store where a block far out begins: output positions, the pixel of a late image, the entry of a map."""
    m, _, _ = positions(2**31 // BLOCK, BLOCK, M, Ho, Wo)
    tl.store(row_ptr + tl.arange(0, BLOCK), m)
    late = tl.full([BLOCK], image, tl.int64)
    zero = tl.zeros([BLOCK], tl.int32)
    at = late, zero + 3, zero + 5
    first, _, _, _ = primitives.locate((zero, zero), at, zero == 0, 0, (H, W), 256, (1, 1, 1, 1, 0, 0, 1, 1))
    tl.store(first_ptr + tl.arange(0, BLOCK), first)
    pointers = primitives.map_entry(
        map_ptr, (2**20, 2**20, 2**20, 2**20), (late, zero + 2**13, zero + 2**13), 2**13
    )
    tl.store(entry_ptr + tl.arange(0, BLOCK), (pointers.to(tl.int64) - map_ptr.to(tl.int64)) // 4)


def test_addresses_beyond_32_bits() -> None:
    m, first, entry = (torch.zeros(16, dtype=torch.int64) for _ in range(3))
    _addresses[(1,)](torch.zeros(1), first, entry, m, 2**33, 1000, 1000, 1024, 1024, 2**13, BLOCK=16)
    assert m.tolist() == list(range(2**31, 2**31 + 16))
    assert set(first.tolist()) == {((2**13 * 1024 + 3) * 1024 + 5) * 256}
    assert set(entry.tolist()) == {4 * 2**13 * 2**20}


FORMS = [(True, False), (False, True), (True, True)]  # flat, near


@pytest.mark.parametrize(("flat", "near"), FORMS)
@pytest.mark.parametrize("channels", [40, 36])
def test_forms_of_the_forward(channels: int, flat: bool, near: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Strips of 8 rows and of 3; two groups that fill no tile, three offset groups that cross them.
    case = Case(batch=2, channels=channels, filters=36, kernel=(1, 2), padding=(0, 1), size=(11, 5))
    if channels == 36:
        case = replace(case, groups=2, offset_groups=3)
    tile = configs.Tile(32, 16, 16, 4, 1, flat, near)
    monkeypatch.setattr(configs, "tiles", lambda *args: [tile])
    inputs = make_inputs(case)
    out = op(*inputs, **case.integers)
    exact = reference.forward(*(t.double() for t in inputs), conv=case.conv)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


def test_autotuning_tries_the_candidates_after_the_table(tuned: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tile = TILES["forward half"][0]
    candidates = tile._replace(flat=True), tile._replace(flat=True, near=True)
    monkeypatch.setitem(configs.CANDIDATES, "sm_90", {"forward half": candidates})
    tried = configs.tiles("forward half", tiles.Device("sm_90", 8), 16, 16, 100)
    assert tried == [tile, *candidates]
    inputs = make_inputs(CASES["plain"], torch.bfloat16)
    expected = op(*inputs, **CASES["plain"].integers)
    with dcn_ops.settings(autotune=True):
        assert torch.equal(op(*inputs, **CASES["plain"].integers), expected)
    assert tuned == ["forward_kernel"] * 3


def test_many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(batch=3, channels=40, filters=36, kernel=(1, 2), offset_groups=2)
    monkeypatch.setattr(configs, "tiles", lambda *args: [configs.Tile(32, 16, 16, 4, 1)])
    check(case, make_inputs(case), torch.float32)
