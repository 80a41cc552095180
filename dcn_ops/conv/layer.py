"""The layer: an ``nn.Conv2d`` that predicts where it samples."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import dcn_ops.conv.contract  # noqa: F401  (registers the operator)
from dcn_ops.arguments import as_pair
from dcn_ops.conv.check import check_maps
from dcn_ops.conv.predictor import ATTRIBUTES, PARAMETERS, OffsetPredictor
from dcn_ops.messages import shown
from dcn_ops.sampling.geometry import Conv

# The layer's attributes in addition to a convolution's. A copied _compiled_call_impl would still call the layer.
_OWN = {*ATTRIBUTES, "_pads_first", "_padding_hw", "_compiled_call_impl"}
_OF_PADDING = ("padding", "padding_mode", "dilation", "kernel_size")


class DeformConv2d(OffsetPredictor):
    """Deformable convolution that starts as the plain convolution with the same ``weight`` and ``bias``.

    A zero-initialised convolution predicts the offsets from the input, and with ``modulated`` also the mask
    ``mask_scale * sigmoid(·)``. So a new layer has offsets 0 and masks 1. The parameters ``offset_weight``
    [G * K * (3 if modulated else 2), C, kh, kw] and ``offset_bias`` belong to the layer itself. There the
    ``init_weights`` of a network, which looks for convolutions, leaves them at zero.

    For a depthwise convolution, a dense predictor costs more than the convolution itself. A ``separable_predictor``
    is a depthwise convolution, ``offset_depthwise_weight`` [C, 1, kh, kw], that starts as the mean of its window,
    and a zero-initialised 1x1 convolution, ``offset_weight`` [.., C, 1, 1].

    The ``state_dict`` of a plain convolution loads strictly and leaves the predictor unchanged.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: kh x kw. kernel_size, stride, padding and dilation are an integer or a pair.
        stride: Stride, also of the predictor.
        padding: Padding, or "same" or "valid".
        dilation: Distance between taps.
        groups: Weight groups.
        bias: Whether to add a bias.
        offset_groups: G. Each group has its own offsets for C / G channels.
        modulated: Whether samples are weighted by a mask (v2) or not (v1).
        offset_bound: Largest predicted offset in pixels: the layer predicts ``b * (2 * sigmoid(·) - 1)``.
        separable_predictor: Predict by a depthwise and a 1x1 convolution.
        padding_mode: As in ``nn.Conv2d``. If it is not "zeros", the image is padded first, and samples beyond the
            padding count as 0.
        predict_offsets: False for a layer that takes its offsets from outside, as torchvision's does; its
            state_dict then equals torchvision's.
        mask_scale: Masks are ``mask_scale * sigmoid(·)``. With 1, the mask of mmcv, detectron2 and the DCNv2 forks,
            a fresh layer's masks are ½, and it is not the plain convolution.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        ValueError: For an offset_groups that doesn't divide C, or a bound or mask_scale that is not positive.
        TypeError: For an offset_groups that is not an integer, or a bound or mask_scale that is not a number.
    """

    # The class that from_conv2d converts. A subclass for another class overrides filters or pad.
    converts: ClassVar[type[nn.Conv2d]] = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        *,
        offset_groups: int = 1,
        modulated: bool = True,
        offset_bound: float | None = None,
        separable_predictor: bool = False,
        predict_offsets: bool = True,
        mask_scale: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            _kernel_size(kernel_size),
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device=device,
            dtype=dtype,
        )
        self._set_padding()
        self._add_offsets(offset_groups, modulated, offset_bound, separable_predictor, predict_offsets, mask_scale)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        offset_groups: int = 1,
        modulated: bool = True,
        offset_bound: float | None = None,
        separable_predictor: bool = False,
        predict_offsets: bool = True,
        mask_scale: float = 2.0,
    ) -> Self:
        """Return a layer with the same Parameter objects, hooks, mode and attributes as a convolution.

        Raises:
            ValueError: For a parametrized convolution or one with its own forward, or for arguments that the
                constructor refuses.
        """
        own_forward = type(conv).forward is not cls.converts.forward or "forward" in vars(conv)
        if is_parametrized(conv) or own_forward:
            name = f"{cls.converts.__module__.partition('.')[0]}'s {cls.converts.__name__}"
            raise ValueError(f"expected {name}, whose weight is all there is to it, got {type(conv)}")
        layer = cls.__new__(cls)
        # All containers are copied, so that the convolution stays unchanged.
        layer.__dict__ = {k: v.copy() if isinstance(v, dict | set) else v for k, v in conv.__dict__.items()}
        layer._compiled_call_impl = None  # from conv.compile(): it would still call the convolution
        layer._set_padding()
        layer._add_offsets(offset_groups, modulated, offset_bound, separable_predictor, predict_offsets, mask_scale)
        return layer

    def to_conv2d(self) -> nn.Conv2d:
        """Return a convolution with the same Parameter objects, hooks and mode: the reverse of ``from_conv2d``.

        It has no predictor, so its outputs are the same only if all offsets are 0 and all masks 1.
        """
        conv = self.converts.__new__(self.converts)
        # The dicts of hooks are shared, not copied, so that their handles still remove the hooks.
        conv.__dict__ = {name: value for name, value in vars(self).items() if name not in _OWN}
        conv._parameters = {name: p for name, p in self._parameters.items() if name not in PARAMETERS}
        return conv

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; those of the convolution take effect at the next call, as in ``nn.Conv2d``."""
        if name in ("stride", "dilation"):  # the operator takes pairs
            value = tuple(as_pair(name, value))
        super().__setattr__(name, value)
        if name in _OF_PADDING and "_pads_first" in vars(self):
            self._set_padding()

    def _set_padding(self) -> None:
        """Give symmetric zero padding to the operator; any other padding is done before."""
        left, right, top, bottom = _padding_sides(self.padding, self.dilation, self.kernel_size)
        self._reversed_padding_repeated_twice = [left, right, top, bottom]
        self._pads_first = self.padding_mode != "zeros" or left != right or top != bottom
        self._padding_hw = (0, 0) if self._pads_first else (top, left)

    def pad(self, input: Tensor) -> Tensor:
        """Pad the input if the operator can't: it only has symmetric zero padding."""
        if not self._pads_first:
            return input
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, self._reversed_padding_repeated_twice, mode=mode)

    def filters(self) -> Tensor:
        """Return the weight [O, C / groups, kh, kw] for the operator."""
        return self.weight

    def offsets(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict offset [N, G * K * 2, Ho, Wo], in pixels, and mask [N, G * K, Ho, Wo] or None."""
        return self._predict(self.pad(input))

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Convolve input [N, C, H, W], with predicted offsets unless ``offset`` and ``mask`` are given.

        The channels of given offsets define the number of offset groups, as in torchvision's layer.

        Returns:
            [N, O, Ho, Wo] in channels_last memory format.

        Raises:
            ValueError: For shapes that don't fit, a mask without offset, or no offset where none is predicted.
        """
        check_maps("input", input, self.weight.shape[1] * self.groups)
        input = self.pad(input)
        offset_groups = self.offset_groups
        if offset is not None:
            check_maps("offset", offset)
            offset_groups = offset.shape[1] // (2 * self.kernel_size[0] * self.kernel_size[1])
        elif mask is None:
            offset, mask = self._predict(input)
        else:
            raise ValueError("got a mask without an offset; pass both, or neither to predict them")
        # The operator itself, because the groups are known here, and a trace then has no arithmetic on shapes.
        return torch.ops.dcn_ops.deform_conv2d(
            input,
            offset,
            self.filters(),
            self.bias,
            mask,
            self.stride,
            self._padding_hw,
            self.dilation,
            self.groups,
            offset_groups,
        )

    def sampling_positions(self, input: Tensor) -> Tensor:
        """Return the sampling locations of input [N, C, H, W]: [N, G, K, 2, Ho, Wo], (y, x) in its pixels."""
        padded = self.pad(input)
        offset, _ = self._predict(padded)
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        n, _, ho, wo = offset.shape
        conv = Conv(self.kernel_size, self.stride, self._padding_hw, self.dilation, self.groups, self.offset_groups)
        y, x = conv.grid((0, ho), wo, offset.dtype, offset.device)
        # If the padding has an odd width, its larger half is at the end.
        top, left = ((padded.shape[i] - input.shape[i]) // 2 for i in (2, 3))
        grid_yx = torch.stack(torch.broadcast_tensors(y - top, x - left), 2).view(conv.taps, 2, ho, wo)
        return offset.reshape(n, self.offset_groups, conv.taps, 2, ho, wo) + grid_yx

    def extra_repr(self) -> str:
        """Return the arguments of the convolution and those of its offsets that differ from the default."""
        parts = [super().extra_repr(), f"offset_groups={self.offset_groups}", f"modulated={self.modulated}"]
        if self.mask_scale != 2:
            parts.append(f"mask_scale={self.mask_scale}")
        if self.offset_bound is not None:
            parts.append(f"offset_bound={self.offset_bound}")
        if self.separable_predictor:
            parts.append("separable_predictor=True")
        if not self.predict_offsets:
            parts.append("predict_offsets=False")
        return ", ".join(parts)


def _kernel_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return a pair of one integer or of two.

    Raises:
        ValueError: For anything else, which ``nn.Conv2d`` would take: a sequence of one integer, or a size below 1.
    """
    if isinstance(size, Sequence) and len(size) != 2:
        raise ValueError(
            f"expected kernel_size to be an integer or a pair of integers, got kernel_size={shown(size)}"
        )
    height, width = as_pair("kernel_size", size)
    if min(height, width) < 1:
        raise ValueError(f"expected a kernel_size of 1 or more, got kernel_size={size!r}")
    return height, width


def _padding_sides(padding: Any, dilation: Any, kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the padding in the order of ``torch.nn.functional.pad``: left, right, top, bottom.

    Raises:
        ValueError: For a padding that is neither "same" nor "valid", an integer or a pair.
    """
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        both = [d * (k - 1) for d, k in zip(as_pair("dilation", dilation), kernel, strict=True)]
        (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in both)
    else:
        top, left = bottom, right = as_pair("padding", padding)
    return left, right, top, bottom
