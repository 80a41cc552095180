#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: torch.div with rounding, and x % 2, become layers of another meaning.
#
# A good guess: the converter maps each to the layer of the same meaning (ncnn rounds quotients down and has a fmod), or
# writes a layer that does not load, as it does for argmax. If the remainder differs, then for negative numbers alone.
#
# What happens: rounding_mode="floor" gives the quotient unrounded, "trunc" gives it rounded down, and % gives the IEEE
# remainder, between -1 and 1 for a divisor of 2: 3.5 % 2 is -0.5. Only x // y is right. The exit code is 0.
#
# Why it matters: window partitions, cyclic shifts, positional encodings and sampling grids compute indices so.
#
# Output seen (Python 3.11, x86_64 Linux), for -3.5, -0.5, 0.5 and 3.5 over 2:
#   floor: torch -2.00 -1.00 0.00 1.00, ncnn -1.75 -0.25 0.25 1.75
#   trunc: torch -1.00 -0.00 0.00 1.00, ncnn -2.00 -1.00 0.00 1.00
#   //: torch -2.00 -1.00 0.00 1.00, ncnn -2.00 -1.00 0.00 1.00
#   %: torch 0.50 1.50 0.50 1.50, ncnn 0.50 -0.50 0.50 -0.50
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 pnnx==20261020 ncnn==1.0.20261020 numpy==2.3.5

cat > "$folder/program.py" <<'PROGRAM'
import subprocess

import ncnn
import numpy as np
import torch
from torch import nn


def converted(net, image):
    """Return what ncnn computes in float32 for an image [C, H, W]."""
    torch.jit.trace(net, image[None]).save("net.pt")
    shape = ",".join(map(str, image[None].shape))
    done = subprocess.run(["pnnx", "net.pt", f"inputshape=[{shape}]", "fp16=0"], capture_output=True, text=True)
    assert done.returncode == 0, done
    runtime = ncnn.Net()
    runtime.opt.use_fp16_storage = runtime.opt.use_fp16_packed = runtime.opt.use_fp16_arithmetic = False
    assert runtime.load_param("net.ncnn.param") == 0
    assert runtime.load_model("net.ncnn.bin") == 0
    extractor = runtime.create_extractor()
    extractor.input("in0", ncnn.Mat(image.numpy()))
    _, output = extractor.extract("out0")
    return torch.from_numpy(np.array(output))

class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.copy = function, nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.copy.weight)
        nn.init.zeros_(self.copy.bias)

    def forward(self, x):
        return self.function(self.copy(x))


def text(values):
    return " ".join(f"{value:.2f}" for value in values.flatten().tolist())


image = torch.tensor([-3.5, -0.5, 0.5, 3.5]).view(1, 2, 2)
functions = {
    "floor": lambda x: torch.div(x, 2.0, rounding_mode="floor"),
    "trunc": lambda x: torch.div(x, 2.0, rounding_mode="trunc"),
    "//": lambda x: x // 2.0,
    "%": lambda x: x % 2.0,
}
agree = {}
for name, function in functions.items():
    net = Net(function).eval()
    with torch.no_grad():
        right, got = net(image[None])[0], converted(net, image)
    agree[name] = torch.allclose(right, got, atol=1e-4)
    print(f"{name}: torch {text(right)}, ncnn {text(got)}")
assert agree == {"floor": False, "trunc": False, "//": True, "%": False}, "this finding is out of date"
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
