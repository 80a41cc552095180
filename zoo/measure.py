"""Results of a forward pass without data: FLOPs, strides, which convolutions run, and which read the image."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.check import Size
from zoo.image import MOST_CHANNELS, FromImage, likely_channels, likely_readers
from zoo.meta import meta_copy

logger = logging.getLogger(__name__)

# Two images, since BatchNorm in training mode refuses one value per channel.
_BATCH = 2
# The image's side if the size is unknown: it only has to reach the convolutions.
_SIDE = 224


@dataclass(kw_only=True)
class Measured:
    """What is known about a network, for one image.

    Attributes:
        size: [C, H, W] of the image; None if unknown.
        failure: Why the network doesn't run to its end on meta tensors; None if it does.
        readers: The convolutions that read the image.
        called: The convolutions that were called before the run ended or failed.
        positions: Outputs per channel of each convolution, 0 if it is never called; empty after a failure.
        strides: Height of the image divided by the height of a convolution's (last) output; empty after a failure,
            or without a size.
        flops: FLOPs of the network; None after a failure, or without a size.
    """

    size: Size | None = None
    failure: str | None = None
    readers: set[nn.Conv2d] = field(default_factory=set)
    called: set[nn.Conv2d] = field(default_factory=set)
    positions: dict[nn.Conv2d, int] = field(default_factory=dict)
    strides: dict[nn.Conv2d, float] = field(default_factory=dict)
    flops: int | None = None


def measure(model: nn.Module, sizes: Sequence[Size]) -> Measured:
    """Run a copy of the model without data; the model stays unchanged.

    Args:
        model: A network.
        sizes: Sizes of its image, [C, H, W]; the first one on which it runs counts. Without any, an image of a
            likely size shows only which convolutions read it and which are called.
    """
    tried = list(sizes) or [(channels, _SIDE, _SIDE) for channels in likely_channels(model)]
    run = _best_run(model, tried)
    channels = tried[0][0]
    if not sizes and channels > MOST_CHANNELS and run.size in (None, tried[0]):
        run.readers = set()
    elif run.failure is not None:  # the image, or another image, may reach convolutions that were not called
        run.readers |= likely_readers(model, channels) - run.called
    if not sizes:
        run.size, run.flops, run.strides = None, None, {}
    elif run.failure is not None:
        run.size = sizes[0]
        logger.debug(
            "FLOPs of %s are unknown, it doesn't run on meta tensors: %s", type(model).__name__, run.failure
        )
    return run


def _best_run(model: nn.Module, sizes: Sequence[Size]) -> Measured:
    """Return the first run that ends, or else the run that called the most convolutions."""
    try:
        twin = meta_copy(model)
    except Exception as error:  # an attribute can't be copied
        return Measured(failure=f"it can't be copied: {error}")
    runs = []
    for size, images in _attempts(twin, sizes):
        runs.append(_run(model, twin, size, images))
        if runs[-1].failure is None:
            return runs[-1]
    return max(runs, key=lambda run: len(run.called))


def _attempts(twin: nn.Module, sizes: Sequence[Size]) -> Iterator[tuple[Size, Any]]:
    """Yield images: a batch, or a list as detectors take it; in the network's mode and then in eval mode."""
    dtype = next((t.dtype for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()), None)
    training = any(module.training for module in twin.modules())
    for _ in range(2 if training else 1):
        for size in sizes:
            batch = torch.empty(_BATCH, *size, device="meta", dtype=dtype)
            yield size, batch
            yield size, list(batch.unbind())
        twin.eval()


def _run(model: nn.Module, twin: nn.Module, size: Size, images: Any) -> Measured:
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    run = Measured(size=size, positions=dict.fromkeys(convs.values(), 0))
    with ExitStack() as stack:
        follow, counter = FromImage(), FlopCounterMode(display=False)
        for image in images:
            follow.add(image)
        for name, conv in convs.items():
            hook = partial(_record, run, follow, conv)
            stack.callback(twin.get_submodule(name).register_forward_hook(hook, with_kwargs=True).remove)
        stack.enter_context(torch.no_grad())
        # The model may draw random numbers on the CPU; the caller's generator stays unchanged.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(counter)
        stack.enter_context(follow)
        try:
            twin(images)
        # A network may fail in any way without data; the plan then goes on with what is known.
        except Exception as error:
            run.failure, run.positions, run.strides = str(error).partition("\n")[0], {}, {}
        else:
            run.flops = counter.get_total_flops() // _BATCH
    return run


def _record(
    run: Measured, follow: FromImage, conv: nn.Conv2d, _: Any, args: Any, kwargs: Any, output: Tensor
) -> None:
    run.called.add(conv)
    if any(value in follow for value in (*args, *kwargs.values())):
        run.readers.add(conv)
    run.positions[conv] += output.numel() // conv.out_channels // _BATCH
    assert run.size is not None
    run.strides[conv] = run.size[1] / output.shape[-2]
