"""The gradient of the input by gathering: launches of ``lists`` and ``gather``.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, G offset groups, K taps,
M = N * Ho * Wo output positions.
"""

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton.plan import Workload, launch

Lists = dict[str, Tensor]  # by the names of their pointers


def sample_lists(work: Workload, maps: dict[str, Tensor], in_order: bool) -> Lists:
    """Return the samples by their upper left neighbour.

    Args:
        work: The convolution.
        maps: Offset and mask, by the names of their pointers.
        in_order: Whether the samples of a list are in the order of the output; else their order changes from run
            to run.
    """
    sizes, constants = work.sizes, work.constants
    lists = sizes["N"] * constants["OFFSET_GROUPS"] * (sizes["H"] + 1) * (sizes["W"] + 1)
    samples = sizes["M"] * constants["OFFSET_GROUPS"] * constants["TAPS"]
    start, place = (_sorted if in_order else _counted)(work, maps["offset_ptr"], lists, samples)
    row = place.new_empty(samples)
    y, x, scale = torch.empty((3, samples), dtype=torch.float32, device=row.device)
    written = {"row_ptr": row, "y_ptr": y, "x_ptr": x, "scale_ptr": scale}
    launch("order", work, maps | written | {"next_ptr": place}, SORTED=in_order)
    return written | {"start_ptr": start}


def _counted(work: Workload, offset: Tensor, lists: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the start of each list, and a copy that counts on."""
    count = torch.zeros(lists + 1, dtype=torch.int32, device=offset.device)
    launch("count", work, {"offset_ptr": offset, "count_ptr": count})
    start = count.cumsum(0, dtype=torch.int32)
    return start, start.clone()


def _sorted(work: Workload, offset: Tensor, lists: int, samples: int) -> tuple[Tensor, Tensor]:
    """Return the start of each list, and the place of each sample."""
    key = torch.empty(samples, dtype=torch.int32, device=offset.device)
    launch("key", work, {"offset_ptr": offset, "key_ptr": key}, lists=lists)
    key, sample = key.sort(stable=True)
    start = torch.searchsorted(key, torch.arange(lists + 1, dtype=torch.int32, device=key.device), out_int32=True)
    places = torch.arange(samples, dtype=torch.int32, device=key.device)
    return start, torch.empty_like(places).scatter_(0, sample, places)


def gather_columns(work: Workload, lists: Lists, grad_columns: Tensor, grad_input: Tensor, part: int) -> None:
    """Write the gradient of some channels, [N, H, W, C] from the first of them on, from that of their columns.

    Args:
        work: The convolution.
        lists: The samples.
        grad_columns: The gradient of the columns, [M, K * G * part].
        grad_input: The memory for the gradient.
        part: The channels of each offset group.
    """
    tensors = lists | {"grad_ptr": grad_columns, "weight_ptr": grad_columns, "grad_input_ptr": grad_input}
    launch("gather", work, tensors, DEPTHWISE=False, PART=part)


def gather_depthwise(
    work: Workload, maps: dict[str, Tensor], grad: Tensor, weight: Tensor, grad_input: Tensor, in_order: bool
) -> None:
    """Write the gradient of the input of a depthwise convolution, [N, H, W, C].

    Args:
        work: The convolution.
        maps: Offset and mask, by the names of their pointers.
        grad: The gradient of the output, [N, Ho, Wo, O].
        weight: The filters, [K, O].
        grad_input: The memory for the gradient.
        in_order: As of ``sample_lists``.
    """
    tensors = {"grad_ptr": grad, "weight_ptr": weight, "grad_input_ptr": grad_input}
    lists = sample_lists(work, maps, in_order)
    launch("gather", work, lists | tensors, DEPTHWISE=True, PART=work.constants["OFFSET_DEPTH"])
