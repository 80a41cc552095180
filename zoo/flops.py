"""FLOPs of a network and its convolutions, from a forward pass without data."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcn_ops import DeformConv2d

logger = logging.getLogger(__name__)

# Two images, as BatchNorm in training mode refuses one value per channel.
_BATCH = 2


def measure(
    model: nn.Module, convs: Iterable[nn.Conv2d], input_size: tuple[int, int, int]
) -> tuple[int, dict[nn.Conv2d, int]] | None:
    """Run the model on meta tensors in place of its parameters, buffers and input, which stay as they are.

    Returns:
        FLOPs of the model, and how many output positions each convolution computes, for one image of
        ``input_size`` [C, H, W]; None if the model doesn't run on meta tensors.
    """
    positions: defaultdict[nn.Conv2d, int] = defaultdict(int)

    def count(conv: nn.Conv2d, args: Any, output: Tensor) -> None:
        positions[conv] += output.numel() // conv.out_channels

    with ExitStack() as stack:
        for conv in convs:
            stack.callback(conv.register_forward_hook(count).remove)
        counter = stack.enter_context(FlopCounterMode(display=False))
        try:
            _forward(model, input_size)
        # Whatever a network can't do without data, the plan does without FLOPs.
        except Exception as error:
            logger.info("FLOPs of %s are unknown, it doesn't run on meta tensors: %s", type(model).__name__, error)
            return None
    return counter.get_total_flops() // _BATCH, {conv: n // _BATCH for conv, n in positions.items()}


def _forward(model: nn.Module, input_size: tuple[int, int, int]) -> None:
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    meta = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    image = torch.empty(_BATCH, *input_size, device="meta", dtype=dtype)
    # Random numbers that the model draws on the CPU all the same leave no trace.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.func.functional_call(model, meta, (image,))


def conv_flops(conv: nn.Conv2d, positions: int) -> int:
    """Return 2 × the multiply-adds of a convolution that computes so many output positions.

    As torch's counter has it, with ``dcn_ops.flops`` for what is deformable.
    """
    flops = 2 * positions * conv.weight.numel()
    if isinstance(conv, DeformConv2d) and conv.offset_weight is not None:
        taps = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        # The predictor, and a bilinear sample for each tap: a weighted sum of four pixels.
        flops += 2 * positions * (conv.offset_weight.numel() + 4 * taps)
    return flops
