"""The operator in Triton kernels: prepares what they read, chooses tiles, launches them.

Legend: N batch, C channels, O filters, H x W input size, Ho x Wo output size, M = N * Ho * Wo output positions.
"""

from contextlib import nullcontext
from functools import lru_cache
from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from dcn_ops.choice import is_autotuned
from dcn_ops.geometry import Conv
from dcn_ops.triton import backward as dense_backward
from dcn_ops.triton import configs, depthwise
from dcn_ops.triton import forward as dense_forward
from dcn_ops.triton.configs import Tile
from dcn_ops.workspace import chunk_bytes

ATOMIC = True  # the gradient of the input

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Constants = dict[str, Any]

_MERGED_SIDE = 32  # channels and filters that merged groups have together, at least


def refusal(input: Tensor, weight: Tensor) -> str | None:
    """Return why the kernels can't run this, or None."""
    if input.device.type != "cuda":
        return f"Triton kernels need a GPU, got input.device={input.device}; move the tensors with .cuda()"
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"Triton kernels take float32, float16 and bfloat16, got input.dtype={input.dtype}"
    if weight.numel() >= 2**31:
        return f"Triton kernels take fewer than 2**31 weights, got weight.shape={list(weight.shape)}"
    if input.numel() == 0:
        return f"Triton kernels need an image, got input.shape={list(input.shape)}"
    return None


def forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, conv: Conv
) -> Tensor:
    """Return [N, O, Ho, Wo] in channels_last; the arguments are the operator's, checked."""
    out = input.new_empty(input.shape[0], *offset.shape[2:], weight.shape[0])
    tensors = {
        "input_ptr": _channels_last(input),
        "weight_ptr": _channels_last(weight),
        "bias_ptr": weight if bias is None else bias.contiguous(),
        "output_ptr": out,
    }
    constants = _constants(weight, mask, conv) | {"HAS_BIAS": bias is not None}
    _launch("forward", tensors | _maps(offset, mask) | _integers(input, offset, conv), constants)
    return out.permute(0, 3, 1, 2)


def backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    conv: Conv,
    needs: list[bool],
) -> Gradients:
    """Return the gradients of input, offset, weight, bias and mask; None for each that ``needs`` leaves out.

    That of the input comes from atomic additions, whose order changes; the others are the same in every run.
    """
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    need_mask = need_mask and mask is not None
    image, grad_out = _channels_last(input), _channels_last(grad)
    grad_input = torch.empty_like(image) if need_input else None
    grad_offset = torch.empty_like(offset) if need_offset else None
    grad_mask = torch.empty_like(mask) if mask is not None and need_mask else None
    if need_input or need_offset or need_mask:
        filters = _channels_last(weight)
        for part in _parts(input, grad_input):
            of_part = [None if t is None else t[part] for t in (mask, grad_offset, grad_mask, grad_input)]
            _samples_backward(grad_out[part], image[part], filters, weight, conv, offset[part], *of_part)
    return (
        None if grad_input is None else grad_input.permute(0, 3, 1, 2),
        grad_offset,
        _weight_gradient(grad_out, image, offset, weight, mask, conv) if need_weight else None,
        grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if need_bias else None,
        grad_mask,
    )


def _parts(input: Tensor, grad_input: Tensor | None) -> list[slice]:
    """Return slices of the batch: so many images at a time as have a float32 gradient of ``chunk_bytes()``."""
    n = input.shape[0]
    sizes = all(isinstance(size, int) for size in input.shape)  # else any number would be a guess
    if grad_input is None or grad_input.dtype == torch.float32 or not sizes:
        return [slice(0, n)]
    step = max(1, chunk_bytes() // (4 * input[0].numel()))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def _samples_backward(
    grad: Tensor,
    image: Tensor,
    filters: Tensor,
    weight: Tensor,
    conv: Conv,
    offset: Tensor,
    mask: Tensor | None,
    grad_offset: Tensor | None,
    grad_mask: Tensor | None,
    grad_input: Tensor | None,
) -> None:
    """Write the gradients that are not None: of some images, [n, H, W, C], and their maps."""
    sums = None if grad_input is None else torch.zeros_like(image, dtype=torch.float32)
    of_offset, of_mask = (offset if t is None else t for t in (grad_offset, grad_mask))
    tensors = {
        "input_ptr": image,
        "weight_ptr": filters,
        "grad_ptr": grad,
        "grad_input_ptr": image if sums is None else sums,
        "grad_offset_ptr": of_offset,
        "grad_mask_ptr": of_mask,
        **_strides("grad_offset", of_offset),
        **_strides("grad_mask", of_mask),
    }
    needs = {
        "NEED_INPUT": sums is not None,
        "NEED_OFFSET": grad_offset is not None,
        "NEED_MASK": grad_mask is not None,
    }
    arguments = tensors | _maps(offset, mask) | _integers(image.permute(0, 3, 1, 2), offset, conv)
    _launch("samples", arguments, _constants(weight, mask, conv) | needs)
    if grad_input is not None and sums is not None:
        grad_input.copy_(sums)


