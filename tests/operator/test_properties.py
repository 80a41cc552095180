"""Properties over drawn calls: right results, errors that name the argument, no leak.

A longer run: ``pytest --hypothesis-profile=long tests/operator/test_properties.py``
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import lcm
from pathlib import Path
from resource import getpagesize
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

import dcn_ops
from dcn_ops.conv import reference
from dcn_ops.conv.kernels import tiny
from dcn_ops.sampling import pieces
from dcn_ops.sampling.geometry import Conv
from dcn_ops.testing import LAYOUTS, Case, Inputs, Results, make_inputs, run

op = torch.ops.dcn_ops.deform_conv2d
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@contextmanager
def implementation(chunk_bytes: int | None) -> Iterator[None]:
    """Have the operator take columns or depthwise with chunks of that size, for None tiny, for -1 native."""
    if chunk_bytes == -1:  # wherever it doesn't refuse
        yield
        return
    changes: dict[str, Any] = {"implementation": "composition"}
    if chunk_bytes is not None:
        changes["workspace_limit"] = pieces.CHUNKS * chunk_bytes
    with pytest.MonkeyPatch.context() as patch, dcn_ops.settings(**changes):
        patch.setattr(tiny, "MAX_WORK", 2**62 if chunk_bytes is None else -1)
        yield


IMPLEMENTATIONS = st.none() | st.sampled_from([-1, 0, 500, 5_000, 50_000, 2**24])


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel, padding, dilation = draw(pairs(1, 4)), draw(pairs(0, 3)), draw(pairs(1, 3))
    # The smallest image that the kernel fits.
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Case(
        batch=draw(st.integers(0, 3)),
        channels=lcm(groups, offset_groups) * draw(st.integers(1, 2)),
        filters=groups * draw(st.integers(1, 3)),
        size=draw(st.tuples(*(st.integers(n, 12) for n in least))),
        kernel=kernel,
        stride=draw(pairs(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        offset_groups=offset_groups,
        mask=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


# Beside those of make_inputs: multiples of 1/32, integers, borders. The small ones keep positions exact in float32:
# rounded onto an integer, a sample would have other neighbours, and the offset another gradient.
OFFSETS = (0.0, 2**-10, -(2**-10), 2**-16, -(2**-16), 1e4, -1e4, 1e30, -1e30, torch.nan, torch.inf, -torch.inf)


@st.composite
def variants(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "dtype": draw(st.sampled_from(DTYPES)),
        "float32_maps": draw(st.booleans()),  # as under autocast
        "layout": draw(st.sampled_from(LAYOUTS)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "offsets": draw(st.lists(st.sampled_from(OFFSETS), max_size=4)),
    }


def inputs_of(
    case: Case, dtype: torch.dtype, float32_maps: bool, layout: str, seed: int, offsets: list[float]
) -> Inputs:
    inputs = make_inputs(case, dtype, seed, layout)
    if float32_maps and dtype.itemsize == 2:
        wide = make_inputs(case, torch.float32, seed, layout)
        inputs = inputs._replace(offset=wide.offset, mask=wide.mask)
    kind = torch.randint(8, inputs.offset.shape, generator=torch.Generator().manual_seed(seed))
    for i, value in enumerate(offsets):
        inputs.offset[kind == i] = torch.tensor(value).to(inputs.offset)
    return inputs


def sums_of_absolute_terms(inputs: Inputs, conv: Conv) -> Results:
    """Return for each entry of what ``run`` returns the sum of its terms' absolute values, or more."""
    positive = inputs.map(lambda t: t.double().abs())._replace(offset=inputs.offset.double())
    row, column = (torch.arange(size).double() for size in inputs.input.shape[2:])
    sums: Results = {}
    # The offset's gradient is a difference of neighbours: a sum where their signs alternate.
    for sign in (torch.ones(1), (-1) ** row[:, None], (-1) ** column):
        leaves = positive._replace(input=positive.input * sign).map(Tensor.requires_grad_)._asdict()
        present = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        out = reference.forward(**leaves, conv=conv)
        cotangent = torch.full_like(out, 2)  # that of run is no larger
        gradients = torch.autograd.grad(out, list(present.values()), cotangent)
        for name, terms in zip(("output", *present), (out.detach(), *gradients), strict=True):
            sums[name] = terms.abs().maximum(sums.get(name, terms))
    return sums


