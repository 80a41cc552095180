"""Speed of deform_aggregate (DCNv3, DCNv4) on the CPU: python benchmarks/aggregate.py [--threads 1] [--rounds 7].

On the four maps of InternImage-T, batch 8, groups of 16 channels, 3x3 taps, float32. Beside it: the same sums by
``grid_sample`` in plain torch, which is how the authors' own reference computes them; the composition, in eager and
compiled; and a depthwise 3x3 ``deform_conv2d`` with as many offset groups. All are first compared with the float64
reference. Writes benchmarks/results/cpu-aggregate.json and, with ``--markdown FILE``, its table. ``--near 10``
measures a map with two threads again, up to ten times, until the two cores shared a cache (``cores.py``).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cores
import torch
from torch import Tensor
from zoo.scripts.storage import markdown
from zoo.scripts.storage.provenance import provenance
from zoo.scripts.timing import interleaved

import dcn_ops
from dcn_ops.aggregate import reference
from dcn_ops.aggregate.window import Window
from dcn_ops.interop import aggregate as portable

MAPS = ((56, 4), (28, 8), (14, 16), (7, 32))  # size and groups
WIDTH = 16  # channels of a group
RESULTS = Path(__file__).parent / "results" / "cpu-aggregate.json"
Sums = Callable[[Tensor, Tensor, Tensor], Tensor]


def window(groups: int) -> Window:
    """Return the numbers of a 3x3 aggregation that keeps the size."""
    return Window((3, 3), (1, 1), (1, 1), (1, 1), groups, 1.0, False)


def inputs(size: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw input [8, H, W, C], offset with a standard deviation of one pixel, and mask."""
    torch.manual_seed(0)
    shape = (8, size, size)
    return torch.randn(*shape, groups * WIDTH), torch.randn(*shape, groups * 18), torch.rand(*shape, groups * 9)


def sums(groups: int) -> tuple[Sums, Sums, Sums]:
    """Return the operator, its composition, and the same by ``grid_sample``."""
    numbers = window(groups)

    def operator(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return torch.ops.dcn_ops.deform_aggregate(input, offset, mask, *numbers)

    def composition(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        with dcn_ops.settings(implementation="composition"):
            return operator(input, offset, mask)

    def grid_sample(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return portable.forward(input, offset, mask, numbers, "grid_sample", True)

    return operator, composition, grid_sample


def providers(groups: int) -> dict[str, Sums]:
    """Return what is timed, by name, as functions of input, offset and mask."""
    channels = groups * WIDTH
    native, composition, grid_sample = sums(groups)
    filters = torch.ones(channels, 1, 3, 3)

    def depthwise(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        features, offset, mask = (tensor.permute(0, 3, 1, 2) for tensor in (input, offset, mask))
        pairs = (1, 1), (1, 1), (1, 1)
        return torch.ops.dcn_ops.deform_conv2d(features, offset, filters, None, mask, *pairs, channels, groups)

    torch._dynamo.reset()  # for each map anew, with fixed sizes
    loops = torch.compile(lambda *tensors: native(*tensors), fullgraph=True, dynamic=False)

    def compiled(input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        with dcn_ops.settings(implementation="composition"):
            return loops(input, offset, mask)

    return {
        "native": native,
        "grid_sample": grid_sample,
        "composition": composition,
        "composition, compiled": compiled,
        "depthwise deform_conv2d": depthwise,
    }


def error(sums: Sums, tensors: tuple[Tensor, Tensor, Tensor], groups: int) -> float:
    """Return the largest error against the float64 reference."""
    exact = reference.forward(*(tensor.double() for tensor in tensors), window(groups))
    return (sums(*tensors).detach() - exact).abs().max().item()


def training(sums: Sums, tensors: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    """Return a call of forward and backward, with every gradient."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def call() -> None:
        out = sums(*leaves)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return call


def measure(size: int, groups: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each provider and mode."""
    tensors, found, rows = inputs(size, groups), providers(groups), []
    for name, sums in found.items():
        if name != "depthwise deform_conv2d":  # its offsets are (y, x)
            assert error(sums, tensors, groups) < 1e-4, name
    for mode in ("forward", "training"):
        calls: dict[str, Callable[[], object]] = {
            name: (lambda s=sums: s(*tensors)) if mode == "forward" else training(sums, tensors)
            for name, sums in found.items()
        }
        with torch.set_grad_enabled(mode == "training"):
            times = interleaved(calls, rounds, seconds=0.05)
        for name, measured in times.items():
            rows.append(
                {"map": f"{size}x{size}", "groups": groups, "mode": mode, "provider": name, **measured._asdict()}
            )
    return rows


def measure_near(size: int, groups: int, rounds: int, tries: int) -> list[dict[str, Any]]:
    """Return the same, of the try with the least time between two cores, before or after: ``core_ns``."""
    found: list[tuple[int, list[dict[str, Any]]]] = []
    for _ in range(tries):
        before = cores.nanoseconds()
        if before > cores.NEAR:
            time.sleep(20)
            continue
        rows = measure(size, groups, rounds)
        found.append((max(before, cores.nanoseconds()), rows))
        if found[-1][0] <= cores.NEAR:
            break
    if not found:
        raise SystemExit(f"--near {tries}: the cores never shared a cache; try again later, or without it")
    apart, rows = min(found, key=lambda one: one[0])
    return [{**row, "core_ns": apart} for row in rows]


def grid(rows: list[dict[str, Any]]) -> str:
    """Return a table: milliseconds of the native kernel, and the others as multiples of it."""
    names = list(dict.fromkeys(row["provider"] for row in rows))
    head = ["map", "mode", "threads", "native ms", *names[1:]]
    lines: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        lines.setdefault((row["map"], row["mode"], row["threads"]), {})[row["provider"]] = row["median"]
    return markdown.table(
        head,
        [
            [size, mode, str(threads), f"{ms['native']:.2f}", *(f"{ms[n] / ms['native']:.1f}" for n in names[1:])]
            for (size, mode, threads), ms in lines.items()
        ],
    )


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--markdown", type=Path, help="write the table into this file, between the marks cpu-aggregate"
    )
    parser.add_argument("--near", type=int, help="tries, with two threads, to measure where cores share a cache")
    args = parser.parse_args()
    dcn_ops.set_implementation("native")  # an error where there is none
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size, groups in MAPS:
            if args.near and threads > 1:
                measured = measure_near(size, groups, args.rounds, args.near)
            else:
                measured = measure(size, groups, args.rounds)
            rows += [{**row, "threads": threads} for row in measured]
    about = provenance("python benchmarks/aggregate.py")
    RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    table = f"{grid(rows)}\n\n(`{about['command']}`, commit {about['commit']}.)"
    print(table)
    if args.markdown:
        markdown.replace_block(args.markdown, "cpu-aggregate", table)


if __name__ == "__main__":
    main()
