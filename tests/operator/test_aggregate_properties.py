"""Properties of the aggregation over drawn calls: right results, and errors that the fake kernel raises too.

A longer run: ``pytest --hypothesis-profile=long tests/operator/test_aggregate_properties.py``
"""

from functools import partial
from typing import Any

import pytest
import torch
from aggregates import Case, make_inputs, run
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.kernels import inductor
from dcn_ops.aggregate.problem import Problem
from dcn_ops.interop import aggregate
from dcn_ops.sampling import pieces

op = torch.ops.dcn_ops.deform_aggregate


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kernel, padding, dilation = draw(pairs(1, 5)), draw(pairs(0, 3)), draw(pairs(1, 3))
    # The smallest image that the kernel fits.
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    groups, has_centre = draw(st.integers(1, 4)), kernel[0] % 2 == kernel[1] % 2 == 1 and kernel != (1, 1)
    return Case(
        batch=draw(st.integers(0, 3)),
        channels=groups * draw(st.integers(1, 17)),
        size=draw(st.tuples(*(st.integers(n, n + 5) for n in least))),
        kernel=kernel,
        stride=draw(pairs(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        # Exact in binary: no dtype rounds a position across an integer, where the offset's gradient jumps.
        offset_scale=draw(st.sampled_from((1.0, 0.5, 2.0, 0.25, -1.0, 0.0))),
        remove_center=has_centre and draw(st.booleans()),
    )


OFFSETS = (0.0, 2**-10, 1e4, -1e30, torch.nan, torch.inf, -torch.inf)


@given(
    cases(),
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(OFFSETS), max_size=3),
    st.sampled_from([0, 500, 5_000, 2**24]),
)
def test_every_implementation_is_the_reference(
    case: Case, seed: int, offsets: list[float], chunk_bytes: int
) -> None:
    inputs = make_inputs(case, torch.float64, seed)
    kind = torch.randint(8, inputs.offset.shape, generator=torch.Generator().manual_seed(seed))
    for i, value in enumerate(offsets):
        inputs.offset[kind == i] = value
    expected = run(partial(reference.forward, window=case.window), inputs)
    with dcn_ops.settings(workspace_limit=pieces.CHUNKS * chunk_bytes):
        actual = run(op, inputs, **case.numbers)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert all(t.isfinite().all() for t in actual.values())
    problem = Problem(*inputs, case.window)
    traced = inductor.forward(problem), *inductor.backward(_cotangent(expected["output"]), problem, [True] * 3)
    torch.testing.assert_close(traced, tuple(expected.values()), rtol=0, atol=1e-11)
    portable = aggregate.forward(*inputs, case.window, "gather", finite=False)
    torch.testing.assert_close(portable, expected["output"], rtol=0, atol=1e-11)


def _cotangent(out: Tensor) -> Tensor:
    return ((torch.arange(out.numel()) * 7 % 17 - 8) / 4).to(out.dtype).view(out.shape)


def _other_shape(tensor: Tensor, dimension: int) -> Tensor:
    return torch.cat([tensor, tensor.narrow(dimension, 0, min(1, tensor.shape[dimension]))], dimension)


MISTAKES: dict[str, Any] = {
    "input_rank": lambda a: {"input": a["input"][..., 0]},
    "offset_channels": lambda a: {"offset": a["offset"][..., 1:]},
    "offset_rows": lambda a: {"offset": _other_shape(a["offset"], 1)},
    "mask_columns": lambda a: {"mask": _other_shape(a["mask"], 2)},
    "mask_batch": lambda a: {"mask": torch.cat([a["mask"], a["mask"].new_zeros(1, *a["mask"].shape[1:])])},
    "mask_dtype": lambda a: {"mask": a["mask"].double()},
    "integers": lambda a: {"input": a["input"].long()},
    "kernel": lambda a: {"kernel": (a["kernel"][0] + 1, a["kernel"][1])},
    "no_kernel": lambda a: {"kernel": (0, 1)},
    "huge_dilation": lambda a: {"dilation": (2**40, 2**40), "kernel": (2, 2), "remove_center": False},
    "stride": lambda a: {"stride": (0, 1)},
    "negative_padding": lambda a: {"padding": (-1, 0)},
    "groups": lambda a: {"groups": 0},
    "more_groups": lambda a: {"groups": a["input"].shape[3] + 1},
    "scale": lambda a: {"offset_scale": float("inf")},
}


@given(cases(), st.sampled_from(sorted(MISTAKES)))
def test_a_mistake_is_an_error_in_the_real_and_the_fake_kernel(case: Case, name: str) -> None:
    arguments = make_inputs(case)._asdict() | case.numbers
    arguments |= MISTAKES[name](arguments)
    with pytest.raises((ValueError, TypeError), match=r"expected|the output would be empty") as real:
        op(**arguments)
    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        with pytest.raises((ValueError, TypeError)) as faked:
            op(**fake)
    assert str(real.value) == str(faked.value)
