"""The offsets of a training step: the mean |offset| for the log, the mean squared offset for the regulariser."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d

from ..inspect.layers import deformable_layers, input_of


class WithOffsets(nn.Module):
    """A network that also returns the mean |offset| and the mean squared offset of each of its deformable layers.

    While it exists, the layers get their offsets from a hook instead of predicting them in their forward. The work
    is the same, nothing is predicted twice, and ``torch.compile(fullgraph=True)``, DDP and FSDP2 see tensors that
    the network returns.

    Args:
        model: A network; one without deformable layers returns two empty tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = deformable_layers(model)
        # Lists from the start: a finished run is evaluated again without calling this module's forward.
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}
        self._handles = [
            layer.register_forward_pre_hook(partial(self._predict, name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]

    def forward(self, images: Tensor, *rest: Any) -> tuple[Any, Tensor, Tensor]:
        """Return the network's output, mean |offset| [layers] without gradient, and mean squared offset [layers].

        A layer that is called several times has the means over its calls; a layer that is not called has 0.
        """
        self._seen = {name: [] for name in self.layers}
        output = self.model(images, *rest)
        nothing = images.new_zeros((), dtype=torch.float32)
        if not self.layers:
            return output, nothing.new_zeros(0), nothing.new_zeros(0)
        sizes, squares = [], []
        for calls in self._seen.values():
            sizes.append(sum((size for size, _ in calls), nothing) / max(1, len(calls)))
            squares.append(sum((square for _, square in calls), nothing) / max(1, len(calls)))
        # Lists, not an empty dict: a checkpointed block is computed, and recorded, again in the backward.
        self._seen = {name: [] for name in self.layers}
        return output, torch.stack(sizes), torch.stack(squares)

    def remove(self) -> None:
        """Make the layers predict for themselves again."""
        for handle in self._handles:
            handle.remove()

    def _predict(
        self, name: str, layer: DeformConv2d, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        input = input_of(args, kwargs)
        offset, mask = layer.offsets(input)
        wide = offset.float()
        self._seen[name].append((wide.detach().abs().mean(), wide.square().mean()))
        return (input, offset, mask), {}
