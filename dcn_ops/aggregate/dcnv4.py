"""The layer of DCNv4, with its authors' parameter names and initialisation, for any window and size."""

from torch import Tensor, nn

from dcn_ops.aggregate.check import check_image
from dcn_ops.aggregate.functional import unpack
from dcn_ops.aggregate.layer import Aggregation, IntOrPair, convolve, depthwise, reset


class DCNv4(Aggregation):
    """Deformable convolution v4: like v3, but one linear layer predicts offsets and masks, without a softmax.

    The prediction starts at zero, and so does the mask: a fresh layer returns its output bias.

    Args:
        channels: C.
        kernel_size: kh x kw. kernel_size, stride, pad and dilation are an integer or a pair.
        stride: Stride. Offsets are predicted at the centres of the windows.
        pad: Zero padding.
        dilation: Distance between taps.
        group: G. Each group has its own offsets and masks for C / G channels.
        offset_scale: Scales the offsets and also the grid of taps around the window's centre.
        dw_kernel_size: Kernel size of a depthwise convolution before the prediction; by default there is none.
        center_feature_scale: Mix in the features of the centre, with a weight for each group. The weight is
            predicted from the samples.
        remove_center: Leave out the tap in the centre.
        output_bias: Whether the last projection has a bias.
        without_pointwise: Leave out the projections before and after.

    Raises:
        ValueError: For a group that doesn't divide the channels, or an invalid pair.
        TypeError: For a number that is not an integer.

    References:
        Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
        Applications", https://arxiv.org/abs/2401.06197.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: IntOrPair = 3,
        stride: IntOrPair = 1,
        pad: IntOrPair = 1,
        dilation: IntOrPair = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        dw_kernel_size: IntOrPair | None = None,
        *,
        center_feature_scale: bool = False,
        remove_center: bool = False,
        output_bias: bool = True,
        without_pointwise: bool = False,
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
        self.offset_mask_dw = None if dw_kernel_size is None else depthwise(channels, dw_kernel_size)
        # The authors round up to a multiple of 8; the extra channels are not read.
        self.offset_mask = nn.Linear(channels, -(-3 * group * self.taps // 8) * 8)
        self.value_proj = None if without_pointwise else nn.Linear(channels, channels)
        self.output_proj = None if without_pointwise else nn.Linear(channels, channels, bias=output_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the prediction to zero and draw new projections."""
        drawn = [layer for layer in (self.value_proj, self.output_proj) if layer is not None]
        reset(zero=(self.offset_mask,), drawn=drawn)

    def predictor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that predict offsets and masks, without a depthwise convolution before them."""
        return [*self.offset_mask.parameters()]

    def forward(self, input: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Aggregate an image, or its tokens.

        Args:
            input: [N, H, W, C], or tokens [N, H * W, C].
            shape: (H, W) of tokens; not needed where H = W.

        Returns:
            [N, Ho, Wo, C], or [N, Ho * Wo, C] for tokens.

        Raises:
            ValueError: For another shape, or for tokens without ``shape`` whose image is not square.
        """
        is_tokens = input.dim() == 3
        if is_tokens:
            input = input.unflatten(1, _image_size(input, shape))
        check_image(input, self.channels)
        values = input if self.value_proj is None else self.value_proj(input)
        query = input if self.offset_mask_dw is None else convolve(self.offset_mask_dw, input)
        offset, mask = unpack(self.offset_mask(self.at_centres(query)), self.group, self.taps)
        out = self.aggregate(values, offset, mask)
        out = self.with_centre(out, values, out)
        out = out if self.output_proj is None else self.output_proj(out)
        return out.flatten(1, 2) if is_tokens else out


def _image_size(tokens: Tensor, shape: tuple[int, int] | None) -> list[int]:
    if shape is not None:
        height, width = shape
        return [height, width]
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"expected tokens of a square image, got {tokens.shape=}; pass shape=(height, width)")
    return [side, side]