def _weight_gradient(
    grad: Tensor, image: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, conv: Conv
) -> Tensor:
    constants = _constants(weight, mask, conv)
    splits = _splits(constants, configs.device_of(image.device))
    parts = grad.new_empty(splits, weight.shape[0], *conv.kernel, weight.shape[1], dtype=torch.float32)
    tensors = {"input_ptr": image, "grad_ptr": grad, "parts_ptr": parts}
    arguments = tensors | _maps(offset, mask) | _integers(image.permute(0, 3, 1, 2), offset, conv)
    _launch("weight", arguments, constants | {"SPLITS": splits})
    return parts.sum(0).permute(0, 3, 1, 2).to(weight.dtype).contiguous()


def _splits(constants: Constants, device: configs.Device) -> int:
    """Return into how many parts M goes: two programs for every multiprocessor; no function of M itself."""
    name = _name("weight", constants)
    tile = configs.tiles(name, device, *_widths(constants), None)[0]
    programs = _columns("weight", constants | {"SPLITS": 1, "BLOCK_N": tile.n, "BLOCK_C": tile.c})
    return max(1, min(64, -(-2 * device.processors // programs)))


# What the kernels take.


def _channels_last(tensor: Tensor) -> Tensor:  # [N, C, H, W] -> [N, H, W, C], a copy unless that is its layout
    return tensor.permute(0, 2, 3, 1).contiguous()


def _strides(name: str, maps: Tensor) -> dict[str, int]:
    return {f"{name}_{axis}": stride for axis, stride in zip("nchw", maps.stride(), strict=True)}


def _maps(offset: Tensor, mask: Tensor | None) -> dict[str, Any]:
    read = offset if mask is None else mask
    pointers = {"offset_ptr": offset, "mask_ptr": read}
    return pointers | _strides("offset", offset) | _strides("mask", read)


def _integers(input: Tensor, offset: Tensor, conv: Conv) -> dict[str, int]:
    n, _, ho, wo = offset.shape
    integers = {"H": input.shape[2], "W": input.shape[3], "Ho": ho, "Wo": wo, "M": n * ho * wo}
    for name, pair in (("stride", conv.stride), ("pad", conv.padding), ("dilation", conv.dilation)):
        integers |= {f"{name}_h": pair[0], f"{name}_w": pair[1]}
    return integers


def _constants(weight: Tensor, mask: Tensor | None, conv: Conv) -> Constants:
    """Return what a kernel is compiled for: numbers of channels, filters and taps, which networks change rarely."""
    filters, depth = int(weight.shape[0]), int(weight.shape[1])
    groups, taps = int(conv.groups), int(conv.kernel[0] * conv.kernel[1])
    channels, width = depth * groups, filters // groups
    constants = {
        "CHANNELS": channels,
        "WIDTH": width,
        "OFFSET_DEPTH": channels // int(conv.offset_groups),
        "TAPS": taps,
        "KERNEL_W": int(conv.kernel[1]),
        "HAS_MASK": mask is not None,
    }
    if depth == 1 and groups > 1:
        return constants
    merged = _merged(groups, depth, width)
    segment = gcd(merged * depth, constants["OFFSET_DEPTH"])
    dense = {"FILTERS": filters, "DEPTH": depth, "MERGED": merged, "SEGMENT": segment}
    return (
        constants | dense | {"TF32": configs.arithmetic(weight.dtype) == "tf32", "HALF": weight.dtype.itemsize == 2}
    )


def _merged(groups: int, depth: int, width: int) -> int:
    """Return how many groups share a tile: as few of the divisors as give each of its sides 32, else all."""
    enough = (n for n in range(1, groups) if groups % n == 0 and n * min(depth, width) >= _MERGED_SIDE)
    return next(enough, groups)


# The launch.


def _name(kernel: str, constants: Constants) -> str:
    if "DEPTH" not in constants:
        return f"depthwise {kernel}"
    return f"{kernel} half" if constants["HALF"] else f"{kernel} tf32" if constants["TF32"] else f"{kernel} ieee"


def _widths(constants: Constants) -> tuple[int, int]:
    """Return the filters and the channels that a program may cover."""
    if "DEPTH" not in constants:
        return 1, constants["OFFSET_DEPTH"] * constants["WIDTH"]
    return constants["MERGED"] * constants["WIDTH"], constants["SEGMENT"]


def _columns(kernel: str, meta: Constants) -> int:
    """Return the number of programs for each block of M, or for all of it where the kernel splits it."""
    taps, channels, offset_depth = meta["TAPS"], meta["CHANNELS"], meta["OFFSET_DEPTH"]
    if kernel == "samples":
        return channels // offset_depth * taps
    if "DEPTH" not in meta:
        columns = channels // offset_depth * -(-offset_depth * meta["WIDTH"] // meta["BLOCK_C"])
    else:
        filters = meta["MERGED"] * meta["WIDTH"]
        columns = -(-filters // meta["BLOCK_N"])
        if kernel == "forward":
            return meta["FILTERS"] // filters * columns
        columns *= channels // meta["SEGMENT"] * -(-meta["SEGMENT"] // meta["BLOCK_C"])
    return columns if kernel == "forward" else columns * taps * meta["SPLITS"]


_KERNELS = {
    ("forward", True): depthwise.forward_kernel,
    ("samples", True): depthwise.samples_kernel,
    ("weight", True): depthwise.weight_kernel,
    ("forward", False): dense_forward.forward_kernel,
    ("samples", False): dense_backward.samples_kernel,
    ("weight", False): dense_backward.weight_kernel,
}


def _launch(kernel: str, arguments: dict[str, Any], constants: Constants) -> None:
    image, m = arguments["input_ptr"], arguments["M"]
    name, device = _name(kernel, constants), configs.device_of(image.device)
    choice = configs.tiles(name, device, *_widths(constants), m if isinstance(m, int) else None)
    function: Any = _KERNELS[kernel, "DEPTH" not in constants]
    constants = {key: value for key, value in constants.items() if key in function.arg_names}

    def grid(meta: Constants) -> tuple[int]:
        columns = _columns(kernel, meta)
        return (columns if kernel == "weight" else -(-m // meta["BLOCK_M"]) * columns,)

    blocks: dict[str, Any] = {}
    if is_autotuned():
        function = _tuned(function, tuple(choice), tuple(constants))
    else:
        blocks = _blocks(function, choice[0]) | {"num_warps": choice[0].warps, "num_stages": choice[0].stages}
    if type(image) not in (Tensor, torch.nn.Parameter):  # a compiler traces, with tensors of its own
        torch.library.wrap_triton(function)[grid](**arguments, **constants, **blocks)
        return
    with torch.cuda.device(image.device) if image.is_cuda else nullcontext():
        function[grid](**arguments, **constants, **blocks)


def _blocks(function: Any, tile: Tile) -> dict[str, int]:
    sides = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_C": tile.c}
    return {name: value for name, value in sides.items() if name in function.arg_names}


@lru_cache
def _tuned(function: Any, choice: tuple[Tile, ...], constants: tuple[str, ...]) -> Any:
    """Return the kernel with Triton's autotuning over ``choice``, whose results Triton's disk cache keeps."""
    tried = [triton.Config(_blocks(function, t), num_warps=t.warps, num_stages=t.stages) for t in choice]
    reset = [name for name in ("grad_input_ptr",) if name in function.arg_names]
    return triton.autotune(tried, key=list(constants), reset_to_zero=reset, cache_results=True)(function)