@given(cases(), variants(), IMPLEMENTATIONS)
def test_every_entry_is_right_up_to_rounding_its_terms(
    case: Case, variant: dict[str, Any], chunk_bytes: int | None
) -> None:
    """|error| <= steps * eps * sum of |terms|, whatever the order of the sum (Higham, "Accuracy", section 3.1).

    A budget of the largest error of the reference fails by chance: in a result of few entries whose terms cancel,
    one order may round luckily and another not.
    """
    inputs = inputs_of(case, **variant)
    with implementation(chunk_bytes):
        actual = run(op, inputs, **case.integers)
    exact = run(reference.forward, inputs.map(Tensor.double), conv=case.conv)
    sums, limits = sums_of_absolute_terms(inputs, case.conv), torch.finfo(inputs.input.dtype)
    # Half precision sums in float32, and rounds samples, products and the result by half a step each.
    steps = 2 if limits.bits == 16 else 4
    for name, expected in exact.items():
        assert actual[name].dtype == (inputs.input if name == "output" else getattr(inputs, name)).dtype
        # Below the normal numbers steps are no longer relative.
        budget = steps * limits.eps * sums[name] + limits.smallest_normal
        # In this order NaN fails.
        assert ((actual[name] - expected).abs() <= budget).all(), name


# What stands behind the operator and changes its output in place.
IN_PLACE: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda out: out.relu_(),
    lambda out: out.add_(1),
    lambda out: out.mul_(out.detach().clone()),
    lambda out: out[:, ::2].neg_() if out.shape[1] > 1 else out.neg_(),
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "workspace_limit": st.sampled_from([0, 2**12, 2**20]),
        "implementation": st.sampled_from(["auto", "composition"]),
        "whole_operators": st.booleans(),
    },
)


def changed(function: Callable[[Tensor], Tensor], in_place: bool) -> Callable[..., Tensor]:
    """Return the operator with something behind it, which changes the output itself or a copy of it."""

    def call(*tensors: Tensor, **integers: Any) -> Tensor:
        out = op(*tensors[:5], **integers)
        out = out if in_place else out.clone()
        function(out)
        return out

    return lambda input, offset, weight, bias, mask, **integers: call(input, offset, weight, bias, mask, **integers)


@given(cases(), st.sampled_from(LAYOUTS), st.sampled_from(IN_PLACE), SETTINGS, IMPLEMENTATIONS)
def test_the_output_may_be_changed_in_place(
    case: Case, layout: str, function: Callable[[Tensor], Tensor], chosen: dict[str, Any], chunk_bytes: int | None
) -> None:
    inputs = make_inputs(case, layout=layout)
    with implementation(chunk_bytes), dcn_ops.settings(**chosen):
        expected = run(changed(function, in_place=False), inputs, **case.integers)
        actual = run(changed(function, in_place=True), inputs, **case.integers)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 10)
@given(cases(), st.sampled_from(LAYOUTS), SETTINGS, st.booleans())
def test_compiled_for_any_size_it_is_eagers(case: Case, layout: str, chosen: dict[str, Any], dynamic: bool) -> None:
    inputs = make_inputs(case, torch.float64, layout=layout)
    torch._dynamo.reset()
    function = changed(torch.relu_, in_place=True)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with dcn_ops.settings(**chosen):
        actual = run(compiled, inputs, **case.integers)
    torch.testing.assert_close(actual, run(function, inputs, **case.integers))


WINDOW = {"stride": 1, "padding": 0, "dilation": 1}  # the least integers
NOT_PAIRS = ((), (1, 2, 3), (1, 1.5), 1.5, "same", None)
# Where a shape is changed, the message may name another that no longer fits.
MISFITS = {
    "input": "input|offset|weight",
    "offset": "offset|mask",
    "weight": "weight|kernel|offset|bias",
    "bias": "bias",
    "mask": "mask",
}
WRONG_DTYPES = (*DTYPES, torch.float8_e5m2, torch.int64, torch.bool, torch.complex64)

WrongCall = tuple[Callable[..., Tensor], dict[str, Any], str]  # the last: a pattern for the argument's name


def is_right(arguments: dict[str, Any]) -> bool:
    """Tell by torch's own convolution whether shapes and integers fit."""
    input, offset, weight, bias, mask = (arguments[name] for name in Inputs._fields)
    window = {name: arguments[name] for name in WINDOW}
    if 0 in input.shape[1:] or 0 in weight.shape or min(window["stride"]) < 1:
        return False  # torch divides by them
    try:
        meta = Inputs(input, None, weight, bias, None).map(lambda t: t.to("meta"))
        out = F.conv2d(meta.input, meta.weight, meta.bias, **window, groups=input.shape[1] // weight.shape[1])
    except RuntimeError:
        return False
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps)
    if groups < 1 or input.shape[1] % groups or 0 in out.shape[2:]:
        return False
    maps = ((offset, 2 * groups * taps), (mask, groups * taps))
    return all(t is None or t.shape == (input.shape[0], n, *out.shape[2:]) for t, n in maps)


