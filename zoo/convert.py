"""Convert one convolution into one deformable convolution."""

from typing import Any, TypedDict

from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig
from zoo.layers import DEFORMABLE


class LayerArguments(TypedDict):
    """The arguments of a deformable layer that a convolution doesn't have."""

    offset_groups: int
    modulated: bool
    offset_bound: float | None
    separable_predictor: bool
    predict_offsets: bool
    mask_scale: float


LAYER_ARGUMENTS = tuple(LayerArguments.__annotations__)


def to_deformable(conv: nn.Conv2d, config: DCNConfig) -> DeformConv2d:
    """Return a layer with the convolution's Parameter objects, hooks and mode, and at first the same outputs.

    Raises:
        ValueError: If the offset groups don't divide the channels of the convolution.
    """
    return convert(
        conv,
        offset_groups=_offset_groups(conv, config),
        modulated=config.modulated,
        offset_bound=config.offset_bound,
        separable_predictor=_separable(conv, config),
    )


def convert(conv: nn.Conv2d, **arguments: Any) -> DeformConv2d:
    """Return the deformable layer for a convolution's class, with the same hook objects as the convolution."""
    layer = DEFORMABLE[type(conv)].from_conv2d(conv, **arguments)
    # The same dicts of hooks, since the convolution leaves the network: handles can still remove their hooks.
    layer.__dict__ |= {name: value for name, value in vars(conv).items() if "_hooks" in name}
    return layer


def sides(layer: Any) -> tuple[int, int]:
    """Return the height and width of the kernel of a convolution or a pooling."""
    return pair(layer.kernel_size)


def pair(value: Any) -> tuple[int, int]:
    """Return a pair for an integer, which poolings keep as it was given."""
    return (value, value) if isinstance(value, int) else tuple(value)


def parents(name: str) -> list[str]:
    """Return the names of the modules that contain a module, the root's "" first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def kind(layer: nn.Module) -> str:
    """Return "pooling", or a convolution's "depthwise" (one channel per filter), "grouped" or "dense"."""
    if isinstance(layer, nn.AvgPool2d):
        return "pooling"
    conv: Any = layer
    if conv.groups == 1:
        return "dense"
    return "depthwise" if conv.groups == conv.in_channels else "grouped"


def _offset_groups(conv: nn.Conv2d, config: DCNConfig) -> int:
    width = config.offset_group_width
    if width is None:
        return config.offset_groups
    if conv.in_channels % width:
        raise ValueError(f"expected offset_group_width to divide {conv.in_channels=}, got {width}")
    return conv.in_channels // width


def _separable(conv: nn.Conv2d, config: DCNConfig) -> bool:
    """Tell whether the predictor is separable: a dense one grows with the fourth power of the kernel size."""
    if config.separable_predictor is not None:
        return config.separable_predictor
    return kind(conv) == "depthwise" or max(conv.kernel_size) > 3
