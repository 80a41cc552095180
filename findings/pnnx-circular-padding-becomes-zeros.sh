#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: Conv2d(padding_mode="circular") becomes a convolution padded with zeros, exit code 0.
#
# A good guess: a converter that has no circular padding stops, or writes a layer that the runtime refuses to load.
#
# What happens: the log has one line, "unsupported padding_mode circular", between hundreds of others. The exit code is
# 0, ncnn loads the file, and the values at the border are those of zero padding. "reflect" and "replicate" are right.
#
# Why it matters: networks on panoramas and on periodic fields pad so. The error sits at the border, where a glance at
# the output does not find it. Compare the outputs of both runtimes, borders included.
#
# Output seen (Python 3.11, x86_64 Linux); the largest error, where the right ones are below 1e-5:
#   zeros: right
#   reflect: right
#   replicate: right
#   circular: wrong at the border, right inside
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

torch.manual_seed(0)
image = torch.randn(3, 8, 8)
found = {}
for mode in ("zeros", "reflect", "replicate", "circular"):
    net = nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode).eval()
    with torch.no_grad():
        error = (converted(net, image) - net(image[None])[0]).abs()
    inside, border = error[:, 1:-1, 1:-1].max() < 1e-4, error.max() < 1e-4
    found[mode] = "right" if border else "wrong at the border, right inside" if inside else "wrong"
    print(f"{mode}: {found[mode]}")
assert found.pop("circular") == "wrong at the border, right inside", "this finding is out of date"
assert set(found.values()) == {"right"}
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
