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
from dcn_ops.triton import backward as grouped_backward
from dcn_ops.triton import configs, depthwise, unrolled
from dcn_ops.triton import forward as dense_forward
from dcn_ops.triton.configs import Tile
from dcn_ops.workspace import chunk_bytes, workspace_limit

ATOMIC = True  # the gradient of the input

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Constants = dict[str, Any]

_UNROLLED = 2**24  # elements of the unrolled image, from which the backward in half precision goes by it
_PIECES = 2  # times the workspace's limit: the unrolled image of a GPU, since launching a piece takes long
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
    if conv.groups == 1 and weight.dtype == torch.float32:  # the library's products are twice as fast in float32
        return _unrolled_forward(input, offset, weight, bias, mask, conv)
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
    grad_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(weight.dtype) if need_bias else None
    image, grad_out = _channels_last(input), _channels_last(grad)
    if _is_unrolled(offset, weight, conv):
        of_dense = [need_input, need_offset, need_weight, need_mask]
        grad_input, grad_offset, grad_weight, grad_mask = _unrolled_backward(
            grad_out, image, offset, weight, mask, conv, of_dense
        )
        return grad_input, grad_offset, grad_weight, grad_bias, grad_mask
    grad_input = torch.empty_like(image) if need_input else None
    grad_offset = torch.empty_like(offset) if need_offset else None
    grad_mask = torch.empty_like(mask) if mask is not None and need_mask else None
    if need_input or need_offset or need_mask:
        filters = _channels_last(weight)
        whole = grad_input is None or grad_input.dtype == torch.float32
        for part in _parts(input.shape[0], 0 if whole else 4 * input[0].numel(), chunk_bytes()):
            of_part = [None if t is None else t[part] for t in (mask, grad_offset, grad_mask, grad_input)]
            _samples_backward(grad_out[part], image[part], filters, weight, conv, offset[part], *of_part)
    return (
        None if grad_input is None else grad_input.permute(0, 3, 1, 2),
        grad_offset,
        _weight_gradient(grad_out, image, offset, weight, mask, conv) if need_weight else None,
        grad_bias,
        grad_mask,
    )


