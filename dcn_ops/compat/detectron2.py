"""Stand-ins for ``detectron2.layers.deform_conv``: the same names, arguments and state_dict keys.

They run and train on CPUs, where detectron2's modulated layer raises.

Legend: N batch, C input channels, K taps of the kernel, G offset groups, Ho x Wo output size.
"""

from collections.abc import Callable

from torch import Tensor, nn

from dcn_ops.compat.standin import Pair, StandIn, convolve, refuse_bias


def deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
    im2col_step: int = 64,
) -> Tensor:
    """Convolve input [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] (v1); ``im2col_step`` has no effect.

    Raises:
        ValueError: For shapes that don't fit.
    """
    return convolve(input, offset, None, weight, None, stride, padding, dilation, groups, deformable_groups)


def modulated_deform_conv(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deformable_groups: int = 1,
) -> Tensor:
    """Convolve input [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] with mask [N, G * K, Ho, Wo] (v2).

    Raises:
        ValueError: For shapes that don't fit.
    """
    return convolve(input, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups)


class _Layer(StandIn):
    """A stand-in with the norm and the activation that follow it."""

    norm: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        deformable_groups: int,
        bias: bool,
        norm: nn.Module | None,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.deformable_groups = deformable_groups
        self.with_bias = bias
        self.norm = norm
        self.activation = activation
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def _forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        out = self._convolve(x, offset, mask, self.deformable_groups)
        if self.norm is not None:
            out = self.norm(out)
        return out if self.activation is None else self.activation(out)

    def extra_repr(self) -> str:
        """Return the arguments of the layer."""
        return f"{super().extra_repr()}, deformable_groups={self.deformable_groups}"


class DeformConv(_Layer):
    """Deformable convolution (v1) without bias: ``layer(x, offset)``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        refuse_bias(type(self), bias)
        numbers = (kernel_size, stride, padding, dilation, groups, deformable_groups)
        super().__init__(in_channels, out_channels, *numbers, False, norm, activation)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] at offset [N, G * K * 2, Ho, Wo]; norm and activation follow."""
        return self._forward(x, offset, None)


class ModulatedDeformConv(_Layer):
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
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        numbers = (kernel_size, stride, padding, dilation, groups, deformable_groups)
        super().__init__(in_channels, out_channels, *numbers, bias, norm, activation)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] at offset [N, G * K * 2, Ho, Wo] with mask [N, G * K, Ho, Wo]."""
        return self._forward(x, offset, mask)
