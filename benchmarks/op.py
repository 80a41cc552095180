"""One convolution, plain, ours and torchvision's, in one run: python benchmarks/op.py [--help].

Each provider is first held against the float64 reference; a wrong one ends the run. Then all take turns, and
the medians count: on a shared machine only ratios within one run mean something.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import dcn_ops
from dcn_ops import reference
from dcn_ops.geometry import Conv

Provider = Callable[..., Tensor]


def conv2d(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The floor: the convolution without offsets."""
    return F.conv2d(input, weight, padding=1)


def ours(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The operator, eager."""
    return dcn_ops.deform_conv2d(input, offset, weight, padding=(1, 1), mask=mask)


def theirs(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """The operator of torchvision."""
    return torchvision.ops.deform_conv2d(input, offset, weight, padding=(1, 1), mask=mask)


def make_inputs(batch: int, channels: int, size: int) -> list[Tensor]:
    """Return input, offset, weight and mask of a 3x3 convolution that keeps size and channels."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(batch, channels, size, size),
        torch.randn(batch, 18, size, size),
        torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5,
        torch.rand(batch, 9, size, size),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def check(providers: dict[str, Provider], inputs: list[Tensor]) -> None:
    """Exit where a deformable provider is wrong."""
    input, offset, weight, mask = (tensor.detach().double() for tensor in inputs)
    conv = Conv((3, 3), (1, 1), (1, 1), (1, 1), 1, 1)
    exact = reference.forward(input[:1], offset[:1], weight, None, mask[:1], conv)
    for name, provider in providers.items():
        if name != "conv2d":
            error = (provider(*inputs)[:1].double() - exact).abs().max().item()
            if not error < 1e-4:
                sys.exit(f"{name} is wrong by {error}: nothing to time")


def forward(provider: Provider, inputs: list[Tensor]) -> None:
    """Run without gradients."""
    with torch.no_grad():
        provider(*inputs)


def training(provider: Provider, inputs: list[Tensor]) -> None:
    """Run forward and backward, with every gradient."""
    output = provider(*inputs)
    torch.autograd.grad(output, inputs, torch.ones_like(output), allow_unused=True)


def timed(
    mode: Callable[..., None], providers: dict[str, Provider], inputs: list[Tensor], rounds: int, calls: int
) -> dict:
    """Return the median time of a call of each provider, in milliseconds, and its quartiles."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    for i in range(rounds + 1):  # one to warm up
        for name, provider in providers.items():
            start = time.perf_counter()
            for _ in range(calls):
                mode(provider, inputs)
            if i:
                times[name].append(1000 * (time.perf_counter() - start) / calls)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: {"ms": q[1], "quartiles": [q[0], q[2]]} for name, q in quartiles.items()}


def provenance() -> dict[str, object]:
    """Return what a number needs beside it."""
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    cpu = [line for line in run(["lscpu"]).stdout.splitlines() if line.startswith(("Model name", "CPU(s)"))]
    return {
        "command": " ".join(sys.argv),
        "commit": run(["git", "describe", "--always", "--dirty"]).stdout.strip(),
        "machine": [" ".join(line.split()) for line in cpu] or [platform.processor()],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision)},
    }


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[4, 256, 28], metavar=("N", "C", "HW"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=1, help="calls in a row, of each in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    inputs = make_inputs(*args.shape)
    providers: dict[str, Provider] = {"conv2d": conv2d, "dcn_ops": ours}
    providers["dcn_ops compiled"] = torch.compile(ours, fullgraph=True)
    providers["torchvision"] = theirs
    check(providers, inputs)
    results = {
        mode.__name__: timed(mode, providers, inputs, args.rounds, args.calls) for mode in (forward, training)
    }
    for mode, rows in results.items():
        for name, row in rows.items():
            floor, peer = row["ms"] / rows["conv2d"]["ms"], rows["torchvision"]["ms"] / row["ms"]
            print(
                f"{mode:9}{name:18}{row['ms']:9.3f} ms {floor:7.2f} x conv2d {peer:7.1f} x faster than torchvision"
            )
    if args.json:
        report = {**provenance(), "shape": args.shape, "dtype": "float32", "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
