#!/usr/bin/env bash
# torch 2.14.1: a decomposition that is registered in torch's own table replaces the fake kernel of a custom op, but
# for symbolic sizes alone.
#
# A good guess: torch._decomp.register_decomposition fills a table for those who ask for it, such as run_decompositions
# and torch.onnx.export. What fake tensors get from an op with a fake kernel stays what torch.library.register_fake
# says.
#
# What happens: where a size is symbolic, fake tensors take the table's function instead of the registered fake
# kernel. Where all sizes are static, they take the fake kernel. A custom op that returns channels_last and whose
# decomposition returns contiguous numbers then gets other strides in a dynamic torch.export, and
# torch.compile(dynamic=True) fails when it runs, with a message that blames the fake kernel, which is right.
#
# Why it matters: fast convolution ops return channels_last, and a library for deformable convolution registers
# decompositions so that exporters can write the op with common ones. It must keep them out of the global table and
# hand them to each exporter, or the registration breaks dynamic compilation of programs that never export.
#
# Output seen (Python 3.11, x86_64 Linux; the symbols' names may differ):
#   export, static sizes: strides without decomposition (192, 1, 32, 4), with (192, 1, 32, 4)
#   export, dynamic sizes: channels_last without decomposition True, with False
#   compile, static sizes: without decomposition ran, with ran
#   compile, dynamic sizes: without decomposition ran, with AssertionError: expected size 4==4, stride 1==48 at dim=1; expected size 6==6, stride 32==8 at dim=2; expected size 8==8, stride 4==1 at dim=3
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
from torch.export import Dim, export
from torch.nn.functional import avg_pool2d

last = torch.channels_last


def blur(x):
    return avg_pool2d(x, 3, stride=1, padding=1)


def custom_op(name):
    @torch.library.custom_op(f"demo::{name}", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return blur(x).clone(memory_format=last)

    @op.register_fake
    def _(x):
        return torch.empty_like(x, memory_format=last)

    return getattr(torch.ops.demo, name).default


class Layer(torch.nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x) * 2


plain, decomposed = custom_op("plain"), custom_op("decomposed")
torch._decomp.register_decomposition(decomposed)(blur)  # the one difference between the two ops
image = torch.randn(2, 4, 6, 8)


def exported(op, dynamic):
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},) if dynamic else None
    graph = export(Layer(op), (image,), dynamic_shapes=shapes).graph
    return next(node.meta["val"] for node in graph.nodes if node.target is op)


def compiled(op, dynamic):
    torch._dynamo.reset()
    try:
        torch.compile(Layer(op), dynamic=dynamic, fullgraph=True)(image)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "ran"


static = [exported(op, False).stride() for op in (plain, decomposed)]
print(f"export, static sizes: strides without decomposition {static[0]}, with {static[1]}")
symbolic = [exported(op, True).is_contiguous(memory_format=last) for op in (plain, decomposed)]
print(f"export, dynamic sizes: channels_last without decomposition {symbolic[0]}, with {symbolic[1]}")
runs = {}
for dynamic in (False, True):
    runs[dynamic] = [compiled(op, dynamic) for op in (plain, decomposed)]
    print(f"compile, {'dynamic' if dynamic else 'static'} sizes: without decomposition {runs[dynamic][0]}, "
          f"with {runs[dynamic][1]}")
if not (static[0] == static[1] and symbolic == [True, False] and runs[False] == ["ran", "ran"]
        and runs[True][0] == "ran" and runs[True][1].startswith("AssertionError: expected size")):
    raise SystemExit("The behaviour has changed.")
PROGRAM
