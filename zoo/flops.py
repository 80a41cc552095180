"""FLOPs of a network and its convolutions, from a forward pass without data."""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcn_ops import DeformConv2d

logger = logging.getLogger(__name__)

# Two images, as BatchNorm in training mode refuses one value per channel.
_BATCH = 2


class Measured(NamedTuple):
    """What a forward pass without data tells, for one image."""

    flops: int
    positions: dict[nn.Conv2d, int]  # outputs per channel, 0 of a convolution that is not called
    strides: dict[nn.Conv2d, float]  # height of the image over that of the (last) output


def measure(model: nn.Module, input_size: tuple[int, int, int]) -> Measured | None:
    """Run the model on meta tensors in place of its parameters, buffers and input, which stay as they are.

    Returns:
        FLOPs of the model and the outputs of its convolutions for an image of ``input_size`` [C, H, W]; None if
        the model doesn't run on meta tensors.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    positions = dict.fromkeys(convs, 0)
    strides: dict[nn.Conv2d, float] = {}

    def record(conv: nn.Conv2d, args: Any, output: Tensor) -> None:
        positions[conv] += output.numel() // conv.out_channels // _BATCH
        strides[conv] = input_size[1] / output.shape[-2]

    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(_without_forward_hooks(module))
        for conv in convs:
            stack.callback(conv.register_forward_hook(record).remove)
        counter = stack.enter_context(FlopCounterMode(display=False))
        try:
            _forward(model, input_size)
        # Whatever a network can't do without data, the plan does without FLOPs.
        except Exception as error:
            logger.info("FLOPs of %s are unknown, it doesn't run on meta tensors: %s", type(model).__name__, error)
            return None
    return Measured(counter.get_total_flops() // _BATCH, positions, strides)


@contextmanager
def _without_forward_hooks(module: nn.Module) -> Iterator[None]:
    # Theirs are for data. Pre-hooks stay: weight_norm's make the weight.
    hooks, module._forward_hooks = module._forward_hooks, OrderedDict()
    try:
        yield
    finally:
        module._forward_hooks = hooks


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    # Not torch.func.functional_call: of a module with two names it leaves the meta tensors in place (2.15).
    meta: dict[Tensor, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        meta[tensor] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    dicts = (d for module in model.modules() for d in (module._parameters, module._buffers))
    kept: list[tuple[Any, dict[str, Any]]] = [(tensors, dict(tensors)) for tensors in dicts]
    try:
        for tensors, real in kept:
            tensors.update({name: None if tensor is None else meta[tensor] for name, tensor in real.items()})
        yield
    finally:
        for tensors, real in kept:
            tensors.update(real)


def _forward(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    tensors = chain(model.parameters(), model.buffers())
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
    image = torch.empty(_BATCH, *input_size, device="meta", dtype=dtype)
    # Random numbers that the model draws on the CPU all the same leave no trace.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _on_meta(model):
        model(image)


def conv_flops(conv: nn.Conv2d, positions: int) -> int:
    """Return 2 × the multiply-adds of a convolution that computes so many output positions.

    As torch's counter has it, with ``dcn_ops.flops`` for what is deformable.
    """
    flops = 2 * positions * conv.weight.numel()
    if isinstance(conv, DeformConv2d) and conv.offset_weight is not None:
        taps = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        depthwise = 0 if conv.offset_depthwise_weight is None else taps
        # The predictor, and a bilinear sample for each tap: a weighted sum of four pixels.
        flops += 2 * positions * (depthwise + conv.offset_weight.numel() + 4 * taps)
    return flops
