#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: torchvision's DeformConv2d with several offset groups gives wrong numbers in ncnn.
#
# A good guess: pnnx converts the layer to ncnn's DeformableConv2D, so the layer knows offset groups; or pnnx or ncnn
# refuses what it doesn't know.
#
# What happens: ncnn's layer has no offset groups. It takes as many channels of the offsets as one group needs, and
# samples all channels of the image by the offsets of the first group. With two groups the error is more than half of
# the largest output. pnnx exits with 0 and ncnn loads the file.
#
# Why it matters: mmdetection's configs with `deform_groups=4` and video super-resolution (EDVR and BasicVSR++, 8 and 16
# offset groups) are such networks.
#
# Output seen (Python 3.11, x86_64 Linux):
#   1 offset group: right
#   2 offset groups: wrong, all channels follow the first group
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 pnnx==20261020 ncnn==1.0.20261020 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import subprocess

import ncnn
import numpy as np
import torch
from torch import nn
from torchvision.ops import DeformConv2d


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = DeformConv2d(4, 4, 3, padding=1)

    def forward(self, x, offset, mask):
        return self.layer(x, offset, mask)


def in_ncnn(net, tensors):
    torch.jit.trace(net, tensors).save("net.pt")
    shapes = ",".join(str(list(tensor.shape)).replace(" ", "") for tensor in tensors)
    done = subprocess.run(["pnnx", "net.pt", f"inputshape={shapes}", "fp16=0"], capture_output=True, text=True)
    assert done.returncode == 0, done
    runtime = ncnn.Net()
    runtime.opt.use_fp16_storage = runtime.opt.use_fp16_packed = runtime.opt.use_fp16_arithmetic = False
    assert runtime.load_param("net.ncnn.param") == 0
    assert runtime.load_model("net.ncnn.bin") == 0
    extractor = runtime.create_extractor()
    for i, tensor in enumerate(tensors):
        extractor.input(f"in{i}", ncnn.Mat(tensor[0].numpy()).clone())
    status, output = extractor.extract("out0")
    assert status == 0
    return torch.from_numpy(np.array(output))[None]


torch.manual_seed(0)
net, seen = Net().eval(), []
for groups in (1, 2):
    x, offset = torch.randn(1, 4, 9, 7), torch.randn(1, groups * 18, 9, 7)
    mask = torch.rand(1, groups * 9, 9, 7)
    with torch.no_grad():
        right, got = net(x, offset, mask), in_ncnn(net, (x, offset, mask))
        first = net(x, offset[:, :18], mask[:, :9])
    if torch.allclose(got, right, atol=1e-4):
        seen.append("right")
    else:
        seen.append("wrong" + ", all channels follow the first group" * torch.allclose(got, first, atol=1e-4))
    print(f"{groups} offset group{'s' * (groups > 1)}: {seen[-1]}")
if seen != ["right", "wrong, all channels follow the first group"]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
