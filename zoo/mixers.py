"""DCNv3 and DCNv4 in the place of depthwise convolutions and average poolings.

Legend: C channels, G groups, K = kh * kw taps.

What can be kept:

- Both layers can average their window: DCNv3 does so when it is new, and DCNv4 with masks of 1 / K.
- DCNv4 with a group for each channel can be a depthwise convolution: its masks start as the filters.
- Otherwise the channels of a group share their masks, and masks of DCNv3 are positive and sum to 1. The new layer
  then starts close to the convolution, and the network's output changes.
"""

import math
from collections.abc import Iterable
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcn_ops import DCNv3, DCNv4, DeformConv2d
from dcn_ops.aggregate.layer import ChannelsFirst
from zoo.config import DCNConfig
from zoo.convert import kind, pair, sides
from zoo.meta import meta_copy

# Exact classes: a subclass may have its own forward.
REPLACED = (nn.Conv2d, nn.AvgPool2d)
# The authors' networks have groups of so many channels.
_WIDTH = 16


class MixerArguments(TypedDict):
    """What a layer is made of, in addition to the layer that it replaces."""

    operator: str
    channels: int
    group: int


MIXER_ARGUMENTS = tuple(MixerArguments.__annotations__)


class DeformMixer2d(ChannelsFirst):
    """A DCNv3 or DCNv4 among layers that take [N, C, H, W], with the size of another layer's output.

    Args:
        layer: DCNv3 or DCNv4.
        bias: Added to the output, [C]; None for none.
        counts_padding: False divides the output by the share of a window's taps that lie inside the image, as
            ``nn.AvgPool2d(count_include_pad=False)`` does.
    """

    bias: nn.Parameter | None

    def __init__(
        self, layer: DCNv3 | DCNv4, bias: nn.Parameter | None = None, *, counts_padding: bool = True
    ) -> None:
        super().__init__(layer)
        self.counts_padding = counts_padding
        self.window = (layer.kernel_size, layer.stride, layer.pad)
        self.register_parameter("bias", bias)

    def predictor_parameters(self) -> list[nn.Parameter]:
        """Return the Parameters that predict offsets and masks."""
        layer: Any = self.layer
        return layer.predictor_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, C, Ho, Wo], in channels_last memory format, for input [N, C, H, W]."""
        out = self.layer(input.permute(0, 2, 3, 1))
        if self.bias is not None:
            out = out + self.bias
        out = out.permute(0, 3, 1, 2)
        if self.counts_padding:
            return out
        kernel, stride, pad = self.window
        share = F.avg_pool2d(torch.ones_like(input[:1, :1]), kernel, stride, pad)
        return out / share


def deformable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the deformable layers by name: those of a conversion, and DCNv3 and DCNv4 of the network's own."""
    found: dict[str, nn.Module] = {}
    for name, layer in model.named_modules():
        within = name.rpartition(".")[0] in found  # the layer of a DeformMixer2d
        if isinstance(layer, DeformConv2d | DeformMixer2d | DCNv3 | DCNv4) and not within:
            found[name] = layer
    return found


def unfit(layer: nn.Module, operator: str) -> str | None:
    """Tell why a layer can't be replaced by DCNv3 or DCNv4, with any groups; None if it can."""
    if type(layer) not in REPLACED:
        return f"{type(layer).__name__} has its own forward"
    kernel, stride = sides(layer), pair(layer.stride)
    if max(kernel) < 3 or kernel == stride:
        return f"kernel {kernel[0]}x{kernel[1]} and stride {stride[0]}x{stride[1]}"
    if isinstance(layer, nn.AvgPool2d):
        unusual = layer.ceil_mode or layer.divisor_override is not None
        return "ceil_mode or divisor_override" if unusual else None
    assert isinstance(layer, nn.Conv2d)
    if not layer.groups == layer.in_channels == layer.out_channels:
        return f"{kind(layer)}: DCN{operator} replaces depthwise convolutions with one filter for each channel"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return f"padding={layer.padding!r}, padding_mode={layer.padding_mode!r}"
    return None


