#!/usr/bin/env bash
# onnx 1.23.2: its reference evaluator raises for a bilinear GridSample of opsets 16 to 19.
#
# A good guess: the evaluator runs every version of an operator by that version's definition. It has separate classes
# for versions of other operators, and opset 16 is where GridSample starts.
#
# What happens: opset 20 renamed the modes "bilinear" and "bicubic" to "linear" and "cubic". The evaluator has one class
# for both versions, and it knows the new names alone: "GridSample interpolation only supports nearest, linear, and
# cubic modes". onnx.checker accepts the file, ONNX Runtime runs it, and the reference itself runs it once
# onnx.version_converter has made opset 20 of it.
#
# Why it matters: torch.onnx.export writes GridSample at opsets 16 to 19 for most runtimes of today, and the evaluator
# is what one takes to tell the file's fault from a runtime's.
#
# Output seen (Python 3.11, x86_64 Linux):
#   opset 16: ONNX Runtime 0.5, reference RuntimeError
#   converted to opset 20: ONNX Runtime 0.5, reference 0.5
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, version_converter
from onnx.reference import ReferenceEvaluator

image = np.array([[[[0, 1], [0, 1]]]], np.float32)  # [N, C, H, W]
grid = np.zeros((1, 1, 1, 2), np.float32)  # the centre, between both columns
node = helper.make_node("GridSample", ["x", "grid"], ["y"], mode="bilinear")
inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in (("x", image), ("grid", grid))]
output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])
graph = helper.make_graph([node], "sample", inputs, [output])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=9)
onnx.checker.check_model(model, full_check=True)

seen = []
for name, file in (("opset 16", model), ("converted to opset 20", version_converter.convert_version(model, 20))):
    given = {"x": image, "grid": grid}
    runtime = onnxruntime.InferenceSession(file.SerializeToString()).run(None, given)[0].item()
    try:
        reference = ReferenceEvaluator(file).run(None, given)[0].item()
    except RuntimeError as error:
        reference = type(error).__name__
    seen.append((runtime, reference))
    print(f"{name}: ONNX Runtime {runtime:g}, reference {reference}")
if seen != [(0.5, "RuntimeError"), (0.5, 0.5)]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
"$folder/venv/bin/python" -W ignore "$folder/program.py"
