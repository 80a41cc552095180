#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator raises for a DeformConv of an image of one row.
#
# A good guess: the reference evaluator is the definition in code, so it takes every shape that the operator allows.
# An image of one row and a 1 x 3 kernel is a one-dimensional deformable convolution.
#
# What happens: it raises "cannot convert float NaN to integer". It scales the sampling positions to those of GridSample
# with align_corners=1, and so divides by height - 1 = 0. With the same image twice, as two rows, it is right, and ONNX
# Runtime is right for both. The offsets here are zero, so that the output is that of a plain convolution.
#
# Why it matters: exporters and runtimes are tested against the reference evaluator. Rows of text, audio and the last
# feature map of a small image have such shapes.
#
# Output seen (Python 3.11, x86_64 Linux):
#   plain convolution: 4 8 12 16 14
#   ONNX Runtime, one row: 4 8 12 16 14
#   reference, two rows, the first: 4 8 12 16 14
#   reference, one row: ValueError: cannot convert float NaN to integer
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

row = np.array([1, 2, 3, 4, 5], np.float32)
weight = np.array([1, 2, 1], np.float32).reshape(1, 1, 1, 3)  # [O, C, 1, 3]


def layer(height):
    shapes = {"x": (1, 1, height, 5), "offset": (1, 6, height, 5), "y": (1, 1, height, 5)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    node = helper.make_node("DeformConv", ["x", "weight", "offset"], ["y"], kernel_shape=[1, 3], pads=[0, 1, 0, 1])
    graph = helper.make_graph([node], "layer", values[:2], values[2:], [numpy_helper.from_array(weight, "weight")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    image = np.broadcast_to(row, shapes["x"]).copy()
    return made, {"x": image, "offset": np.zeros(shapes["offset"], np.float32)}


def text(values):
    return " ".join(f"{value:g}" for value in values)


plain = np.convolve(row, weight.ravel()[::-1], "same")
print(f"plain convolution: {text(plain)}")
made, given = layer(1)
runtime = onnxruntime.InferenceSession(made.SerializeToString()).run(None, given)[0][0, 0, 0]
print(f"ONNX Runtime, one row: {text(runtime)}")
made, given = layer(2)
two = ReferenceEvaluator(made).run(None, given)[0][0, 0, 0]
print(f"reference, two rows, the first: {text(two)}")
made, given = layer(1)
try:
    one = text(ReferenceEvaluator(made).run(None, given)[0][0, 0, 0])
except ValueError as error:
    one = f"ValueError: {error}"
print(f"reference, one row: {one}")
if not (np.array_equal(plain, runtime) and np.allclose(plain, two)) or "NaN to integer" not in one:
    raise SystemExit("The behaviour has changed.")
PROGRAM
