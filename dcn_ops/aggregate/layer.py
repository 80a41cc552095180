"""The common base of the layers of DCNv3 and DCNv4, and a wrapper for channels-first networks.

Legend: N batch, C channels, H x W input size, Ho x Wo output size, G groups, K taps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcn_ops.aggregate.contract  # noqa: F401  (registers the operator)
from dcn_ops.aggregate.window import Window
from dcn_ops.arguments import as_integer, as_pair

IntOrPair = int | Sequence[int]


class Aggregation(nn.Module):
    """The window, its centres, and the option to mix in the features of the centre.

    Offsets are predicted at the centres of the windows, for every stride and padding.
    """

    center_feature_scale_proj_weight: nn.Parameter | None
    center_feature_scale_proj_bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair,
        pad: IntOrPair,
        dilation: IntOrPair,
        group: int,
        offset_scale: float,
        center_feature_scale: bool,
        remove_center: bool,
    ) -> None:
        super().__init__()
        self.channels, self.group = as_integer("channels", channels), as_integer("group", group)
        if self.group < 1 or self.channels % self.group:
            raise ValueError(f"expected group to divide the channels, got {group=} and {channels=}")
        self.kernel_size, self.stride = as_pair("kernel_size", kernel_size), as_pair("stride", stride)
        self.pad, self.dilation = as_pair("pad", pad), as_pair("dilation", dilation)
        self.offset_scale, self.remove_center = float(offset_scale), bool(remove_center)
        self.taps = self._window().taps
        if self.remove_center and (self.taps % 2 or self.taps == 0):
            raise ValueError(f"expected an odd kernel of several taps with remove_center, got {kernel_size=}")
        # Output (h, w) has its window's centre at input (h * stride + start).
        start = [d * (k - 1) // 2 - p for d, k, p in zip(self.dilation, self.kernel_size, self.pad, strict=True)]
        self.start = start
        odd = all(d * (k - 1) % 2 == 0 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        self._one_to_one = odd and self.stride == [1, 1] and start == [0, 0]
        for name, shape in (("weight", (self.group, self.channels)), ("bias", (self.group,))):
            parameter = nn.Parameter(torch.zeros(shape)) if center_feature_scale else None
            self.register_parameter(f"center_feature_scale_proj_{name}", parameter)

    def _window(self) -> Window:
        numbers = (self.kernel_size, self.stride, self.pad, self.dilation, self.group)
        return Window(*numbers, self.offset_scale, self.remove_center)

    def at_centres(self, features: Tensor) -> Tensor:  # [N, H, W, C] -> [N, Ho, Wo, C]
        """Return the features at the centres of the windows, or at the nearest pixel if a centre is outside."""
        if self._one_to_one:
            return features
        sizes = features.shape[1:3]
        for axis, out in enumerate(self._window().output_size(sizes)):
            index = torch.arange(out, device=features.device) * self.stride[axis] + self.start[axis]
            features = features.index_select(1 + axis, index.clamp(0, sizes[axis] - 1))
        return features

    def aggregate(self, values: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Sum samples of the values [N, H, W, C] and return [N, Ho, Wo, C]."""
        # Call the operator directly, so that tracing sees no arithmetic on shapes.
        return torch.ops.dcn_ops.deform_aggregate(
            values,
            offset,
            mask,
            self.kernel_size,
            self.stride,
            self.pad,
            self.dilation,
            self.group,
            self.offset_scale,
            self.remove_center,
        )

    def with_centre(self, out: Tensor, values: Tensor, query: Tensor) -> Tensor:
        """Mix in the features of the centre, with a weight for each group that the query predicts."""
        weight, bias = self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
        if weight is None:
            return out
        scale = F.linear(query, weight, bias).sigmoid().unsqueeze(-1)  # [N, Ho, Wo, G, 1]
        by_group = out.unflatten(-1, [self.group, -1])
        centre = self.at_centres(values).unflatten(-1, [self.group, -1])
        return (by_group * (1 - scale) + centre * scale).flatten(-2)

    def extra_repr(self) -> str:
        """Return the numbers of the layer."""
        names = ("channels", "kernel_size", "stride", "pad", "dilation", "group", "offset_scale", "remove_center")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class ChannelsFirst(nn.Module):
    """A layer for channels-last images, such as ``DCNv3``, among layers that take [N, C, H, W].

    Args:
        layer: Takes [N, H, W, C]. Its name in the state_dict is ``layer``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output [N, C, Ho, Wo], in channels_last memory format, for input [N, C, H, W]."""
        return self.layer(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def reset(zero: Sequence[nn.Linear], drawn: Sequence[nn.Linear]) -> None:
    """Set linear layers to zero, or draw their weights."""
    for layer in zero:
        nn.init.zeros_(layer.weight)
    for layer in drawn:
        nn.init.xavier_uniform_(layer.weight)
    for layer in (*zero, *drawn):
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def depthwise(channels: int, kernel_size: IntOrPair) -> nn.Conv2d:
    """Return a depthwise convolution for ``convolve``."""
    height, width = as_pair("dw_kernel_size", kernel_size)
    padding = ((height - 1) // 2, (width - 1) // 2)
    return nn.Conv2d(channels, channels, (height, width), padding=padding, groups=channels)


def convolve(conv: nn.Module, image: Tensor) -> Tensor:  # [N, H, W, C] -> [N, H, W, C]
    """Convolve a channels-last image and keep its size."""
    image = image.permute(0, 3, 1, 2)
    height, width = (1 - k % 2 for k in conv.kernel_size)  # type: ignore[union-attr]
    if height or width:  # an even kernel needs one more row or column at the end
        image = F.pad(image, (0, width, 0, height))
    return conv(image).permute(0, 2, 3, 1)
