"""Layers for modules that compute more than a deformable convolution, or predict from another feature."""

from collections.abc import Callable

from torch import Tensor, nn

from dcn_ops import DeformConv2d


class DeformConv2dNormed(DeformConv2d):
    """detectron2's layers: a norm and an activation, or None, follow the convolution."""

    norm: nn.Module | None
    activation: Callable[[Tensor], Tensor] | None

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Convolve input [N, C, H, W] as ``DeformConv2d`` does; norm and activation follow."""
        out = super().forward(input, offset, mask)
        if self.norm is not None:
            out = self.norm(out)
        return out if self.activation is None else self.activation(out)


class DeformConv2dBeside(DeformConv2d):
    """BasicSR's and EDVR's DCNv2Pack: offsets and masks are predicted from another feature."""

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:  # type: ignore[override]
        """Convolve input [N, C, H, W] where feature [N, C, H, W] says."""
        return super().forward(input, *self.offsets(feature))
