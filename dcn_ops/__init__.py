"""Deformable convolution and aggregation as ``torch.library`` operators, in pure Python."""

from dcn_ops.aggregate.dcnv3 import DCNv3
from dcn_ops.aggregate.dcnv4 import DCNv4
from dcn_ops.aggregate.functional import dcnv3, dcnv4
from dcn_ops.aggregate.layer import ChannelsFirst
from dcn_ops.conv.explain import Explanation, explain
from dcn_ops.conv.functional import deform_conv2d
from dcn_ops.conv.layer import DeformConv2d
from dcn_ops.interop import onnx, openvino
from dcn_ops.interop.export import decompositions, whole_operators
from dcn_ops.settings import implementation, set_implementation, set_workspace_limit, settings, workspace_limit

__version__ = "0.1.0"

__all__ = [
    "ChannelsFirst",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "Explanation",
    "__version__",
    "dcnv3",
    "dcnv4",
    "decompositions",
    "deform_conv2d",
    "explain",
    "implementation",
    "onnx",
    "openvino",
    "set_implementation",
    "set_workspace_limit",
    "settings",
    "whole_operators",
    "workspace_limit",
]
