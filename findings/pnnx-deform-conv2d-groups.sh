#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: pnnx writes an ncnn file for a grouped DeformConv2d that ncnn can't load.
#
# A good guess: a converter exits with an error where the target lacks a layer, as pnnx does for operators that it
# can't parse; or it splits the layer into one for each group.
#
# What happens: pnnx writes its own intermediate layer, `torchvision.ops.DeformConv2d`, into the file for ncnn and exits
# with 0. It says "ignore torchvision.ops.DeformConv2d" among its other lines. ncnn's load_param returns -1 for the
# file. With one group the file has ncnn's layer, DeformableConv2D, and loads.
#
# Why it matters: a build that converts networks passes, and the app fails when it starts. Look into the .param file: a
# layer whose type has a dot in it is none of ncnn's.
#
# Output seen (Python 3.11, x86_64 Linux):
#   1 group: pnnx exit code 0, layer DeformableConv2D, load_param 0
#   2 groups: pnnx exit code 0, layer torchvision.ops.DeformConv2d, load_param -1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 pnnx==20261020 ncnn==1.0.20261020 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import subprocess
from pathlib import Path

import ncnn
import torch
from torch import nn
from torchvision.ops import DeformConv2d


class Net(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.layer = DeformConv2d(4, 4, 3, padding=1, groups=groups)

    def forward(self, x, offset):
        return self.layer(x, offset)


seen = []
for groups in (1, 2):
    torch.jit.trace(Net(groups).eval(), (torch.randn(1, 4, 9, 7), torch.randn(1, 18, 9, 7))).save("net.pt")
    command = ["pnnx", "net.pt", "inputshape=[1,4,9,7],[1,18,9,7]"]
    code = subprocess.run(command, capture_output=True, text=True).returncode
    types = [line.split()[0] for line in Path("net.ncnn.param").read_text().splitlines()[2:]]
    (layer,) = [kind for kind in types if "Deform" in kind]
    seen.append((code, layer, ncnn.Net().load_param("net.ncnn.param")))
    text = f"pnnx exit code {seen[-1][0]}, layer {seen[-1][1]}, load_param {seen[-1][2]}"
    print(f"{groups} group{'s' * (groups > 1)}: {text}")
if seen != [(0, "DeformableConv2D", 0), (0, "torchvision.ops.DeformConv2d", -1)]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
