"""The operator as launches of Triton kernels.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, K taps; n images of the current call.
"""

import torch
from torch import Tensor

from dcn_ops.aggregate.kernels.triton.plan import plan
from dcn_ops.aggregate.problem import Gradients, Problem
from dcn_ops.aggregate.window import Window
from dcn_ops.sampling.pieces import chunk_bytes, cut
from dcn_ops.settings import current
from dcn_ops.triton import tiles
from dcn_ops.triton.launch import is_traced, start


def forward(problem: Problem) -> Tensor:
    """Return [N, Ho, Wo, C]."""
    tensors = _tensors(problem)
    out = problem.input.new_empty(*problem.offset.shape[:3], problem.input.shape[3])
    _launch("forward", tensors | {"output_ptr": out}, problem.window)
    return out


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset and mask; None for each that ``needs`` leaves out.

    The order of additions in the gradient of the input changes from run to run; the others are always the same.
    """
    tensors = _tensors(problem) | {"grad_ptr": grad.contiguous()}
    image, offset, mask, _ = tensors.values()
    of_input, of_offset, of_mask = (
        torch.empty_like(tensor) if needed else None
        for tensor, needed in zip((image, offset, mask), needs, strict=True)
    )
    size = 0 if of_input is None or of_input.dtype == torch.float32 else 4 * image[0].numel()
    for first, end in cut(image.shape[0], size, chunk_bytes()) if any(needs) else ():
        some = slice(first, end)
        sums = None if of_input is None else _sums_for(of_input[some])
        # A kernel that doesn't write a gradient doesn't look at its pointer.
        written = {
            "grad_input_ptr": image[some] if sums is None else sums,
            "grad_offset_ptr": (offset if of_offset is None else of_offset)[some],
            "grad_mask_ptr": (mask if of_mask is None else of_mask)[some],
        }
        read = {name: tensor[some] for name, tensor in tensors.items()}
        _launch("backward", read | written, problem.window, tuple(needs))
        if of_input is not None and sums is not None and sums.dtype != of_input.dtype:
            of_input[some].copy_(sums)
    return of_input, of_offset, of_mask


def _sums_for(gradient: Tensor) -> Tensor:
    """Return float32 zeros to add to: the gradient itself, or a workspace if it is in half precision."""
    return gradient.zero_() if gradient.dtype == torch.float32 else torch.zeros_like(gradient, dtype=torch.float32)


def _tensors(problem: Problem) -> dict[str, Tensor]:
    """Return image, offset and mask by the names of their pointers."""
    names = "input_ptr", "offset_ptr", "mask_ptr"
    return {name: tensor.contiguous() for name, tensor in zip(names, problem[:3], strict=True)}


def _launch(
    kernel: str, tensors: dict[str, Tensor], window: Window, needs: tuple[bool, ...] = (False, False, False)
) -> None:
    image, output = tensors["input_ptr"], tensors["offset_ptr"].shape[1:3]
    make = plan.__wrapped__ if is_traced(image) else plan
    numbers = image.shape, output, window, needs, image.dtype.itemsize, tiles.device_of(image.device)
    start(make(kernel, *numbers, current().autotune), tensors)
