"""A timm network as the backbone of a detector: its maps, and a feature pyramid on them."""

from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


class Pyramid(nn.Module):
    """Maps of a timm network through torchvision's feature pyramid.

    Args:
        body: A network of ``timm.create_model(..., features_only=True)``.
        strides: The strides of the maps that enter the pyramid.
        channels: Channels of every map of the pyramid.
        top: Makes the coarser maps above the pyramid.

    Raises:
        ValueError: If the network lacks a map of a stride.
    """

    def __init__(self, body: Any, strides: tuple[int, ...], channels: int, top: ExtraFPNBlock) -> None:
        super().__init__()
        found = body.feature_info.reduction()
        if missing := set(strides) - set(found):
            raise ValueError(
                f"this head reads maps of the strides {', '.join(map(str, strides))}, and the network has none of "
                f"{', '.join(map(str, sorted(missing)))}, only {', '.join(map(str, found))}; see model.name"
            )
        self.body, self.levels = body, [found.index(stride) for stride in strides]
        widths = [body.feature_info.channels()[level] for level in self.levels]
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=top)
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return maps [N, channels, H / stride, W / stride] of images [N, C, H, W], from fine to coarse."""
        maps = self.body(images)
        return self.fpn({str(i): maps[level] for i, level in enumerate(self.levels)})


def create_body(arguments: dict[str, Any], pretrained: bool, weights: Path | None) -> Any:
    """Return timm's network without its classifier.

    Args:
        arguments: Of ``timm.create_model``.
        pretrained: Load timm's weights.
        weights: Instead: a file of weights of the whole network, which may have other classes.

    Raises:
        ValueError: If timm has no maps of this network.
    """
    rest = {key: value for key, value in arguments.items() if key not in ("model_name", "num_classes")}
    overlay: dict[str, Any] = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    name = arguments["model_name"]
    try:
        return timm.create_model(
            name, features_only=True, pretrained=pretrained or weights is not None, **overlay, **rest
        )
    except AttributeError as error:  # what timm raises for a network without stages
        raise ValueError(f"timm has no feature maps of model.name={name}: {error}") from error
