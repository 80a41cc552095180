"""The new layer of each chosen layer, and what it costs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo import mixers
from zoo.config import DCNConfig
from zoo.convert import to_deformable
from zoo.flops import conv_flops
from zoo.forward import Measured
from zoo.results import Replacement
from zoo.sites import Site

Swap = tuple[Site, nn.Module]


def build_layers(model: nn.Module, sites: Mapping[Site, DCNConfig]) -> list[Swap]:
    """Build all layers before any is put in place, so that errors leave the network unchanged.

    Raises:
        ValueError: If groups don't divide the channels of a layer.
    """
    swaps, like = [], next(model.parameters())
    for site, config in sites.items():
        try:
            swaps.append((site, _layer(site, config, like)))
        except ValueError as error:
            raise ValueError(f"{site.names[0]}: {error}; exclude this layer, or change the config") from error
    return swaps


def replacements(model: nn.Module, sites: Mapping[Site, DCNConfig], measured: Measured) -> tuple[Replacement, ...]:
    """Return what replaces each layer, with parameters and FLOPs.

    Raises:
        ValueError: As ``build_layers``.
    """
    with torch.random.fork_rng(devices=[]):  # DCNv3 draws weights
        swaps = build_layers(model, sites)
    return tuple(_replacement(site, layer, sites[site], measured) for site, layer in swaps)


def _layer(site: Site, config: DCNConfig, like: Tensor) -> nn.Module:
    old: Any = site.layer
    if config.operator == "v2":
        return to_deformable(old, config)
    assert site.channels is not None
    groups = mixers.count_groups(site.channels, config)
    return mixers.make(old, config.operator, site.channels, groups, like=like)


def _replacement(site: Site, layer: nn.Module, config: DCNConfig, measured: Measured) -> Replacement:
    before = after = None
    if measured.flops is not None:
        before, after = _flops(site.layer, site), _flops(layer, site)
    return Replacement(
        fqn=site.names[0],
        part=site.part,
        stage=site.stage,
        old=repr(site.layer),
        new=repr(layer),
        params_before=sum(p.numel() for p in site.layer.parameters()),
        params_after=sum(p.numel() for p in layer.parameters()),
        flops_before=before,
        flops_after=after,
        changes_output=None if config.operator == "v2" else mixers.change(site.layer, config),
    )


def _flops(layer: nn.Module, site: Site) -> int:
    if isinstance(layer, mixers.DeformMixer2d):
        return mixers.flops(layer, site.inputs)
    assert site.positions is not None
    return conv_flops(layer, site.positions) if isinstance(layer, nn.Conv2d) else 0
