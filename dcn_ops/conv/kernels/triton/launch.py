"""The operator in Triton kernels: which are launched, on what.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, M = N * Ho * Wo output positions.
"""

import torch
from torch import Tensor

from dcn_ops.conv.kernels.kernel import Gradients, Problem
from dcn_ops.conv.kernels.triton.plan import Workload, launch, workload_of
from dcn_ops.sampling.geometry import Conv, empty_channels_last
from dcn_ops.sampling.pieces import chunk_bytes
from dcn_ops.settings import workspace_limit

_COLUMNS = 2**24  # elements of the columns, from which the backward in half precision goes by them
_PIECES = 2  # times the workspace's limit: the columns of a GPU, since launching a piece takes long


def forward(problem: Problem) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last."""
    input, offset, weight, bias, mask, conv = problem
    image = _channels_last(input)
    if conv.groups == 1 and weight.dtype == torch.float32:  # the library's products are twice as fast in float32
        return _columns_forward(image, offset, weight, bias, mask, conv)
    out = input.new_empty(input.shape[0], *offset.shape[2:], weight.shape[0])
    tensors = _read(image, offset, mask) | {
        "weight_ptr": _channels_last(weight),
        "bias_ptr": weight if bias is None else bias.contiguous(),
        "output_ptr": out,
    }
    launch("forward", workload_of(image, offset, weight, mask, conv), tensors, HAS_BIAS=bias is not None)
    return out.permute(0, 3, 1, 2)


def backward(grad: Tensor, problem: Problem, needs: list[bool]) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out.

    That of the input comes from additions whose order changes; the others are the same in every run.
    """
    input, offset, weight, _, mask, conv = problem
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    image, grad_out = _channels_last(input), _channels_last(grad)
    grad_input = torch.empty_like(image) if need_input else None
    grad_offset = empty_channels_last(offset) if need_offset else None
    grad_mask = empty_channels_last(mask) if mask is not None and need_mask else None
    way = _columns_backward if _goes_by_columns(offset, weight, conv) else _fused_backward
    grad_weight = way(grad_out, image, offset, weight, mask, conv, need_weight, grad_input, grad_offset, grad_mask)
    return (
        None if grad_input is None else grad_input.permute(0, 3, 1, 2),
        grad_offset,
        grad_weight,
        grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if need_bias else None,
        grad_mask,
    )


def _channels_last(tensor: Tensor) -> Tensor:  # [N, C, H, W] -> [N, H, W, C], a copy unless that is its layout
    return tensor.permute(0, 2, 3, 1).contiguous()


