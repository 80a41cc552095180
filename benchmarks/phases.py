"""Where the time of the CPU path goes, phase by phase, each beside its floor: python benchmarks/phases.py.

Floors: for a product the convolution of as many multiply-adds (``conv2d``, or half of its backward), for what
moves memory a copy of as many bytes.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from zoo.scripts.benchmark.cases import Case

from dcn_ops.conv.kernels.contraction import Contraction
from dcn_ops.sampling.bags import gather, padded_rows, scatter, weight_backward
from dcn_ops.sampling.pieces import blocks
from dcn_ops.sampling.table import make_table, table_backward

CASES = (
    Case(batch=4, channels=256, filters=256, height=28, width=28),
    Case(batch=2, channels=128, filters=128, height=56, width=56),
    Case(batch=8, channels=64, filters=64, height=56, width=56),
    Case(batch=8, channels=96, filters=96, height=56, width=56, groups=96),
)


def phases(case: Case) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return each phase of the first piece of a case, and its floor."""
    tensors, conv = case.inputs(1.0, "cpu"), case.conv
    input, offset, weight, mask = tensors.values()
    images, chunks = next(blocks(input, input.shape[2:], conv))
    chunk, contraction = chunks[0][1][0], Contraction(weight, conv)
    rows = padded_rows(images).view(-1, input.shape[1] // conv.offset_groups)
    maps = chunk.of(offset), chunk.of(mask), input.shape[2:], input.dtype, conv, contraction.order
    table = make_table(chunk, *maps)
    samples = gather(rows, table.row, table.weight)
    of_weight = weight_backward(samples, rows, table.row)
    columns = contraction.columns(samples, chunk, case.width)
    part = chunk.of(input)
    grad = contraction.gradient(torch.randn_like(contraction.forward(columns, None)))
    total = contraction.no_gradient(torch.float32)
    entries = torch.cat((table.weight, table.weight))  # as many bytes as rows and weights

    def convolution(needs: list[bool]) -> object:
        backward = torch.ops.aten.convolution_backward
        return backward(grad, part, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], conv.groups, needs)

    return {
        "pad the image": (lambda: padded_rows(images), lambda: images.contiguous().clone()),
        "table": (lambda: make_table(chunk, *maps), lambda: entries.clone()),
        "unroll (bag)": (lambda: gather(rows, table.row, table.weight), lambda: samples.clone()),
        "contract": (
            lambda: contraction.forward(columns, None),
            lambda: F.conv2d(part, weight, padding=1, groups=conv.groups),
        ),
        "gradient of the weight": (
            lambda: contraction.add_gradient(total, grad, columns),
            lambda: convolution([False, True, False]),
        ),
        "gradient of the samples": (
            lambda: contraction.samples_backward(grad),
            lambda: convolution([True, False, False]),
        ),
        "scatter (sort and bag)": (
            lambda: scatter(samples, table.row, table.weight, len(rows)),
            lambda: samples.clone(),
        ),
        "gradient of the weights of samples": (
            lambda: weight_backward(samples, rows, table.row),
            lambda: samples.clone(),
        ),
        "gradient of offset and mask": (lambda: table_backward(of_weight, table), lambda: entries.clone()),
    }


def main(rounds: int = 9) -> None:
    """Print a Markdown table for each case."""
    torch.set_num_threads(2)
    for case in CASES:
        steps = phases(case)
        times: dict[tuple[str, int], list[float]] = {(name, i): [] for name in steps for i in (0, 1)}
        for round_ in range(rounds + 1):
            for name, pair in steps.items():
                for i, step in enumerate(pair):
                    start = time.perf_counter()
                    step()
                    if round_:
                        times[name, i].append(1000 * (time.perf_counter() - start))
        print(f"\n| {case.name}, a piece | ms | floor ms |\n|---|---|---|")
        for name in steps:
            print(f"| {name} | {statistics.median(times[name, 0]):.2f} | {statistics.median(times[name, 1]):.2f} |")


if __name__ == "__main__":
    with torch.no_grad():
        main()
