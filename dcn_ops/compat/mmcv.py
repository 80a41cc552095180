"""Stand-ins for ``mmcv.ops``: the same names, arguments and state_dict keys, on this library's operator.

``from dcn_ops.compat.mmcv import ModulatedDeformConv2dPack`` replaces ``from mmcv.ops import ...``. Importing this
module puts the layers into the registry of mmcv 2 (mmengine's) or mmcv 1, as "DCN" and "DCNv2", if there is one; so
``custom_imports = dict(imports=["dcn_ops.compat.mmcv"])`` in a config of mmdetection 3 is enough.

Legend: N batch, C input channels, K taps of the kernel, G offset groups, Ho x Wo output size.
"""

import importlib
import math
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from dcn_ops.compat.standin import Pair, StandIn, convolve, refuse_bias


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Convolve input [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] (v1); ``im2col_step`` has no effect.

    Raises:
        ValueError: For a bias, or shapes that don't fit.
    """
    refuse_bias(DeformConv2d, bias)
    return convolve(input, offset, None, weight, None, stride, padding, dilation, groups, deform_groups)


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolve input [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] with mask [N, G * K, Ho, Wo] (v2).

    Raises:
        ValueError: For shapes that don't fit.
    """
    return convolve(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)


class _Layer(StandIn):
    deform_groups: int
    # As nn.Conv2d has them; norms and initialisers of mmcv ask.
    transposed = False
    output_padding = (0,)

    def extra_repr(self) -> str:
        """Return the arguments of the layer."""
        return f"{super().extra_repr()}, deform_groups={self.deform_groups}"


class DeformConv2d(_Layer):
    """Deformable convolution (v1) without bias, whose offsets come from outside: ``layer(x, offset)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
    ) -> None:
        refuse_bias(type(self), bias)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, False)
        self.deform_groups = deform_groups
        self.im2col_step = im2col_step
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight: He et al. (2015), uniform."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] at offset [N, G * K * 2, Ho, Wo]."""
        return self._convolve(x, offset, None, self.deform_groups)


class DeformConv2dPack(DeformConv2d):
    """Deformable convolution (v1) that predicts its offsets by ``conv_offset``; "DCN" in configs."""

    _version = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = _predictor(self, 2)
        self.init_offset()

    def init_offset(self) -> None:
        """Set the predictor to zero."""
        _zero(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve x [N, C, H, W]."""
        return super().forward(x, self.conv_offset(x))


class ModulatedDeformConv2d(_Layer):
    """Modulated deformable convolution (v2): ``layer(x, offset, mask)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool | str = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bool(bias))
        self.deform_groups = deform_groups
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight within ± 1 / sqrt(C * K), and set the bias to zero."""
        bound = 1 / math.sqrt(self.in_channels * self.kernel_size[0] * self.kernel_size[1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] with mask [N, G * K, Ho, Wo]."""
        return self._convolve(x, offset, mask, self.deform_groups)


class ModulatedDeformConv2dPack(ModulatedDeformConv2d):
    """Modulated deformable convolution (v2) that predicts by ``conv_offset``; "DCNv2" in configs.

    Masks are the sigmoid of the prediction: ½ in a fresh layer.
    """

    _version = 2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv_offset = _predictor(self, 3)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the weight, and set bias and predictor to zero."""
        super().init_weights()
        if hasattr(self, "conv_offset"):  # the base class calls this before there is one
            _zero(self.conv_offset)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve x [N, C, H, W]."""
        out = self.conv_offset(x)
        count = out.shape[1] // 3 * 2
        return super().forward(x, out[:, :count], out[:, count:].sigmoid())


def _predictor(layer: _Layer, channels: int) -> nn.Conv2d:
    outputs = channels * layer.deform_groups * layer.kernel_size[0] * layer.kernel_size[1]
    return nn.Conv2d(layer.in_channels, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation)


def _zero(predictor: nn.Conv2d) -> None:
    for parameter in predictor.parameters():
        nn.init.zeros_(parameter)


def register() -> None:
    """Put the layers into mmcv's registry, as "DCN" and "DCNv2", in place of its own; without mmcv do nothing."""
    with suppress(ImportError):
        importlib.import_module("mmcv.ops")  # it would refuse to register its own after ours
    for module, name in (("mmengine.registry", "MODELS"), ("mmcv.cnn", "CONV_LAYERS")):
        with suppress(ImportError):
            registry = getattr(importlib.import_module(module), name, None)
            for key, layer in {"DCN": DeformConv2dPack, "DCNv2": ModulatedDeformConv2dPack}.items():
                if registry is not None:
                    registry.register_module(name=key, module=layer, force=True)


register()