def _maps(offset: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    return {"offset_ptr": offset, "mask_ptr": offset if mask is None else mask}


def _read(image: Tensor, offset: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    return {"input_ptr": image} | _maps(offset, mask)


def _parts(n: int, size: int, limit: int) -> list[slice]:
    """Return slices of ``n`` images of ``size`` bytes each: as many at a time as ``limit`` holds, one at least."""
    if size == 0 or not (isinstance(n, int) and isinstance(size, int)):  # of symbols any number would be a guess
        return [slice(0, n)]
    step = max(1, limit // size)
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


# Fused: samples are made where they are contracted. The gradient of the input is added up atomically.


def _fused_backward(
    grad: Tensor,
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    conv: Conv,
    need_weight: bool,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
) -> Tensor | None:
    """Write the gradients that are not None, [N, H, W, C] and maps; return that of the weight, if it is needed."""
    if grad_input is not None or grad_offset is not None or grad_mask is not None:
        own_order = _channels_last(weight)
        wide = 0 if grad_input is None or grad_input.dtype == torch.float32 else 4 * image[0].numel()
        for part in _parts(image.shape[0], wide, chunk_bytes()):
            of_part = [None if t is None else t[part] for t in (mask, grad_input, grad_offset, grad_mask)]
            _samples_backward(grad[part], image[part], offset[part], own_order, weight, conv, *of_part)
    if not need_weight:
        return None
    work = workload_of(image, offset, weight, mask, conv)
    filters, depth = weight.shape[:2]
    shape = (*conv.kernel, filters) if work.is_depthwise else (filters, *conv.kernel, depth)
    new = torch.zeros if work.is_depthwise else torch.empty
    parts = new((work.splits, *shape), dtype=torch.float32, device=grad.device)
    tensors = _read(image, offset, mask) | {"grad_ptr": grad, "parts_ptr": parts}
    launch("weight", work, tensors, SPLITS=work.splits)
    total = parts.sum(0).to(weight.dtype)  # [kh, kw, O] or [O, kh, kw, C / groups]
    return (total.permute(2, 0, 1).unsqueeze(1) if work.is_depthwise else total.permute(0, 3, 1, 2)).contiguous()


def _samples_backward(
    grad: Tensor,
    image: Tensor,
    offset: Tensor,
    filters: Tensor,
    weight: Tensor,
    conv: Conv,
    mask: Tensor | None,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
) -> None:
    """Write the gradients that are not None: of some images, [n, H, W, C], and their maps."""
    sums = None if grad_input is None else torch.zeros_like(image, dtype=torch.float32)
    of_offset, of_mask = (offset if t is None else t for t in (grad_offset, grad_mask))
    tensors = _read(image, offset, mask) | {
        "weight_ptr": filters,
        "grad_ptr": grad,
        "grad_input_ptr": image if sums is None else sums,
        "grad_offset_ptr": of_offset,
        "grad_mask_ptr": of_mask,
    }
    launch(
        "samples",
        workload_of(image, offset, weight, mask, conv),
        tensors,
        grad_offset=of_offset.stride(),
        grad_mask=of_mask.stride(),
        NEED_INPUT=sums is not None,
        NEED_OFFSET=grad_offset is not None,
        NEED_MASK=grad_mask is not None,
    )
    if grad_input is not None and sums is not None:
        grad_input.copy_(sums)


# Dense convolutions by columns: they go through memory, once for many filters, to a library's products.


def _goes_by_columns(offset: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Tell whether the backward goes by columns: in many launches, which large problems are worth."""
    if conv.groups > 1 or (isinstance(offset.numel(), int) and offset.numel() >= 2**32):  # 32 bits count samples
        return False
    size = offset.shape[0] * offset.shape[2] * offset.shape[3] * weight[0].numel()
    return weight.dtype == torch.float32 or (isinstance(size, int) and size >= _COLUMNS)


def _column_parts(offset: Tensor, weight: Tensor) -> list[slice]:
    size = offset.shape[2] * offset.shape[3] * weight[0].numel() * weight.dtype.itemsize
    return _parts(offset.shape[0], size, _PIECES * workspace_limit())


def _columns_forward(
    image: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, conv: Conv
) -> Tensor:
    filters = _channels_last(weight).flatten(1).t()
    outputs = []
    for part in _column_parts(offset, weight):
        images, maps, of_mask = image[part], offset[part], None if mask is None else mask[part]
        columns = _unroll(workload_of(images, maps, weight, of_mask, conv), images, maps, of_mask)
        outputs.append(columns @ filters if bias is None else torch.addmm(bias, columns, filters))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out.view(image.shape[0], *offset.shape[2:], weight.shape[0]).permute(0, 3, 1, 2)


def _columns_backward(
    grad: Tensor,
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    conv: Conv,
    need_weight: bool,
    grad_input: Tensor | None,
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
) -> Tensor | None:
    """Write the gradients that are not None, [N, H, W, C] and maps; return that of the weight, if it is needed."""
    need_maps = grad_offset is not None or grad_mask is not None
    filters, grad_weight = _channels_last(weight).flatten(1), None
    lists = {}
    if grad_input is not None:
        lists = _sample_lists(workload_of(image, offset, weight, mask, conv), offset, mask)
    for part in _column_parts(offset, weight):
        of_part = [None if t is None else t[part] for t in (mask, grad_offset, grad_mask)]
        images, maps, grad_out = image[part], offset[part], grad[part].flatten(0, 2)
        work = workload_of(images, maps, weight, of_part[0], conv)
        grad_columns = grad_out @ filters if need_maps or grad_input is not None else None
        if grad_input is not None and grad_columns is not None:
            tensors = lists | {"grad_columns_ptr": grad_columns, "grad_input_ptr": grad_input[part]}
            first_row = part.start * offset.shape[2] * offset.shape[3] * conv.taps
            launch("gather", work, tensors, first_image=part.start, first_row=first_row)
        if need_maps or need_weight:
            columns = _unroll(work, images, maps, of_part[0], need_weight, grad_columns, *of_part[1:])
            if need_weight:
                product = _wide_product(grad_out.t(), columns)
                grad_weight = product if grad_weight is None else grad_weight + product
    if grad_weight is None:
        return None
    shape = weight.shape[0], *conv.kernel, weight.shape[1]
    return grad_weight.to(weight.dtype).view(shape).permute(0, 3, 1, 2).contiguous()


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of matrices in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":  # Triton's interpreter
        return left.float() @ right.float()
    if torch.version.hip:  # whose library is not known to widen
        return (left @ right).float()
    return torch.mm(left, right, out_dtype=torch.float32)


def _unroll(
    work: Workload,
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    need_columns: bool = True,
    grad_columns: Tensor | None = None,
    grad_offset: Tensor | None = None,
    grad_mask: Tensor | None = None,
) -> Tensor:
    """Return the columns, [M, K*C], if they are needed; write the gradients of the maps that are not None.

    They take the place of their gradient, where that is given.
    """
    columns = image if grad_columns is None else grad_columns
    if need_columns and grad_columns is None:
        columns = image.new_empty(work.sizes["M"], work.constants["TAPS"] * image.shape[3])
    of_offset, of_mask = (offset if t is None else t for t in (grad_offset, grad_mask))
    launch(
        "unroll",
        work,
        _read(image, offset, mask)
        | {"columns_ptr": columns, "grad_offset_ptr": of_offset, "grad_mask_ptr": of_mask},
        grad_offset=of_offset.stride(),
        grad_mask=of_mask.stride(),
        NEED_COLUMNS=need_columns,
        NEED_OFFSET=grad_offset is not None,
        NEED_MASK=grad_mask is not None,
    )
    return columns


def _sample_lists(work: Workload, offset: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Return the samples ordered by their upper left neighbour, as ``gather_kernel`` takes them."""
    sizes, constants = work.sizes, work.constants
    lists = sizes["N"] * constants["OFFSET_GROUPS"] * (sizes["H"] + 1) * (sizes["W"] + 1)
    count = torch.zeros(lists + 1, dtype=torch.int32, device=offset.device)
    launch("count", work, {"offset_ptr": offset, "count_ptr": count})
    start = count.cumsum(0, dtype=torch.int32)
    samples = sizes["M"] * constants["OFFSET_GROUPS"] * constants["TAPS"]
    row = count.new_empty(samples)
    x, above, below = torch.empty((3, samples), dtype=torch.float32, device=offset.device)
    written = {"row_ptr": row, "x_ptr": x, "above_ptr": above, "below_ptr": below}
    launch("order", work, _maps(offset, mask) | written | {"next_ptr": start.clone()})
    return written | {"start_ptr": start}
