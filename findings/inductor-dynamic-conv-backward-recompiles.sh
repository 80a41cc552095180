#!/usr/bin/env bash
# torch 2.14.1, CPU: a plain convolutional network that trains under torch.compile(dynamic=True) compiles again for
# every new height and width.
#
# A good guess: dynamic=True compiles once for images of all sizes, in training as in inference.
#
# What happens: the forward without gradients compiles once. With gradients, Inductor makes the sizes constants when
# it compiles the backward of Conv2d, so four sizes compile four times. The backend aot_eager, which traces the same
# backward without Inductor, compiles once. With torch._dynamo.mark_dynamic, which says that a size must stay dynamic,
# the first step raises ConstraintViolationError.
#
# Why it matters: networks for detection and segmentation, where deformable convolutions are at home, train on images
# of many sizes. They pay a compilation for each size. Past torch._dynamo.config.recompile_limit, 8 unless it is set,
# the network runs without compilation, with no more than a warning in the log. Padding to a few sizes is the cure.
#
# Output seen (Python 3.11, x86_64 Linux):
#   inductor, no gradients: compilations for 4 sizes: 1
#   inductor, training: compilations for 4 sizes: 4
#   aot_eager, training: compilations for 4 sizes: 1
#   inductor, training, mark_dynamic: ConstraintViolationError: You marked L['args'][0].size()[2] as dynamic but your code specialized it to be a constant (20)
#
# Needs a C++ compiler, which Inductor calls.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR="$folder/inductor"
"$folder/venv/bin/python" - <<'PROGRAM'
import logging
import re

import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

logging.disable(logging.CRITICAL)  # torch writes 60 lines about the error that is printed below
SIZES = [(2, 20, 28), (3, 23, 31), (4, 27, 35), (5, 21, 24)]  # N, H, W


def train(case, backend, gradients=True, mark=False):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    compiled = torch.compile(net, backend=counter, dynamic=None if mark else True)
    try:
        for n, height, width in SIZES:
            image = torch.randn(n, 16, height, width)
            if mark:
                for dimension in (0, 2, 3):
                    torch._dynamo.mark_dynamic(image, dimension)
            with torch.set_grad_enabled(gradients):
                out = compiled(image)
                if gradients:
                    out.sum().backward()
        result = f"compilations for {len(SIZES)} sizes: {counter.frame_count}"
    except Exception as error:
        marked = re.search(r"You marked .*? constant \(\d+\)", str(error))
        result = f"{type(error).__name__}: {marked.group() if marked else error}"
    print(f"{case}: {result}", flush=True)
    return result


results = [
    train("inductor, no gradients", "inductor", gradients=False),
    train("inductor, training", "inductor"),
    train("aot_eager, training", "aot_eager"),
]
violation = train("inductor, training, mark_dynamic", "inductor", mark=True)
if [result.split()[-1] for result in results] != ["1", "4", "1"] or "ConstraintViolationError" not in violation:
    raise SystemExit("The behaviour has changed.")
PROGRAM
