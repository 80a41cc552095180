"""Networks with a head: their metrics and confusion on the evaluation split, as tables and files."""

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..data.loaders import Batch
from ..tasks.task import Confusion, Metrics
from . import figures

_PRINTED = 12  # classes whose confusion fits into a terminal


@dataclass
class Measured:
    """The measurements of one network, in percent."""

    metrics: Metrics
    confusion: Confusion
    corruptions: dict[str, list[float]] = field(default_factory=dict)  # the best epoch's metric, by severity
    images_per_second: float = 0.0


@torch.inference_mode()
def measure(model: nn.Module, batches: Iterable[Batch], task: Any, device: torch.device) -> Measured:
    """Return the metrics and the confusion of a task with a head."""
    found = task.evaluation(device)
    for images, targets in batches:
        output = model(images.to(device))
        moved = targets.to(device) if isinstance(targets, torch.Tensor) else targets
        found.update(output, moved)
    return Measured(found.compute(), found.confusion())


def show(networks: dict[str, Measured], data: str, best: str, severities: list[int]) -> None:
    """Print the metrics of each network in a column, under corruptions too, and the confusions of few classes.

    Args:
        networks: By name.
        data: The title of the table.
        best: Name of the metric under corruptions.
        severities: Of the corruptions.
    """
    metrics = {name: network.metrics for name, network in networks.items()}
    console = Console(width=120)
    console.print(_metrics(metrics, {name: one.images_per_second for name, one in networks.items()}, data))
    if any(network.corruptions for network in networks.values()):
        console.print(_corrupted(networks, f"{best} under corruption, mean over severities {severities}"))
    for name, network in networks.items():
        if len(network.confusion.names) <= _PRINTED:
            console.print(_confusion(network.confusion, name))


def _metrics(metrics: dict[str, Metrics], speed: dict[str, float], data: str) -> Table:
    table = Table(title=f"{data}, in percent")
    table.add_column("metric")
    for name in metrics:
        table.add_column(name, justify="right")
    for key in next(iter(metrics.values())):
        values = (of[key] for of in metrics.values())
        table.add_row(key, *("–" if math.isnan(value) else f"{value:.2f}" for value in values))
    table.add_section()
    table.add_row("images/s", *(f"{value:.1f}" for value in speed.values()))
    return table


def _corrupted(networks: dict[str, Measured], title: str) -> Table:
    table = Table(title=title)
    table.add_column("corruption")
    for name in networks:
        table.add_column(name, justify="right")
    means = {name: {key: _mean(of) for key, of in one.corruptions.items()} for name, one in networks.items()}
    for key in next(iter(means.values())):
        table.add_row(key, *(f"{of[key]:.1f}" for of in means.values()))
    table.add_section()
    table.add_row("mean", *(f"{_mean(list(of.values())):.1f}" for of in means.values()))
    return table


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _confusion(confusion: Confusion, name: str) -> Table:
    table = Table(title=f"{name}: {confusion.unit}; rows are the truth, columns the answers")
    for i, column in enumerate(("", *confusion.names)):
        table.add_column(column, justify="right" if i else "left")
    for row, values in zip(confusion.names, confusion.counts.tolist(), strict=True):
        table.add_row(row, *(f"{value:,}" for value in values))
    return table


def write(networks: dict[str, Measured], provenance: dict[str, Any], folder: Path) -> None:
    """Write ``results.json``, with null where there is nothing to find, and each confusion as CSV and picture."""
    content = {}
    for name, network in networks.items():
        confusion = network.confusion
        content[name] = {key: _finite(value) for key, value in network.metrics.items()} | {
            "corruptions": {key: list(map(_finite, of)) for key, of in network.corruptions.items()},
            "confusion": {"names": confusion.names, "unit": confusion.unit, "counts": confusion.counts.tolist()},
            "images_per_second": network.images_per_second,
        }
        stem = f"confusion-{name.strip('/').replace('/', '-')}"
        with (folder / f"{stem}.csv").open("w", newline="") as file:
            rows = zip(confusion.names, confusion.counts.tolist(), strict=True)
            csv.writer(file).writerows([["", *confusion.names], *([row, *values] for row, values in rows)])
        title = f"{name}: {confusion.unit}"
        figures.confusion(confusion.counts, title, folder / f"{stem}.png", confusion.names)
    (folder / "results.json").write_text(json.dumps({**provenance, "networks": content}, indent=1) + "\n")
    print(f"written: {folder / 'results.json'}, confusions as CSV and PNG next to it")


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
