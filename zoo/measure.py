"""What forward passes of a copy of a network show; the copy has no data if it runs without."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zoo.check import Size
from zoo.forward import Measured, forward
from zoo.image import MOST_CHANNELS, likely_channels, likely_readers
from zoo.meta import meta_copy, sharing_copy
from zoo.parts import is_composite

logger = logging.getLogger(__name__)

# Two images, since BatchNorm in training mode refuses one value per channel.
_BATCH = 2
# The image's side if the size is unknown: it only has to reach the convolutions.
_SIDE = 224


@torch.inference_mode(False)  # within it operators arrive whole, so that what reads the image is unknown
def measure(model: nn.Module, sizes: Sequence[Size], parts: Mapping[str, str]) -> Measured:
    """Run a copy of the model; the model stays unchanged.

    The copy has no data. If it doesn't run, a copy that shares the model's weights runs on their device, as a
    detector's post-processing needs data.

    Args:
        model: A network.
        sizes: Sizes of its image, [C, H, W]; the first one on which it runs counts. Without any, an image of a
            likely size shows which convolutions read it and which are called; for a network with a backbone inside
            it shows everything.
        parts: The part of each module, by name.
    """
    tried = list(sizes) or [(channels, _SIDE, _SIDE) for channels in likely_channels(model)]
    run = _best_run(model, tried, parts)
    composite = is_composite(parts)
    channels = tried[0][0]
    if not sizes and channels > MOST_CHANNELS and run.size in (None, tried[0]):
        run.readers = set()
    elif run.failure is not None:  # the image, or another image, may reach convolutions that were not called
        run.readers |= likely_readers(model, channels) - run.called
    if not composite and (not sizes or run.failure is not None):
        run.strides = {}
    if not sizes and not composite:
        run.size, run.flops = None, None
    elif run.failure is not None:
        run.size = tried[0]
        logger.debug("FLOPs of %s are unknown, it doesn't run: %s", type(model).__name__, run.failure)
    return run


def _best_run(model: nn.Module, sizes: Sequence[Size], parts: Mapping[str, str]) -> Measured:
    """Return the first run that ends, or else the run that called the most convolutions."""
    runs = []
    for copied in (meta_copy, sharing_copy):
        if copied is sharing_copy and not _has_data(model):
            break
        try:
            twin = copied(model)
        except Exception as error:  # an attribute can't be copied
            runs.append(Measured(failure=f"it can't be copied: {error}"))
            break
        for size, images in _attempts(twin, sizes):
            runs.append(forward(model, twin, size, images, parts))
            if runs[-1].failure is None:
                return runs[-1]
    return max(runs, key=lambda run: len(run.called))


def _has_data(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return not any(tensor.is_meta or nn.parameter.is_lazy(tensor) for tensor in tensors)


def _attempts(twin: nn.Module, sizes: Sequence[Size]) -> Iterator[tuple[Size, Any]]:
    """Yield images: a batch, or a list as detectors take it; in the network's mode and then in eval mode.

    With data there is one image, only in eval mode, to save time.
    """
    tensors = [t for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()]
    dtype, device = (tensors[0].dtype, tensors[0].device) if tensors else (None, torch.device("meta"))
    on_meta = device.type == "meta"
    if not on_meta:
        twin.eval()
    training = any(module.training for module in twin.modules())
    for _ in range(2 if training else 1):
        for size in sizes:
            batch = torch.zeros(_BATCH if on_meta else 1, *size, device=device, dtype=dtype)
            yield size, batch
            yield size, list(batch.unbind())
        twin.eval()