def change(layer: nn.Module, config: DCNConfig) -> str | None:
    """Tell why a network's output would change; None if it stays the same."""
    if isinstance(layer, nn.AvgPool2d):
        return None
    if config.operator == "v3":
        return "masks of DCNv3 are positive and sum to 1, which filters don't"
    assert isinstance(layer, nn.Conv2d)
    if count_groups(layer.in_channels, config) != layer.in_channels:
        return "channels of a group share their masks, but have different filters"
    return None


def count_groups(channels: int, config: DCNConfig) -> int:
    """Return G: as the config says, by default groups of 16 channels, or of the largest divisor they have with 16.

    Raises:
        ValueError: If the groups don't divide the channels.
    """
    if config.offset_group_width is None and config.offset_groups == 1:
        return channels // math.gcd(channels, _WIDTH)
    if config.offset_group_width is None:
        return config.offset_groups
    if channels % config.offset_group_width:
        raise ValueError(f"expected offset_group_width to divide {channels=}, got {config.offset_group_width}")
    return channels // config.offset_group_width


def arguments(mixer: DeformMixer2d) -> MixerArguments:
    """Return what rebuilds a layer, without its weights, from the layer that it replaced."""
    layer: Any = mixer.layer
    operator = "v3" if isinstance(layer, DCNv3) else "v4"
    return {"operator": operator, "channels": layer.channels, "group": layer.group}


def make(layer: nn.Module, operator: str, channels: int, group: int, *, like: Tensor) -> DeformMixer2d:
    """Return DCNv3 or DCNv4 for a depthwise convolution or an average pooling, as close to it as possible.

    Its parameters have the device and dtype of ``like``.

    Raises:
        ValueError: If the groups don't divide the channels.
    """
    with like.device, torch.no_grad():
        made: Any = (
            DCNv3(channels, group=group, **_window(layer))
            if operator == "v3"
            else DCNv4(channels, group=group, without_pointwise=True, **_window(layer))
        )
        made.to(like.dtype)
        bias = (_start_v3 if operator == "v3" else _start_v4)(made, layer)
    mixer = DeformMixer2d(made, bias, counts_padding=getattr(layer, "count_include_pad", True))
    # The very dicts of hooks, since the replaced layer leaves the network: handles can still remove their hooks.
    mixer.__dict__ |= {name: value for name, value in vars(layer).items() if "_hooks" in name}
    return mixer.train(layer.training)


def flops(mixer: nn.Module, inputs: Iterable[tuple[int, int, int, int]]) -> int:
    """Return the FLOPs of a layer on inputs of these shapes [N, C, H, W]."""
    twin = meta_copy(mixer)
    tensors = [*twin.parameters()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for shape in inputs:
            twin(torch.empty(shape, device="meta", dtype=tensors[0].dtype))
    return counter.get_total_flops()


def _start_v3(made: DCNv3, layer: nn.Module) -> None:
    """Let a new layer, which averages its window, be a pooling; or a convolution, on constant images."""
    nn.init.eye_(made.input_proj.weight)
    nn.init.eye_(made.output_proj.weight)
    if isinstance(layer, nn.Conv2d):
        made.output_proj.weight.mul_(layer.weight.sum((1, 2, 3))[:, None])
        if layer.bias is not None:
            made.output_proj.bias.copy_(layer.bias)


def _start_v4(made: DCNv4, layer: nn.Module) -> nn.Parameter | None:
    """Let the masks start as the mean filter of their group, or as a pooling's; return the convolution's bias."""
    packed = made.offset_mask.bias[: 3 * made.group * made.taps].view(made.group, 3 * made.taps)
    masks = packed[:, 2 * made.taps :]
    if not isinstance(layer, nn.Conv2d):
        masks.fill_(1 / made.taps)
        return None
    # The taps go down the columns of the kernel.
    masks.copy_(layer.weight[:, 0].transpose(1, 2).reshape(made.group, -1, made.taps).mean(1))
    return layer._parameters.get("bias")


def _window(layer: Any) -> dict[str, Any]:
    return {
        "kernel_size": sides(layer),
        "stride": pair(layer.stride),
        "pad": pair(layer.padding),
        "dilation": pair(getattr(layer, "dilation", 1)),
    }
