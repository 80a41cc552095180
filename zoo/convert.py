"""One convolution to one deformable convolution."""

from collections.abc import Mapping
from typing import Any, TypedDict

from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig
from zoo.fusing import keep_unfused
from zoo.layers import DEFORMABLE
from zoo.weights import accept_plain_weights


class LayerArguments(TypedDict):
    """What a deformable layer has beyond its convolution."""

    offset_groups: int
    modulated: bool
    offset_bound: float | None
    separable_predictor: bool
    predict_offsets: bool


LAYER_ARGUMENTS = tuple(LayerArguments.__annotations__)


def to_deformable(conv: nn.Conv2d, config: DCNConfig) -> DeformConv2d:
    """Return a layer that holds the convolution's very Parameters, hooks and mode, and computes the same at first.

    Raises:
        ValueError: For offset groups that don't divide the channels of the convolution.
    """
    return _convert(
        conv,
        offset_groups=_offset_groups(conv, config),
        modulated=config.modulated,
        offset_bound=config.offset_bound,
        separable_predictor=_separable(conv, config),
    )


def rebuild_(model: nn.Module, layers: Mapping[str, LayerArguments]) -> None:
    """Convert the very convolutions of these names, in place.

    Raises:
        ValueError: For a name that is no convertible convolution; the model is then as it was.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    made: dict[nn.Module, DeformConv2d] = {}
    for name, arguments in layers.items():
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d) or type(conv) not in DEFORMABLE:
            raise ValueError(f"expected a convolution at {name!r} of {type(model).__name__}, got {conv}")
        made[conv] = _convert(conv, **arguments)
    keep_unfused(modules[parent] for name in layers for parent in parents(name))
    for name, module in modules.items():  # A shared convolution has several names.
        if module in made:
            model.set_submodule(name, made[module])
    accept_plain_weights(model)


def _convert(conv: nn.Conv2d, **arguments: Any) -> DeformConv2d:
    layer = DEFORMABLE[type(conv)].from_conv2d(conv, **arguments)
    # The very dicts of the hooks, as the convolution leaves the network: handles still remove what they added.
    layer.__dict__ |= {name: value for name, value in vars(conv).items() if "_hooks" in name}
    return layer


def parents(name: str) -> list[str]:
    """Return the names of the modules that hold a module, the root's "" first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def kind(conv: nn.Conv2d) -> str:
    """Tell "depthwise" (one channel to a filter), "grouped" or "dense"."""
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
    """Keep the predictor cheaper than a block: a dense one grows with the fourth power of the kernel."""
    if config.separable_predictor is not None:
        return config.separable_predictor
    return kind(conv) == "depthwise" or max(conv.kernel_size) > 3
