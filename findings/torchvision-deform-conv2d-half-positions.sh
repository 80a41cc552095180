#!/usr/bin/env bash
# torchvision 0.29.1, CPU: deform_conv2d of float16 tensors computes the sampling positions in float16. The further
# right or down a pixel lies, the coarser its offset gets; from column 512 on, an offset of 0.25 does nothing.
#
# A good guess: float16 costs three digits of the values, the same everywhere in the image. An offset such as 0.25,
# which float16 holds exactly, moves every column by a quarter of a pixel.
#
# What happens: the kernel adds the offset to the pixel's index in the tensors' own format. float16 has steps of 0.25
# from 256 on, of 0.5 from 512 on, of 1 from 1024 on and of 2 from 2048 on. So the position is rounded: 0.25 is lost
# from column 512 on. The program samples an image of even columns 0 and odd columns 1 with a 1 x 1 kernel,
# where an offset of 0.25 gives 0.25 at even columns and 0.75 at odd ones. Above 2048, float16 holds even numbers
# alone, so that an odd column samples its neighbour although its offset is 0.
#
# Why it matters: learnt offsets are fractions of a pixel, so a detector that is served in float16 loses its
# deformation in the right and lower parts of large feature maps. Scores on small images don't show it. float32
# offsets aren't accepted along a float16 image, so the cure is to run the whole layer in float32.
#
# Output seen (Python 3.11, x86_64 Linux):
#   column    100, offset 0.25: float32 0.25, float16 0.25
#   column    600, offset 0.25: float32 0.25, float16 0
#   column   1200, offset 0.25: float32 0.25, float16 0
#   column   2101, offset 0: float32 1, float16 0
#   largest error, columns    0 to  255: 0.0017
#   largest error, columns  256 to  511: 0.0018
#   largest error, columns  512 to 1023: 1.6
#   largest error, columns 1024 to 2047: 1.3
#   largest error, columns 2048 to 2598: 5.2
#   float32 offset with float16 image: RuntimeError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import torch
from torchvision.ops import deform_conv2d

WIDTH = 2600


def sample(image, dx, dtype):
    # A 1 x 1 kernel, so that the output is the image at column + dx.
    channels = image.shape[1]
    offset = torch.zeros(1, 2, *image.shape[2:])  # [N, (dy, dx), H, W]
    offset[:, 1] = dx
    weight = torch.eye(channels)[:, :, None, None]
    return deform_conv2d(image.to(dtype), offset.to(dtype), weight.to(dtype)).float()


stripes = (torch.arange(WIDTH) % 2).float().view(1, 1, 1, WIDTH)
seen = []
for column, dx in ((100, 0.25), (600, 0.25), (1200, 0.25), (2101, 0.0)):
    values = [sample(stripes, dx, dtype)[0, 0, 0, column].item() for dtype in (torch.float32, torch.float16)]
    seen.append(values)
    print(f"column {column:6d}, offset {dx:g}: float32 {values[0]:g}, float16 {values[1]:g}")

torch.manual_seed(0)
image = torch.randn(1, 4, 8, WIDTH).half().float()  # values that float16 holds
error = (sample(image, 0.25, torch.float16) - sample(image, 0.25, torch.float32)).abs().amax((0, 1, 2))
errors = []
for first, past in ((0, 256), (256, 512), (512, 1024), (1024, 2048), (2048, WIDTH - 1)):
    errors.append(error[first:past].max().item())
    print(f"largest error, columns {first:4d} to {past - 1:4d}: {errors[-1]:.2g}")

try:
    deform_conv2d(stripes.half(), torch.zeros(1, 2, 1, WIDTH), torch.ones(1, 1, 1, 1).half())
    mixed = "accepted"
except RuntimeError as failure:
    mixed = type(failure).__name__
print(f"float32 offset with float16 image: {mixed}")

if seen != [[0.25, 0.25], [0.25, 0.0], [0.25, 0.0], [1.0, 0.0]]:
    raise SystemExit("The behaviour has changed: the sampled values.")
if max(errors[:2]) > 0.01 or min(errors[2:]) < 0.5 or mixed != "RuntimeError":
    raise SystemExit("The behaviour has changed.")
PROGRAM
