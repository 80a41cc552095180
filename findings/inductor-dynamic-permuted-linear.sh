#!/usr/bin/env bash
# torch 2.14.1, CPU: torch.compile(dynamic=True) fails on the training step of a stem that works on channels-last
# data, as ConvNeXt's layers do: Linear, then permute(0, 3, 1, 2), then BatchNorm2d, ReLU and Conv2d.
#
# A good guess: every layer of the stem compiles with dynamic sizes, so the stem compiles too. If Inductor couldn't
# keep a size symbolic, it would make it a constant and compile again for another size.
#
# What happens: the compilation raises InductorError, because a stride is an expression of two symbols and the
# comparison with the number of channels has no truth value. The same stem compiles with static sizes, without
# gradients, without the normalization, without the last Conv2d, and with .contiguous() after permute.
#
# Why it matters: networks that mix Linear on N, H, W, C with convolutions on N, C, H, W (ConvNeXt, Swin and their
# deformable variants) can't be trained under dynamic=True. The message names neither the layer nor the cure, which
# is .contiguous() after the permute.
#
# Output seen (Python 3.11, x86_64 Linux; the names of the symbols vary):
#   with Conv2d, dynamic sizes: InductorError: TypeError: cannot determine truth value of Relational: 16*s50*s69 < 16
#   with Conv2d, static sizes: compiled
#   with Conv2d, dynamic sizes, no gradients: compiled
#   without Conv2d, dynamic sizes: compiled
#   without BatchNorm2d, dynamic sizes: compiled
#   contiguous after permute, dynamic sizes: compiled
#
# Needs a C++ compiler, which Inductor calls.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1 TORCHINDUCTOR_CACHE_DIR="$folder/inductor"
"$folder/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn


class ChannelsFirst(nn.Module):
    def __init__(self, contiguous):
        super().__init__()
        self.contiguous = contiguous

    def forward(self, x):
        x = x.permute(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W]
        return x.contiguous() if self.contiguous else x


def compile_stem(case, dynamic=True, gradients=True, norm=True, conv=True, contiguous=False):
    torch._dynamo.reset()
    stem = nn.Sequential(
        nn.Linear(3, 16),
        ChannelsFirst(contiguous),
        nn.BatchNorm2d(16) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3) if conv else nn.Identity(),
    )
    try:
        with torch.set_grad_enabled(gradients):
            out = torch.compile(stem, dynamic=dynamic)(torch.randn(2, 20, 28, 3))
            if gradients:
                out.sum().backward()
        result = "compiled"
    except Exception as error:
        lines = [line for line in str(error).splitlines() if "Relational" in line]
        result = f"{type(error).__name__}: {lines[0] if lines else error}"
    print(f"{case}: {result}")
    return result


failure = compile_stem("with Conv2d, dynamic sizes")
others = [
    compile_stem("with Conv2d, static sizes", dynamic=False),
    compile_stem("with Conv2d, dynamic sizes, no gradients", gradients=False),
    compile_stem("without Conv2d, dynamic sizes", conv=False),
    compile_stem("without BatchNorm2d, dynamic sizes", norm=False),
    compile_stem("contiguous after permute, dynamic sizes", contiguous=True),
]
if "cannot determine truth value of Relational" not in failure or set(others) != {"compiled"}:
    raise SystemExit("The behaviour has changed.")
PROGRAM
