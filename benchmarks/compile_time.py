"""CPU seconds that torch.compile takes: python benchmarks/compile_time.py [--layer | --dynamic] [--rounds 5].

Of a whole network, the plain one and the one with deformable convolutions, for fixed sizes. With ``--dynamic`` the
same of two convolutions under ``dynamic=True``. With ``--layer``, wall-clock seconds of one layer as a composition
of aten; the floor is the same aten without an operator around it: an autograd.Function that calls
``dcn_ops.conv.kernels.traced``, which Dynamo inlines. Each compilation has a process of its own, without caches.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn

import dcn_ops
from dcn_ops import DeformConv2d
from dcn_ops.conv.kernels import traced
from dcn_ops.conv.problem import Problem
from dcn_ops.sampling.geometry import Conv
from zoo import inject_


class Inlined(torch.autograd.Function):
    """The composition by hand."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """Save the inputs alone, as the operator does."""
        ctx.save_for_backward(*tensors)
        input, offset, weight, bias, mask = tensors
        return traced.forward(Problem(input, offset, weight, bias, mask, CONV))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute every gradient."""
        input, offset, weight, _, mask = ctx.saved_tensors
        return traced.backward(grad, Problem(input, offset, weight, None, mask, CONV), [True] * 5)


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
    _warm_up()
    dcn_ops.set_implementation("composition")
    layer = torch.compile(LAYERS[name](64, 64, 3, padding=1), fullgraph=True)
    input, seconds = torch.randn(2, 64, 28, 28, requires_grad=True), []
    for _ in range(2):
        start = time.perf_counter()
        layer(input).sum().backward()
        seconds.append(time.perf_counter() - start)
    return seconds[0] - seconds[1]


NETWORKS = {"plain": "auto", "dcn": "auto", "composition": "composition"}  # the last two have deformable layers


def compile_network(name: str, mode: str) -> float:
    """Return the CPU seconds of a ResNet-18's first call at 96 pixels, compiler processes included."""
    _warm_up()
    dcn_ops.set_implementation(NETWORKS[name])
    net = timm.create_model("resnet18").train(mode == "training")
    if name != "plain":
        inject_(net)
        dcn_ops.deform_conv2d(
            torch.ones(1, 1, 1, 1), torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1, 1)
        )  # finds the library
    return _cpu_seconds_of_first_call(torch.compile(net, fullgraph=True), torch.randn(2, 3, 96, 96), mode)


def _cpu_seconds_of_first_call(net: Callable[[Tensor], Tensor], image: Tensor, mode: str) -> float:
    start = _cpu_seconds()
    with torch.set_grad_enabled(mode == "training"):
        out = net(image)
    if mode == "training":
        out.sum().backward()
    return _cpu_seconds() - start


def _warm_up() -> None:
    # What a process compiles first pays for imports and for the compiler's workers.
    torch.compile(torch.nn.Conv2d(8, 8, 1))(torch.randn(1, 8, 4, 4)).sum().backward()


MODES = ("inference", "training")
KINDS = {"dense": 1, "grouped": 4, "depthwise": 16}  # by groups, of 16 channels
CONVOLUTIONS: dict[str, type[nn.Conv2d]] = {"plain": nn.Conv2d, "dcn": DeformConv2d}


def compile_for_any_size(name: str, kind: str, mode: str) -> float:
    """Return the CPU seconds of the first call, for symbolic sizes, compiler processes included."""
    _warm_up()
    groups = KINDS[kind]
    layer = CONVOLUTIONS[name](16, 16 if kind == "depthwise" else 24, 3, stride=2, padding=1, groups=groups)
    net = torch.compile(nn.Sequential(nn.Conv2d(3, 16, 3), layer), fullgraph=True, dynamic=True)
    return _cpu_seconds_of_first_call(net, torch.randn(2, 3, 20, 28), mode)


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def medians(choices: list[list[str]], rounds: int) -> list[tuple[float, str]]:
    """Take turns; return the median of each choice, and its spread."""
    # Without workers that compile ahead, and outlive the measurement.
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    seconds: list[list[float]] = [[] for _ in choices]
    for _ in range(rounds):
        for choice, values in zip(choices, seconds, strict=True):
            command = [sys.executable, __file__, "--one", *choice]
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            values.append(float(run.stdout.split()[-1]))
    return [(statistics.median(values), f"{min(values):.1f} to {max(values):.1f}") for values in seconds]


def main() -> None:
    """Measure, and print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dynamic", action="store_true", help="for symbolic sizes, two convolutions")
    parser.add_argument("--layer", action="store_true", help="a layer as a composition, beside its aten")
    parser.add_argument("--one", nargs="+", help="compile this one in this process, print the seconds")
    args = parser.parse_args()
    if args.one:
        print((compile_once, compile_network, compile_for_any_size)[len(args.one) - 1](*args.one))
    elif args.layer:
        found = dict(zip(LAYERS, medians([[name] for name in LAYERS], args.rounds), strict=True))
        for name, (median, spread) in found.items():
            print(f"{name:10}{median:6.1f} s ({spread}) {median / found['inlined'][0]:6.2f} x inlined")
    elif args.dynamic:
        print_table(
            {f"{kind}, {mode}": [[n, kind, mode] for n in CONVOLUTIONS] for kind in KINDS for mode in MODES},
            args.rounds,
        )
    else:
        print_table({mode: [[name, mode] for name in NETWORKS] for mode in MODES}, args.rounds)


def print_table(lines: dict[str, list[list[str]]], rounds: int) -> None:
    """Print the median of the first choice of each line in CPU seconds, and of the others as multiples of it."""
    names = [choice[0] for choice in next(iter(lines.values()))]
    print(f"| | {names[0]}, CPU s | {' | '.join(names[1:])} |", "| --- |" + " ---: |" * len(names), sep="\n")
    for title, choices in lines.items():
        first, *others = [median for median, _ in medians(choices, rounds)]
        print(f"| {title} | {first:.1f} | {' | '.join(f'{other / first:.2f}' for other in others)} |", flush=True)


if __name__ == "__main__":
    main()
