"""The layer of DCNv3, with its authors' parameter names and initialisation, for any window and size."""

from torch import Tensor, nn

from dcn_ops.aggregate.check import check_image
from dcn_ops.aggregate.layer import Aggregation, IntOrPair, convolve, depthwise, reset


class DCNv3(Aggregation):
    """Deformable convolution v3: an image of projected values is sampled, and the samples of a window are averaged.

    Offsets and masks are predicted from the input, by a depthwise convolution and linear layers that start at zero:
    a fresh layer averages its window. The mask of a window is a softmax over its taps.

    Args:
        channels: C.
        kernel_size: kh x kw; it, stride, pad and dilation are an integer or a pair.
        dw_kernel_size: Of the depthwise convolution of the prediction; by default kernel_size.
        stride: Stride. Offsets are predicted where the windows have their centres.
        pad: Zero padding.
        dilation: Distance between taps.
        group: G; each has its own offsets and masks for C / G channels.
        offset_scale: Scales the offsets, and the grid of taps around the window's centre too.
        center_feature_scale: Mix in the features of the centre, by a weight for each group that is predicted.
        remove_center: Leave out the tap in the centre.

    Raises:
        ValueError: For a group that doesn't divide the channels, or a pair that is none.
        TypeError: For a number that is no integer.

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
            nn.Sequential(nn.Identity(), nn.LayerNorm(channels, eps=1e-6)),  # the norm's name in checkpoints is 1.1
            nn.GELU(),
        )
        self.offset = nn.Linear(channels, group * self.taps * 2)
        self.mask = nn.Linear(channels, group * self.taps)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the prediction to zero and draw the projections anew."""
        reset(zero=(self.offset, self.mask), drawn=(self.input_proj, self.output_proj))

    def forward(self, input: Tensor) -> Tensor:
        """Aggregate input [N, H, W, C] to [N, Ho, Wo, C].

        Raises:
            ValueError: For another shape.
        """
        check_image(input, self.channels)
        values = self.input_proj(input)
        query = self.at_centres(convolve(self.dw_conv[0], input))
        query = self.dw_conv[2](self.dw_conv[1](query))
        mask = self.mask(query).unflatten(-1, [self.group, self.taps]).softmax(-1).flatten(-2)
        out = self.aggregate(values, self.offset(query), mask)
        return self.output_proj(self.with_centre(out, values, query))
