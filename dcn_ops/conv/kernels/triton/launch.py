"""The operator as launches of Triton kernels.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, G offset groups, K taps,
M = N * Ho * Wo output positions; n images of the current call.
"""

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton import unrolled
from dcn_ops.conv.kernels.triton.call import Call, Wanted, call_of, channels_last, map_gradients
from dcn_ops.conv.kernels.triton.gathered import gather_depthwise
from dcn_ops.conv.kernels.triton.pieces import LEAST, SAMPLE_BYTES
from dcn_ops.conv.kernels.triton.plan import Workload, launch
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.pieces import chunk_bytes, cut, is_known
from dcn_ops.settings import workspace_limit

# From this many elements of columns on, half precision gathers the gradient of the input. Measured for dense
# convolutions, which write the columns; guessed for depthwise ones, which don't.
_COLUMNS = 2**24


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    call, bias = call_of(problem), problem.bias
    weight = problem.weight
    if call.conv.groups == 1 and weight.dtype == torch.float32:  # the library's products are twice as fast there
        out = unrolled.forward(call, bias)
    else:
        out = weight.new_empty(call.image.shape[0], *call.offset.shape[2:], weight.shape[0])
        tensors = call.tensors() | {
            "weight_ptr": channels_last(weight),
            "bias_ptr": weight if bias is None else bias.contiguous(),
            "output_ptr": out,
        }
        launch("forward", call.workload(), tensors, HAS_BIAS=bias is not None)
    return out.permute(0, 3, 1, 2)


def backward(grad: Tensor, problem: Problem, needs: list[bool], in_order: bool = False) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out.

    The order of additions in the gradient of the input changes from run to run, unless ``in_order``, for which
    ``repeats`` must be true; the others are always the same.
    """
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    call, weight = call_of(problem), problem.weight
    wanted = Wanted(
        torch.empty_like(call.image) if need_input else None,
        _empty_map(call.offset) if need_offset else None,
        _empty_map(call.mask) if call.mask is not None and need_mask else None,
    )
    gathers = _gathers(call, in_order)
    way = unrolled.backward if gathers and call.conv.groups == 1 else _fused_backward
    grad_weight = way(channels_last(grad), call, wanted, need_weight, in_order)
    grad_input, grad_offset, grad_mask = (None if t is None else t.permute(0, 3, 1, 2) for t in wanted)
    grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if need_bias else None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask


def repeats(problem: Problem) -> bool:
    """Tell whether the gradient of the input can be added up in the same order in every run."""
    return _gathers(call_of(problem), in_order=True)


def _gathers(call: Call, in_order: bool) -> bool:
    """Tell whether the gradient of the input is gathered: more launches, which pays for large problems."""
    offset, weight = call.offset, call.weight
    depthwise = weight.shape[1] == 1 and call.conv.groups > 1
    # Samples are counted in 32 bits.
    if not (depthwise or call.conv.groups == 1) or (is_known(offset.numel()) and offset.numel() >= 2**32):
        return False
    if in_order or (weight.dtype == torch.float32 and not depthwise):
        return True
    size = offset.shape[0] * offset.shape[2] * offset.shape[3] * call.conv.taps * call.image.shape[3]
    return weight.dtype != torch.float32 and is_known(size) and size >= _COLUMNS


def _empty_map(like: Tensor) -> Tensor:  # [N, *, Ho, Wo] -> [N, Ho, Wo, *]
    n, channels, ho, wo = like.shape
    return like.new_empty(n, ho, wo, channels)


def _parts(images: int, size: int, limit: int) -> list[slice]:
    """Return slices of the images, ``size`` bytes each, such that a slice has at most ``limit`` bytes."""
    return [slice(first, end) for first, end in cut(images, size, limit)]


# Fused kernels sample where they contract. They add up the gradient of the input atomically, unless it is gathered.


def _fused_backward(
    grad: Tensor, call: Call, wanted: Wanted, need_weight: bool, in_order: bool = False
) -> Tensor | None:
    """Write the gradients in ``wanted`` from ``grad``, [N, Ho, Wo, O]; return the weight's if needed."""
    if wanted.input is not None and _gathers(call, in_order):
        _gathered_backward(grad, call, wanted.input, in_order)
        wanted = wanted._replace(input=None)
    work = call.workload()
    if wanted.input is not None or wanted.any_map:
        filters = channels_last(call.weight)
        wide = 0 if wanted.input is None or wanted.input.dtype == torch.float32 else 4 * call.image[0].numel()
        parts = _parts(call.image.shape[0], wide, chunk_bytes())
        if len(parts) == 1:
            _samples_backward(grad, call, work, filters, wanted)
        else:
            for images in parts:
                part = call.of(images)
                _samples_backward(grad[images], part, part.workload(), filters, wanted.of(images))
    return _weight_backward(grad, call, work) if need_weight else None


def _gathered_backward(grad: Tensor, call: Call, grad_input: Tensor, in_order: bool) -> None:
    """Write the gradient of the input of a depthwise convolution."""
    filters = call.weight.flatten(1).t().contiguous()
    samples = call.offset[0].numel() // 2
    for images in _parts(call.image.shape[0], SAMPLE_BYTES * samples, chunk_bytes()):
        part = call.of(images)
        gather_depthwise(part.workload(), part.maps(), grad[images], filters, grad_input[images], in_order)


def _samples_backward(grad: Tensor, call: Call, work: Workload, filters: Tensor, wanted: Wanted) -> None:
    sums = None if wanted.input is None else torch.zeros_like(call.image, dtype=torch.float32)
    tensors = call.tensors() | {
        "weight_ptr": filters,
        "grad_ptr": grad,
        "grad_input_ptr": call.image if sums is None else sums,
        **map_gradients(call, wanted),
    }
    launch(
        "samples",
        work,
        tensors,
        NEED_INPUT=sums is not None,
        NEED_OFFSET=wanted.offset is not None,
        NEED_MASK=wanted.mask is not None,
    )
    if wanted.input is not None and sums is not None:
        wanted.input.copy_(sums)


def _weight_backward(grad: Tensor, call: Call, work: Workload) -> Tensor:
    weight = call.weight
    filters, depth = weight.shape[:2]
    shape = (*call.conv.kernel_size, filters) if work.is_depthwise else (filters, *call.conv.kernel_size, depth)
    # Kernels are compiled for a number of parts, so it may not depend on the image. Beside the parts is their sum.
    splits = min(work.splits, max(1, min(LEAST, workspace_limit()) // (4 * weight.numel()) - 1))
    result = weight.new_empty(weight.shape)
    new = torch.zeros if work.is_depthwise else torch.empty
    dtype = torch.float32 if work.is_depthwise or splits > 1 else weight.dtype  # one part is the sum
    parts = new((splits, *shape), dtype=dtype, device=grad.device)
    launch("weight", work, call.tensors() | {"grad_ptr": grad, "parts_ptr": parts}, SPLITS=splits)
    total = parts.sum(0) if splits > 1 else parts[0]  # [kh, kw, O] or [O, kh, kw, C / groups]
    return result.copy_(total.permute(2, 0, 1).unsqueeze(1) if work.is_depthwise else total.permute(0, 3, 1, 2))
