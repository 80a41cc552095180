"""Dense convolutions with columns: these go through memory once for many filters, to a library's products.

Legend: N batch, C channels, O filters, Ho x Wo output size, G offset groups, K taps, D = C / G, d channels of each
offset group in a piece, M output positions of the current images.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton.call import Call, Wanted, channels_last, map_gradients
from dcn_ops.conv.kernels.triton.gathered import Lists, gather_columns, sample_lists
from dcn_ops.conv.kernels.triton.pieces import Piece, piece_of
from dcn_ops.conv.kernels.triton.plan import launch
from dcn_ops.sampling.pieces import cut, is_known
from dcn_ops.settings import workspace_limit
from dcn_ops.triton.launch import is_traced

_NOTHING = Wanted(None, None, None)


def forward(call: Call, bias: Tensor | None) -> Tensor:
    """Return the output, [N, Ho, Wo, O]."""
    offset, weight = call.offset, call.weight
    filters = channels_last(weight).flatten(1).t()
    size = offset.shape[2] * offset.shape[3] * weight[0].numel() * weight.dtype.itemsize
    outputs = []
    for first, end in cut(offset.shape[0], size, workspace_limit()):
        outputs.append(_with_bias(_unroll(call.of(slice(first, end))), filters, bias))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out.view(call.image.shape[0], *offset.shape[2:], filters.shape[1])


def _with_bias(columns: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    return columns @ filters if bias is None else torch.addmm(bias, columns, filters)


def backward(grad: Tensor, call: Call, wanted: Wanted, need_weight: bool, in_order: bool = False) -> Tensor | None:
    """Write the gradients in ``wanted`` from ``grad``, [N, Ho, Wo, O]; return the weight's if needed.

    ``in_order``: whether the gradient of the input is added up in the same order in every run.
    """
    piece = _piece(call)
    groups = list(_cut(call.image.shape[0], piece.images))
    filters = _split(call.weight, call)
    if piece.depth == filters.shape[3]:  # else each piece copies its own
        filters = filters.contiguous()
    result = call.weight.new_empty(call.weight.shape) if need_weight else None
    total = None if result is None else _split(result, call)
    if total is not None and len(groups) > 1:
        total = torch.empty_like(total, dtype=torch.float32, memory_format=torch.contiguous_format)
    for images in groups:
        of_group = grad[images], call.of(images), wanted.of(images)
        _group(*of_group, filters, piece.depth, total, images is groups[0], in_order)
    if result is not None and total is not None and len(groups) > 1:
        _split(result, call).copy_(total)
    return result


def _split(weight: Tensor, call: Call) -> Tensor:
    """Return a view, [O, K, G, D], of contiguous weights, and of others if that is possible."""
    filters, channels, *_ = weight.shape
    groups = call.conv.offset_groups
    return weight.permute(0, 2, 3, 1).reshape(filters, call.conv.taps, groups, channels // groups)


def _piece(call: Call) -> Piece:
    sizes = call.sizes()
    if not is_known(sizes.images, sizes.positions, *sizes.pixels):
        return Piece(sizes.images, sizes.channels // sizes.offset_groups)
    return piece_of(sizes, call.limit(), is_traced(call.image))


def _cut(size: int, step: int) -> Iterator[slice]:
    if not is_known(size):
        yield slice(0, size)
        return
    for first in range(0, size, step):
        yield slice(first, min(first + step, size))


def _group(
    grad: Tensor,
    call: Call,
    wanted: Wanted,
    filters: Tensor,
    depth: int,
    total: Tensor | None,
    is_first: bool,
    in_order: bool,
) -> None:
    """Do it for some images, whose samples are ordered together; add the weight's gradient to ``total``."""
    rows = grad.flatten(0, 2)  # [M, O]
    lists = {} if wanted.input is None else sample_lists(call.workload(), call.maps(), in_order)
    parts = list(_cut(filters.shape[3], depth))
    maps = _float32_maps(wanted) if len(parts) > 1 else wanted
    for channels in parts:
        part = call._replace(image=_from(call.image, channels))
        of_part = maps._replace(input=None if wanted.input is None else _from(wanted.input, channels))
        target = None if total is None else total[..., channels]
        _part(rows, part, of_part, filters[..., channels], lists, target, is_first, channels is not parts[0])
    for sums, of_map in zip(maps[1:], wanted[1:], strict=True):
        if sums is not None and of_map is not None and sums is not of_map:
            of_map.copy_(sums)


def _part(
    grad: Tensor,
    call: Call,
    wanted: Wanted,
    filters: Tensor,
    lists: Lists,
    total: Tensor | None,
    is_first: bool,
    add_maps: bool,
) -> None:
    """Do it for some channels; a function of its own, so that their columns are freed before the next are made.

    The image and its gradient begin at the first of these channels; ``filters`` and ``total`` are [O, K, G, d].
    """
    depth, grad_columns = filters.shape[3], None
    if wanted.any_map or wanted.input is not None:
        grad_columns = grad @ filters.flatten(1)
    if wanted.input is not None and grad_columns is not None:
        gather_columns(call.workload(), lists, grad_columns, wanted.input, depth)
    if not (wanted.any_map or total is not None):
        return
    columns = _unroll(call, total is not None, grad_columns, wanted, depth, add_maps)
    if total is not None:
        product = _wide_product(grad.t(), columns).view(total.shape)
        total.copy_(product) if is_first else total.add_(product)


def _from(image: Tensor, channels: slice) -> Tensor:
    """Return the image from the first of some channels on; kernels know its strides."""
    return image[..., channels.start :] if channels.start else image


def _float32_maps(wanted: Wanted) -> Wanted:
    """Return memory to add gradients of maps in: themselves, or workspaces if they are in half precision."""
    offset, mask = (
        None if t is None else t if t.dtype == torch.float32 else torch.empty_like(t, dtype=torch.float32)
        for t in wanted[1:]
    )
    return Wanted(wanted.input, offset, mask)


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
    call: Call,
    need_columns: bool = True,
    grad_columns: Tensor | None = None,
    wanted: Wanted = _NOTHING,
    depth: int | None = None,
    add_maps: bool = False,
) -> Tensor:
    """Return the columns, [M, K*G*d], if they are needed; write or add the gradients of the maps that are wanted.

    They overwrite their gradient if it is given.
    """
    work = call.workload()
    part = work.constants["OFFSET_DEPTH"] if depth is None else depth
    columns = call.image if grad_columns is None else grad_columns
    if need_columns and grad_columns is None:
        width = work.constants["TAPS"] * work.constants["OFFSET_GROUPS"] * part
        columns = call.image.new_empty(work.sizes["M"], width)
    launch(
        "unroll",
        work,
        call.tensors() | {"columns_ptr": columns, **map_gradients(call, wanted)},
        PART=part,
        NEED_COLUMNS=need_columns,
        NEED_OFFSET=wanted.offset is not None,
        NEED_MASK=wanted.mask is not None,
        ADD_MAPS=add_maps,
    )
    return columns
