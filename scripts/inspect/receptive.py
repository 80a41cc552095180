"""The effective receptive field (Luo et al., "Understanding the Effective Receptive Field ...", 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.stages import feature_stages

from .layers import deformable_layers


def effective_fields(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute gradient of the central output with respect to each pixel, by stage.

    The gradient is that of the channel sum at the central position of a map, in eval mode.

    Args:
        model: A timm network with ``feature_info``.
        images: [N, C, H, W].

    Returns:
        [H, W] by module of a stage: the sum over the image's channels, averaged over images, scaled to the sum 1.

    Raises:
        ValueError: If the network names no feature maps [N, C, H, W].
    """
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: kept.__setitem__(name, output)

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in feature_stages(model)]
    try:
        pixels = images.clone().requires_grad_()
        with torch.enable_grad():
            model.eval()(pixels)
    finally:
        for handle in handles:
            handle.remove()
    maps = {n: m for n, m in kept.items() if isinstance(m, Tensor) and m.dim() == 4}
    if not maps:
        raise ValueError(f"{type(model).__name__} names no feature maps [N, C, H, W] in timm's feature_info")
    fields = {}
    for name, features in maps.items():
        centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(centre, pixels, retain_graph=True)
        field = gradient.detach().abs().sum(1).mean(0)
        fields[name] = field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)
    return fields


def spread(field: Tensor) -> float:
    """Return the root mean square distance, in pixels, of the field [H, W] from its centre of mass."""
    (centre_y, centre_x), y, x = _centre(field)
    square = (field.sum(1) * (y - centre_y).square()).sum() + (field.sum(0) * (x - centre_x).square()).sum()
    return square.sqrt().item()


def side_of_half(field: Tensor) -> int:
    """Return the side of the smallest square around its centre of mass that holds half of the field [H, W]."""
    (centre_y, centre_x), y, x = _centre(field)
    away = torch.maximum((y - centre_y.round()).abs()[:, None], (x - centre_x.round()).abs())
    radius = next(r for r in range(max(field.shape) + 1) if field[away <= r].sum() >= 0.5)
    return 2 * radius + 1


def _centre(field: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    y, x = (torch.arange(size, dtype=field.dtype, device=field.device) for size in field.shape)
    return ((field.sum(1) * y).sum(), (field.sum(0) * x).sum()), y, x


@contextmanager
def without_offsets(model: nn.Module) -> Iterator[None]:
    """Make every deformable layer sample its regular grid with masks of 1, inside the context."""
    layers = deformable_layers(model).values()
    # The depthwise filters of a separable predictor need no change: zeros in its second convolution are enough.
    predictors = [p for layer in layers for p in (layer.offset_weight, layer.offset_bias) if p is not None]
    kept = [(parameter, parameter.detach().clone()) for parameter in predictors]
    try:
        for parameter in predictors:
            parameter.data.zero_()
        yield
    finally:
        for parameter, value in kept:
            parameter.data.copy_(value)
