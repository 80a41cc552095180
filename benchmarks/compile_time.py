"""Seconds that torch.compile takes for one layer, forward and backward: python benchmarks/compile_time.py [--help].

The floor is the same composition of aten without an operator around it: an autograd.Function that calls
``dcn_ops.cpu``, which Dynamo inlines. Each compilation has a process of its own, without caches.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from dcn_ops import DeformConv2d, cpu
from dcn_ops.geometry import Conv


class Inlined(torch.autograd.Function):
    """The composition by hand."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """Save the inputs alone, as the operator does."""
        ctx.save_for_backward(*tensors)
        input, offset, weight, bias, mask = tensors
        return cpu.forward(input, offset, weight, bias, mask, CONV)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute every gradient."""
        input, offset, weight, _, mask = ctx.saved_tensors
        return cpu.backward(grad, input, offset, weight, mask, CONV, [True] * 5)


CONV = Conv((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)


class InlinedLayer(DeformConv2d):
    """The layer around it."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the offsets, and convolve."""
        offset, mask = self.offsets(input)
        return Inlined.apply(input, offset, self.weight, self.bias, mask)


LAYERS = {"inlined": InlinedLayer, "dcn_ops": DeformConv2d}


def compile_once(name: str) -> float:
    """Return the seconds of a layer's first training step over those of its second."""
    # What a process compiles first pays for imports and for the compiler's workers.
    torch.compile(torch.nn.Conv2d(8, 8, 1))(torch.randn(1, 8, 4, 4)).sum().backward()
    layer = torch.compile(LAYERS[name](64, 64, 3, padding=1), fullgraph=True)
    input, seconds = torch.randn(2, 64, 28, 28, requires_grad=True), []
    for _ in range(2):
        start = time.perf_counter()
        layer(input).sum().backward()
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


def main() -> None:
    """Take turns, and print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=LAYERS, help="compile this one in this process, print the seconds")
    args = parser.parse_args()
    if args.one:
        print(compile_once(args.one))
        return
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    seconds: dict[str, list[float]] = {name: [] for name in LAYERS}
    for _ in range(args.rounds):
        for name, values in seconds.items():
            command = [sys.executable, __file__, "--one", name]
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            values.append(float(run.stdout.split()[-1]))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.1f} to {max(seconds[name]):.1f}"
        print(f"{name:10}{median:6.1f} s ({spread}) {median / medians['inlined']:6.2f} x inlined")


if __name__ == "__main__":
    main()
