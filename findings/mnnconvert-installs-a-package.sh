#!/usr/bin/env bash
# MNN 3.6.1: every call of mnnconvert runs "pip install -U aliyun-log-python-sdk", twice, with the first pip on PATH.
#
# A good guess: a converter reads a file and writes a file. What it needs stands in the metadata of its package, and was
# installed with it.
#
# What happens: the command imports a logger that tries to import aliyun.log, and where that is missing calls
# os.system("pip install -U aliyun-log-python-sdk"). It does so in every call, without a question or an option. The pip
# is the first one on PATH: where mnnconvert is started by its path, that is another environment's, and the logger still
# finds no aliyun.log the next time. The conversion itself needs none of this: it works when pip does nothing.
#
# Why it matters: in an environment with protobuf 7.36.2 and onnx 1.23.2, one call of mnnconvert from another
# environment put protobuf 5.29.6 there, and "import onnx" raised from then on.
#
# Here the first pip on PATH is a script that only writes down its arguments: nothing is installed or sent.
#
# Output seen (Python 3.11, x86_64 Linux):
#   call 1: exit code 0, file written, pip called 2 times: install -U aliyun-log-python-sdk
#   call 2: exit code 0, file written, pip called 2 times: install -U aliyun-log-python-sdk
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet MNN==3.6.1 onnx==1.23.2 numpy==2.4.6
mkdir "$folder/bin"
printf '#!/bin/sh\necho "$@" >> "%s/pip.txt"\n' "$folder" > "$folder/bin/pip"
chmod +x "$folder/bin/pip"

cat > "$folder/program.py" <<'PROGRAM'
import os
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3)) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "relu.onnx")

log, environment = Path("pip.txt"), os.environ | {"PATH": f"{Path('bin').resolve()}:{os.environ['PATH']}"}
command = [Path(sys.executable).parent / "mnnconvert", "-f", "ONNX", "--modelFile", "relu.onnx", "--bizCode", "x"]
seen = []
for call in (1, 2):
    log.unlink(missing_ok=True)
    written = Path(f"relu{call}.mnn")
    done = subprocess.run([*command, "--MNNModel", written], env=environment, capture_output=True, check=False)
    calls = log.read_text().splitlines() if log.exists() else []
    file = "file written" if written.exists() else "no file"
    seen.append((done.returncode, file, calls))
    said = f"pip called {len(calls)} times: {', '.join(sorted(set(calls)))}"
    print(f"call {call}: exit code {done.returncode}, {file}, {said}")
if seen != [(0, "file written", ["install -U aliyun-log-python-sdk"] * 2)] * 2:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
"$folder/venv/bin/python" program.py
