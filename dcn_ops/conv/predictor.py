"""The predictor of a deformable layer: its parameters, their initialisation, loading and prediction.

Legend: N batch, C input channels, kh x kw kernel, K = kh * kw taps, G offset groups, Ho x Wo output size.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dcn_ops.arguments import as_integer

PARAMETERS = ("offset_depthwise_weight", "offset_weight", "offset_bias")
# The attributes that a layer has in addition to those of a convolution.
ATTRIBUTES = (
    *("offset_groups", "modulated", "mask_scale", "offset_bound", "separable_predictor", "predict_offsets"),
    "_offset_channels",
)


class OffsetPredictor(nn.Conv2d):
    """A convolution that predicts its sampling locations and modulation mask from its padded input.

    The predictor is zero-initialised: offsets are 0 and masks mask_scale / 2 at first.
    """

    offset_depthwise_weight: nn.Parameter | None
    offset_weight: nn.Parameter | None
    offset_bias: nn.Parameter | None
    _padding_hw: tuple[int, int]  # the remaining padding

    def _add_offsets(
        self,
        offset_groups: int,
        modulated: bool,
        offset_bound: float | None,
        separable_predictor: bool,
        predict_offsets: bool,
        mask_scale: float,
    ) -> None:
        offset_groups = as_integer("offset_groups", offset_groups)
        if offset_groups < 1 or self.in_channels % offset_groups:
            raise ValueError(
                f"expected offset_groups to divide in_channels={self.in_channels!r}, got {offset_groups=}"
            )
        if isinstance(offset_bound, bool) or not isinstance(offset_bound, Real | None):
            raise TypeError(f"expected offset_bound to be a number of pixels, or None, got {offset_bound=}")
        if offset_bound is not None and not 0 < offset_bound < math.inf:
            raise ValueError(f"expected a positive, finite offset_bound, in pixels, or None, got {offset_bound=}")
        self.offset_groups = offset_groups
        self.modulated = modulated
        self.mask_scale = _checked_scale(mask_scale)
        self.offset_bound = offset_bound
        self.separable_predictor = separable_predictor
        self.predict_offsets = predict_offsets
        self._offset_channels = 2 * offset_groups * self.kernel_size[0] * self.kernel_size[1]
        for name in PARAMETERS:
            self.register_parameter(name, None)
        if predict_offsets:
            self._add_predictor(self._offset_channels * 3 // 2 if modulated else self._offset_channels)

    def _add_predictor(self, outputs: int) -> None:
        kernel: tuple[int, ...] = self.kernel_size
        if self.separable_predictor:
            self.offset_depthwise_weight = nn.Parameter(self.weight.new_empty(self.in_channels, 1, *kernel))
            kernel = (1, 1)
        self.offset_weight = nn.Parameter(self.weight.new_empty(outputs, self.in_channels, *kernel))
        self.offset_bias = nn.Parameter(self.weight.new_empty(outputs))
        self._reset_predictor()

    def reset_parameters(self) -> None:
        """Draw new weight and bias, and set the predictor to its initial values."""
        super().reset_parameters()
        self._reset_predictor()

    def _reset_predictor(self) -> None:
        # nn.Conv2d's constructor calls this before the predictor exists.
        for name in ("offset_weight", "offset_bias"):
            parameter = self._parameters.get(name)
            if parameter is not None:
                nn.init.zeros_(parameter)
        depthwise = self._parameters.get("offset_depthwise_weight")
        if depthwise is not None:
            nn.init.constant_(depthwise, 1 / (self.kernel_size[0] * self.kernel_size[1]))

    def predictor_parameters(self) -> list[nn.Parameter]:
        """Return the Parameters that predict offsets and masks."""
        named = self._parameters.items()
        return [p for name, p in named if name.startswith("offset_") and p is not None]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Accept also a plain convolution's weights: the predictor stays or, on meta, gets its initial values.

        With ``assign=True`` it gets the dtype and the device of the weights.
        """
        foreign = len(unexpected_keys)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        predictor = {
            name: p for name, p in self._parameters.items() if name.startswith("offset_") and p is not None
        }
        lacks = {prefix + name for name in predictor}
        # A plain convolution has no part of a predictor, also not under another name such as mmcv's conv_offset.
        if not lacks <= set(missing_keys) or len(unexpected_keys) > foreign or prefix + "weight" in missing_keys:
            return
        missing_keys[:] = [key for key in missing_keys if key not in lacks]
        weight = self.offset_weight
        if weight is not None and weight.is_meta and not self.weight.is_meta:
            self._add_predictor(weight.shape[0])
            for parameter in self.predictor_parameters():
                parameter.requires_grad_(weight.requires_grad)
        elif local_metadata.get("assign_to_params_buffers"):
            # The loaded tensors have replaced the weights, with their own dtype and device.
            for name, old in predictor.items():
                new = nn.Parameter(old.detach().to(self.weight), requires_grad=old.requires_grad)
                self.register_parameter(name, new)

    def _predict(self, padded: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, depthwise = self.offset_weight, self.offset_depthwise_weight
        if weight is None:
            raise ValueError("a layer with predict_offsets=False needs its offset: call layer(input, offset, mask)")
        # All arguments of a convolution, because FX graph-mode quantisation looks them up by position.
        if depthwise is None:
            out = F.conv2d(padded, weight, self.offset_bias, self.stride, self._padding_hw, self.dilation, 1)
        else:
            groups = depthwise.shape[0]
            out = F.conv2d(padded, depthwise, None, self.stride, self._padding_hw, self.dilation, groups)
            out = F.conv2d(out, weight, self.offset_bias, (1, 1), (0, 0), (1, 1), 1)
        offset, logits = out, out
        if self.modulated:
            # Not two slices, whose gradients are two padded maps and their sum.
            offset, logits = out.split([self._offset_channels, self._offset_channels // 2], 1)
        bound = self.offset_bound
        if bound is not None:
            offset = bound * (2 * offset.sigmoid() - 1)
        return offset, self.mask_scale * logits.sigmoid() if self.modulated else None


def _checked_scale(mask_scale: Any) -> float:
    if isinstance(mask_scale, bool) or not isinstance(mask_scale, Real):
        raise TypeError(f"expected mask_scale to be a number, got {mask_scale=}")
    scale = float(mask_scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"expected a positive, finite mask_scale, such as 2 or 1, got {mask_scale=}")
    return scale
