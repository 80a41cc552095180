"""The providers of a case: two floors (plain convolution, copy), this library, torchvision and two runtimes.

A provider takes a case and its tensors, and returns a function without arguments that computes the output, a
Tensor. The runtimes get contiguous arrays, their own layout; torch gets channels_last.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dcn_ops
import dcn_ops.sampling.pieces

from .cases import Case

Tensors = Mapping[str, Tensor]
Function = Callable[[], Tensor]


class UnsupportedError(Exception):
    """The provider doesn't support the case; the message says why."""


def conv2d(case: Case, tensors: Tensors) -> Function:
    """The floor: the convolution without offsets."""
    conv = case.conv
    return lambda: F.conv2d(
        tensors["input"], tensors["weight"], None, conv.stride, conv.padding, groups=conv.groups
    )


def copy(case: Case, tensors: Tensors) -> Function:
    """The floor of convolutions that are not dense: write and read the columns, K times the input, once in float32.

    It copies as many bytes, in pieces as large as the composition's.
    """
    if tensors["input"].requires_grad:
        raise UnsupportedError("a copy has no backward; backwards are compared with three copies")
    source = torch.ones(dcn_ops.sampling.pieces.chunk_bytes() // 4, device=tensors["input"].device)
    target = torch.empty_like(source)
    pieces, rest = divmod(tensors["input"].numel() * case.conv.taps, len(source))

    def function() -> Tensor:
        for _ in range(pieces):
            target.copy_(source)
        target[:rest].copy_(source[:rest])
        return target

    return function


def _call(operator: Callable[..., Tensor], case: Case, tensors: Tensors, implementation: str = "auto") -> Function:
    padding = case.conv.padding

    def function() -> Tensor:
        if dcn_ops.implementation() != implementation:  # it also applies to the backward, which follows at once
            dcn_ops.set_implementation(implementation)
        input, offset, weight, mask = (tensors[name] for name in ("input", "offset", "weight", "mask"))
        return operator(input, offset, weight, padding=padding, mask=mask)

    return function


def eager(case: Case, tensors: Tensors) -> Function:
    """This library's operator."""
    return _call(dcn_ops.deform_conv2d, case, tensors)


def compiled(case: Case, tensors: Tensors) -> Function:
    """The same under torch.compile, for exactly these sizes."""
    return _call(torch.compile(dcn_ops.deform_conv2d, fullgraph=True, dynamic=False), case, tensors)


def torchvision(case: Case, tensors: Tensors) -> Function:
    """The operator of torchvision."""
    _need("torchvision")
    if case.dtype == "bfloat16":
        raise UnsupportedError("torchvision's operator has no bfloat16")
    from torchvision.ops import deform_conv2d

    return _call(deform_conv2d, case, tensors)


def onnxruntime(case: Case, tensors: Tensors) -> Function:
    """ONNX Runtime's DeformConv, on as many threads as torch has."""
    _only_float32_inference(case, tensors, "ONNX Runtime")
    _need("onnxruntime", "onnx")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(_onnx_model(case, tensors), options, providers=["CPUExecutionProvider"])
    feed = {name: tensors[name].contiguous().numpy() for name in ("input", "offset", "mask")}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _onnx_model(case: Case, tensors: Tensors) -> bytes:
    from onnx import TensorProto, checker, helper, numpy_helper

    conv, shapes = case.conv, {name: list(tensors[name].shape) for name in ("input", "offset", "mask")}
    node = helper.make_node(
        "DeformConv",
        ["input", "weight", "offset", "bias", "mask"],
        ["output"],
        kernel_shape=conv.kernel_size,
        pads=[*conv.padding, *conv.padding],
        group=conv.groups,
        offset_group=conv.offset_groups,
    )
    weight = tensors["weight"].contiguous().numpy()
    constants = {"weight": weight, "bias": torch.zeros(case.filters).numpy()}
    graph = helper.make_graph(
        [node],
        case.name,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [
            helper.make_tensor_value_info(
                "output", TensorProto.FLOAT, [case.batch, case.filters, case.height, case.width]
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def openvino(case: Case, tensors: Tensors) -> Function:
    """OpenVINO's DeformableConvolution, on as many threads as torch has."""
    _only_float32_inference(case, tensors, "OpenVINO")
    _need("openvino")
    import openvino as ov
    from openvino import opset8

    conv, names = case.conv, ("input", "offset", "mask")
    parameters = {name: opset8.parameter(list(tensors[name].shape), ov.Type.f32, name=name) for name in names}
    node = opset8.deformable_convolution(
        parameters["input"],
        parameters["offset"],
        opset8.constant(tensors["weight"].contiguous().numpy()),
        list(conv.stride),
        list(conv.padding),
        list(conv.padding),
        list(conv.dilation),
        mask=parameters["mask"],
        group=conv.groups,
        deformable_group=conv.offset_groups,
        bilinear_interpolation_pad=True,
    )
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = ov.compile_model(ov.Model([node], list(parameters.values())), "CPU", settings)
    request, feed = model.create_infer_request(), [tensors[name].contiguous().numpy() for name in names]
    return lambda: torch.from_numpy(request.infer(feed, share_inputs=True)[0])


def _only_float32_inference(case: Case, tensors: Tensors, name: str) -> None:
    if case.dtype != "float32":
        raise UnsupportedError(f"{name} is measured only in float32")
    if tensors["input"].device.type != "cpu":
        raise UnsupportedError(f"{name} is measured only on the CPU")
    if tensors["input"].requires_grad:
        raise UnsupportedError(f"{name} has no backward")


def _need(*modules: str) -> None:
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UnsupportedError(f"{', '.join(missing)} not installed: pip install -e '.[bench]'")


def composition(case: Case, tensors: Tensors) -> Function:
    """This library's composition of ATen operators, where ``eager`` would use Triton kernels."""
    return _call(dcn_ops.deform_conv2d, case, tensors, "composition")


def deformops(case: Case, tensors: Tensors) -> Function:
    """The Triton operator of deformops, on a GPU."""
    if tensors["input"].device.type == "cpu":
        raise UnsupportedError("deformops is measured only on GPUs")
    _need("deformops")
    operator = getattr(importlib.import_module("deformops"), "deform_conv2d", None)
    if operator is None:
        raise UnsupportedError("this version of deformops has no deform_conv2d")
    return _call(operator, case, tensors)


FLOORS = ("conv2d", "copy")  # no deformable convolutions
PROVIDERS: dict[str, Callable[[Case, Any], Function]] = {
    "conv2d": conv2d,
    "copy": copy,
    "eager": eager,
    "compiled": compiled,
    "composition": composition,
    "torchvision": torchvision,
    "deformops": deformops,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
