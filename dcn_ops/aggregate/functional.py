"""The public functions: ``torch.ops.dcn_ops.deform_aggregate`` with the argument orders of DCNv3 and DCNv4."""

import torch
from torch import Tensor

import dcn_ops.aggregate.contract  # noqa: F401  (registers the operator)
from dcn_ops.aggregate.check import check_call, check_packed


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float = 1.0,
    im2col_step: int = 256,
    remove_center: bool = False,
) -> Tensor:
    """Sum samples of the image, each weighted by a mask: DCNv3, in the argument order of its authors.

    K = kh * kw is the number of taps, or one less if the centre is removed. G is group. Ho x Wo is the output size
    of ``torch.nn.functional.conv2d``.

    Args:
        input: [N, H, W, C], float16, bfloat16, float32 or float64.
        offset: [N, Ho, Wo, G * K * 2], in pixels, laid out as (group, tap, (x, y)). Taps go down the columns of the
            kernel, from left to right. Same dtype as ``input``; float32 is allowed with a half-precision input.
        mask: [N, Ho, Wo, G * K], multiplied with the samples; dtype as for ``offset``. It is not normalised here.
        kernel_h: Rows of the kernel.
        kernel_w: Columns of the kernel.
        stride_h: Vertical stride.
        stride_w: Horizontal stride.
        pad_h: Zero padding above and below.
        pad_w: Zero padding on the left and on the right.
        dilation_h: Vertical distance between taps.
        dilation_w: Horizontal distance between taps.
        group: G. Each group has its own offsets and masks for C / G channels.
        group_channels: C / G.
        offset_scale: Scales the offsets and also the grid of taps around the centre of the window.
        im2col_step: Ignored; the authors' function has it in this place.
        remove_center: Leave out the tap in the centre; it then has no offset and no mask.

    Returns:
        [N, Ho, Wo, C], contiguous, in the dtype of ``input``. Samples are bilinear. Pixels outside the image
        count as 0, and so does a sample whose offset is NaN or infinite.

    Raises:
        ValueError: For a shape, number or device that doesn't fit; the message has the value and the fix.
        TypeError: For an argument that is not a tensor, or a dtype that doesn't fit.

    References:
        Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        https://arxiv.org/abs/2211.05778.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        check_call(input, group, group_channels, im2col_step)
    return torch.ops.dcn_ops.deform_aggregate(
        input,
        offset,
        mask,
        [kernel_h, kernel_w],
        [stride_h, stride_w],
        [pad_h, pad_w],
        [dilation_h, dilation_w],
        group,
        float(offset_scale),
        bool(remove_center),
    )


def dcnv4(
    input: Tensor,
    offset_mask: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    group_channels: int,
    offset_scale: float = 1.0,
    im2col_step: int = 256,
    remove_center: bool = False,
) -> Tensor:
    """Sum samples of the image, each weighted by a mask: DCNv4, in the argument order of its authors.

    It computes the same as ``dcnv3``, but takes offsets and masks in one tensor.

    Args:
        input: [N, H, W, C], float16, bfloat16, float32 or float64.
        offset_mask: [N, Ho, Wo, P] with P >= G * K * 3. Each group has K offsets (x, y), in pixels, and then K
            masks. The authors round P up to a multiple of 8; further channels are not read. Same dtype as
            ``input``; float32 is allowed with a half-precision input.
        kernel_h: Rows of the kernel.
        kernel_w: Columns of the kernel.
        stride_h: Vertical stride.
        stride_w: Horizontal stride.
        pad_h: Zero padding above and below.
        pad_w: Zero padding on the left and on the right.
        dilation_h: Vertical distance between taps.
        dilation_w: Horizontal distance between taps.
        group: G. Each group has its own offsets and masks for C / G channels.
        group_channels: C / G.
        offset_scale: Scales the offsets and also the grid of taps around the centre of the window.
        im2col_step: Ignored; the authors' function has it in this place.
        remove_center: Leave out the tap in the centre; it then has no offset and no mask.

    Returns:
        [N, Ho, Wo, C], contiguous, in the dtype of ``input``, like ``dcnv3``.

    Raises:
        ValueError: For a shape, number or device that doesn't fit; the message has the value and the fix.
        TypeError: For an argument that is not a tensor, or a dtype that doesn't fit.

    References:
        Xiong et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision
        Applications", https://arxiv.org/abs/2401.06197.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        check_packed(offset_mask, group, kernel_h * kernel_w - int(remove_center))
    offset, mask = unpack(offset_mask, group, kernel_h * kernel_w - int(remove_center))
    return dcnv3(
        input,
        offset,
        mask,
        kernel_h,
        kernel_w,
        stride_h,
        stride_w,
        pad_h,
        pad_w,
        dilation_h,
        dilation_w,
        group,
        group_channels,
        offset_scale,
        im2col_step,
        remove_center,
    )


def unpack(offset_mask: Tensor, group: int, taps: int) -> tuple[Tensor, Tensor]:
    """Return the offsets, [N, Ho, Wo, G * K * 2], and the masks, [N, Ho, Wo, G * K], of DCNv4's packed tensor."""
    packed = offset_mask[..., : 3 * group * taps].unflatten(-1, [group, 3 * taps])
    return packed[..., : 2 * taps].flatten(-2), packed[..., 2 * taps :].flatten(-2)
