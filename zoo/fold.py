"""``fold_``: deformable layers that sample where a convolution samples become that convolution again.

Shapes: C and O channels in and out, G offset groups, K = kh * kw taps.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dcn_ops import DCNv3, DCNv4, DeformConv2d
from zoo.calibrate import Predicted, calibrate
from zoo.check import check_network
from zoo.fusing import allow_fusing
from zoo.report import folding_table, show
from zoo.results import Folding

logger = logging.getLogger(__name__)


def fold_(model: nn.Module, batches: Iterable[Any], tolerance: float = 1e-3) -> Folding:
    """Turn deformable layers that don't deform back into plain convolutions, in place; print and return them.

    The model runs once over ``batches``, in eval mode and without gradients. A layer whose offsets are 0 and whose
    masks are constant, both within ``tolerance`` on all these images, becomes the class of convolution that it was
    made from, with the same names, Parameter objects, hooks and mode. Constant masks are multiplied into the
    weight; masks of exactly 1 leave its bits unchanged. Blocks that contain no deformable layer any more can fold
    their branches again. Build optimizers after.

    Args:
        model: A converted network.
        batches: Calibration images, such as a validation DataLoader: tensors [N, C, H, W], or for detectors lists
            of images [C, H, W], or tuples or lists that start with one of these. They are moved to the model's
            device.
        tolerance: Largest offset, in pixels, and largest change of a mask, that count as zero.

    Returns:
        The folded layers, and the others with the reason.

    Raises:
        ValueError: If the model contains no DeformConv2d, there is no batch, or the tolerance is negative. The
            model then stays unchanged.
        TypeError: If the model is no network, or a batch is no tensor and doesn't start with one.
    """
    check_network(model)
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"expected a tolerance of at least 0, in pixels, got {tolerance=}")
    layers = _layers(model)
    seen = calibrate(model, layers, batches)
    tied = _tied(model)
    reasons = {layer: _reason(layer, seen[layer], tolerance, tied) for layer in layers}
    plain = {layer: layer.to_conv2d() for layer, reason in reasons.items() if reason is None}
    scales = {layer: _scale(layer, seen[layer], tied) for layer in plain}
    before = _parameters(model)
    for layer, conv in plain.items():
        scale = scales[layer]
        if scale is not None:
            with torch.no_grad():
                conv.weight.mul_(scale)
        for name in layers[layer]:
            model.set_submodule(name, conv)
        logger.info("%s: %s -> %s", " = ".join(layers[layer]), layer, conv)
    allow_fusing(m for m in model.modules() if not any(isinstance(c, DeformConv2d) for c in m.modules()))
    folding = Folding(
        folded=tuple(layers[layer][0] for layer in plain),
        kept={layers[layer][0]: reason for layer, reason in reasons.items() if reason is not None},
        params_before=before,
        params_after=_parameters(model),
    )
    saved = {
        names[0]: _parameters(layer) - _parameters(plain[layer]) if layer in plain else None
        for layer, names in layers.items()
    }
    show(folding_table(folding, saved))
    return folding


def _layers(model: nn.Module) -> dict[DeformConv2d, list[str]]:
    """Return the deformable layers, in order of definition, with all their names."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DeformConv2d):
            names[module].append(name)
    if isinstance(model, nn.Conv2d):
        raise ValueError(f"expected a network that contains deformable layers, got the layer {model}")
    if not names:
        if any(isinstance(m, DCNv3 | DCNv4) for m in model.modules()):
            raise ValueError(f"{type(model).__name__} has DCNv3 or DCNv4, which have no filters to fold back to")
        convs = Counter(type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv2d))
        found = ", ".join(f"{count} {name}" for name, count in convs.most_common()) or "no convolution"
        raise ValueError(f"expected a network that inject_ converted, got {type(model).__name__} with {found}")
    return dict(names)


def _reason(layer: DeformConv2d, seen: Predicted, tolerance: float, tied: set[nn.Parameter]) -> str | None:
    """Tell why a layer can't become a convolution, or None."""
    if not layer.predict_offsets or seen.given:
        return "gets offsets from outside" if layer.predict_offsets else "predict_offsets=False"
    if not _is_known(layer):
        return f"{type(layer).__name__} has its own forward"
    if seen.offset is None:
        return "is not called"
    offset = float(seen.offset.abs().max())
    # Not ">": NaN offsets can't become a convolution either.
    if not offset <= tolerance:
        return f"offsets up to {offset:.3g} pixels"
    if seen.mask is None:
        return None
    change = float((seen.mask[1] - seen.mask[0]).max())
    if not change <= tolerance:
        return f"masks that change by up to {change:.3g}"
    away, holder = float((seen.constant_mask - 1).abs().max()), _fixed(layer, tied)
    if holder is not None and away > tolerance:
        return f"masks up to {away:.3g} away from 1, and {holder}"
    return None


def _is_known(layer: DeformConv2d) -> bool:
    """Tell whether the layer's own class names its convolution; a parametrized class or a subclass doesn't."""
    cls = type(layer)
    return "converts" in vars(cls) and cls.forward is DeformConv2d.forward and "forward" not in vars(layer)


def _fixed(layer: DeformConv2d, tied: set[nn.Parameter]) -> str | None:
    """Tell why masks can't be multiplied into the weight, or None."""
    if type(layer).filters is not DeformConv2d.filters:
        return "the weight is standardised"
    # torch.nn.utils.prune and the old weight_norm compute it in a hook.
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "the weight is computed"
    return "the weight is shared" if layer.weight in tied else None


def _tied(model: nn.Module) -> set[nn.Parameter]:
    """Return the Parameters that several modules share: scaling one scales all of these modules."""
    count = Counter(p for module in model.modules() for p in module._parameters.values() if p is not None)
    return {parameter for parameter, times in count.items() if times > 1}


def _scale(layer: DeformConv2d, seen: Predicted, tied: set[nn.Parameter]) -> Tensor | None:
    """Return the masks as factors [O, C / groups, kh, kw] of the weight, None where they are 1."""
    if seen.mask is None or _fixed(layer, tied) is not None:
        return None
    mask = seen.constant_mask
    # 2 * sigmoid(0) is 1 up to rounding.
    if float((mask - 1).abs().max()) <= 4 * torch.finfo(layer.weight.dtype).eps:
        return None
    width, groups = layer.in_channels // layer.offset_groups, layer.groups
    by_channel = mask.view(-1, *layer.kernel_size).repeat_interleave(width, 0)  # [C, kh, kw]
    by_group = by_channel.view(groups, -1, *layer.kernel_size)  # [groups, C / groups, kh, kw]
    return by_group.repeat_interleave(layer.out_channels // groups, 0)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
