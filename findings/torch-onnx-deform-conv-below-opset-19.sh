#!/usr/bin/env bash
# torch 2.14.1: torch.onnx.export(opset_version=18) writes a DeformConv node for torchvision's layer. Opset 18 has none.
#
# A good guess: the exporter raises, because ONNX has DeformConv from opset 19 on; or it writes a file of opset 19 and
# says so, as it does where it can't convert to the opset that was asked for.
#
# What happens: the export succeeds. The file claims opset 18 and contains DeformConv. onnx.checker refuses it, "No Op
# registered for DeformConv with domain_version of 18", and so does ONNX Runtime. With opset_version=19 both accept it.
#
# Why it matters: runtimes that lag behind are why one asks for an older opset, and the error comes only there.
#
# Output seen (Python 3.11, x86_64 Linux):
#   opset 18: nodes Conv DeformConv, checker refuses, ONNX Runtime refuses
#   opset 19: nodes Conv DeformConv, checker accepts, ONNX Runtime accepts
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 \
  onnxruntime==1.32.0 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import logging

import onnx
import onnxruntime
import torch
from torch import nn
from torchvision.ops import DeformConv2d

logging.disable(logging.CRITICAL)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = nn.Conv2d(4, 18, 3, padding=1)
        self.conv = DeformConv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(x, self.offset(x))


def verdict(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception:
        return "refuses"
    return "accepts"


seen = []
for opset in (18, 19):
    torch.onnx.export(
        Net().eval(), (torch.randn(1, 4, 8, 8),), "net.onnx", dynamo=True, verbose=False, opset_version=opset
    )
    model = onnx.load("net.onnx")
    assert model.opset_import[0].version == opset
    nodes = " ".join(node.op_type for node in model.graph.node)
    checker = verdict(onnx.checker.check_model, model)
    runtime = verdict(onnxruntime.InferenceSession, "net.onnx")
    seen.append((nodes, checker, runtime))
    print(f"opset {opset}: nodes {nodes}, checker {checker}, ONNX Runtime {runtime}")
if seen != [("Conv DeformConv", answer, answer) for answer in ("refuses", "accepts")]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore program.py
