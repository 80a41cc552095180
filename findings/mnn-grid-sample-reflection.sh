#!/usr/bin/env bash
# MNN 3.6.1: an ONNX GridSample with padding_mode="reflection" reads the wrong pixels, without an error.
#
# A good guess: MNN's GridSample has the three padding modes of ONNX, as its schema lists them; or the converter refuses
# the third, as it does operators that it lacks.
#
# What happens: the converter accepts the file, and the CPU computes reflection as border:
# samples beyond the edge repeat it. ONNX Runtime, OpenVINO, OpenCV and torch agree on the reflection.
#
# Why it matters: warps in video and stereo networks use reflection at the border, and only pixels whose samples leave
# the image are wrong, so a look at the middle of a picture shows nothing.
#
# Output seen (Python 3.11, x86_64 Linux), a row 1 2 3 4 5 sampled at the positions -2, -1, 2, 5 and 6:
#   zeros: ONNX Runtime 0 0 3 0 0, MNN 0 0 3 0 0
#   border: ONNX Runtime 1 1 3 5 5, MNN 1 1 3 5 5
#   reflection: ONNX Runtime 2 1 3 5 4, MNN 1 1 3 5 5
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet MNN==3.6.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import subprocess
import sys

import MNN
import numpy as np
import onnx
import onnxruntime
from MNN import expr
from onnx import TensorProto, helper

image = np.tile(np.arange(1, 6, dtype=np.float32), (1, 1, 5, 1))  # [N, C, H, W]
positions = np.array([-2, -1, 2, 5, 6], np.float32)
grid = np.zeros((1, 1, 5, 2), np.float32)  # (x, y) in the middle row
grid[..., 0] = (2 * positions + 1) / 5 - 1


def in_onnxruntime():
    return onnxruntime.InferenceSession("net.onnx").run(None, {"x": image, "grid": grid})[0]


def in_mnn():
    # What the command mnnconvert runs after it has called pip.
    code = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    command = [sys.executable, "-c", code, "-f", "ONNX", "--modelFile", "net.onnx", "--MNNModel", "net.mnn"]
    subprocess.run([*command, "--bizCode", "x"], capture_output=True, check=True)
    variables = [expr.placeholder(list(array.shape), expr.NCHW) for array in (image, grid)]
    for variable, array in zip(variables, (image, grid), strict=True):
        variable.write(array)
    module = MNN.nn.load_module_from_file("net.mnn", ["x", "grid"], ["y"])
    return expr.convert(module.onForward(variables)[0], expr.NCHW).read().copy()


seen = {}
for padding in ("zeros", "border", "reflection"):
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode="linear", padding_mode=padding)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", image), ("grid", grid))]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 5])
    graph = helper.make_graph([node], "sample", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "net.onnx")
    rows = [np.round(run().ravel(), 3) + 0.0 for run in (in_onnxruntime, in_mnn)]
    seen[padding] = [" ".join(f"{value:g}" for value in row) for row in rows]
    print(f"{padding}: ONNX Runtime {seen[padding][0]}, MNN {seen[padding][1]}")
assert seen["zeros"][0] == seen["zeros"][1]
assert seen["border"][0] == seen["border"][1]
assert seen["reflection"][0] == "2 1 3 5 4"
if seen["reflection"][1] != "1 1 3 5 5":
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
"$folder/venv/bin/python" -W ignore program.py
