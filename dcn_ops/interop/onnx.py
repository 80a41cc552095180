"""The operators in ONNX.

deform_conv2d becomes ``DeformConv`` from opset 19 on, and ``GridSample`` and a 1x1 convolution below opset 19.
deform_aggregate becomes ``GridSample`` and a sum, only in the exporter of ``dynamo=True``.

Importing this module imports neither ``torch.onnx`` nor ``onnxscript``: both exporters get the translations when
they are first used.
"""

from types import ModuleType
from typing import Any

import torch

from dcn_ops.interop.export import decompose, decompose_aggregate
from dcn_ops.torch_internals.onnx import after_import, decompose_in_onnx, translate_to_onnx

# The first opset with https://onnx.ai/onnx/operators/onnx__DeformConv.html; ONNX Runtime runs it from 1.25 on.
OPSET = 19


def _translate(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any,
    mask: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    offset_groups: int,
) -> Any:
    """Build the node, for the exporter of ``torch.onnx.export(dynamo=True)``."""
    import onnx_ir
    from onnxscript.onnx_opset import opset19

    op: Any = opset19
    if bias is None and mask is not None:  # TensorRT needs a bias where there is a mask
        zeros: Any = onnx_ir.tensor(torch.zeros(weight.shape[0]).numpy())
        bias = op.Cast(op.Constant(value=zeros), to=int(weight.dtype))
    # ONNX needs one dtype. Under autocast positions are wider than features, and keep their dtype.
    narrow = None if offset.dtype == input.dtype else int(input.dtype)
    if narrow is not None:
        wide = int(offset.dtype)
        input, weight = op.Cast(input, to=wide), op.Cast(weight, to=wide)
        bias = None if bias is None else op.Cast(bias, to=wide)
    out = op.DeformConv(
        input, weight, offset, bias, mask, **_attributes(stride, padding, dilation, groups, offset_groups)
    )
    return out if narrow is None else op.Cast(out, to=narrow)


def _attributes(stride: Any, padding: Any, dilation: Any, groups: int, offset_groups: int) -> dict[str, Any]:
    return {
        "strides": list(stride),
        "pads": [*padding, *padding],  # top, left, bottom, right
        "dilations": list(dilation),
        "group": groups,
        "offset_group": offset_groups,
    }


def _symbolic(
    graph: Any,
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any,
    mask: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    offset_groups: int,
) -> Any:
    """Build the node, for the exporter of ``torch.onnx.export(dynamo=False)``."""
    if bias.node().mustBeNone() and not mask.node().mustBeNone():
        zeros = torch.zeros(weight.type().sizes()[0], dtype=weight.type().dtype())
        bias = graph.op("Constant", value_t=zeros)
    attributes = _attributes(stride, padding, dilation, groups, offset_groups)
    integers = {f"{name}_i": value for name, value in attributes.items()}
    out = graph.op("DeformConv", input, weight, offset, bias, mask, **integers)
    return out.setType(input.type().with_sizes([None] * 4))


def _register_symbolic(onnx: ModuleType) -> None:
    parse = onnx.symbolic_helper.parse_args("v", "v", "v", "v", "v", "is", "is", "is", "i", "i")
    onnx.register_custom_op_symbolic("dcn_ops::deform_conv2d", parse(_symbolic), OPSET)


translate_to_onnx(torch.ops.dcn_ops.deform_conv2d.default, _translate, OPSET, below=decompose)
decompose_in_onnx(torch.ops.dcn_ops.deform_aggregate.default, decompose_aggregate)
after_import("torch.onnx", _register_symbolic)
