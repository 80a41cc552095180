#!/usr/bin/env bash
# OpenCV 5.0.0.93 (dnn): an ONNX GridSample node with mode="cubic" loads and computes bilinear samples.
#
# A good guess: the importer supports the mode, or refuses the node, as it refuses operators that it lacks. The modes
# "linear" and "nearest" of the same node are right to rounding, with every padding_mode and align_corners.
#
# What happens: for mode="cubic" the output is that of mode="linear", bit for bit, without an error or a warning. The
# samples here lie well inside the image, so that no padding rule matters. ONNX defines cubic samples by 4 x 4 pixels
# with a = -0.75 (https://onnx.ai/onnx/operators/onnx__GridSample.html); onnx's reference evaluator computes them.
#
# Why it matters: bicubic warps are used in super-resolution and registration. Images look plausible, only softer.
#
# Output seen (Python 3.11, x86_64 Linux), as the largest difference from the reference evaluator:
#   linear: 2.7e-07
#   nearest: 0
#   cubic: 0.44
#   cubic, from the reference's linear: 2.7e-07
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet opencv-python-headless==5.0.0.93 onnx==1.23.2 numpy==2.4.6

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

generator = np.random.default_rng(0)
image = generator.standard_normal((1, 1, 8, 8)).astype(np.float32)
grid = generator.uniform(-0.6, 0.6, (1, 5, 5, 2)).astype(np.float32)  # x and y, of -1 to 1


def model(mode):
    names = {"image": image.shape, "grid": grid.shape, "samples": (1, 1, 5, 5)}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names.items()]
    node = helper.make_node("GridSample", ["image", "grid"], ["samples"], mode=mode)
    graph = helper.make_graph([node], "samples", values[:2], values[2:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def opencv(made):
    net = cv2.dnn.readNetFromONNX(np.frombuffer(made.SerializeToString(), np.uint8))
    net.setInput(image, "image")
    net.setInput(grid, "grid")
    return net.forward()


def reference(made):
    return ReferenceEvaluator(made).run(None, {"image": image, "grid": grid})[0]


errors = {mode: np.abs(opencv(model(mode)) - reference(model(mode))).max() for mode in ("linear", "nearest", "cubic")}
errors["cubic, from the reference's linear"] = np.abs(opencv(model("cubic")) - reference(model("linear"))).max()
for name, error in errors.items():
    print(f"{name}: {error:.2g}")
right = [name for name, error in errors.items() if error < 1e-4]
if right != ["linear", "nearest", "cubic, from the reference's linear"] or errors["cubic"] < 0.1:
    raise SystemExit("The behaviour has changed.")
PROGRAM
