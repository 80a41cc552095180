"""The native kernel, for CPUs: C++ that makes the table of an output pixel and reads it at once, without columns.

It computes in float32. Half-precision tensors are converted for some images at a time.

Legend: N batch, C channels, Ho x Wo output size, G groups, K taps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.native.library import library
from dcn_ops.native.support import some_images, unavailable, unsupported

NAME, IMPLEMENTATION, DETERMINISTIC = "native", "native", True


def refuses(problem: Problem, grad: Tensor | None = None) -> str | None:
    """Accept float32, float16 and bfloat16 on the CPU, if the library is built or can be built."""
    return unsupported(problem.input) or unavailable(problem.input)


def forward(problem: Problem) -> Tensor:
    """Return [N, Ho, Wo, C]."""
    if problem.input.dtype == torch.float32:
        return _forward(problem)
    out = problem.input.new_empty((*problem.offset.shape[:3], problem.input.shape[3]))
    for images, part in _widened(problem):
        out[images] = _forward(part)
    return out


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out."""
    if problem.input.dtype == torch.float32:
        return _backward(grad, problem, needs)
    of_input, of_offset, of_mask = _gradients(problem, needs)
    for images, part in _widened(problem):
        wide = _backward(grad[images].float(), part, needs)
        for whole, some in zip((of_input, of_offset, of_mask), wide, strict=True):
            if whole is not None and some is not None:
                whole[images] = some
    return of_input, of_offset, of_mask


def _widened(problem: Problem) -> Iterator[tuple[slice, Problem]]:
    """Yield some images at a time, with the float32 problem of these images."""
    input, offset, mask, window = problem
    of_image = 4 * max(tensor[0].numel() for tensor in (input, offset))
    for images in some_images(input.shape[0], of_image):
        yield images, Problem(input[images].float(), offset[images].float(), mask[images].float(), window)


def _forward(problem: Problem) -> Tensor:
    native, (input, offset, mask, window) = library(), problem
    assert not isinstance(native, str)
    out = input.new_empty((*offset.shape[:3], input.shape[3]))
    tensors = input.contiguous(), offset.contiguous(), mask.contiguous()  # alive until the call returns
    native.aggregate(_sizes(problem), _addresses(*tensors, out, None, None, None, None), window.offset_scale)
    return out


def _backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    native, (input, offset, mask, window) = library(), problem
    assert not isinstance(native, str)
    gradients = _gradients(problem, needs)
    if any(needs):
        tensors = input.contiguous(), offset.contiguous(), mask.contiguous(), None, grad.contiguous()
        native.aggregate_backward(_sizes(problem), _addresses(*tensors, *gradients), window.offset_scale)
    return gradients


def _gradients(problem: Problem, needs: list[bool]) -> Gradients:
    of_input, of_offset, of_mask = (
        tensor.new_empty(tensor.shape) if needed else None
        for tensor, needed in zip(problem[:3], needs, strict=True)
    )
    return of_input, of_offset, of_mask


def _sizes(problem: Problem) -> tuple[int, ...]:
    input, offset, _, (kernel, stride, padding, dilation, groups, _, remove_center) = problem
    n, height, width, channels = input.shape
    sizes = n, channels, height, width, *offset.shape[1:3], *kernel, *stride, *padding, *dilation
    return *sizes, groups, int(remove_center), torch.get_num_threads()


def _addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    return tuple([0 if tensor is None else tensor.data_ptr() for tensor in tensors])
