#!/usr/bin/env bash
# torch 2.14.1: in compiled code, a tensor that several custom operators read is written once for each of them.
#
# A good guess: four heads are custom operators, and all read the same features. torch.compile can't look into the
# heads, so it computes the features, stores them once, as eager execution does, and passes that buffer to all four.
#
# What happens: one loop computes the features and writes them four times, into four buffers that live at the same time.
# Each operator gets its own. A custom operator has the tag needs_exact_strides unless it says otherwise. For that
# Inductor copies what is not in memory yet into a new buffer, without asking whether another operator has one already.
#
# Why it matters: networks with custom operators (attention, deformable convolution, NMS heads) take several times the
# memory of eager execution for such features, and the bandwidth to write them. An operator that accepts any strides
# should be defined with torch.Tag.flexible_layout: then there is one buffer.
#
# Output seen (Python 3.11, x86_64 Linux, g++ 12.2):
#   copies of the features: eager 1, compiled 4, compiled with Tag.flexible_layout 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import torch

seen = []


def define(name, **options):
    @torch.library.custom_op(f"probe::{name}", mutates_args=(), **options)
    def mean(x: torch.Tensor, head: int) -> torch.Tensor:
        seen.append(x.data_ptr())
        return x.mean(0) + head

    @mean.register_fake
    def _(x, head):
        return x.new_empty(x.shape[1:])

    return mean


def copies(op, compiled):
    def heads(x):
        features = (x * 2 + 1).relu()
        return [op(features, head) for head in range(4)]

    seen.clear()
    function = torch.compile(heads, fullgraph=True) if compiled else heads
    results = function(torch.ones(1024, 256))
    assert all(torch.equal(result, torch.full((256,), 3.0 + head)) for head, result in enumerate(results))
    return len(set(seen))


plain, flexible = define("plain"), define("flexible", tags=torch.Tag.flexible_layout)
found = copies(plain, False), copies(plain, True), copies(flexible, True)
print("copies of the features: eager %d, compiled %d, compiled with Tag.flexible_layout %d" % found)
if found != (1, 4, 1):
    raise SystemExit("The behaviour has changed.")
PROGRAM
