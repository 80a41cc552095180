"""The layer: an ``nn.Conv2d`` that predicts where it samples."""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

import dcn_ops.library  # noqa: F401  (registers the operator)
from dcn_ops.geometry import Conv


class DeformConv2d(nn.Conv2d):
    """Deformable convolution that starts as the plain convolution with the same ``weight`` and ``bias``.

    A zero-initialised convolution predicts the offsets, and with ``modulated`` the mask ``2 * sigmoid(·)``,
    from the input: a fresh layer has offsets 0 and masks 1. Its parameters ``offset_weight``
    [G * K * (3 if modulated else 2), C, kh, kw] and ``offset_bias`` sit on the layer itself, where the
    ``init_weights`` of a network, which looks for convolutions, leaves them at zero.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: kh x kw; it, stride, padding and dilation are an integer or a pair.
        stride: Stride, of the predictor too.
        padding: Zero padding, or "same" (odd effective kernels) or "valid".
        dilation: Distance between taps.
        groups: Weight groups.
        bias: Whether to add a bias.
        offset_groups: G; each has its own offsets for C / G of the channels.
        modulated: Whether samples are weighted by a mask (v2) or not (v1).
        offset_bound: Keep predicted offsets within ± this many pixels, by ``b * (2 * sigmoid(·) - 1)``.
        predict_offsets: False for a layer that takes its offsets from outside, as torchvision's does; its
            state_dict then equals torchvision's.
        device: Device of the parameters.
        dtype: Floating dtype of the parameters.

    Raises:
        ValueError: For an offset_groups that doesn't divide C, a bound that is not positive, or a "same"
            padding that would have to be asymmetric.
    """

    offset_weight: nn.Parameter | None
    offset_bias: nn.Parameter | None

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
        *,
        offset_groups: int = 1,
        modulated: bool = True,
        offset_bound: float | None = None,
        predict_offsets: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        self._add_offsets(offset_groups, modulated, offset_bound, predict_offsets)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        *,
        offset_groups: int = 1,
        modulated: bool = True,
        offset_bound: float | None = None,
        predict_offsets: bool = True,
    ) -> Self:
        """Return a layer that takes over a convolution: its very Parameters, hooks, mode and attributes.

        Raises:
            ValueError: For a padding_mode other than zeros, a parametrized convolution or one with a forward of
                its own, or arguments that the constructor refuses.
        """
        if conv.padding_mode != "zeros":
            raise ValueError(f"expected padding_mode='zeros', got {conv.padding_mode=}")
        if is_parametrized(conv) or type(conv).forward is not nn.Conv2d.forward:
            raise ValueError(f"expected a plain nn.Conv2d, whose weight is all there is to it, got {type(conv)}")
        layer = cls.__new__(cls)
        # Every container is copied, so that the convolution stays as it was.
        layer.__dict__ = {k: v.copy() if isinstance(v, dict | set) else v for k, v in conv.__dict__.items()}
        layer._add_offsets(offset_groups, modulated, offset_bound, predict_offsets)
        return layer

    def _add_offsets(
        self, offset_groups: int, modulated: bool, offset_bound: float | None, predict_offsets: bool
    ) -> None:
        if offset_groups < 1 or self.in_channels % offset_groups:
            raise ValueError(f"expected offset_groups to divide {self.in_channels=}, got {offset_groups=}")
        if offset_bound is not None and not 0 < offset_bound < math.inf:
            raise ValueError(f"expected a positive, finite offset_bound, in pixels, or None, got {offset_bound=}")
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.offset_bound = offset_bound
        self.predict_offsets = predict_offsets
        self._padding_hw = self._symmetric_padding()
        self._offset_channels = 2 * offset_groups * self.kernel_size[0] * self.kernel_size[1]
        if not predict_offsets:
            self.register_parameter("offset_weight", None)
            self.register_parameter("offset_bias", None)
            return
        outputs = self._offset_channels * 3 // 2 if modulated else self._offset_channels
        self.offset_weight = nn.Parameter(self.weight.new_zeros(outputs, self.in_channels, *self.kernel_size))
        self.offset_bias = nn.Parameter(self.weight.new_zeros(outputs))

    def _symmetric_padding(self) -> tuple[int, int]:
        if not isinstance(self.padding, str):
            return self.padding[0], self.padding[1]
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if left != right or top != bottom:
            raise ValueError(
                f"padding='same' is asymmetric for {self.kernel_size=} with {self.dilation=}; "
                "use an odd kernel or pad the input yourself"
            )
        return top, left

    def reset_parameters(self) -> None:
        """Draw weight and bias anew and set the predictor to zero."""
        super().reset_parameters()
        # nn.Conv2d's constructor calls this before the predictor exists.
        for name in ("offset_weight", "offset_bias"):
            parameter = self._parameters.get(name)
            if parameter is not None:
                nn.init.zeros_(parameter)

    def offsets(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict offset [N, G * K * 2, Ho, Wo], in pixels, and mask [N, G * K, Ho, Wo] or None."""
        weight = self.offset_weight
        if weight is None:
            raise ValueError("a layer with predict_offsets=False needs its offset: call layer(input, offset, mask)")
        out = F.conv2d(input, weight, self.offset_bias, self.stride, self._padding_hw, self.dilation)
        offset = out[:, : self._offset_channels]
        bound = self.offset_bound
        if bound is not None:
            offset = bound * (2 * offset.sigmoid() - 1)
        if not self.modulated:
            return offset, None
        return offset, 2 * out[:, self._offset_channels :].sigmoid()

    def forward(self, input: Tensor, offset: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Convolve input [N, C, H, W], with predicted offsets unless ``offset`` and ``mask`` are given.

        Given offsets tell the number of their groups by their channels, as in torchvision's layer.

        Returns:
            [N, O, Ho, Wo] in channels_last memory format.

        Raises:
            ValueError: For shapes that don't fit, a mask without offset, or no offset where none is predicted.
        """
        offset_groups = self.offset_groups
        if offset is not None:
            offset_groups = offset.shape[1] // (2 * self.kernel_size[0] * self.kernel_size[1])
        elif mask is None:
            offset, mask = self.offsets(input)
        else:
            raise ValueError("got a mask without an offset; pass both, or neither to predict them")
        # The operator itself: here the groups are known, and tracing meets no arithmetic on shapes.
        return torch.ops.dcn_ops.deform_conv2d(
            input,
            offset,
            self.weight,
            self.bias,
            mask,
            self.stride,
            self._padding_hw,
            self.dilation,
            self.groups,
            offset_groups,
        )

    def sampling_positions(self, input: Tensor) -> Tensor:
        """Return where each tap samples input [N, C, H, W]: [N, G, K, 2, Ho, Wo], (y, x) in its pixels."""
        offset, _ = self.offsets(input)
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        n, _, ho, wo = offset.shape
        conv = Conv(self.kernel_size, self.stride, self._padding_hw, self.dilation, self.groups, self.offset_groups)
        grid = torch.broadcast_tensors(*conv.grid((0, ho), wo, offset.dtype, offset.device))
        grid_yx = torch.stack(grid, 2).view(conv.taps, 2, ho, wo)
        return offset.reshape(n, self.offset_groups, conv.taps, 2, ho, wo) + grid_yx

    def extra_repr(self) -> str:
        """Return the arguments of the convolution and those of its offsets that differ from the default."""
        parts = [super().extra_repr(), f"offset_groups={self.offset_groups}", f"modulated={self.modulated}"]
        if self.offset_bound is not None:
            parts.append(f"offset_bound={self.offset_bound}")
        if not self.predict_offsets:
            parts.append("predict_offsets=False")
        return ", ".join(parts)
