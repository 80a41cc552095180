"""The public function: torchvision's signature over ``torch.ops.dcn_ops.deform_conv2d``."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

import dcn_ops.conv.contract  # noqa: F401  (registers the operator)
from dcn_ops.arguments import as_pair
from dcn_ops.conv.check import check_tensors, count_groups


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution, v1 without ``mask`` and v2 with it; the arguments of torchvision's function.

    The shapes of ``input`` and ``weight`` define ``groups``, and that of ``offset`` the number of offset groups, G.
    K = kh * kw is the number of taps, and Ho x Wo is the output size of ``torch.nn.functional.conv2d``.

    Args:
        input: [N, C, H, W], float16, bfloat16, float32 or float64.
        offset: [N, G * K * 2, Ho, Wo], in pixels, laid out as (offset group, kernel row, kernel column,
            (y, x)). Same dtype as ``input``; float32 is allowed with a half-precision input.
        weight: [O, C / groups, kh, kw].
        bias: [O].
        stride: Vertical and horizontal stride, or one integer for both; likewise below.
        padding: Zero padding on each side.
        dilation: Distance between taps.
        mask: [N, G * K, Ho, Wo], multiplied with the samples; dtype as for ``offset``.

    Returns:
        [N, O, Ho, Wo] in channels_last memory format, in the dtype of ``input``. Samples are bilinear. Pixels
        outside the image count as 0, and so does a sample whose offset is NaN or infinite.

    Raises:
        ValueError: For a shape, integer or device that doesn't fit; the message has the value and the fix.
        TypeError: For an argument that is not a tensor, or a dtype that doesn't fit.

    References:
        Dai et al., "Deformable Convolutional Networks", https://arxiv.org/abs/1703.06211;
        Zhu et al., "Deformable ConvNets v2", https://arxiv.org/abs/1811.11168.
    """
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        stride_hw = [stride[0], stride[1]]
        padding_hw = [padding[0], padding[1]]
        dilation_hw = [dilation[0], dilation[1]]
    else:
        tensors = (input, offset, weight, bias, mask)
        if has_torch_function(tensors):  # a subclass, or a proxy of torch.fx
            return handle_torch_function(
                deform_conv2d, tensors, input, offset, weight, bias, stride, padding, dilation, mask
            )
        check_tensors(input, offset, weight, bias, mask)
        stride_hw = as_pair("stride", stride)
        padding_hw = as_pair("padding", padding)
        dilation_hw = as_pair("dilation", dilation)
    groups, offset_groups = count_groups(input, offset, weight)
    return torch.ops.dcn_ops.deform_conv2d(
        input, offset, weight, bias, mask, stride_hw, padding_hw, dilation_hw, groups, offset_groups
    )
