"""The native kernel, for CPUs: C++ without columns in memory, built with the first call that takes it."""

import torch
from torch import Tensor

from dcn_ops.conv.kernels.kernel import Gradients
from dcn_ops.conv.kernels.native.library import ARGUMENTS, Library, library
from dcn_ops.sampling.geometry import empty_channels_last

NAME, IMPLEMENTATION, DETERMINISTIC = "native", "native", True

_NO_MASK = (0, 0, 0, 0)


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Take float32 on the CPU, where the library is built or can be."""
    input = problem.input
    if input.device.type != "cpu":
        return f"the native kernel needs the CPU, got input.device={input.device}"
    if input.dtype != torch.float32:
        return f"the native kernel takes float32, got input.dtype={input.dtype}"
    if input.numel() == 0:
        return f"the native kernel needs an image, got input.shape={list(input.shape)}"
    if input[0].numel() >= 2**31:
        return f"the native kernel takes images of fewer than 2**31 numbers, got input.shape={list(input.shape)}"
    found = library()
    return f"there is no native kernel: {found}" if isinstance(found, str) else None


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    native = library()
    assert isinstance(native, Library)
    input, offset, weight, bias, mask, _ = problem
    n, _, ho, wo = offset.shape
    out = empty_channels_last(input, (n, weight.shape[0], ho, wo))
    input = input.contiguous(memory_format=torch.channels_last)
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    arguments = (*_sizes(problem), native.parallel_for, *map(_address, (input, offset, weight, bias, mask, out)))
    _run(native.forward, *arguments, 0, 0, 0, 0, 0)
    return out


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    native = library()
    assert isinstance(native, Library)
    input, offset, weight, _, mask, _ = problem
    grad = grad.contiguous(memory_format=torch.channels_last)
    image = input.contiguous(memory_format=torch.channels_last)
    filters = weight.contiguous()
    of_input = empty_channels_last(input) if needs[0] else None
    of_offset = empty_channels_last(offset) if needs[1] else None
    of_weight = filters.new_empty(filters.shape) if needs[2] else None
    of_bias = grad.sum((0, 2, 3)) if needs[3] else None
    of_mask = empty_channels_last(mask) if needs[4] and mask is not None else None
    if needs[0] or needs[1] or needs[2] or needs[4]:
        tensors = (image, offset, filters, None, mask, None, grad, of_input, of_offset, of_weight, of_mask)
        _run(native.backward, *_sizes(problem), native.parallel_for, *map(_address, tensors))
    return of_input, of_offset, of_weight, of_bias, of_mask


def _sizes(problem: Problem) -> tuple[int, ...]:
    input, offset, weight, _, mask, conv = problem
    return (
        *input.shape,
        weight.shape[0],
        *offset.shape[2:],
        *conv.kernel,
        *conv.stride,
        *conv.padding,
        *conv.dilation,
        conv.groups,
        conv.offset_groups,
        *offset.stride(),
        *(_NO_MASK if mask is None else mask.stride()),
        torch.get_num_threads(),
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _run(function, *arguments: int) -> None:
    if function(ARGUMENTS.pack(*arguments)) != 0:
        raise MemoryError("the native kernel of a deformable convolution found no memory")
