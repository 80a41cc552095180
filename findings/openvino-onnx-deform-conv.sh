#!/usr/bin/env bash
# OpenVINO 2026.4.1: its ONNX frontend doesn't read DeformConv, although OpenVINO has the operation.
#
# A good guess: OpenVINO has DeformableConvolution (opset 8: offsets, mask, groups, offset groups) and its PyTorch
# frontend maps torchvision::deform_conv2d to it. So an ONNX file with DeformConv-19, which has the same inputs and
# attributes, is read as well.
#
# What happens: convert_model raises OpConversionFailure, "does not support the following ONNX operations: DeformConv".
# The node that the file means is there: built by hand, it gives the right numbers.
#
# Why it matters: torch.onnx.export writes DeformConv for torchvision's layer, and ONNX Runtime runs the file, so the
# network goes to OpenVINO only from PyTorch, or with openvino.frontend.onnx.ConversionExtension.
#
# Output seen (Python 3.11, x86_64 Linux):
#   ONNX Runtime: runs
#   OpenVINO's frontend for ONNX: OpConversionFailure, DeformConv
#   OpenVINO's own node: equal to ONNX Runtime
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from openvino import opset15 as ops

rng = np.random.default_rng(0)
shapes = {"x": [1, 4, 9, 7], "offset": [1, 18, 9, 7], "mask": [1, 9, 9, 7]}
given = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
weight = rng.random((4, 4, 3, 3), np.float32)
node = helper.make_node("DeformConv", ["x", "weight", "offset", "", "mask"], ["y"], pads=[1] * 4)
inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 9, 7])
graph = helper.make_graph([node], "layer", inputs, [output], [numpy_helper.from_array(weight, "weight")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "layer.onnx")

right = onnxruntime.InferenceSession("layer.onnx").run(None, given)[0]
print("ONNX Runtime: runs")
try:
    openvino.convert_model("layer.onnx")
    read = "read"
except Exception as error:
    read = type(error).__name__ + ", DeformConv" * ("DeformConv" in str(error))
print(f"OpenVINO's frontend for ONNX: {read}")

x, offset, mask = (ops.parameter(shape, openvino.Type.f32) for shape in shapes.values())
pair, pad = [1, 1], [1, 1]
layer = ops.deformable_convolution(
    x, offset, weight, pair, pad, pad, pair, mask=mask, bilinear_interpolation_pad=True
)
compiled = openvino.compile_model(openvino.Model([layer], [x, offset, mask]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
equal = np.allclose(compiled(list(given.values()))[0], right, atol=1e-4)
print(f"OpenVINO's own node: {'equal to' if equal else 'different from'} ONNX Runtime")
if read != "OpConversionFailure, DeformConv" or not equal:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
"$folder/venv/bin/python" -W ignore program.py
