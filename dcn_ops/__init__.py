"""Deformable convolution as a ``torch.library`` operator, in pure Python."""

from dcn_ops import onnx, openvino
from dcn_ops.export import decompositions, whole_operators
from dcn_ops.functional import deform_conv2d
from dcn_ops.nn import DeformConv2d
from dcn_ops.settings import implementation, set_implementation, set_workspace_limit, settings, workspace_limit

__all__ = [
    "DeformConv2d",
    "decompositions",
    "deform_conv2d",
    "implementation",
    "onnx",
    "openvino",
    "set_implementation",
    "set_workspace_limit",
    "settings",
    "whole_operators",
    "workspace_limit",
]
