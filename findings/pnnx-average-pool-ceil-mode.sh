#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: AvgPool2d(ceil_mode=True) gives other numbers in the last row and column.
#
# A good guess: the converter carries kernel, stride, padding, ceil_mode and count_include_pad over, so the numbers agree.
#
# What happens: with ceil_mode a window may reach beyond the padded image. torch divides its sum by the number of values
# inside the padded image; ncnn divides by the whole kernel. So the last row and column are too small, even without any
# padding. With count_include_pad=False both divide by the pixels of the image, and agree.
#
# Why it matters: downsampling branches of ResNet-D, GoogLeNet and others pool with ceil_mode=True. An odd map size,
# which only some image sizes have, decides whether scores change.
#
# Output seen (Python 3.11, x86_64 Linux), pooling ones of 6 x 6, kernel 3, stride 2, no padding:
#   torch, last row: 1.0 1.0 1.0
#   ncnn, last row: 0.667 0.667 0.444
#   ncnn, last row with count_include_pad=False: 1.0 1.0 1.0
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

def rows(pool):
    image = torch.ones(2, 6, 6)
    return pool(image)[0, -1].tolist(), converted(pool, image)[0, -1].tolist()


def text(row):
    return " ".join(str(round(value, 3)) for value in row)


right, got = rows(nn.AvgPool2d(3, 2, ceil_mode=True))
_, excluded = rows(nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False))
print("torch, last row:", text(right))
print("ncnn, last row:", text(got))
print("ncnn, last row with count_include_pad=False:", text(excluded))
assert text(right) == text(excluded) == "1.0 1.0 1.0"
assert text(got) == "0.667 0.667 0.444", "this finding is out of date"
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
