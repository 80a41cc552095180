"""The argument check of the operator, called by its real and its fake kernels, and two for Python callers."""

import operator
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from dcn_ops.sampling.geometry import Conv, Pair


def check_tensors(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    """Raise TypeError for what is not a tensor, ValueError for a wrong rank or a weight without elements."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return  # Sizes are tensors now; the operator runs with numbers, and checks them.
    _check_rank("input", input, 4)
    _check_rank("offset", offset, 4)
    _check_rank("weight", weight, 4)
    if bias is not None:
        _check_rank("bias", bias, 1)
    if mask is not None:
        _check_rank("mask", mask, 4)
    if 0 in weight.shape:
        raise ValueError(f"expected filters, channels and taps, got {_shape('weight', weight)}")


def check_maps(name: str, tensor: Tensor) -> None:
    """Raise TypeError or ValueError for an input or offset that a layer can't do anything with."""
    if not (torch.jit.is_scripting() or torch.jit.is_tracing() or has_torch_function((tensor,))):  # type: ignore[attr-defined]
        _check_rank(name, tensor, 4)


def _check_rank(name: str, tensor: Tensor, rank: int) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"expected {name} to be a torch.Tensor, got {type(tensor).__name__} {tensor!r}")
    if tensor.layout != torch.strided:
        raise TypeError(f"expected {name} to be dense, got {name}.layout={tensor.layout}; use {name}.to_dense()")
    if tensor.dim() != rank:
        hint = "; add a batch dimension with unsqueeze(0)" if tensor.dim() == 3 and name != "weight" else ""
        raise ValueError(f"expected {name} with {rank} dimensions, got {_shape(name, tensor)}{hint}")


def as_integer(name: str, value: object) -> int:
    """Return an integer of Python, NumPy or a symbol of torch's, for the argument ``name``.

    Raises:
        TypeError: For anything else; True is no number here.
    """
    if not isinstance(value, bool):
        if isinstance(value, int | torch.SymInt):
            return value  # type: ignore[return-value]
        with suppress(TypeError):
            return operator.index(value)  # type: ignore[arg-type]
    raise TypeError(f"expected {name} to be an integer, got {name}={value!r}")


def as_pair(name: str, value: int | Sequence[int]) -> list[int]:
    """Return one integer, or a sequence of one or two, as ``torch.nn.functional.conv2d`` takes them: a list of two.

    Raises:
        ValueError: For anything else.
    """
    values = list(value) if isinstance(value, Sequence) else [value]
    try:
        integers = [as_integer(name, v) for v in values]
    except TypeError:
        integers = []
    if len(integers) not in (1, 2):
        raise ValueError(f"expected {name} to be an integer or a pair of integers, got {name}={value!r}")
    return [integers[0], integers[-1]]


def count_groups(input: Tensor, offset: Tensor, weight: Tensor) -> tuple[int, int]:
    """Return the weight groups and the offset groups; where channels don't divide, the operator's check says so."""
    return input.shape[1] // weight.shape[1], offset.shape[1] // (2 * weight.shape[2] * weight.shape[3])


def check_arguments(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    offset_groups: int,
) -> Conv:
    """Return the integers of the convolution, or raise an error that names the argument and the mend.

    Raises:
        ValueError: For a rank, shape, channel count, integer or device that doesn't fit the others.
        TypeError: For a dtype that is not floating or that doesn't fit the input's.
    """
    check_tensors(input, offset, weight, bias, mask)
    stride, padding, dilation = (
        pair if len(pair) == 2 else as_pair(name, pair)
        for name, pair in (("stride", stride), ("padding", padding), ("dilation", dilation))
    )
    for name, pair, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if pair[0] < least or pair[1] < least:
            raise ValueError(f"expected {name} of two integers >= {least}, got {name}={tuple(pair)}")
    conv = Conv(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups, offset_groups)
    _check_channels(input, offset, weight, bias, conv)
    _check_maps(input, offset, mask, conv)
    _check_kind(input, offset, weight, bias, mask)
    return conv


