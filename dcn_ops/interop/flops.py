"""FLOP formulas for ``torch.utils.flop_counter``, with two FLOPs per multiply-add.

The formulas count the contraction, and four corners for every element of the columns, or of the samples that an
aggregation sums. This module is separate because torch's flop counter imports triton, and the operator must not.
Code that counts FLOPs imports it, as ``zoo`` does.
"""

import math
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import dcn_ops.aggregate.contract
import dcn_ops.conv.contract  # noqa: F401  (they register the operators)


@register_flop_formula(torch.ops.dcn_ops.deform_conv2d)
def _forward_flops(input: Any, offset: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    positions = out_shape[0] * out_shape[2] * out_shape[3]
    return 2 * positions * (math.prod(weight) + 4 * input[1] * weight[2] * weight[3])


@register_flop_formula(torch.ops.dcn_ops.deform_conv2d_backward)
def _backward_flops(
    grad: Any, input: Any, offset: Any, weight: Any, bias: Any, mask: Any, *integers: Any, **_: Any
) -> int:
    of_input, of_offset, of_weight, _of_bias, of_mask = integers[-1]
    positions = grad[0] * grad[2] * grad[3]
    contraction = math.prod(weight) * (of_weight + (of_input or of_offset or of_mask))
    corners = 4 * input[1] * weight[2] * weight[3] * (of_weight + of_input + (of_offset or of_mask))
    return 2 * positions * (contraction + corners)


@register_flop_formula(torch.ops.dcn_ops.deform_aggregate)
def _aggregate_flops(
    input: Any,
    offset: Any,
    mask: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *_: Any,
    out_shape: Any = None,
    **__: Any,
) -> int:
    return 2 * 4 * math.prod(out_shape) * (mask[3] // groups)


@register_flop_formula(torch.ops.dcn_ops.deform_aggregate_backward)
def _aggregate_backward_flops(
    grad: Any,
    input: Any,
    offset: Any,
    mask: Any,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    offset_scale: float,
    remove_center: bool,
    needs: Any,
    **_: Any,
) -> int:
    of_input, of_offset, of_mask = needs
    return 2 * 4 * math.prod(grad) * (mask[3] // groups) * (of_input + (of_offset or of_mask))
