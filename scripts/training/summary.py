"""What a run ends with: accuracy, parameters, FLOPs and latency of each variant."""

import json
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_log = logging.getLogger(__name__)


@dataclass
class Row:
    """One variant; latencies are medians, in milliseconds for the batch."""

    variant: str
    top1: float
    parameters: int
    flops: int
    eager_ms: float | None = None
    compiled_ms: float | None = None


def measure(
    models: dict[str, nn.Module], accuracies: dict[str, float], images: Tensor, rounds: int = 30
) -> list[Row]:
    """Count and time the networks on one batch, in eval mode and interleaved."""
    rows = []
    eager: dict[str, Callable[[], object]] = {}
    compiled: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        model.eval()
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model(images)
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(Row(name, accuracies[name], parameters, counter.get_total_flops() // len(images)))
        eager[name] = partial(model, images)
        compiled[name] = partial(torch.compile(model, fullgraph=True), images)
    eager_ms = _interleaved(eager, rounds, images.device)
    try:
        compiled_ms = _interleaved(compiled, rounds, images.device)
    except Exception as error:  # whatever stops a compiler must not cost the run its results
        _log.warning("torch.compile failed, so the table lacks its latency (is there a C++ compiler?): %s", error)
        compiled_ms = {}
    for row in rows:
        row.eager_ms, row.compiled_ms = eager_ms[row.variant], compiled_ms.get(row.variant)
    return rows


def _interleaved(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for i in range(rounds + 2):  # two to warm up
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if i >= 2:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def show(rows: list[Row], batch: int, title: str, path: Path) -> None:
    """Print the table and write it as JSON."""
    table = Table(title=title)
    columns = ("variant", "top-1 %", "parameters", "MFLOPs", f"eager ms / {batch}", f"compiled ms / {batch}")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        eager, compiled = ("–" if ms is None else f"{ms:.1f}" for ms in (row.eager_ms, row.compiled_ms))
        flops = f"{row.flops / 1e6:.1f}"
        table.add_row(row.variant, f"{row.top1:.2f}", f"{row.parameters:,}", flops, eager, compiled)
    Console().print(table)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
