#!/usr/bin/env bash
# torch 2.14.1, CPU: conv2d of a channels_last image with groups gives wrong numbers, without an error, when the
# weight is a transposed view with a kernel of one column.
#
# A good guess: strides never change what conv2d computes. Whoever doubts it calls
# weight.contiguous(memory_format=torch.channels_last) first.
#
# What happens: weight.contiguous(memory_format=torch.channels_last) returns the view as it is, because the stride of
# a dimension of size 1 says nothing about where values lie: here it is that of the first dimension instead of the
# channels'. conv2d then goes by that stride. With a channels_last image and groups=2 it is off by up to 69, more than
# the largest right value, 49. A contiguous image, groups=1, a clone of the weight in the channels_last
# format, and torch without oneDNN give right numbers.
#
# Why it matters: 1 x k and k x 1 kernels are common in factorized and decomposed convolutions, and a transpose turns
# one into the other. channels_last is the format that is recommended for speed. Nothing warns of the wrong
# output; weight.clone(memory_format=torch.channels_last) is the cure.
#
# Output seen (Python 3.11, x86_64 Linux; the last digits of small errors vary with the processor):
#   strides of the weight (96, 1, 32, 96), after contiguous(channels_last) (96, 1, 32, 96), cloned (96, 1, 32, 32)
#   groups=2, channels_last image, view: largest error 6.9e+01
#   groups=2, channels_last image, view made contiguous(channels_last): largest error 6.9e+01
#   groups=2, channels_last image, view cloned to channels_last: largest error 2.3e-05
#   groups=2, contiguous image, view: largest error 9.3e-06
#   groups=2, channels_last image, view, without oneDNN: largest error 2.3e-05
#   groups=1, channels_last image, view: largest error 3.8e-05
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from torch.nn.functional import conv2d

torch.manual_seed(0)
last = torch.channels_last
image = torch.randn(2, 64, 40, 40)  # [N, C, H, W]


def kernel(groups):
    # [C, C / groups, 1, 3] in channels_last, seen as [C, C / groups, 3, 1]
    return torch.randn(64, 64 // groups, 1, 3).contiguous(memory_format=last).transpose(2, 3)


def error(case, image, weight, groups):
    right = conv2d(image.double().contiguous(), weight.double().clone(memory_format=torch.contiguous_format),
                   groups=groups)
    largest = (conv2d(image, weight, groups=groups) - right).abs().max().item()
    print(f"groups={groups}, {case}: largest error {largest:.1e}")
    return largest


view = kernel(2)
same, cloned = view.contiguous(memory_format=last), view.clone(memory_format=last)
print(f"strides of the weight {view.stride()}, after contiguous(channels_last) {same.stride()}, "
      f"cloned {cloned.stride()}")
image_last = image.contiguous(memory_format=last)
wrong = [
    error("channels_last image, view", image_last, view, 2),
    error("channels_last image, view made contiguous(channels_last)", image_last, same, 2),
]
right = [
    error("channels_last image, view cloned to channels_last", image_last, cloned, 2),
    error("contiguous image, view", image, view, 2),
]
with torch.backends.mkldnn.flags(enabled=False):
    right.append(error("channels_last image, view, without oneDNN", image_last, view, 2))
right.append(error("channels_last image, view", image_last, kernel(1), 1))
if min(wrong) < 1 or max(right) > 1e-3 or same.stride() != view.stride():
    raise SystemExit("The behaviour has changed.")
PROGRAM
