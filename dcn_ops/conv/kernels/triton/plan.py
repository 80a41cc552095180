"""The arguments of a launch except tensors: sizes, constants, tiles, the grid; computed once per shape.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, M = N * Ho * Wo output positions.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd
from typing import Any

import torch
from torch import Tensor

from dcn_ops.conv.kernels.triton import backward, columns, configs, depthwise, forward, gather, lists
from dcn_ops.sampling.geometry import Conv
from dcn_ops.settings import current
from dcn_ops.triton import tiles
from dcn_ops.triton.launch import Constants, Plan, is_traced, planned, start
from dcn_ops.triton.tiles import Device, Tile

KERNELS = {
    "forward": forward.forward_kernel,
    "samples": backward.samples_kernel,
    "weight": backward.weight_kernel,
    "depthwise forward": depthwise.forward_kernel,
    "depthwise samples": depthwise.samples_kernel,
    "depthwise weight": depthwise.weight_kernel,
    "unroll": columns.unroll_kernel,
    "count": lists.count_kernel,
    "key": lists.key_kernel,
    "order": lists.order_kernel,
    "gather": gather.gather_kernel,
    "depthwise gather": gather.gather_kernel,
}
_OF_DEPTHWISE = (
    "forward",
    "samples",
    "weight",
    "gather",
)  # depthwise convolutions have tiles of their own for these
_LENGTH = 16  # pixels of a row of ``gather``, as many as a product on tensor cores needs
_MERGED_SIDE = 32  # merged groups have at least so many channels and filters together


@dataclass(frozen=True, eq=False)
class Workload:
    """The numbers of one convolution, in the form that kernels take."""

    sizes: dict[str, int]
    constants: Constants
    device: Device

    @property
    def is_depthwise(self) -> bool:
        """Tell whether nothing is contracted over channels."""
        return "DEPTH" not in self.constants

    @cached_property
    def splits(self) -> int:
        """The number of parts of M for the gradient of the weight; it doesn't depend on M itself."""
        tile = _tiles("weight", self, None)[0]
        programs = _programs("weight", self.constants | {"SPLITS": 1, "BLOCK_N": tile.n, "BLOCK_C": tile.c})
        each, most = (4, 512) if self.is_depthwise else (2, 64)  # the results for depthwise filters are small
        return max(1, min(most, -(-each * self.device.processors // programs)))


def workload_of(image: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, conv: Conv) -> Workload:
    """Return the numbers of a convolution of ``image``, [N, H, W, C]."""
    make = _make_workload.__wrapped__ if is_traced(image) else _make_workload
    strides = offset.stride(), (offset if mask is None else mask).stride()
    kind = mask is not None, weight.dtype, configs.arithmetic(weight.dtype)
    return make(image.shape, offset.shape, strides, weight.shape, kind, conv, tiles.device_of(image.device))


@lru_cache(1024)
def _make_workload(
    image: torch.Size,
    offset: torch.Size,
    strides: tuple[Any, Any],
    weight: torch.Size,
    kind: tuple[bool, torch.dtype, str],
    conv: Conv,
    device: Device,
) -> Workload:
    n, _, ho, wo = offset
    sizes = {"N": n, "H": image[1], "W": image[2], "Ho": ho, "Wo": wo, "M": n * ho * wo}
    for name, of_map in zip(("offset", "mask"), strides, strict=True):
        sizes |= {f"{name}_{axis}": stride for axis, stride in zip("nchw", of_map, strict=True)}
    return Workload(sizes, _constants(weight, kind, conv), device)


def _constants(weight: torch.Size, kind: tuple[bool, torch.dtype, str], conv: Conv) -> Constants:
    """Return the constants that a kernel is compiled for: the numbers of a layer, of which a network has few."""
    filters, depth = int(weight[0]), int(weight[1])
    groups, taps = int(conv.groups), int(conv.kernel_size[0] * conv.kernel_size[1])
    channels, width = depth * groups, filters // groups
    constants: Constants = {
        "CHANNELS": channels,
        "WIDTH": width,
        "OFFSET_DEPTH": channels // int(conv.offset_groups),
        "OFFSET_GROUPS": int(conv.offset_groups),
        "TAPS": taps,
        "WINDOW": tuple(
            int(i) for pair in (conv.kernel_size, conv.stride, conv.padding, conv.dilation) for i in pair
        ),
        "HAS_MASK": kind[0],
        "HALF": kind[1].itemsize == 2,
        "LENGTH": _LENGTH,
    }
    if depth == 1 and groups > 1:
        return constants
    merged = _merged(groups, depth, width)
    segment = gcd(merged * depth, constants["OFFSET_DEPTH"])
    dense = {"FILTERS": filters, "DEPTH": depth, "MERGED": merged, "SEGMENT": segment}
    return constants | dense | {"TF32": kind[2] == "tf32"}


def _merged(groups: int, depth: int, width: int) -> int:
    """Return how many groups share a tile: the smallest divisor that gives each side 32, else all groups."""
    enough = (n for n in range(1, groups) if groups % n == 0 and n * min(depth, width) >= _MERGED_SIDE)
    return next(enough, groups)


def launch(kernel: str, work: Workload, tensors: dict[str, Tensor], **numbers: Any) -> None:
    """Launch a kernel, by its key in ``KERNELS`` without "depthwise".

    Args:
        kernel: Its key.
        work: The convolution.
        tensors: The tensors by the names of its pointers.
        numbers: Further integers and flags by name.
    """
    plan = _plan.__wrapped__ if is_traced(next(iter(tensors.values()))) else _plan
    start(plan(kernel, work, tuple(numbers.items()), current().autotune), tensors)


@lru_cache(4096)
def _plan(kernel: str, work: Workload, numbers: tuple[tuple[str, Any], ...], autotuned: bool) -> Plan:
    """Return the launch of a kernel."""
    constants = work.constants | dict(numbers)
    choice = _tiles(kernel, work, work.sizes["M"], constants.get("PART"))
    if kernel == "unroll":
        constants["TAPS_EACH"] = _taps_each(work, choice[0])
    function: Any = KERNELS[_own(kernel, work)]

    def grid(meta: Constants) -> tuple[int]:
        return (_blocks(kernel, work.sizes, meta["BLOCK_M"]) * _programs(kernel, constants | meta),)

    return planned(function, choice, grid, work.sizes, constants, autotuned)


def _own(kernel: str, work: Workload) -> str:
    return f"depthwise {kernel}" if work.is_depthwise and kernel in _OF_DEPTHWISE else kernel


def _tiles(kernel: str, work: Workload, m: Any, part: int | None = None) -> list[Tile]:
    """Return the tiles for a kernel, the default first; ``part``: the channels of each offset group in a piece."""
    constants, own = work.constants, _own(kernel, work)
    filters, channels = 1, part or constants["OFFSET_DEPTH"]  # largest numbers per program
    if kernel == "gather":
        filters, own = configs.ANY, own + (" half" if constants["HALF"] else " ieee")
    elif own.startswith("depthwise"):
        channels *= constants["WIDTH"]
    elif kernel in _OF_DEPTHWISE:
        filters, channels = constants["MERGED"] * constants["WIDTH"], constants["SEGMENT"]
        own += " half" if constants["HALF"] else " tf32" if constants["TF32"] else " ieee"
    return configs.tiles(own, work.device, filters, channels, m if isinstance(m, int) else None)


def _blocks(kernel: str, sizes: dict[str, int], block: int) -> int:
    if kernel == "weight":  # it splits M by itself
        return 1
    if kernel == "gather":  # its positions are pixels, in rows of 16
        return sizes["N"] * -(-sizes["H"] // (block // _LENGTH)) * -(-sizes["W"] // _LENGTH)
    return -(-sizes["M"] // block)


def _programs(kernel: str, meta: Constants) -> int:
    """Return the number of programs per block of M, or for all of M if the kernel splits it."""
    taps, channels, offset_depth = meta["TAPS"], meta["CHANNELS"], meta["OFFSET_DEPTH"]
    if kernel in ("samples", "count", "key", "order"):
        return channels // offset_depth * taps
    if kernel == "unroll":
        return channels // offset_depth * -(-taps // meta["TAPS_EACH"])
    if kernel == "gather":
        return channels // offset_depth * -(-meta["PART"] // meta["BLOCK_C"])
    if "DEPTH" not in meta:
        programs = channels // offset_depth * -(-offset_depth * meta["WIDTH"] // meta["BLOCK_C"])
    else:
        filters = meta["MERGED"] * meta["WIDTH"]
        programs = -(-filters // meta["BLOCK_N"])
        if kernel == "forward":
            return meta["FILTERS"] // filters * programs
        programs *= channels // meta["SEGMENT"] * -(-meta["SEGMENT"] // meta["BLOCK_C"]) * taps
    return programs if kernel == "forward" else programs * meta["SPLITS"]


def _taps_each(work: Workload, tile: Tile) -> int:
    """Return the taps per program of ``unroll``: all, unless this gives too few programs."""
    taps, m = int(work.constants["TAPS"]), work.sizes["M"]
    programs = _programs("unroll", work.constants | {"TAPS_EACH": taps})
    few = isinstance(m, int) and -(-m // tile.m) * programs < 4 * work.device.processors
    return 1 if few else taps
