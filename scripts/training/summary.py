"""The summary of a run: scores, parameters, FLOPs and latency of each variant."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import timing
from ..tasks.task import Metrics

_log = logging.getLogger(__name__)


@dataclass
class Row:
    """One variant; latencies are medians, in milliseconds for the batch."""

    variant: str
    scores: Metrics
    parameters: int
    flops: int
    eager_ms: float | None = None
    compiled_ms: float | None = None

    def as_json(self) -> dict[str, object]:
        """Return one flat object."""
        values = asdict(self)
        # JSON has no NaN.
        scores = {name: value if math.isfinite(value) else None for name, value in values.pop("scores").items()}
        return {"variant": self.variant, **scores, **values}


def measure(
    models: dict[str, nn.Module],
    scores: dict[str, Metrics],
    images: Tensor,
    compiled: Callable[[nn.Module], nn.Module],
    rounds: int = 30,
) -> list[Row]:
    """Count FLOPs and time the networks alternately on one batch, in eval mode; also as ``compiled`` makes them."""
    rows = []
    eager: dict[str, Callable[[], object]] = {}
    fused: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        model.eval()
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), counter:
            model(images)
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(Row(name, scores[name], parameters, counter.get_total_flops() // len(images)))
        eager[name] = partial(model, images)
        fused[name] = partial(compiled(model), images)
    eager_ms = _medians(eager, rounds, images.device)
    try:
        compiled_ms = _medians(fused, rounds, images.device)
    except Exception as error:  # a compiler error must not cost the run its results
        _log.warning("torch.compile failed, so the table lacks its latency (is there a C++ compiler?): %s", error)
        compiled_ms = {}
    for row in rows:
        row.eager_ms, row.compiled_ms = eager_ms[row.variant], compiled_ms.get(row.variant)
    return rows


def _medians(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    with torch.inference_mode():
        times = timing.interleaved(calls, rounds, device.type)
    timing.warn_if_scattered(times)
    return {name: time.median for name, time in times.items()}


def show(rows: list[Row], scores: Callable[[Metrics], dict[str, str]], batch: int, title: str, path: Path) -> None:
    """Print the table, with each row's scores formatted by ``scores``, and write it as JSON."""
    table = Table(title=title)
    columns = (
        "variant",
        *scores(rows[0].scores),
        "parameters",
        "MFLOPs",
        f"eager, ms per {batch} images",
        f"compiled, ms per {batch} images",
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        eager, compiled = ("–" if ms is None else f"{ms:.1f}" for ms in (row.eager_ms, row.compiled_ms))
        flops = f"{row.flops / 1e6:.1f}"
        table.add_row(row.variant, *scores(row.scores).values(), f"{row.parameters:,}", flops, eager, compiled)
    Console().print(table)
    path.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
