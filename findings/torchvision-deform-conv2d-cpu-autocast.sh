#!/usr/bin/env bash
# torchvision 0.29.1: deform_conv2d has no autocast kernel for the CPU, so the usual layer with learnt offsets raises
# under torch.autocast("cpu").
#
# A good guess: autocast is there to match types. deform_conv2d runs under torch.autocast on every device, in float32
# where it knows no better.
#
# What happens: Conv2d, which computes the offsets, returns bfloat16 under autocast. deform_conv2d gets them next to
# a float32 image and raises "expected scalar type Float". The operator's dispatch table has a kernel for
# AutocastCUDA and none for AutocastCPU; nms of the same library has both. With bfloat16 tensors throughout it raises
# as well, because the CPU kernel doesn't know bfloat16, so model.bfloat16() is no way out. Offsets cast to the image's
# type by hand run, if the image itself is float32.
#
# Why it matters: a network that trains under autocast on a GPU fails at its first deformable layer when the same
# code is tested or served on a CPU. The message names neither autocast nor the offsets.
#
# Output seen (Python 3.11, x86_64 Linux):
#   torchvision::nms: kernel for AutocastCUDA True, AutocastCPU True
#   torchvision::deform_conv2d: kernel for AutocastCUDA True, AutocastCPU False
#   float32: torch.float32
#   autocast to bfloat16: RuntimeError, expected scalar type Float but found BFloat16
#   autocast to bfloat16, offsets cast by hand: torch.float32
#   bfloat16 throughout: RuntimeError, "deformable_im2col" not implemented for 'BFloat16'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import re

import torch
from torchvision.ops import DeformConv2d

kernels = []
for op in ("torchvision::nms", "torchvision::deform_conv2d"):
    has = [torch._C._dispatch_has_kernel_for_dispatch_key(op, key) for key in ("AutocastCUDA", "AutocastCPU")]
    kernels.append(has)
    print(f"{op}: kernel for AutocastCUDA {has[0]}, AutocastCPU {has[1]}")


class Deformable(torch.nn.Module):
    def __init__(self, cast):
        super().__init__()
        self.cast = cast
        self.offset = torch.nn.Conv2d(4, 2 * 9, 3, padding=1)
        self.conv = DeformConv2d(4, 8, 3, padding=1)

    def forward(self, image):
        offset = self.offset(image)
        return self.conv(image, offset.to(image.dtype) if self.cast else offset)


def run(case, dtype=torch.float32, autocast=False, cast=False):
    layer, image = Deformable(cast).to(dtype), torch.randn(1, 4, 12, 12, dtype=dtype)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = str(layer(image).dtype)
    except RuntimeError as error:
        reason = re.search(r'expected scalar type.*|"deformable_im2col".*', str(error))
        result = f"RuntimeError, {reason.group().replace('torch::headeronly::ScalarType::', '') if reason else error}"
    print(f"{case}: {result}")
    return result


results = [
    run("float32"),
    run("autocast to bfloat16", autocast=True),
    run("autocast to bfloat16, offsets cast by hand", autocast=True, cast=True),
    run("bfloat16 throughout", torch.bfloat16),
]
runs = [result == "torch.float32" for result in results]
if kernels != [[True, True], [True, False]] or runs != [True, False, True, False]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
