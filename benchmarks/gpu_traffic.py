"""What each kernel moves and computes on a GPU, counted from the launches: python benchmarks/gpu_traffic.py.

The implementation's own code plans forward and backward of the telling cases for an H100, on tensors without data.
A launch counts by its tile and its numbers. ``--write`` writes the table into docs/gpu.md, between its marks.

- *memory*: every tensor that a kernel reads or writes, once;
- *caches*: what its programs read and write, if the caches of multiprocessors keep nothing: an upper limit of what
  goes through L2. Neighbours of samples make up most of it;
- *atomics*: additions of numbers;
- *floor*: the time of memory or arithmetic, the larger one, at what an H100 reached: 3.0 TB/s, 783 TFLOP/s on
  tensor cores; 67 TFLOP/s, its data sheet's, for what runs without them. *L2*: the time of caches, at the 5.6 TB/s
  that unrolling reached.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from gpu_memory import tensors_of
from torch.utils._python_dispatch import TorchDispatchMode
from without_gpu import launching_nothing
from zoo.scripts.benchmark.cases import SUITES
from zoo.scripts.storage.markdown import replace_block, table

from dcn_ops.aggregate.kernels.triton import launch as aggregate
from dcn_ops.aggregate.problem import make_problem as aggregate_problem
from dcn_ops.conv.kernels.triton import launch
from dcn_ops.conv.kernels.triton.plan import KERNELS
from dcn_ops.conv.problem import make_problem
from dcn_ops.triton.launch import Plan

CASES = (
    "32x256x56x56-bfloat16",
    "32x512x28x28-bfloat16",
    "8x128x100x168-bfloat16",
    "8x96x56x56-k7-dw-bfloat16",
    "8x256x28x28-g32-bfloat16",
)
MAPS = ((56, 4), (14, 16))  # of InternImage-T, batch 64: side, groups of 16 channels
HALF, FLOAT, SAMPLE = 2, 4, 16  # bytes; SAMPLE: of a sample in the lists
MEMORY, CACHE, PRODUCT, VECTOR = 3.0e12, 5.6e12, 783e12, 67e12  # a second
NAMES = {kernel.fn.__name__ + kernel.fn.__module__: name for name, kernel in KERNELS.items()}
HEAD = ["case", "kernel", "launches", "GFLOP", "memory, MB", "caches, MB", "atomics, M", "floor, µs", "L2, µs"]
Numbers = dict[str, Any]


@dataclass
class Cost:
    """What a kernel costs, added up over its launches."""

    launches: int = 0
    products: float = 0  # flops on tensor cores
    vectors: float = 0  # other flops
    memory: float = 0
    caches: float = 0
    atomics: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the sum."""
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def line(self) -> list[str]:
        """Return the numbers of the table."""
        time = max(self.memory / MEMORY, self.products / PRODUCT + self.vectors / VECTOR)
        scaled = (self.products + self.vectors) / 1e9, self.memory / 1e6, self.caches / 1e6, self.atomics / 1e6
        return [
            str(self.launches),
            *(f"{n:.1f}" if n < 100 else f"{n:.0f}" for n in scaled),
            f"{1e6 * time:.0f}",
            f"{1e6 * self.caches / CACHE:.0f}",
        ]


def cost_of(plan: Plan) -> tuple[str, Cost]:
    """Return the name of a launch's kernel, and its cost."""
    name = NAMES.get(plan.function.fn.__name__ + plan.function.fn.__module__, "aggregation")
    numbers = dict(plan.arguments)
    if name == "aggregation":
        backward = "NEED_INPUT" in numbers
        return f"aggregation {'backward' if backward else 'forward'}", _aggregation(numbers, backward)
    if "gather" in name:
        name = "depthwise gather" if numbers["DEPTHWISE"] else "gather"
        return name, _gather(numbers, plan)
    counts = {"count": _lists, "order": _lists, "unroll": _unroll}
    return name, counts.get(name, _depthwise if name.startswith("depthwise") else _fused)(numbers, name)


