"""A wrong argument raises an error that names it, has its value and says how to mend it."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from torch import zeros
from torch._subclasses import FakeTensorMode

import dcn_ops
from dcn_ops.testing import Case, make_inputs

CASE = Case(channels=4, filters=6, size=(6, 5), groups=2, offset_groups=2)
RIGHT = make_inputs(CASE)._asdict()  # input [2, 4, 6, 5], offset [2, 36, 6, 5], weight [6, 2, 3, 3]
PAIRS = {"stride": CASE.stride, "padding": CASE.padding, "dilation": CASE.dilation}

# What is wrong: the arguments, the error, and what its message says.
WRONG = {
    "input_without_batch": ({"input": zeros(4, 6, 5)}, ValueError, ["input.shape=[4, 6, 5]", "unsqueeze(0)"]),
    "input_rank": ({"input": zeros(4, 6)}, ValueError, ["input with 4 dimensions", "input.shape=[4, 6]"]),
    "offset_rank": ({"offset": zeros(36, 6, 5)}, ValueError, ["offset.shape=[36, 6, 5]", "unsqueeze(0)"]),
    "weight_rank": ({"weight": zeros(6, 2, 3)}, ValueError, ["weight with 4 dimensions", "weight.shape=[6, 2, 3]"]),
    "bias_rank": ({"bias": zeros(6, 1)}, ValueError, ["bias with 1 dimensions", "bias.shape=[6, 1]"]),
    "mask_rank": ({"mask": zeros(18, 6, 5)}, ValueError, ["mask.shape=[18, 6, 5]", "unsqueeze(0)"]),
    "no_taps": ({"weight": zeros(6, 2, 0, 3)}, ValueError, ["weight.shape=[6, 2, 0, 3]"]),
    "no_filters": ({"weight": zeros(0, 2, 3, 3)}, ValueError, ["weight.shape=[0, 2, 3, 3]"]),
    "channels": ({"input": zeros(2, 5, 6, 5)}, ValueError, ["C=5", "weight.shape=[6, 2, 3, 3]", "groups=2"]),
    "no_channels": ({"input": zeros(2, 0, 6, 5)}, ValueError, ["C=0", "weight.shape=[6, 2, 3, 3]", "groups=0"]),
    "filters": ({"weight": zeros(5, 2, 3, 3)}, ValueError, ["groups=2", "weight.shape=[5, 2, 3, 3]"]),
    "bias_shape": ({"bias": zeros(5)}, ValueError, ["bias of shape [6]", "bias.shape=[5]"]),
    "offset_channels": ({"offset": zeros(2, 35, 6, 5)}, ValueError, ["[2, 18, 6, 5]", "offset.shape=[2, 35,"]),
    "offset_of_no_group": ({"offset": zeros(2, 17, 6, 5)}, ValueError, ["18 channels", "offset.shape=[2, 17,"]),
    "offset_groups": ({"offset": zeros(2, 54, 6, 5)}, ValueError, ["offset_groups=3", "input.shape=[2, 4, 6, 5]"]),
    "offset_batch": ({"offset": zeros(1, 36, 6, 5)}, ValueError, ["[2, 36, 6, 5]", "offset.shape=[1, 36, 6, 5]"]),
    "offset_size": ({"offset": zeros(2, 36, 6, 4)}, ValueError, ["[2, 36, 6, 5]", "offset.shape=[2, 36, 6, 4]"]),
    "mask_channels": ({"mask": zeros(2, 9, 6, 5)}, ValueError, ["[2, 18, 6, 5]", "mask.shape=[2, 9, 6, 5]"]),
    "mask_size": ({"mask": zeros(2, 18, 1, 1)}, ValueError, ["[2, 18, 6, 5]", "mask.shape=[2, 18, 1, 1]"]),
    "no_pixels": ({"input": zeros(2, 4, 0, 5)}, ValueError, ["with pixels", "input.shape=[2, 4, 0, 5]"]),
    "no_output": ({"dilation": (9, 1)}, ValueError, ["[-10, 5]", "dilation=[9, 1]", "input.shape=[2, 4, 6, 5]"]),
    "stride": ({"stride": (0, 1)}, ValueError, ["stride=(0, 1)", ">= 1"]),
    "padding": ({"padding": (1, -1)}, ValueError, ["padding=(1, -1)", ">= 0"]),
    "dilation": ({"dilation": (0, 0)}, ValueError, ["dilation=(0, 0)", ">= 1"]),
    "integers": ({"input": zeros(2, 4, 6, 5, dtype=torch.int64)}, TypeError, ["input of dtype", "torch.int64"]),
    "complex": ({"input": zeros(2, 4, 6, 5, dtype=torch.cfloat)}, TypeError, ["input of dtype", "torch.complex64"]),
    "float8": ({"input": zeros(2, 4, 6, 5).to(torch.float8_e5m2)}, TypeError, ["torch.float8_e5m2"]),
    "half_offset": ({"offset": zeros(2, 36, 6, 5).half()}, TypeError, ["offset.dtype=torch.float16", "offset.to("]),
    "integer_offset": ({"offset": zeros(2, 36, 6, 5).int()}, TypeError, ["offset.dtype=torch.int32", "offset.to("]),
    "double_mask": ({"mask": zeros(2, 18, 6, 5).double()}, TypeError, ["mask.dtype=torch.float64", "mask.to("]),
    "half_weight": ({"weight": zeros(6, 2, 3, 3).half()}, TypeError, ["weight.dtype=torch.float16", "weight.to("]),
    "double_bias": ({"bias": zeros(6).double()}, TypeError, ["bias.dtype=torch.float64", "bias.to("]),
    "sparse_input": ({"input": RIGHT["input"].to_sparse()}, TypeError, ["input to be dense", "torch.sparse_coo"]),
    "sparse_weight": ({"weight": RIGHT["weight"].to_sparse()}, TypeError, ["weight.layout", "weight.to_dense()"]),
    "input_device": ({"input": RIGHT["input"].to("meta")}, ValueError, ["device meta", "offset.device=cpu"]),
    "offset_device": ({"offset": RIGHT["offset"].to("meta")}, ValueError, ["device cpu", "offset.device=meta"]),
    "weight_device": ({"weight": RIGHT["weight"].to("meta")}, ValueError, ["device cpu", "weight.device=meta"]),
    "bias_device": ({"bias": RIGHT["bias"].to("meta")}, ValueError, ["device cpu", "bias.device=meta"]),
    "mask_device": ({"mask": RIGHT["mask"].to("meta")}, ValueError, ["device cpu", "mask.device=meta"]),
}

# What only Python can get wrong: the operator's schema takes tensors and pairs of integers.
WRONG_IN_PYTHON = {
    "no_input": ({"input": None}, TypeError, ["input to be a torch.Tensor", "NoneType"]),
    "offset_list": ({"offset": [1.5]}, TypeError, ["offset to be a torch.Tensor", "list", "[1.5]"]),
    "weight_number": ({"weight": 7}, TypeError, ["weight to be a torch.Tensor", "int", "7"]),
    "bias_flag": ({"bias": False}, TypeError, ["bias to be a torch.Tensor", "bool", "False"]),
    "mask_array": ({"mask": RIGHT["mask"].numpy()}, TypeError, ["mask to be a torch.Tensor", "ndarray"]),
    # torchvision's order of arguments passes tensors for numbers: their pixels are no help.
    "stride_tensor": (
        {"stride": torch.zeros(2, 18, 9, 9)},
        ValueError,
        ["got stride=Tensor of shape [2, 18, 9, 9]"],
    ),
    "three_strides": ({"stride": (1, 2, 3)}, ValueError, ["stride", "pair", "(1, 2, 3)"]),
    "fractional_padding": ({"padding": 0.5}, ValueError, ["padding", "pair", "0.5"]),
    "fractional_dilation": ({"dilation": (1, 1.5)}, ValueError, ["dilation", "pair", "(1, 1.5)"]),
    "named_padding": ({"padding": "same"}, ValueError, ["padding", "'same'"]),
    "no_stride": ({"stride": ()}, ValueError, ["stride", "pair", "()"]),
    "mkldnn_input": ({"input": RIGHT["input"].to_mkldnn()}, TypeError, ["input to be dense", "torch._mkldnn"]),
}


def by_function(arguments: dict[str, Any]) -> torch.Tensor:
    return dcn_ops.deform_conv2d(**arguments)


def by_operator(arguments: dict[str, Any]) -> torch.Tensor:
    (kh, kw), arguments = (*arguments["weight"].shape, 1, 1)[2:4], arguments.copy()
    arguments["groups"] = arguments["input"].shape[1] // arguments["weight"].shape[1]
    arguments["offset_groups"] = arguments["offset"].shape[1] // max(1, 2 * kh * kw)
    return torch.ops.dcn_ops.deform_conv2d(**arguments)


def by_fake_kernel(arguments: dict[str, Any]) -> torch.Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return by_operator(arguments)


@pytest.mark.parametrize("call", [by_function, by_operator, by_fake_kernel])
@pytest.mark.parametrize(("change", "error", "parts"), WRONG.values(), ids=WRONG)
def test_wrong_argument(change: dict[str, Any], error: type[Exception], parts: list[str], call: Callable) -> None:
    with pytest.raises(error) as info:
        call(RIGHT | PAIRS | change)
    assert [part for part in parts if part not in str(info.value)] == []


@pytest.mark.parametrize(("change", "error", "parts"), WRONG_IN_PYTHON.values(), ids=WRONG_IN_PYTHON)
def test_wrong_python_argument(change: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    test_wrong_argument(change, error, parts, by_function)


@pytest.mark.parametrize(
    "change", [{"groups": 0}, {"groups": 4}, {"groups": -2}, {"offset_groups": 1}, {"offset_groups": 0}]
)
def test_wrong_groups(change: dict[str, int]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        torch.ops.dcn_ops.deform_conv2d(**RIGHT, **CASE.integers | change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offset_groups": 3}, "divide in_channels=4, got offset_groups=3"),
        ({"offset_groups": 0}, "offset_groups=0"),
        ({"offset_bound": 0.0}, "offset_bound=0.0"),
        ({"offset_bound": torch.nan}, "offset_bound=nan"),
        ({"offset_bound": torch.inf}, "offset_bound=inf"),
        ({"mask_scale": 0}, "mask_scale=0"),
        ({"mask_scale": -1.0}, "mask_scale=-1.0"),
        ({"mask_scale": torch.nan}, "mask_scale=nan"),
        ({"kernel_size": (3,)}, r"kernel_size to be an integer or a pair of integers, got kernel_size=\(3,\)"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size=\(3, 3, 3\)"),
        ({"kernel_size": 2.5}, "kernel_size=2.5"),
        ({"stride": (1, 1, 1)}, r"stride to be an integer or a pair of integers, got stride=\(1, 1, 1\)"),
        ({"padding": (1, 1, 1)}, r"padding=\(1, 1, 1\)"),
        ({"stride": (1, True)}, r"stride=\(1, True\)"),
        ({"padding": (1, numpy.ones(2, int))}, r"padding=\(1, array\(\[1, 1\]\)\)"),
    ],
    ids=str,
)
def test_wrong_layer(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dcn_ops.DeformConv2d(4, 8, **{"kernel_size": 3} | arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset_groups": 2.0},
        {"offset_groups": True},
        {"offset_bound": "a"},
        {"mask_scale": "1"},
        {"mask_scale": None},
    ],
    ids=str,
)
def test_wrong_types_of_a_layer(arguments: dict[str, Any]) -> None:
    (name, value), *_ = arguments.items()
    with pytest.raises(TypeError, match=f"expected {name} to be .*, got .*{value!r}"):
        dcn_ops.DeformConv2d(4, 8, 3, **arguments)


def test_integers_of_numpy_are_integers() -> None:
    two = numpy.int64(2)
    layer = dcn_ops.DeformConv2d(
        4, 8, 3, stride=two, padding=(two, two), dilation=two, offset_groups=two, offset_bound=numpy.float32(3)
    )
    assert layer(RIGHT["input"]).shape == (2, 8, 3, 3)
    by_function = partial(dcn_ops.deform_conv2d, zeros(1, 4, 6, 5), weight=zeros(6, 2, 3, 3))
    assert by_function(zeros(1, 36, 3, 3), stride=two, padding=1).shape == (1, 6, 3, 3)


@pytest.mark.parametrize(
    ("input", "error", "message"),
    [
        (RIGHT["input"].to_sparse(), TypeError, r"input to be dense, .* use input\.to_dense\(\)"),
        (RIGHT["input"][0], ValueError, r"input with 4 dimensions, .* unsqueeze\(0\)"),
        (numpy.zeros((2, 4, 6, 5)), TypeError, "input to be a torch.Tensor, got ndarray"),
        (zeros(2, 3, 6, 5), ValueError, r"input with 4 channels, got input\.shape=\[2, 3, 6, 5\]"),
    ],
    ids=["sparse", "without_batch", "array", "channels"],
)
def test_wrong_input_of_a_layer(input: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dcn_ops.DeformConv2d(4, 8, 3, padding=1)(input)


@pytest.mark.parametrize(
    ("offset", "error", "message"),
    [
        (zeros(36), ValueError, r"offset with 4 dimensions, got offset\.shape=\[36\]"),
        (5, TypeError, "offset to be a torch.Tensor, got int 5"),
    ],
)
def test_wrong_offset_of_a_layer(offset: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dcn_ops.DeformConv2d(4, 8, 3)(RIGHT["input"], offset)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_the_operator_takes_one_integer_in_a_list_as_convolutions_do_and_no_three(name: str) -> None:
    expected = torch.ops.dcn_ops.deform_conv2d(**RIGHT, **CASE.integers)
    one = CASE.integers | {name: [CASE.integers[name][0]]}
    torch.testing.assert_close(torch.ops.dcn_ops.deform_conv2d(**RIGHT, **one), expected)
    with pytest.raises(ValueError, match=rf"{name} to be an integer or a pair of integers, got {name}=\[1, 1, 1\]"):
        torch.ops.dcn_ops.deform_conv2d(**RIGHT, **CASE.integers | {name: [1, 1, 1]})


def test_a_function_says_where_groups_come_from_that_it_has_no_argument_for() -> None:
    with pytest.raises(ValueError, match=r"groups=0 \(where it is no argument: C // weight\.shape\[1\]\)"):
        dcn_ops.deform_conv2d(zeros(1, 8, 9, 9), zeros(1, 18, 9, 9), zeros(8, 16, 3, 3), padding=1)
    with pytest.raises(ValueError, match=r"groups=0 \(where it is no argument: offset\.shape\[1\] // \(2 \* kh"):
        dcn_ops.deform_conv2d(zeros(1, 8, 9, 9), zeros(1, 9, 9, 9), zeros(8, 8, 3, 3), padding=1)


@pytest.mark.parametrize("size", [0, (3, -1)])
def test_a_kernel_has_taps(size: Any) -> None:
    with pytest.raises(ValueError, match=f"kernel_size of 1 or more, got kernel_size={re.escape(repr(size))}"):
        dcn_ops.DeformConv2d(4, 8, size)


def test_missing_offset() -> None:
    with pytest.raises(ValueError, match="mask without an offset"):
        dcn_ops.DeformConv2d(4, 8, 3)(RIGHT["input"], mask=torch.ones(2, 9, 7, 5))
    with pytest.raises(ValueError, match="needs its offset"):
        dcn_ops.DeformConv2d(4, 8, 3, predict_offsets=False)(RIGHT["input"])


@pytest.mark.parametrize(
    ("grad", "error"), [(zeros(2, 6, 6, 4), ValueError), (zeros(2, 6, 6, 5).half(), TypeError)]
)
def test_a_gradient_that_is_not_the_outputs_is_refused(grad: torch.Tensor, error: type[Exception]) -> None:
    backward = torch.ops.dcn_ops.deform_conv2d_backward
    with pytest.raises(error, match="expected grad of the"):
        backward(grad, *RIGHT.values(), **CASE.integers, needs=[True] * 5)
