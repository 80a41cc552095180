"""Peak memory of training on a GPU, counted without one: python benchmarks/gpu_memory.py.

For every bfloat16 case of ``dcn-bench suite=gpu``: the implementation's own code runs on tensors without data, and
its launches do nothing. The bytes that are alive at the same time are counted, and the launches of a backward.
``--write`` writes the table into docs/gpu.md, between its marks.

Beside it stands the plain convolution: its input, weight and output and their gradients, and what cuDNN's took on
an H100 (benchmarks/results/cuda-gpu.json), without the 64 MiB that torch keeps for the library's products once one
ran. dcn-bench counts these for both.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from without_gpu import Live, launching_nothing
from zoo.scripts.benchmark.cases import SUITES, Case
from zoo.scripts.storage.markdown import replace_block, table

from dcn_ops.conv.kernels.triton import launch
from dcn_ops.conv.problem import make_problem

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks" / "results" / "cuda-gpu.json"
LIBRARY = 64 * 2**20  # torch's workspaces for cuBLAS and cuBLASLt on sm_90
HEAD = [
    "case",
    "plain, MB",
    "cuDNN's",
    "ours",
    "of it workspace",
    "× plain",
    "× cuDNN's",
    "in dcn-bench",
    "launches",
]


class Peak(NamedTuple):
    """The bytes of a case in training."""

    plain: int  # input, weight, output and their gradients
    maps: int  # offset, mask and their gradients
    workspace: int  # of the backward, beside both
    of_forward: int  # what a forward takes beside its output
    launches: int  # of the backward

    @property
    def ours(self) -> int:
        """All bytes of the deformable convolution, in a backward or before there are gradients."""
        return self.plain + self.maps + max(self.workspace, self.of_forward - (self.plain + self.maps) // 2)


def peak_of(case: Case) -> Peak:
    """Count a case on an H100."""
    tensors, conv, launched = tensors_of(case), case.conv, []
    integers = conv.stride, conv.padding, conv.dilation, conv.groups, conv.offset_groups
    problem = make_problem(tensors["input"], tensors["offset"], tensors["weight"], None, tensors["mask"], *integers)
    with launching_nothing(launched.append):
        with Live(list(tensors.values())) as forward:
            out = launch.forward(problem)
        grad = torch.empty_like(out)
        launched.clear()
        with Live([*tensors.values(), out, grad]) as backward:
            gradients = launch.backward(grad, problem, [True, True, True, False, True])
    plain = 2 * sum(tensor.nbytes for tensor in (tensors["input"], tensors["weight"], out))
    results = sum(tensor.nbytes for tensor in gradients if tensor is not None)
    of_maps = 2 * (tensors["offset"].nbytes + tensors["mask"].nbytes)
    extra = backward.peak - results, forward.peak - out.nbytes
    return Peak(plain, of_maps, *extra, backward.kernels + len(launched))


def tensors_of(case: Case) -> dict[str, torch.Tensor]:
    """Return the tensors of a case, without data, in the layouts of channels_last networks."""
    taps, depth = case.offset_groups * case.kernel**2, case.channels // case.groups
    shapes = {
        "input": (case.batch, case.channels, case.height, case.width),
        "offset": (case.batch, 2 * taps, case.height, case.width),
        "weight": (case.filters, depth, case.kernel, case.kernel),
        "mask": (case.batch, taps, case.height, case.width),
    }
    dtype = getattr(torch, case.dtype)
    return {
        name: torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
        for name, shape in shapes.items()
    }


def cudnn_peaks() -> dict[str, int]:
    """Return the measured peaks of cuDNN's convolution in training, without the library's workspace."""
    rows = json.loads(MEASURED.read_text())["rows"]
    wanted = (row for row in rows if (row["provider"], row["mode"]) == ("conv2d", "training") and row.get("peak"))
    return {row["case"]: row["peak"] - LIBRARY for row in wanted}


def in_bench(peak: Peak, cudnn: int) -> float:
    """Return the ratio that dcn-bench measures: beside both lie offset, mask and the library's workspace."""
    beside = LIBRARY + peak.maps // 2
    return (LIBRARY + peak.ours) / (cudnn + beside)


def lines() -> list[list[str]]:
    """Return the lines of the table."""
    found, measured = [], cudnn_peaks()
    for case in SUITES["gpu"]:
        if case.dtype != "bfloat16":
            continue
        peak = peak_of(case)
        cudnn = measured[case.name] - peak.maps // 2  # offset and mask were there
        numbers = [peak.plain, cudnn, peak.ours, peak.workspace]
        ratios = [peak.ours / peak.plain, peak.ours / cudnn, in_bench(peak, cudnn)]
        found.append(
            [case.name, *(f"{n / 1e6:.1f}" for n in numbers), *(f"{r:.2f}" for r in ratios), str(peak.launches)]
        )
    return found


def main() -> None:
    """Print the table, or write it into docs/gpu.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/gpu.md")
    args = parser.parse_args()
    text = table(HEAD, lines())
    print(text)
    if args.write:
        replace_block(ROOT / "docs" / "gpu.md", "gpu-memory", text)


if __name__ == "__main__":
    main()
