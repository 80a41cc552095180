"""One convolution to one deformable convolution."""

from torch import nn

from dcn_ops import DeformConv2d
from zoo.config import DCNConfig


def to_deformable(conv: nn.Conv2d, config: DCNConfig) -> DeformConv2d:
    """Return a layer that holds the convolution's very Parameters, hooks and mode, and computes the same at first.

    Raises:
        ValueError: For offset_groups that don't divide the channels of the convolution.
    """
    return DeformConv2d.from_conv2d(
        conv,
        offset_groups=config.offset_groups,
        modulated=config.modulated,
        offset_bound=config.offset_bound,
    )
