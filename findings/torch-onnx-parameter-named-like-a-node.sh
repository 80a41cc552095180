#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2: torch.onnx.export fails if a Parameter has the name of an operator, such as "expand".
#
# A good guess: how a module calls its Parameters is its own affair. The exporter makes names unique, as torch.export
# does with its placeholders.
#
# What happens: torch.export names the node of Tensor.expand "expand", and the placeholder of the Parameter
# "p_expand". The ONNX exporter gives the Parameter its own name back. Constant folding then turns the node into an
# initializer called "expand", and onnx_ir raises "Initializer 'expand' is already registered". The error that is shown
# names a pass and no name. With the Parameter called "weight" the same module is exported, and ONNX Runtime agrees.
#
# Why it matters: top-level Parameters called "expand", "arange" or "full" are plausible in small modules, and renaming
# changes the keys of checkpoints. With optimize=False the export succeeds, but the file has the name twice, and ONNX
# Runtime refuses it.
#
# Output seen (Python 3.11, x86_64 Linux):
#   weight: exported, ONNX Runtime agrees
#   expand: PassError
#   arange: PassError
#   expand, optimize=False: exported, ONNX Runtime refuses
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 onnxruntime==1.32.0 \
  numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import logging

import numpy as np
import onnxruntime
import torch
from torch import nn

logging.disable(logging.CRITICAL)


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.register_parameter(name, nn.Parameter(torch.ones(4, 3, 1, 1)))

    def forward(self, x):
        rows = torch.arange(5.0)[:, None].expand(5, 5)
        return nn.functional.conv2d(x, getattr(self, self.name)) + rows


def outcome(name, **options):
    net, x = Net(name).eval(), torch.randn(1, 3, 5, 5)
    try:
        torch.onnx.export(net, (x,), "net.onnx", dynamo=True, verbose=False, **options)
    except Exception as error:
        return type(error).__name__
    try:
        found = onnxruntime.InferenceSession("net.onnx").run(None, {"x": x.numpy()})[0]
    except Exception:
        return "exported, ONNX Runtime refuses"
    with torch.no_grad():
        agrees = np.allclose(found, net(x).numpy(), atol=1e-5)
    return f"exported, ONNX Runtime {'agrees' if agrees else 'differs'}"


torch.manual_seed(0)
seen = []
for name, options in (("weight", {}), ("expand", {}), ("arange", {}), ("expand", {"optimize": False})):
    seen.append(outcome(name, **options))
    print(f"{name}{', optimize=False' * bool(options)}: {seen[-1]}")
if seen != ["exported, ONNX Runtime agrees", "PassError", "PassError", "exported, ONNX Runtime refuses"]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore program.py