def _check_channels(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv) -> None:
    channels, filters = input.shape[1], weight.shape[0]
    if conv.groups < 1 or weight.shape[1] * conv.groups != channels:
        raise ValueError(
            f"expected weight of shape [O, C / groups, kh, kw] for C={channels} input channels, "
            f"got {_shape('weight', weight)} with groups={conv.groups}"
        )
    if filters % conv.groups:
        raise ValueError(f"expected groups={conv.groups} to divide the filters, got {_shape('weight', weight)}")
    if conv.offset_groups < 1:
        raise ValueError(
            f"expected offset with a multiple of 2 * kh * kw = {2 * conv.taps} channels for the kernel "
            f"{list(conv.kernel)}, got {_shape('offset', offset)}, offset_groups={conv.offset_groups}"
        )
    if channels % conv.offset_groups:
        raise ValueError(
            f"expected offset_groups={conv.offset_groups} to divide the input channels, "
            f"got {_shape('input', input)} and {_shape('offset', offset)}"
        )
    if bias is not None and bias.shape[0] != filters:
        raise ValueError(f"expected bias of shape [{filters}], one per filter, got {_shape('bias', bias)}")


def check_gradient(grad: Tensor, input: Tensor, weight: Tensor, conv: Conv) -> None:
    """Raise ValueError or TypeError for a gradient that doesn't fit the output."""
    expected = [input.shape[0], weight.shape[0], *conv.output_size(input.shape[2:])]
    if list(grad.shape) != expected:
        raise ValueError(f"expected grad of the output's shape {expected}, got {_shape('grad', grad)}")
    if grad.dtype != input.dtype:
        raise TypeError(f"expected grad of the input's dtype {input.dtype}, got {grad.dtype=}")


def _check_maps(input: Tensor, offset: Tensor, mask: Tensor | None, conv: Conv) -> None:
    if input.shape[2] == 0 or input.shape[3] == 0:
        raise ValueError(f"expected an image with pixels, got {_shape('input', input)}")
    size = conv.output_size(input.shape[2:])
    if size[0] < 1 or size[1] < 1:
        raise ValueError(
            f"the output would be empty, {list(size)}: the kernel {list(conv.kernel)} with "
            f"dilation={list(conv.dilation)} and padding={list(conv.padding)} doesn't fit "
            f"{_shape('input', input)}; pad more or use a larger input"
        )
    for name, tensor, layout in (
        ("offset", offset, "offset_groups * kh * kw * 2"),
        ("mask", mask, "offset_groups * kh * kw"),
    ):
        channels = conv.offset_groups * conv.taps * (2 if name == "offset" else 1)
        expected = (input.shape[0], channels, *size)
        if tensor is not None and tensor.shape != expected:
            raise ValueError(
                f"expected {name} of shape {list(expected)}, [N, {layout}, Ho, Wo] with "
                f"offset_groups={conv.offset_groups} and the kernel {list(conv.kernel)}, "
                f"got {_shape(name, tensor)}"
            )


def _check_kind(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    dtype = input.dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(f"expected input of dtype float16, bfloat16, float32 or float64, got {dtype}")
    # Positions and masks may be wider than half-precision features, as under autocast.
    wide = (dtype, torch.float32) if dtype.itemsize == 2 else (dtype,)
    for name, tensor, allowed in (
        ("offset", offset, wide),
        ("weight", weight, (dtype,)),
        ("bias", bias, (dtype,)),
        ("mask", mask, wide),
    ):
        if tensor is None:
            continue
        if tensor.dtype not in allowed:
            raise TypeError(
                f"expected {name} of dtype {' or '.join(map(str, allowed))}, as the input's, "
                f"got {name}.dtype={tensor.dtype}; convert it with {name}.to(input.dtype)"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"expected {name} on the input's device {input.device}, got {name}.device={tensor.device}; "
                f"move it with {name}.to(input.device)"
            )


def _shape(name: str, tensor: Tensor) -> str:
    return f"{name}.shape={list(tensor.shape)}"
