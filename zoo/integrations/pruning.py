"""Torch-Pruning for networks with deformable convolutions.

Torch-Pruning follows autograd's graph. There the offsets of a deformable layer are a second path, through the
predictor's output, on which its search for dependent layers doesn't end. Here the search sees constant offsets,
and channels that a layer's input loses are taken from its predictor too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning.pruner.function import ConvPruner, prune_conv_out_channels

from dcn_ops import DCNv3, DCNv4, DeformConv2d
from zoo.check import check_network


def pruning_arguments(model: nn.Module) -> dict[str, Any]:
    """Return what Torch-Pruning's pruners and its ``DependencyGraph.build_dependency`` need for a network.

    ``tp.pruner.MagnitudePruner(model, images, ..., **pruning_arguments(model))``

    Raises:
        ValueError: If a deformable layer can't be pruned: DCNv3, DCNv4, a depthwise convolution, which
            Torch-Pruning prunes by a function of its own, or one of several offset groups.
        TypeError: If the model is no network.
    """
    check_network(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d | DCNv3 | DCNv4)}
    for name, layer in layers.items():
        if reason := _unfit(layer):
            raise ValueError(
                f"Torch-Pruning can't prune {reason}, got {name!r}; prune the plain network, and convert it then"
            )
    # It looks them up by the exact class.
    return {
        "customized_pruners": {type(layer): _DeformPruner() for layer in layers.values()},
        "forward_fn": _forward,
    }


class _DeformPruner(ConvPruner):  # type: ignore[misc]  # the package's types are not read
    def __init__(self) -> None:
        super().__init__()
        # Exactly this function, because the measures of importance look for it.
        self.prune_out_channels = prune_conv_out_channels

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        kept = sorted(set(range(layer.in_channels)) - set(idxs))
        layer.offset_weight = self._prune_parameter_and_grad(layer.offset_weight, kept, 1)
        if layer.offset_depthwise_weight is not None:
            layer.offset_depthwise_weight = self._prune_parameter_and_grad(layer.offset_depthwise_weight, kept, 0)
        return super().prune_in_channels(layer, idxs)


def _unfit(layer: nn.Module) -> str | None:
    if not isinstance(layer, DeformConv2d):
        return type(layer).__name__
    if layer.groups > 1:
        return f"a deformable convolution of several groups (groups={layer.groups})"
    if layer.offset_groups > 1:
        return f"a deformable convolution of several offset groups (offset_groups={layer.offset_groups})"
    return None if layer.predict_offsets else "a deformable convolution that gets offsets from outside"


def _forward(model: nn.Module, images: Any) -> Any:
    """Run the network with offsets that are constants for autograd."""
    hooks = [
        layer.register_forward_pre_hook(_with_constant_offsets)
        for layer in model.modules()
        if isinstance(layer, DeformConv2d)
    ]
    try:
        if isinstance(images, dict):
            return model(**images)
        return model(images) if isinstance(images, Tensor) else model(*images)
    finally:
        for hook in hooks:
            hook.remove()


def _with_constant_offsets(layer: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    with torch.no_grad():
        return (arguments[0], *layer.offsets(arguments[0]))
