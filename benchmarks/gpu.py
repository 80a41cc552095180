"""What is to be measured on a GPU, in one command: python benchmarks/gpu.py.

Runs the tests that need a GPU, and only if they pass the cases and networks, each beside its peers; the numbers and
the bounds, met or missed, go to benchmarks/results/cuda-*.json. Kernels are compiled before, on all cores.

``--only PART`` measures one part: candidates of the forward or the backward, the aggregation, single images in CUDA
graphs, what calls cost the CPU, or the convolution.
``--dry-run`` prints the commands, and runs on a CPU what can run there.
"""

import argparse
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import torch
from zoo.scripts.benchmark import measure
from zoo.scripts.benchmark.cases import SUITES, Case

PROCESSES = min(14, os.cpu_count() or 1)
TESTS = ["tests/gpu/test_cuda.py", "tests/gpu/test_cuda_aggregate.py"]
BENCH = ["-m", "zoo.scripts.bench", "device=cuda"]
FOLDER = Path(__file__).parent
# What was never measured comes first.
SCRIPTS = {
    "forward": [str(FOLDER / "candidates_gpu.py"), "forward"],
    "backward": [str(FOLDER / "candidates_gpu.py"), "backward"],
    "aggregation": [str(FOLDER / "aggregate_gpu.py")],
    "graphs": [str(FOLDER / "graphs_gpu.py")],
    "overhead": [str(FOLDER / "gpu_overhead.py")],
}
PARTS = (*SCRIPTS, "convolution")
CONVOLUTION = [
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


def _run(command: list[str], dry: bool = False) -> None:
    print("+ python", *command, flush=True)
    if not dry and (code := subprocess.run([sys.executable, *command], check=False).returncode):
        sys.exit(code)


def main() -> None:
    """Run the commands in order; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="measure only this")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands; run on a CPU what can run there"
    )
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; on the CPU: dcn-bench suite=op, or --dry-run")
    _run(["-m", "pytest", *TESTS, "-q", "-n", str(PROCESSES)], args.dry_run)
    parts = [args.only] if args.only else PARTS
    for part in parts:
        if part in SCRIPTS:
            _run([*SCRIPTS[part], "--dry-run"] if args.dry_run else SCRIPTS[part])
    if "convolution" in parts:
        if not args.dry_run:
            compile_kernels()
        for command in CONVOLUTION:
            _run(command, args.dry_run)


if __name__ == "__main__":
    main()
