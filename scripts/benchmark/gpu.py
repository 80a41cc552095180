"""Times from the GPU's own clock, with its cache cleared before each call, and peak memory."""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

_CALLS = 10  # of each provider in every round


def timed(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Return each step's median in milliseconds, its quartiles, and its peak in bytes, with the inputs.

    Steps alternate within every round. Before each call a buffer larger than any L2 is written, so every provider
    reads its inputs from memory.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = {name: _peak(step) for name, step in steps.items()}  # the calls before the peak are the warm-up
    flush = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    for _ in range(rounds):
        for name, step in steps.items():
            times[name] += _calls(step, flush)
    found = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found[name] = {"ms": middle, "quartiles": [low, high], "peak": peaks[name]}
    return found


def _calls(step: Callable[[], Any], flush: torch.Tensor) -> list[float]:
    pairs = []
    for _ in range(_CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        step()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def _peak(step: Callable[[], Any]) -> int:
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def measured(results: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of an earlier run of the same commit on the same GPU, from the file that it wrote."""
    if not results.is_file():
        return []
    earlier: dict[str, Any] = json.loads(results.read_text())
    # The first rows in the working tree make a commit dirty.
    same = earlier["commit"].removesuffix("-dirty") == about["commit"].removesuffix("-dirty")
    rows: list[dict[str, Any]] = earlier["rows"]
    return rows if same and all(earlier[key] == about[key] for key in ("device", "versions")) else []