def _parts(n: int, size: int, limit: int) -> list[slice]:
    """Return slices of ``n`` images of ``size`` bytes each: as many at a time as ``limit`` holds, one at least."""
    if size == 0 or not (isinstance(n, int) and isinstance(size, int)):  # of symbols any number would be a guess
        return [slice(0, n)]
    step = max(1, limit // size)
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
    filters, depth = weight.shape[0], weight.shape[1]
    depthwise = "DEPTH" not in constants
    shape = (splits, *conv.kernel, filters) if depthwise else (splits, filters, *conv.kernel, depth)
    parts = (torch.zeros if depthwise else torch.empty)(shape, dtype=torch.float32, device=grad.device)
    tensors = {"input_ptr": image, "grad_ptr": grad, "parts_ptr": parts}
    arguments = tensors | _maps(offset, mask) | _integers(image.permute(0, 3, 1, 2), offset, conv)
    _launch("weight", arguments, constants | {"SPLITS": splits})
    total = parts.sum(0).to(weight.dtype)  # [kh, kw, O] or [O, kh, kw, depth]
    return (total.permute(2, 0, 1).unsqueeze(1) if depthwise else total.permute(0, 3, 1, 2)).contiguous()


def _splits(constants: Constants, device: configs.Device) -> int:
    """Return into how many parts M goes: two programs for every multiprocessor; no function of M itself."""
    name, depthwise = _name("weight", constants), "DEPTH" not in constants
    tile = configs.tiles(name, device, *_widths("weight", constants), None)[0]
    programs = _programs("weight", constants | {"SPLITS": 1, "BLOCK_N": tile.n, "BLOCK_C": tile.c})
    # Parts of depthwise filters are small.
    return max(1, min(512 if depthwise else 64, -(-(4 if depthwise else 2) * device.processors // programs)))


# Dense convolutions: the unrolled image and products of matrices.


def _unrolled_forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, conv: Conv
) -> Tensor:
    image, filters = _channels_last(input), _channels_last(weight).flatten(1).t()
    outputs = []
    for part in _parts(image.shape[0], _columns_bytes(offset, weight), _PIECES * workspace_limit()):
        of_part = image[part], offset[part], None if mask is None else mask[part]
        columns = _unroll(*of_part, weight, conv)
        outputs.append(columns @ filters if bias is None else torch.addmm(bias, columns, filters))
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return out.view(image.shape[0], *offset.shape[2:], weight.shape[0]).permute(0, 3, 1, 2)


def _unrolled_backward(
    grad: Tensor,
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    conv: Conv,
    needs: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, offset, weight and mask, as ``needs`` asks for them."""
    need_input, need_offset, need_weight, need_mask = needs
    grad_input = torch.empty_like(image) if need_input else None
    grad_offset = torch.empty_like(offset) if need_offset else None
    grad_mask = torch.empty_like(mask) if mask is not None and need_mask else None
    grad_weight = None
    filters = _channels_last(weight).flatten(1)
    lists = _sample_lists(image, offset, weight, mask, conv) if grad_input is not None else None
    for part in _parts(image.shape[0], _columns_bytes(offset, weight), _PIECES * workspace_limit()):
        grad_out = grad[part].flatten(0, 2)
        grad_columns = grad_out @ filters if need_input or need_offset or need_mask else None
        if grad_input is not None and lists is not None and grad_columns is not None:
            _gather(grad_columns, lists, grad_input[part], part.start, weight, offset, conv)
        if need_offset or need_mask or need_weight:
            of_part = [None if t is None else t[part] for t in (mask, grad_offset, grad_mask)]
            columns = _unroll(
                image[part], offset[part], of_part[0], weight, conv, need_weight, grad_columns, *of_part[1:]
            )
            if need_weight:
                product = _wide_product(grad_out.t(), columns)
                grad_weight = product if grad_weight is None else grad_weight + product
    if grad_weight is not None:
        shape = weight.shape[0], *conv.kernel, weight.shape[1]
        grad_weight = grad_weight.to(weight.dtype).view(shape).permute(0, 3, 1, 2).contiguous()
    return None if grad_input is None else grad_input.permute(0, 3, 1, 2), grad_offset, grad_weight, grad_mask


def _is_unrolled(offset: Tensor, weight: Tensor, conv: Conv) -> bool:
    """Tell whether the backward goes by the unrolled image: in many launches, which large problems are worth."""
    size = offset.shape[0] * offset.shape[2] * offset.shape[3] * weight[0].numel()
    return conv.groups == 1 and (weight.dtype == torch.float32 or (isinstance(size, int) and size >= _UNROLLED))


def _columns_bytes(offset: Tensor, weight: Tensor) -> int:
    """Return the bytes of the unrolled image of one image."""
    return offset.shape[2] * offset.shape[3] * weight[0].numel() * weight.dtype.itemsize


def _wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of matrices in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":  # Triton's interpreter
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)


def _unroll(
    image: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    conv: Conv,
    need_columns: bool = True,
    grad_columns: Tensor | None = None,
    grad_offset: Tensor | None = None,
    grad_mask: Tensor | None = None,
) -> Tensor:
    """Return the unrolled image, [M, K*C], if it is needed; write the gradients of the maps that are not None.

    It takes the place of its gradient, where that is given.
    """
    integers, constants = _integers(image.permute(0, 3, 1, 2), offset, conv), _constants(weight, mask, conv)
    columns = image if grad_columns is None else grad_columns
    if need_columns and grad_columns is None:
        columns = image.new_empty(integers["M"], weight[0].numel())
    of_offset, of_mask = (offset if t is None else t for t in (grad_offset, grad_mask))
    tensors = {
        "input_ptr": image,
        "columns_ptr": columns,
        "grad_offset_ptr": of_offset,
        "grad_mask_ptr": of_mask,
        **_strides("grad_offset", of_offset),
        **_strides("grad_mask", of_mask),
    }
    needs = {
        "NEED_COLUMNS": need_columns,
        "NEED_OFFSET": grad_offset is not None,
        "NEED_MASK": grad_mask is not None,
    }
    _launch("unroll", tensors | _maps(offset, mask) | integers, constants | needs)
    return columns


def _sample_lists(
    image: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, conv: Conv
) -> dict[str, Tensor]:
    """Return the samples ordered by their upper left neighbour, as ``gather_kernel`` takes them."""
    n, h, w, _ = image.shape
    constants = _constants(weight, mask, conv)
    arguments = _maps(offset, mask) | _integers(image.permute(0, 3, 1, 2), offset, conv) | {"input_ptr": image}
    count = torch.zeros(
        n * conv.offset_groups * (h + 1) * (w + 1) + 1, dtype=torch.int32, device=image.device
    )
    _launch("count", arguments | {"count_ptr": count}, constants)
    start = count.cumsum(0, dtype=torch.int32)
    samples = arguments["M"] * conv.offset_groups * conv.taps
    row = count.new_empty(samples)
    x, above, below = image.new_empty(3, samples, dtype=torch.float32)
    lists = {"row_ptr": row, "x_ptr": x, "above_ptr": above, "below_ptr": below}
    _launch("order", arguments | lists | {"next_ptr": start.clone()}, constants)
    return lists | {"start_ptr": start}


def _gather(
    grad_columns: Tensor,
    lists: dict[str, Tensor],
    grad_input: Tensor,
    first_image: int,
    weight: Tensor,
    offset: Tensor,
    conv: Conv,
) -> None:
    """Write the gradient of some images, [n, H, W, C], the first of which is ``first_image``."""
    first_row = first_image * offset.shape[2] * offset.shape[3] * conv.taps
    sizes = {"H": grad_input.shape[1], "W": grad_input.shape[2], "M": grad_input.shape[:3].numel()}
    tensors = {"input_ptr": grad_input, "grad_columns_ptr": grad_columns, "grad_input_ptr": grad_input} | lists
    places = {"first_image": first_image, "first_row": first_row}
    _launch("gather", tensors | sizes | places, _constants(weight, None, conv))


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
        "OFFSET_GROUPS": int(conv.offset_groups),
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

_KERNELS = {
    "forward": dense_forward.forward_kernel,
    "samples": grouped_backward.samples_kernel,
    "weight": grouped_backward.weight_kernel,
    "depthwise forward": depthwise.forward_kernel,
    "depthwise samples": depthwise.samples_kernel,
    "depthwise weight": depthwise.weight_kernel,
    "unroll": unrolled.unroll_kernel,
    "count": unrolled.count_kernel,
    "order": unrolled.order_kernel,
    "gather": unrolled.gather_kernel,
}
_ARGUMENTS = {name: frozenset(kernel.arg_names) for name, kernel in _KERNELS.items()}
_DEPTHWISE = {"forward", "samples", "weight"}  # have kernels of their own for depthwise convolutions


def _name(kernel: str, constants: Constants) -> str:
    """Return the kernel's key in the tables of tiles."""
    if kernel not in _DEPTHWISE:
        return kernel
    if "DEPTH" not in constants:
        return f"depthwise {kernel}"
    return f"{kernel} half" if constants["HALF"] else f"{kernel} tf32" if constants["TF32"] else f"{kernel} ieee"


def _widths(kernel: str, constants: Constants) -> tuple[int, int]:
    """Return the filters and the channels that a program may cover."""
    if kernel not in _DEPTHWISE:
        return 1, constants["OFFSET_DEPTH"]
    if "DEPTH" not in constants:
        return 1, constants["OFFSET_DEPTH"] * constants["WIDTH"]
    return constants["MERGED"] * constants["WIDTH"], constants["SEGMENT"]


def _programs(kernel: str, meta: Constants) -> int:
    """Return the number of programs for each block of M, or for all of it where the kernel splits it."""
    taps, channels, offset_depth = meta["TAPS"], meta["CHANNELS"], meta["OFFSET_DEPTH"]
    if kernel in ("samples", "count", "order"):
        return channels // offset_depth * taps
    if kernel == "unroll":
        return channels // offset_depth * -(-taps // meta["TAPS_EACH"])
    if kernel == "gather":
        return channels // offset_depth * -(-offset_depth // meta["BLOCK_C"])
    if "DEPTH" not in meta:
        programs = channels // offset_depth * -(-offset_depth * meta["WIDTH"] // meta["BLOCK_C"])
    else:
        filters = meta["MERGED"] * meta["WIDTH"]
        programs = -(-filters // meta["BLOCK_N"])
        if kernel == "forward":
            return meta["FILTERS"] // filters * programs
        programs *= channels // meta["SEGMENT"] * -(-meta["SEGMENT"] // meta["BLOCK_C"])
    if kernel == "forward":
        return programs
    return programs * meta["SPLITS"] * (taps if "DEPTH" in meta else 1)


def _launch(kernel: str, arguments: dict[str, Any], constants: Constants) -> None:
    image, m = arguments["input_ptr"], arguments["M"]
    name, device = _name(kernel, constants), configs.device_of(image.device)
    choice = configs.tiles(name, device, *_widths(kernel, constants), m if isinstance(m, int) else None)
    if kernel == "unroll":
        constants = constants | {"TAPS_EACH": _taps_each(constants, choice[0], device, m)}
    own = name if name in _KERNELS else kernel
    function: Any = _KERNELS[own]
    arguments = {key: value for key, value in arguments.items() if key in _ARGUMENTS[own]}
    known = {key: value for key, value in constants.items() if key in _ARGUMENTS[own]}

    def grid(meta: Constants) -> tuple[int]:
        programs = _programs(kernel, constants | meta)
        if kernel == "weight":
            return (programs,)
        if kernel == "gather":  # blocks are of one row of pixels
            return (m // arguments["W"] * -(-arguments["W"] // meta["BLOCK_M"]) * programs,)
        return (-(-m // meta["BLOCK_M"]) * programs,)

    blocks: dict[str, Any] = {}
    if is_autotuned():
        function = _tuned(function, tuple(choice), tuple(known))
    else:
        blocks = _blocks(function, choice[0]) | {"num_warps": choice[0].warps, "num_stages": choice[0].stages}
    if type(image) not in (Tensor, torch.nn.Parameter):  # a compiler traces, with tensors of its own
        torch.library.wrap_triton(function)[grid](**arguments, **known, **blocks)
        return
    with torch.cuda.device(image.device) if image.is_cuda else nullcontext():
        function[grid](**arguments, **known, **blocks)


def _taps_each(constants: Constants, tile: Tile, device: configs.Device, m: Any) -> int:
    """Return the taps of a program: all, unless there are too few programs then."""
    programs = _programs("unroll", constants | {"TAPS_EACH": constants["TAPS"]})
    few = isinstance(m, int) and -(-m // tile.m) * programs < 4 * device.processors
    return 1 if few else int(constants["TAPS"])


def _blocks(function: Any, tile: Tile) -> dict[str, int]:
    sides = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_C": tile.c}
    return {name: value for name, value in sides.items() if name in function.arg_names}


@lru_cache
def _tuned(function: Any, choice: tuple[Tile, ...], constants: tuple[str, ...]) -> Any:
    """Return the kernel with Triton's autotuning over ``choice``, whose results Triton's disk cache keeps."""
    tried = [triton.Config(_blocks(function, t), num_warps=t.warps, num_stages=t.stages) for t in choice]
    reset = [name for name in ("grad_input_ptr",) if name in function.arg_names]
    return triton.autotune(tried, key=list(constants), reset_to_zero=reset, cache_results=True)(function)
