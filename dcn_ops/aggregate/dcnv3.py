"""The layer of DCNv3, with its authors' parameter names and initialisation, for any window and size."""

import torch
from torch import Tensor, nn

from dcn_ops.aggregate.check import check_image, is_traced
from dcn_ops.aggregate.layer import Aggregation, IntOrPair, convolve, depthwise, reset


class DCNv3(Aggregation):
    """Deformable convolution v3: it samples an image of projected values and averages the samples of each window.

    A depthwise convolution and linear layers predict offsets and masks from the input. The linear layers start at
    zero, so a fresh layer averages its window. The mask of a window is a softmax over its taps.

    Args:
        channels: C.
        kernel_size: kh x kw. kernel_size, stride, pad and dilation are an integer or a pair.
        dw_kernel_size: Kernel size of the depthwise convolution of the prediction; by default kernel_size.
        stride: Stride. Offsets are predicted at the centres of the windows.
        pad: Zero padding.
        dilation: Distance between taps.
        group: G. Each group has its own offsets and masks for C / G channels.
        offset_scale: Scales the offsets and also the grid of taps around the window's centre.
        center_feature_scale: Mix in the features of the centre, with a predicted weight for each group.
        remove_center: Leave out the tap in the centre.

    Raises:
        ValueError: For a group that doesn't divide the channels, or an invalid pair.
        TypeError: For a number that is not an integer.

    References:
        Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        https://arxiv.org/abs/2211.05778.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: IntOrPair = 3,
        dw_kernel_size: IntOrPair | None = None,
        stride: IntOrPair = 1,
        pad: IntOrPair = 1,
        dilation: IntOrPair = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        *,
        center_feature_scale: bool = False,
        remove_center: bool = False,
    ) -> None:
        super().__init__(
            channels,
            kernel_size,
            stride,
            pad,
            dilation,
            group,
            offset_scale,
            center_feature_scale,
            remove_center,
        )
        self.dw_conv = nn.Sequential(
            depthwise(channels, kernel_size if dw_kernel_size is None else dw_kernel_size),
            nn.Sequential(nn.Identity(), nn.LayerNorm(channels, eps=1e-6)),  # in checkpoints the norm is named 1.1
            nn.GELU(),
        )
        self.offset = nn.Linear(channels, group * self.taps * 2)
        self.mask = nn.Linear(channels, group * self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the prediction to zero and draw new projections."""
        reset(zero=(self.offset, self.mask), drawn=(self.input_proj, self.output_proj))

    def predictor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that predict offsets and masks, without the depthwise convolution before them."""
        return [*self.offset.parameters(), *self.mask.parameters()]

    def forward(self, input: Tensor) -> Tensor:
        """Aggregate input [N, H, W, C] to [N, Ho, Wo, C].

        Raises:
            ValueError: For another shape.
        """
        check_image(input, self.channels)
        values = self.input_proj(input)
        query = self.at_centres(convolve(self.dw_conv[0], input))
        query = self.dw_conv[2](self.dw_conv[1](query))
        mask = _softmax(self.mask(query).unflatten(-1, [self.group, self.taps])).flatten(-2)
        out = self.aggregate(values, self.offset(query), mask)
        return self.output_proj(self.with_centre(out, values, query))


def _softmax(logits: Tensor) -> Tensor:  # [.., K]
    """Return the softmax over the last axis."""
    traced = is_traced(logits) or torch.compiler.is_compiling()  # graphs get the plain operator
    if not traced and logits.device.type == "cpu" and logits.shape[-1] < 16:
        # Torch's softmax of rows shorter than a vector takes three to six times as long as that of their transpose.
        return logits.flatten(0, -2).t().softmax(0).t().reshape(logits.shape)
    return logits.softmax(-1)