def _blocks(size: int, side: int) -> int:
    return -(-size // side)


def _maps(n: Numbers) -> int:
    """Return the bytes of offset and mask."""
    return HALF * n["M"] * n["TAPS"] * (n["CHANNELS"] // n["OFFSET_DEPTH"]) * (2 + n.get("HAS_MASK", False))


def _image(n: Numbers, channels: int | None = None) -> int:
    """Return the bytes of the images; they are as large as the maps in these cases."""
    return HALF * n["M"] * (channels or n["CHANNELS"])


def _fused(n: Numbers, name: str) -> Cost:
    """Count a fused kernel of a dense or grouped convolution."""
    m, taps, channels, filters = n["M"], n["TAPS"], n["CHANNELS"], n["FILTERS"]
    merged, weights = n["MERGED"] * n["WIDTH"], HALF * filters * taps * n["DEPTH"]
    across = _blocks(merged, n["BLOCK_N"])
    steps = channels // n["SEGMENT"] * _blocks(n["SEGMENT"], n["BLOCK_C"])
    neighbours, output = 4 * HALF * m * taps * channels, HALF * m * filters
    products = 2 * m * taps * channels * merged  # with the zeros of merged groups
    if name == "forward":
        caches = across * neighbours + _blocks(m, n["BLOCK_M"]) * weights + output
        return Cost(1, products, 8 * m * taps * channels, _image(n) + _maps(n) + weights + output, caches)
    again = HALF * m * taps * steps * merged  # the gradient of the output, for each tap and block of channels
    if name == "weight":
        parts = FLOAT * n["SPLITS"] * weights // HALF
        memory = _image(n) + _maps(n) + output + parts
        return Cost(1, products, 8 * m * taps * channels, memory, across * neighbours + again + parts)
    sums = FLOAT * m * channels if n["NEED_INPUT"] else 0
    memory = _image(n) + 2 * _maps(n) + output + weights + sums
    caches = neighbours + again + _blocks(m, n["BLOCK_M"]) * weights
    atomics = 4 * m * taps * channels if n["NEED_INPUT"] else 0
    return Cost(1, products, 16 * m * taps * channels, memory, caches + FLOAT * atomics, atomics)


def _depthwise(n: Numbers, name: str) -> Cost:
    """Count a kernel of a depthwise convolution, except its gather."""
    m, taps, filters = n["M"], n["TAPS"], n["CHANNELS"] * n["WIDTH"]
    neighbours, output, weights = 4 * HALF * m * taps * filters, HALF * m * filters, HALF * taps * filters
    if name.endswith("forward"):
        caches = neighbours + output + _blocks(m, n["BLOCK_M"]) * weights
        return Cost(1, 0, 10 * m * taps * filters, _image(n) + _maps(n) + output + weights, caches)
    if name.endswith("weight"):
        parts, atomics = 2 * FLOAT * n["SPLITS"] * taps * filters, _blocks(m, n["BLOCK_M"]) * taps * filters
        memory = _image(n) + _maps(n) + output + parts
        return Cost(1, 0, 10 * m * taps * filters, memory, neighbours + output + FLOAT * atomics, atomics)
    sums = FLOAT * m * n["CHANNELS"] if n["NEED_INPUT"] else 0
    atomics = 4 * m * taps * n["CHANNELS"] if n["NEED_INPUT"] else 0
    memory = _image(n) + 2 * _maps(n) + output + weights + sums
    caches = neighbours + taps * output + FLOAT * atomics
    return Cost(1, 0, 16 * m * taps * filters, memory, caches, atomics)


def _lists(n: Numbers, name: str) -> Cost:
    """Count what orders the samples."""
    samples = n["M"] * n["TAPS"] * n["OFFSET_GROUPS"]
    size = 2 * HALF * samples if name == "count" else _maps(n | {"CHANNELS": n["OFFSET_GROUPS"], "OFFSET_DEPTH": 1})
    size += SAMPLE * samples if name == "order" else 0
    return Cost(1, 0, 0, size, size + FLOAT * samples, samples)


def _unroll(n: Numbers, name: str) -> Cost:
    """Count the columns, and the gradients of offset and mask."""
    part = n["CHANNELS"] // n["OFFSET_DEPTH"] * n["PART"]
    columns, maps = HALF * n["M"] * n["TAPS"] * part, n["NEED_OFFSET"] or n["NEED_MASK"]
    moved = columns * (n["NEED_COLUMNS"] + maps)
    memory = moved + _image(n, part) + _maps(n) * (1 + maps)
    return Cost(1, 0, 16 * n["M"] * n["TAPS"] * part, memory, 4 * columns + moved)


def _gather(n: Numbers, plan: Plan) -> Cost:
    """Count the gradient of the input: programs read the samples of their rows, and of one more row and column."""
    rows, width = n["BLOCK_M"] // n["LENGTH"], n["CHANNELS"] // n["OFFSET_DEPTH"] * n["PART"]
    samples = n["SAMPLES"]
    times = (rows + 1) / rows * (n["LENGTH"] + 1) / n["LENGTH"]
    sides = 3 if n["DEPTHWISE"] else 2  # products of the rounded numbers and of their rests
    each = HALF * width * (2 * n["WIDTH"] if n["DEPTHWISE"] else 1)  # the gradient, and the filters of the tap
    image = HALF * n["H"] * n["W"] * n["IMAGES"] * width
    read = image * n["WIDTH"] if n["DEPTHWISE"] else each * samples
    products = 2 * sides * n["BLOCK_M"] * times * samples * width
    memory = read + SAMPLE * samples + image
    return Cost(1, products, 0, memory, times * samples * (each + SAMPLE) + image)


def _aggregation(n: Numbers, backward: bool) -> Cost:
    m, channels, taps = n["M"], n["CHANNELS"], n["TAPS"]
    image, maps = HALF * m * channels, 3 * HALF * m * taps * channels // n["DEPTH"]
    shares = 4 * m * taps * channels
    if not backward:
        return Cost(1, 0, 2 * shares, 2 * image + maps, HALF * shares + maps + image)
    memory = 2 * image + FLOAT * m * channels + 2 * maps
    return Cost(1, 0, 6 * shares, memory, (HALF + FLOAT) * shares + taps * image + 2 * maps, shares)


class Products(TorchDispatchMode):
    """Counts the library's products of matrices."""

    def __init__(self, costs: dict[str, Cost]) -> None:
        """Take where to add."""
        super().__init__()
        self._costs = costs

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and count it if it is a product."""
        result = function(*args, **(kwargs or {}))
        if str(function).startswith("aten.mm"):
            left, right = args[:2]
            size = left.nbytes + right.nbytes + result.nbytes
            self._costs["products (library)"] += Cost(1, 2 * left.numel() * right.shape[1], 0, size, size)
        return result


def costs_of(name: str) -> dict[str, Cost]:
    """Return the costs of the kernels of a convolution, forward and backward."""
    case = next(case for case in SUITES["gpu"] if case.name == name)
    tensors, conv = tensors_of(case), case.conv
    integers = conv.stride, conv.padding, conv.dilation, conv.groups, conv.offset_groups
    problem = make_problem(tensors["input"], tensors["offset"], tensors["weight"], None, tensors["mask"], *integers)
    costs: dict[str, Cost] = defaultdict(Cost)
    ordered = 0  # output positions of the samples that were ordered last

    def record(plan: Plan) -> None:
        nonlocal ordered
        ordered = plan.arguments.get("M", ordered) if "SORTED" in plan.arguments else ordered
        samples = {
            "SAMPLES": ordered * conv.taps * conv.offset_groups,
            "IMAGES": ordered // case.height // case.width,
        }
        kernel, cost = cost_of(plan._replace(arguments=plan.arguments | samples))
        costs[kernel] += cost

    with launching_nothing(record), Products(costs):
        out = launch.forward(problem)
        launch.backward(torch.empty_like(out), problem, [True, True, True, False, True])
    return costs


def costs_of_aggregation(size: int, groups: int) -> dict[str, Cost]:
    """Return the costs of both kernels of the aggregation, batch 64."""
    image, offset, mask = (
        torch.empty(64, size, size, channels, dtype=torch.bfloat16, device="meta")
        for channels in (16 * groups, 18 * groups, 9 * groups)
    )
    problem = aggregate_problem(image, offset, mask, (3, 3), (1, 1), (1, 1), (1, 1), groups, 1.0, False)
    costs: dict[str, Cost] = defaultdict(Cost)

    def record(plan: Plan) -> None:
        kernel, cost = cost_of(plan)
        costs[kernel] += cost

    with launching_nothing(record):
        aggregate.backward(aggregate.forward(problem), problem, [True, True, True])
    return costs


def lines() -> list[list[str]]:
    """Return the lines of the table."""
    found = {name.removesuffix("-bfloat16"): costs_of(name) for name in CASES}
    found |= {
        f"64x{16 * groups}x{size}x{size} aggregation": costs_of_aggregation(size, groups) for size, groups in MAPS
    }
    return [[case, kernel, *cost.line()] for case, costs in found.items() for kernel, cost in costs.items()]


def main() -> None:
    """Print the table, or write it into docs/gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu.md")
    args = parser.parse_args()
    text = table(HEAD, lines())
    print(text)
    if args.write:
        replace_block(Path(__file__).parents[1] / "docs" / "gpu.md", "gpu-traffic", text)


if __name__ == "__main__":
    main()
