"""The operator as launches of Triton kernels.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, G offset groups, K taps,
M = N * Ho * Wo output positions; n images of the current call.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton.gathered import SAMPLE_BYTES, gather_columns, gather_depthwise, sample_lists
from dcn_ops.conv.kernels.triton.plan import Workload, launch, workload_of
from dcn_ops.conv.problem import Gradients, Problem
from dcn_ops.sampling.geometry import Conv
from dcn_ops.sampling.pieces import chunk_bytes, cut, is_known
from dcn_ops.settings import workspace_limit

# From this many elements of columns on, half precision gathers the gradient of the input. Measured for dense
# convolutions, which write the columns; guessed for depthwise ones, which don't.
_COLUMNS = 2**24


class Call(NamedTuple):
    """The tensors that kernels read, for all images or some."""

    image: Tensor  # [n, H, W, C]
    offset: Tensor  # [n, G*K*2, Ho, Wo]
    mask: Tensor | None  # [n, G*K, Ho, Wo]
    weight: Tensor  # [O, C / groups, kh, kw]
    conv: Conv

    def of(self, images: slice) -> "Call":
        """Return the call for some of the images."""
        mask = None if self.mask is None else self.mask[images]
        return self._replace(image=self.image[images], offset=self.offset[images], mask=mask)

    def workload(self) -> Workload:
        """Return the numbers of the call."""
        return workload_of(self.image, self.offset, self.weight, self.mask, self.conv)

    def maps(self) -> dict[str, Tensor]:
        """Return offset and mask by the names of their pointers."""
        return {"offset_ptr": self.offset, "mask_ptr": self.offset if self.mask is None else self.mask}

    def tensors(self) -> dict[str, Tensor]:
        """Return image, offset and mask by the names of their pointers."""
        return {"input_ptr": self.image} | self.maps()


class Wanted(NamedTuple):
    """The gradients that a backward writes; None for each that is not needed."""

    input: Tensor | None  # [n, H, W, C]
    offset: Tensor | None  # [n, Ho, Wo, G*K*2]
    mask: Tensor | None  # [n, Ho, Wo, G*K]

    def of(self, images: slice) -> "Wanted":
        """Return the gradients of some of the images."""
        return Wanted(*(None if t is None else t[images] for t in self))

    @property
    def any_map(self) -> bool:
        """Tell whether the gradient of offset or mask is needed."""
        return self.offset is not None or self.mask is not None


_NOTHING = Wanted(None, None, None)


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    call, bias = _call(problem), problem.bias
    weight = problem.weight
    if call.conv.groups == 1 and weight.dtype == torch.float32:  # the library's products are twice as fast there
        out = _columns_forward(call, bias)
    else:
        out = weight.new_empty(call.image.shape[0], *call.offset.shape[2:], weight.shape[0])
        tensors = call.tensors() | {
            "weight_ptr": _channels_last(weight),
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
    call, weight = _call(problem), problem.weight
    wanted = Wanted(
        torch.empty_like(call.image) if need_input else None,
        _empty_map(call.offset) if need_offset else None,
        _empty_map(call.mask) if call.mask is not None and need_mask else None,
    )
    by_columns = _gathers(call, in_order) and not call.workload().is_depthwise
    way = _columns_backward if by_columns else _fused_backward
    grad_weight = way(_channels_last(grad), call, wanted, need_weight, in_order)
    grad_input, grad_offset, grad_mask = (None if t is None else t.permute(0, 3, 1, 2) for t in wanted)
    grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if need_bias else None
    return grad_input, grad_offset, grad_weight, grad_bias, grad_mask


def repeats(problem: Problem) -> bool:
    """Tell whether the gradient of the input can be added up in the same order in every run."""
    return _gathers(_call(problem), in_order=True)


def _gathers(call: Call, in_order: bool) -> bool:
    """Tell whether the gradient of the input is gathered: more launches, which pays for large problems."""
    offset, weight = call.offset, call.weight
    depthwise = call.workload().is_depthwise
    # Samples are counted in 32 bits.
    if not (depthwise or call.conv.groups == 1) or (is_known(offset.numel()) and offset.numel() >= 2**32):
        return False
    if in_order or (weight.dtype == torch.float32 and not depthwise):
        return True
    size = offset.shape[0] * offset.shape[2] * offset.shape[3] * call.conv.taps * call.image.shape[3]
    return weight.dtype != torch.float32 and is_known(size) and size >= _COLUMNS


def _call(problem: Problem) -> Call:
    return Call(_channels_last(problem.input), problem.offset, problem.mask, problem.weight, problem.conv)


def _channels_last(tensor: Tensor) -> Tensor:  # [N, C, H, W] -> [N, H, W, C], a copy unless it has this layout
    return tensor.permute(0, 2, 3, 1).contiguous()


def _empty_map(like: Tensor) -> Tensor:  # [N, *, Ho, Wo] -> [N, Ho, Wo, *]
    n, channels, ho, wo = like.shape
    return like.new_empty(n, ho, wo, channels)


def _map_gradients(call: Call, wanted: Wanted) -> dict[str, Tensor]:
    """Return the memory for the gradients of offset and mask, by the names of their pointers."""
    of_maps = (call.offset if t is None else t for t in (wanted.offset, wanted.mask))
    return dict(zip(("grad_offset_ptr", "grad_mask_ptr"), of_maps, strict=True))


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
    if wanted.input is not None or wanted.any_map:
        filters = _channels_last(call.weight)
        wide = 0 if wanted.input is None or wanted.input.dtype == torch.float32 else 4 * call.image[0].numel()
        for images in _parts(call.image.shape[0], wide, chunk_bytes()):
            _samples_backward(grad[images], call.of(images), filters, wanted.of(images))
    return _weight_backward(grad, call) if need_weight else None


def _gathered_backward(grad: Tensor, call: Call, grad_input: Tensor, in_order: bool) -> None:
    """Write the gradient of the input of a depthwise convolution."""
    filters = call.weight.flatten(1).t().contiguous()
    samples = call.offset[0].numel() // 2
    for images in _parts(call.image.shape[0], SAMPLE_BYTES * samples, chunk_bytes()):
        part = call.of(images)
        gather_depthwise(part.workload(), part.maps(), grad[images], filters, grad_input[images], in_order)


def _samples_backward(grad: Tensor, call: Call, filters: Tensor, wanted: Wanted) -> None:
    sums = None if wanted.input is None else torch.zeros_like(call.image, dtype=torch.float32)
    tensors = call.tensors() | {
        "weight_ptr": filters,
        "grad_ptr": grad,
        "grad_input_ptr": call.image if sums is None else sums,
        **_map_gradients(call, wanted),
    }
    launch(
        "samples",
        call.workload(),
        tensors,
        NEED_INPUT=sums is not None,
        NEED_OFFSET=wanted.offset is not None,
        NEED_MASK=wanted.mask is not None,
    )
    if wanted.input is not None and sums is not None:
        wanted.input.copy_(sums)


def _weight_backward(grad: Tensor, call: Call) -> Tensor:
    work, (filters, depth) = call.workload(), call.weight.shape[:2]
    shape = (*call.conv.kernel_size, filters) if work.is_depthwise else (filters, *call.conv.kernel_size, depth)
    new = torch.zeros if work.is_depthwise else torch.empty
    parts = new((work.splits, *shape), dtype=torch.float32, device=grad.device)
    launch("weight", work, call.tensors() | {"grad_ptr": grad, "parts_ptr": parts}, SPLITS=work.splits)
    total = parts.sum(0).to(call.weight.dtype)  # [kh, kw, O] or [O, kh, kw, C / groups]
    return (total.permute(2, 0, 1).unsqueeze(1) if work.is_depthwise else total.permute(0, 3, 1, 2)).contiguous()


# Dense convolutions with columns: these go through memory once for many filters, to a library's products.


def _column_parts(call: Call) -> list[slice]:
    offset, weight = call.offset, call.weight
    size = offset.shape[2] * offset.shape[3] * weight[0].numel() * weight.dtype.itemsize
    return _parts(offset.shape[0], size, workspace_limit())


def _columns_forward(call: Call, bias: Tensor | None) -> Tensor:  # -> [N, Ho, Wo, O]
    filters = _channels_last(call.weight).flatten(1).t()
    outputs = []
    for images in _column_parts(call):
        outputs.append(_with_bias(_unroll(call.of(images)), filters, bias))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out.view(call.image.shape[0], *call.offset.shape[2:], filters.shape[1])


def _with_bias(columns: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    return columns @ filters if bias is None else torch.addmm(bias, columns, filters)


def _columns_backward(
    grad: Tensor, call: Call, wanted: Wanted, need_weight: bool, in_order: bool = False
) -> Tensor | None:
    """Do the same as ``_fused_backward``."""
    weight, grad_weight = call.weight, None
    filters = _channels_last(weight).flatten(1)
    lists = {} if wanted.input is None else sample_lists(call.workload(), call.maps(), in_order)
    for images in _column_parts(call):
        product = _columns_part(grad[images].flatten(0, 2), call, wanted, images, filters, lists, need_weight)
        grad_weight = product if grad_weight is None or product is None else grad_weight.add_(product)
    if grad_weight is None:
        return None
    shape = weight.shape[0], *call.conv.kernel_size, weight.shape[1]
    return grad_weight.to(weight.dtype).view(shape).permute(0, 3, 1, 2).contiguous()


def _columns_part(
    grad_out: Tensor,
    call: Call,
    wanted: Wanted,
    images: slice,
    filters: Tensor,
    lists: dict[str, Tensor],
    need_weight: bool,
) -> Tensor | None:
    """Do it for some images; a function of its own, so that their columns are freed before the next are made."""
    part, of_part, offset = call.of(images), wanted.of(images), call.offset
    grad_columns = grad_out @ filters if wanted.any_map or wanted.input is not None else None
    if of_part.input is not None and grad_columns is not None:
        first_row = images.start * offset.shape[2] * offset.shape[3] * call.conv.taps
        gather_columns(part.workload(), lists, grad_columns, of_part.input, images.start, first_row)
    if not (wanted.any_map or need_weight):
        return None
    columns = _unroll(part, need_weight, grad_columns, of_part)
    return _wide_product(grad_out.t(), columns) if need_weight else None


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of matrices in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":  # Triton's interpreter
        return left.float() @ right.float()
    if torch.version.hip:  # whether its library can return float32 is unknown
        return (left @ right).float()
    return torch.mm(left, right, out_dtype=torch.float32)


def _unroll(
    call: Call, need_columns: bool = True, grad_columns: Tensor | None = None, wanted: Wanted = _NOTHING
) -> Tensor:
    """Return the columns, [M, K*C], if they are needed; write the gradients of the maps that are wanted.

    They overwrite their gradient if it is given.
    """
    work = call.workload()
    columns = call.image if grad_columns is None else grad_columns
    if need_columns and grad_columns is None:
        columns = call.image.new_empty(work.sizes["M"], work.constants["TAPS"] * call.image.shape[3])
    launch(
        "unroll",
        work,
        call.tensors() | {"columns_ptr": columns, **_map_gradients(call, wanted)},
        NEED_COLUMNS=need_columns,
        NEED_OFFSET=wanted.offset is not None,
        NEED_MASK=wanted.mask is not None,
    )
    return columns