@st.composite
def wrong_calls(draw: st.DrawFn) -> WrongCall:
    case = draw(cases())
    inputs = make_inputs(case, draw(st.sampled_from(DTYPES)))
    right = inputs._asdict() | {name: getattr(case, name) for name in WINDOW}
    name = draw(st.sampled_from([name for name, value in right.items() if value is not None]))
    value, names = right[name], name
    if name in WINDOW:
        change = draw(st.sampled_from(["integer", "not a pair"]))
    else:
        change = draw(st.sampled_from(["rank", "shape", "dtype", "device", "not a tensor", "groups"]))
    event(f"{name}: {change}")
    if change == "groups":
        name = draw(st.sampled_from(["groups", "offset_groups"]))
        wrong = draw(st.integers(-2, 13).filter(lambda n: n != getattr(case, name)))
        return op, inputs._asdict() | case.integers | {name: wrong}, name
    if change == "integer":
        wrong = list(value)
        wrong[draw(st.integers(0, 1))] = draw(st.integers(-3, 14) | st.sampled_from([-(2**40), 2**40]))
        names = name if min(wrong) < WINDOW[name] else f"{name}|offset"
    elif change == "not a pair":
        wrong = draw(st.sampled_from(NOT_PAIRS))
    elif change == "rank":
        wrong = draw(st.sampled_from([value[None], value[..., None], value.new_zeros(value.shape[1:])]))
    elif change == "shape":
        shape = list(value.shape)
        shape[draw(st.integers(0, value.dim() - 1))] = draw(st.just(0) | st.integers(0, 40))
        wrong, names = value.new_zeros(shape), MISFITS[name]
    elif change == "dtype":
        wrong = value.to(draw(st.sampled_from([dtype for dtype in WRONG_DTYPES if dtype != value.dtype])))
        assume(name not in ("offset", "mask") or wrong.dtype != torch.float32 or value.dtype.itemsize != 2)
    elif change == "device":
        wrong = value.to("meta")
    else:
        nothing = [] if name in ("bias", "mask") else [None]
        wrong = draw(st.sampled_from([7, False, [1.5], "tensor", *nothing]))
    arguments = right | {name: wrong}
    assume(change not in ("integer", "shape") or not is_right(arguments))
    return dcn_ops.deform_conv2d, arguments, names


def message_of(wrong_call: WrongCall) -> str:
    function, arguments, names = wrong_call
    with pytest.raises((ValueError, TypeError), match=rf"\b({names})\b") as info:
        function(**arguments)
    return str(info.value)


@given(wrong_calls())
def test_a_wrong_call_raises_an_error_that_names_the_argument(wrong_call: WrongCall) -> None:
    message_of(wrong_call)


@given(wrong_calls())
def test_fake_tensors_get_the_same_error(wrong_call: WrongCall) -> None:
    function, arguments, names = wrong_call
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        message = message_of((function, fake, names))
    assert message == message_of(wrong_call)


@settings(max_examples=settings().max_examples // 5)
@given(wrong_calls())
def test_the_compilers_error_has_the_message(wrong_call: WrongCall) -> None:
    function, arguments, _ = wrong_call
    message = message_of(wrong_call)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException) as info:
        torch.compile(function, fullgraph=True, backend="aot_eager")(**arguments)
    assert message in str(info.value)


def live_tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
@pytest.mark.parametrize("chunk_bytes", [None, 2**15, -1], ids=["tiny", "cpu", "native"])
def test_calls_leave_nothing_in_memory(chunk_bytes: int | None) -> None:
    # Every tensor takes 4 KiB or more: one left by each call would add up to 4 MB. None is so large that the
    # allocator, which keeps the small, would give it back.
    calls, bound = 1000, 2 * 10**6
    case = Case(
        batch=1, size=(4, 4), channels=64, filters=1024, kernel=(1, 1), padding=(0, 0), groups=64, offset_groups=64
    )
    inputs = make_inputs(case)
    assert min(t.nbytes for t in inputs) > 2 * bound / calls
    with implementation(chunk_bytes):
        for _ in range(calls // 5):
            run(op, inputs, **case.integers)
        gc.collect()
        gc.disable()  # What only the collector frees would stay for long.
        try:
            tensors, resident = live_tensors(), resident_bytes()
            for _ in range(calls):
                run(op, inputs, **case.integers)
            assert live_tensors() == tensors
            assert resident_bytes() - resident < bound
        finally:
            gc.enable()
