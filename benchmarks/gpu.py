"""What is to be measured on a GPU, in one command: python benchmarks/gpu.py.

Runs the tests that need a GPU, and only if they pass the cases and networks, each beside its peers; the numbers and
the bounds, met or missed, go to benchmarks/results/cuda-*.json. Kernels are compiled before, on all cores.
"""

import os
import subprocess
import sys
from multiprocessing import get_context

import torch
from zoo.scripts.benchmark import measure
from zoo.scripts.benchmark.cases import SUITES, Case

PROCESSES = min(14, os.cpu_count() or 1)
TESTS = ["pytest", "tests/gpu/test_cuda.py", "-q", "-n", str(PROCESSES)]
BENCH = ["zoo.scripts.bench", "device=cuda"]
MEASUREMENTS = [
    [*BENCH, "suite=gpu", "rounds=4", "providers=[conv2d,eager,torchvision,deformops]"],
    [
        *BENCH,
        "suite=gpu",
        "case=32x256x56x56-bfloat16",
        "rounds=4",
        "providers=[conv2d,eager,compiled,composition]",
        "json=benchmarks/results/cuda-compiled.json",
    ],
    [*BENCH, "suite=models", "models=[resnet50]", "batch=64", "autocast=true"],
]


def compile_kernels() -> None:
    """Run the operator once in every case of the suite: Triton's cache keeps what it compiles."""
    with get_context("spawn").Pool(PROCESSES) as pool:
        pool.map(_run_once, SUITES["gpu"], chunksize=1)


def _run_once(case: Case) -> None:
    measure.steps_of(case, "training", ["eager"], 1.0, "cuda")


def _run(command: list[str]) -> None:
    print("+", *command, flush=True)
    if code := subprocess.run([sys.executable, "-m", *command], check=False).returncode:
        sys.exit(code)


def main() -> None:
    """Run the commands in order; stop at the first that fails."""
    if not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; on the CPU: dcn-bench suite=op")
    _run(TESTS)
    compile_kernels()
    for command in MEASUREMENTS:
        _run(command)


if __name__ == "__main__":
    main()
