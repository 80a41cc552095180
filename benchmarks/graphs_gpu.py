"""Single images without the cost of launching them: python benchmarks/graphs_gpu.py.

For every bfloat16 case of one image of ``dcn-bench suite=gpu``: cuDNN's convolution and this library's operator,
each captured in a CUDA graph, forward, and forward and backward with every gradient. First, results are compared
with the float64 reference. It writes benchmarks/results/cuda-graphs.json. ``--dry-run`` runs the steps once on a
CPU, with small images, and writes nothing.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from zoo.scripts.benchmark import gpu, measure
from zoo.scripts.benchmark.cases import SUITES
from zoo.scripts.storage.files import atomically
from zoo.scripts.storage.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "cuda-graphs.json"
CASES = [case for case in SUITES["gpu"] if case.batch == 1 and case.dtype == "bfloat16"]


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """Return the replay of a step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dry-run", action="store_true", help="the steps once on a CPU, with small images")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        sys.exit("error: torch.cuda finds no GPU; on the CPU: --dry-run")
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for mode in measure.MODES:
            chosen = replace(case, channels=16, filters=16, height=5, width=7) if args.dry_run else case
            steps, refused = measure.steps_of(
                chosen, mode, ["conv2d", "eager"], 1.0, "cpu" if args.dry_run else "cuda"
            )
            if refused:
                sys.exit(f"error: {refused}")
            if args.dry_run:
                print(f"{case.name:<24} {mode:<8} {', '.join(name for name, step in steps.items() if step())}")
                continue
            times = gpu.timed({name: captured(step) for name, step in steps.items()}, args.rounds)
            ratio = times["eager"]["ms"] / times["conv2d"]["ms"]
            rows += [{"case": case.name, "mode": mode, "provider": name, **time} for name, time in times.items()]
            print(f"{case.name:<24} {mode:<8} {times['eager']['ms']:.3f} ms, {ratio:.2f} x conv2d", flush=True)
            text = json.dumps({**provenance("python benchmarks/graphs_gpu.py"), "rows": rows}, indent=1) + "\n"
            atomically(RESULTS, lambda path, text=text: path.write_text(text))


if __name__ == "__main__":
    main()
