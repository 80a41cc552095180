"""FLOPs of a convolution, plain or deformable."""

from torch import nn

from dcn_ops import DeformConv2d


def conv_flops(conv: nn.Conv2d, positions: int) -> int:
    """Return 2 × the multiply-adds of a convolution that computes so many output positions.

    The number equals that of torch's counter, with ``dcn_ops.interop.flops`` for deformable convolutions.
    """
    flops = 2 * positions * conv.weight.numel()
    if isinstance(conv, DeformConv2d) and conv.offset_weight is not None:
        taps = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        depthwise = 0 if conv.offset_depthwise_weight is None else taps
        # The predictor, and for each tap a bilinear sample: a weighted sum of four pixels.
        flops += 2 * positions * (depthwise + conv.offset_weight.numel() + 4 * taps)
    return flops
