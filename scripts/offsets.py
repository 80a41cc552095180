"""What a training step learns of its deformable layers: the mean |offset|, and the mean squared one to penalise."""

from typing import Any

import torch
from torch import Tensor, nn

from dcn_ops import DeformConv2d


class WithOffsets(nn.Module):
    """A network that also returns the mean |offset| and the mean squared offset of each of its deformable layers.

    While it exists the layers take their offsets from a hook instead of predicting them in their forward: the work
    is the same, nothing is predicted twice, and ``torch.compile(fullgraph=True)``, DDP and FSDP2 see tensors that
    the network returns.

    Args:
        model: A network; one without deformable layers returns two empty tensors.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layers = {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d)}
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._handles = [layer.register_forward_pre_hook(self._predict) for layer in self.layers.values()]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits [N, classes], mean |offset| [layers] without gradient, and mean squared offset [layers]."""
        self._seen = []
        logits = self.model(images)
        if not self._seen:
            return logits, logits.new_zeros(0), logits.new_zeros(0)
        sizes, squares = zip(*self._seen, strict=True)
        self._seen = []
        return logits, torch.stack(sizes), torch.stack(squares)

    def remove(self) -> None:
        """Let the layers predict for themselves again."""
        for handle in self._handles:
            handle.remove()

    def _predict(self, layer: DeformConv2d, args: tuple[Any, ...]) -> tuple[Any, ...]:
        offset, mask = layer.offsets(args[0])
        wide = offset.float()
        self._seen.append((wide.detach().abs().mean(), wide.square().mean()))
        return args[0], offset, mask
