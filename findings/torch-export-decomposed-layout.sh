#!/usr/bin/env bash
# torch 2.14.1: an exported program takes an image in every memory layout; the same program after run_decompositions
# refuses a channels_last one.
#
# A good guess: run_decompositions rewrites operators and keeps what the program accepts. Its guards, of shape and
# dtype, say nothing of strides, and eager networks take every layout.
#
# What happens: flatten and reshape are decomposed with the strides of the example. Where it was contiguous they become
# `view`, which raises for a layout that has no such view. Where the example was channels_last they become `clone` and
# `view`, which take both. So the layout of the example image decides, without a word at export.
#
# Why it matters: programs of core ATen are what other runtimes and torch.export.save get. A network that samples with
# offset groups, or by gathers, merges axes: traced with one layout, it fails in production with the other. A
# decomposition that must hold for both has to copy before it reshapes.
#
# Output seen (Python 3.11, x86_64 Linux):
#   example contiguous, exported: flatten; contiguous ran, channels_last ran
#   example contiguous, decomposed: view; contiguous ran, channels_last RuntimeError
#   example channels_last, exported: flatten; contiguous ran, channels_last ran
#   example channels_last, decomposed: clone, view; contiguous ran, channels_last ran
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 numpy==2.3.5

export OMP_NUM_THREADS=1
"$folder/venv/bin/python" - <<'PROGRAM'
import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()).eval()
layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
images = {name: torch.randn(2, 3, 5, 5).contiguous(memory_format=layout) for name, layout in layouts.items()}


def ran(program, image):
    try:
        torch.testing.assert_close(program.module()(image), model(image))
    except RuntimeError as error:
        return type(error).__name__
    return "ran"


found = {}
for example, image in images.items():
    exported = torch.export.export(model, (image,))
    for kind, program in {"exported": exported, "decomposed": exported.run_decompositions()}.items():
        names = [node.target._opname for node in program.graph.nodes if node.op == "call_function"][1:]
        answers = [ran(program, images[name]) for name in images]
        found[example, kind] = (names, answers)
        print(f"example {example}, {kind}: {', '.join(names)}; contiguous {answers[0]}, channels_last {answers[1]}")
if found != {
    ("contiguous", "exported"): (["flatten"], ["ran", "ran"]),
    ("contiguous", "decomposed"): (["view"], ["ran", "RuntimeError"]),
    ("channels_last", "exported"): (["flatten"], ["ran", "ran"]),
    ("channels_last", "decomposed"): (["clone", "view"], ["ran", "ran"]),
}:
    raise SystemExit("The behaviour has changed.")
PROGRAM
