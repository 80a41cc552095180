"""The native kernel, for CPUs: C++ without columns in memory, built at the first call that needs it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.native.library import library
from dcn_ops.native.support import HALF, some_images, unavailable, unsupported
from dcn_ops.sampling.geometry import empty_channels_last
from dcn_ops.settings import current
from dcn_ops.torch_internals.cpu import has_fast_half

NAME, IMPLEMENTATION, DETERMINISTIC = "native", "native", True

# From this many channels per filter on, the product takes most of the time.
_MANY = 128
# For at most so many output pixels and at least so many filter elements, the composition is faster.
_FEW_PIXELS, _LARGE_FILTERS = 64, 2**21


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept float32, float16 and bfloat16 on the CPU, if the library is built or can be built."""
    input = problem.input
    if reason := unsupported(input):
        return reason
    if problem.weight.shape[1] >= _MANY and input.dtype in HALF and has_fast_half(input.dtype):
        return f"the native kernel multiplies in float32, and this CPU faster in {input.dtype}"
    few_pixels = input.shape[0] * problem.offset.shape[2] * problem.offset.shape[3] <= _FEW_PIXELS
    if few_pixels and problem.weight.numel() >= _LARGE_FILTERS and current().implementation != "native":
        return "the composition is faster for large filters that meet few pixels"
    return unavailable(input)


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    if problem.input.dtype == torch.float32:
        return _forward(problem)
    input, offset, weight = problem[:3]
    out = empty_channels_last(input, (input.shape[0], weight.shape[0], *offset.shape[2:]))
    for images, part in _widened(problem):
        out[images] = _forward(part)
    return out


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out."""
    if problem.input.dtype == torch.float32:
        return _backward(grad, problem, needs)
    input, offset, weight, _, mask, _ = problem
    of_maps = [
        None if tensor is None or not needed else empty_channels_last(tensor)
        for tensor, needed in ((input, needs[0]), (offset, needs[1]), (mask, needs[4]))
    ]
    of_weight = torch.zeros(weight.shape) if needs[2] else None
    for images, part in _widened(problem):
        wide = _backward(grad[images].float(), part, [*needs[:3], False, needs[4]])
        for whole, some in zip(of_maps, (wide[0], wide[1], wide[4]), strict=True):
            if whole is not None and some is not None:
                whole[images] = some
        if of_weight is not None and wide[2] is not None:
            of_weight += wide[2]
    of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if needs[3] else None
    return of_maps[0], of_maps[1], None if of_weight is None else of_weight.to(weight.dtype), of_bias, of_maps[2]


def _widened(problem: Problem) -> Iterator[tuple[slice, Problem]]:
    """Yield some images at a time, with the float32 problem of these images."""
    input, offset, weight, bias, mask, conv = problem
    filters, bias = weight.float(), None if bias is None else bias.float()
    n, channels, height, width = input.shape
    of_image = 4 * max(channels * height * width, weight.shape[0] * offset.shape[2] * offset.shape[3])
    for images in some_images(n, of_image):
        maps = offset[images].float(), None if mask is None else mask[images].float()
        yield images, Problem(input[images].float(), maps[0], filters, bias, maps[1], conv)


def _forward(problem: Problem) -> Tensor:
    native, (input, offset, weight, bias, mask, _) = library(), problem
    assert not isinstance(native, str)
    out = empty_channels_last(input, (input.shape[0], weight.shape[0], *offset.shape[2:]))
    image, filters = input.contiguous(memory_format=torch.channels_last), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    tensors = image, offset, mask, out, None, None, None, None
    native.convolve(_sizes(problem), _addresses(*tensors), (*_own_sizes(problem), *_addresses(filters, bias, None)))
    return out


def _backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    native, (input, offset, weight, _, mask, _) = library(), problem
    assert not isinstance(native, str)
    grad, image = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (grad, input))
    filters = weight.contiguous()
    of_input = empty_channels_last(input) if needs[0] else None
    of_offset = empty_channels_last(offset) if needs[1] else None
    of_weight = weight.new_empty(weight.shape) if needs[2] else None
    of_bias = grad.sum((0, 2, 3)) if needs[3] else None
    of_mask = None if mask is None or not needs[4] else empty_channels_last(mask)
    if needs[0] or needs[1] or needs[2] or needs[4]:
        addresses = _addresses(image, offset, mask, None, grad, of_input, of_offset, of_mask)
        own = *_own_sizes(problem), *_addresses(filters, None, of_weight)
        native.convolve_backward(_sizes(problem), addresses, own)
    return of_input, of_offset, of_weight, of_bias, of_mask


def _sizes(problem: Problem) -> tuple[int, ...]:
    kernel, stride, padding, dilation, _, offset_groups = problem.conv
    sizes = *problem.input.shape, *problem.offset.shape[2:], *kernel, *stride, *padding, *dilation
    return *sizes, offset_groups, 0, torch.get_num_threads()


def _own_sizes(problem: Problem) -> tuple[int, ...]:
    strides_of_mask = (0, 0, 0, 0) if problem.mask is None else problem.mask.stride()
    return problem.weight.shape[0], problem.conv.groups, *problem.offset.stride(), *strides_of_mask


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
