#!/usr/bin/env bash
# torch 2.14.1: a TorchDispatchMode sees other operators in torch.inference_mode than in torch.no_grad.
#
# A good guess: both only switch off the recording of gradients. A mode stands below the decompositions of composite
# operators, so in both it sees the same core operators, aten.convolution for a convolution.
#
# What happens: those decompositions belong to the autograd keys, which inference mode leaves out. So composite
# operators arrive whole: aten.conv2d, aten.linear, aten.group_norm, aten.reshape, aten.chunk, aten.einsum. Under
# no_grad, and with gradients, none of these is seen.
#
# Why it matters: a tool that counts, follows or replaces operators by name in a mode (a FLOP counter, a tracer, a
# quantiser) and was tested under no_grad finds nothing where it looks, or other aliases, once a caller is in inference
# mode, and no error says so. torch's own FlopCounterMode decomposes what it doesn't know, so it counts the same. The
# cure is to measure within torch.inference_mode(False).
#
# Output seen (Python 3.11, x86_64 Linux):
#   with gradients: convolution native_group_norm view t addmm split
#   no_grad: convolution native_group_norm view t addmm split
#   inference_mode: conv2d group_norm reshape linear chunk
#   inference_mode(False) within it: convolution native_group_norm view t addmm split
#   FLOPs: 18944 18944
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

"$folder/venv/bin/python" - <<'PROGRAM'
from contextlib import ExitStack, nullcontext

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

image, filters = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
matrix, bias = torch.ones(10, 256), torch.ones(10)


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def network():
    maps = F.group_norm(F.conv2d(image, filters, padding=1), 2)
    return F.linear(maps.reshape(1, 256), matrix, bias).chunk(2, 1)


def seen(*contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        log = stack.enter_context(Log())
        network()
    return " ".join(log.names)


found = {
    "with gradients": seen(nullcontext()),
    "no_grad": seen(torch.no_grad()),
    "inference_mode": seen(torch.inference_mode()),
    "inference_mode(False) within it": seen(torch.inference_mode(), torch.inference_mode(False)),
}
for name, names in found.items():
    print(f"{name}: {names}")
counts = []
for context in (torch.no_grad(), torch.inference_mode()):
    with context, FlopCounterMode(display=False) as counter:
        network()
    counts.append(counter.get_total_flops())
print("FLOPs:", *counts)

core, whole = "convolution native_group_norm view t addmm split", "conv2d group_norm reshape linear chunk"
if list(found.values()) != [core, core, whole, core] or counts[0] != counts[1]:
    raise SystemExit("The behaviour has changed.")
PROGRAM
