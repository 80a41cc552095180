#!/usr/bin/env bash
# pnnx 20261020, ncnn 1.0.20261020: F.normalize(x, dim=-1) of tokens [N, L, C] gives vectors that are not of length 1.
#
# A good guess: F.normalize becomes ncnn's Normalize layer, which divides by the L2 norm; or the converter refuses an
# axis that this layer does not have.
#
# What happens: the axis is dropped. ncnn's layer has two choices, across the channels of an image or across all, and no
# notion of the last axis. The file loads and the exit code is 0.
#
# Why it matters: cosine attention (Swin V2) and image embeddings normalise so. Cosine similarities then are none.
# Writing x / x.norm(dim=-1, keepdim=True) converts to layers that are right.
#
# Output seen (Python 3.11, x86_64 Linux), lengths of three tokens:
#   F.normalize, torch: 1.00 1.00 1.00
#   F.normalize, ncnn: 2.83 2.83 2.83
#   x / norm, ncnn: 1.00 1.00 1.00
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
        self.function, self.linear = function, nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self.linear(x))


def lengths(tokens):
    return " ".join(f"{value:.2f}" for value in tokens.norm(dim=-1).flatten().tolist())


torch.manual_seed(0)
tokens = torch.randn(3, 8)
library = Net(lambda x: nn.functional.normalize(x, dim=-1)).eval()
by_hand = Net(lambda x: x / x.norm(dim=-1, keepdim=True)).eval()
with torch.no_grad():
    found = lengths(library(tokens[None])), lengths(converted(library, tokens)), lengths(converted(by_hand, tokens))
for name, text in zip(("F.normalize, torch", "F.normalize, ncnn", "x / norm, ncnn"), found, strict=True):
    print(f"{name}: {text}")
assert found[0] == found[2] == "1.00 1.00 1.00"
assert found[1] != found[0], "this finding is out of date"
PROGRAM
cd "$folder"
OMP_NUM_THREADS=1 PATH="$folder/venv/bin:$PATH" python -W ignore program.py
