"""Deformable layers for timm's convolutions that pad by the image's size or standardise their weight."""

from typing import ClassVar

import torch.nn.functional as F
from timm.layers import (
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
    register_notrace_module,
)
from timm.layers.padding import pad_same
from torch import Tensor, nn

from dcn_ops import DeformConv2d


@register_notrace_module
class DeformConv2dSame(DeformConv2d):
    """``Conv2dSame``: TensorFlow's padding, which depends on the size of the image."""

    converts: ClassVar[type[nn.Conv2d]] = Conv2dSame

    def pad(self, input: Tensor) -> Tensor:
        """Pad as the size of the input requires."""
        return pad_same(input, self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]


class _MaybeSame(DeformConv2d):
    same_pad: bool

    def pad(self, input: Tensor) -> Tensor:
        """Pad as the size of the input requires, if the layer pads dynamically."""
        if not self.same_pad:
            return input
        return pad_same(input, self.kernel_size, self.stride, self.dilation)  # type: ignore[arg-type]


class DeformStdConv2d(DeformConv2d):
    """``StdConv2d``: weight standardisation, https://arxiv.org/abs/1903.10520."""

    converts: ClassVar[type[nn.Conv2d]] = StdConv2d
    eps: float

    def filters(self) -> Tensor:
        """Return the weight with mean 0 and variance 1 per filter."""
        weight = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(weight, None, None, training=True, momentum=0.0, eps=self.eps)
        return weight.reshape_as(self.weight)


@register_notrace_module
class DeformStdConv2dSame(_MaybeSame, DeformStdConv2d):
    """``StdConv2dSame``: weight standardisation and TensorFlow's padding."""

    converts: ClassVar[type[nn.Conv2d]] = StdConv2dSame


class DeformScaledStdConv2d(DeformConv2d):
    """``ScaledStdConv2d``: scaled weight standardisation, https://arxiv.org/abs/2101.08692."""

    converts: ClassVar[type[nn.Conv2d]] = ScaledStdConv2d
    gain: nn.Parameter
    gain_init: float
    scale: float
    eps: float

    def filters(self) -> Tensor:
        """Return the weight with mean 0 and a learned standard deviation per filter."""
        weight, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * self.scale).view(-1)
        weight = F.batch_norm(weight, None, None, weight=gain, training=True, momentum=0.0, eps=self.eps)
        return weight.reshape_as(self.weight)

    def reset_parameters(self) -> None:
        """Draw new weights and biases, and reset gain and predictor to their initial values."""
        super().reset_parameters()
        nn.init.constant_(self.gain, self.gain_init)


@register_notrace_module
class DeformScaledStdConv2dSame(_MaybeSame, DeformScaledStdConv2d):
    """``ScaledStdConv2dSame``: scaled weight standardisation and TensorFlow's padding."""

    converts: ClassVar[type[nn.Conv2d]] = ScaledStdConv2dSame


_LAYERS = (
    DeformConv2d,
    DeformConv2dSame,
    DeformStdConv2d,
    DeformStdConv2dSame,
    DeformScaledStdConv2d,
    DeformScaledStdConv2dSame,
)
# Keyed by the exact class of the convolution: a subclass may compute anything.
DEFORMABLE: dict[type[nn.Conv2d], type[DeformConv2d]] = {layer.converts: layer for layer in _LAYERS}
